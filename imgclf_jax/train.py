"""`--mode=train`: a whole run. Loads the data, builds or resumes, trains, evaluates and records the results."""

import contextlib
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgclf_jax import data
from imgclf_jax.config import differences, to_json
from imgclf_jax.devices import parallel, processes, xla
from imgclf_jax.errors import UserError
from imgclf_jax.storage import files as storage
from imgclf_jax.terminal import interrupt
from imgclf_jax.terminal.console import Console
from imgclf_jax.training import loop, metrics, multistep
from imgclf_jax.training.experiment import Experiment
from imgclf_jax.training.hooks import PRUNED, make_hooks, write_row
from imgclf_jax.training.placed import placement
from imgclf_jax.training.plan import Plan
from imgclf_jax.training.plan import plan as make_plan
from imgclf_jax.training.run import Calls, Run
from imgclf_jax.training.session import Restored, Session, prepare, restore
from imgclf_jax.training.summary import show_model, show_results
from imgclf_jax.training.validate import validate
from imgclf_jax.training.validate import warnings as config_warnings
from imgclf_jax.workdir import checkpoint_folder, resume
from imgclf_jax.workdir.checkpoint import Checkpoints
from imgclf_jax.workdir.claim import claim
from imgclf_jax.workdir.record import RunRecord
from imgclf_jax.workdir.rows import read_rows
from imgclf_jax.workdir.writer import Writer

SPLITS = ("train", "valid", "test")  # in the order of their results


def train(
    config: ConfigDict,
    folder: Path,
    *,
    new: bool = False,
    allow_config_change: bool = False,
    config_file: dict[str, str] | None = None,
    calls: Calls | None = None,
) -> int:
    """Trains in a workdir, or continues its run.

    Args:
        config: a config; it is validated here.
        folder: the workdir; it is created if it does not exist.
        new: whether the workdir must be new. If the name is taken, -2, -3 and so on is appended.
        allow_config_change: whether to continue even if the config differs from that at the start of the run.
        config_file: the result of `imgclf_jax.workdir.provenance.describe_file`, for the record.
        calls: functions to call along the way.

    Returns:
        The exit status: 0 if complete or pruned, 1 if diverged, 128 + signal if interrupted.

    Raises:
        UserError: the user can fix the cause. Existing checkpoints are unchanged and, before the first new step, so is
            everything else. An error that any process finds before training begins is raised in all of them.
    """
    _, info = processes.together(lambda: validate(config))
    processes.same("config", json.dumps(to_json(config)), _config_difference)
    strategy = parallel.create(config, info.image_bytes)
    first = processes.is_first()
    console = Console(config.log.progress if first else "silent", config.log.line_seconds)
    claimed = processes.together(lambda: claim(folder, new) if first else contextlib.nullcontext())
    # Its name may be the current time, which differs between processes.
    folder = Path(processes.gather(str(getattr(claimed, "folder", folder)))[0])
    with claimed, interrupt.catch() as signal, storage.explain_errors(folder):
        before = resume.inspect(folder, config, allow_config_change)
        lines = [f"config changed: {line}" for line in before.changed] + config_warnings(config, info)
        for line in lines:
            console.warn(line)
        console.print(f"workdir {folder}")
        if line := placement(strategy).notice(config, info):
            console.print(line)
        record = RunRecord(folder, before.record, first)
        writer = Writer(folder, config, claimed, record, config_file, columns=metrics.COLUMNS)
        processes.when_lost(writer.fail)
        run = Run(config, folder, strategy, before, allow_config_change, console, writer, signal, calls or Calls())
        try:
            status = _run(run)
        except loop.Diverged as diverged:
            status = _diverged(run, diverged.step)
        except BaseException as error:
            console.finish()
            with contextlib.suppress(OSError):  # A full disk must not hide what happened.
                _record_failure(run, error)
            raise
        if status in (0, 1) and first:
            conclusion = run.calls.conclude(folder)
            if any(record.content.get(name) != value for name, value in conclusion.items()):
                record.update(**conclusion)
        return status


def _run(run: Run) -> int:
    """Runs the remaining steps and evaluations of a run. Returns the exit status."""
    dataset, plan = _load(run)
    if processes.is_first():
        run.calls.on_data(dataset.facts())
    experiment = run.calls.build(run.config, plan, dataset.image_shape, dataset.class_names, run.strategy)
    restored, complete = _restore(run, experiment, dataset)
    wanted = [name for name in SPLITS if name in dataset.splits and (name != "train" or run.config.eval.train)]
    # A complete run is unchanged, except that missing evaluations are added.
    results = dict(run.writer.record.content.get("results") or {}) if complete else {}
    missing = [name for name in wanted if name not in results]
    if complete and not missing:
        resume.heal(run.folder, run.config)
        run.console.print(f"complete: all {plan.steps:,} steps were taken before; nothing is left to do")
        seconds = run.writer.record.content.get("wall_time_seconds", 0.0)
        show_results(run.console, run.folder, dataset.name, results, seconds)
        return 0
    with xla.quiet():
        session = prepare(experiment, dataset, restored, run.console.task)
    if restored.step:
        run.console.print(f"resuming at step {restored.step} of {plan.steps}")
    show_model(run.console, run.config, plan, session.state.params, session.flops)
    try:
        state, step, stopped = _loop(run, session, restored.step)
        reported, state = _choose(run, session, state, step, stopped, complete)
        for name in missing:
            if not _interrupted(run, stopped):
                with xla.quiet():
                    results[name] = session.evaluate(name, state)
        if stopped == PRUNED:
            run.writer.end(status="pruned", step=step)
            run.console.print(f"pruned at step {step} of {plan.steps}; saved. The same command continues it")
            return 0
        if number := _interrupted(run, stopped):
            run.writer.end(status="interrupted", step=step)
            command = run.calls.resume_command(run.folder)
            run.console.print(f"interrupted at step {step} of {plan.steps}; saved. To continue:\n  {command}")
            return 128 + number
        results = {name: results[name] for name in SPLITS if name in results}
        _record(run, session, {"step": step, "reported_step": reported, "results": results}, missing, complete)
        show_results(run.console, run.folder, dataset.name, results, run.writer.record.wall_time)
        return 0
    finally:
        session.feed.close()
        # After an error in one of several processes, closing would deadlock: the others are waiting for this process.
        if not processes.several() or isinstance(sys.exc_info()[1], loop.Diverged | type(None)):
            run.writer.close()


def _load(run: Run) -> tuple[data.Dataset, Plan]:
    """Reads the data, which must be the same in all processes, and makes the plan for it."""
    config, console = run.config, run.console
    dataset = processes.first_alone(lambda: data.load(config.data, progress=console.task, stream=run.strategy.streamed))
    processes.same("data set", json.dumps(dataset.facts()), resume.explain_difference)
    console.finish()
    if dataset.notice:
        console.warn(dataset.notice)
    # The bundled sample is smaller than the data set that it replaces, so plan for the examples that were loaded.
    return dataset, make_plan(config, dataset.counts)


def _restore(run: Run, experiment: Experiment, dataset: data.Dataset) -> tuple[Restored, bool]:
    """Reads the newest checkpoint. Returns it, and whether the run was already complete."""
    if processes.several():
        run.signal.defer()  # From here on, all processes must stop at the same step.
    with xla.quiet():
        restored = restore(experiment, run.folder, dataset.location)
    known = resume.known_data(run.before, restored.notes) if restored.tree else {}
    other_data = resume.check_data(known, dataset.facts(), run.folder, run.console.warn, run.allow_change)
    for reason in restored.damaged.values():
        if processes.is_first():
            warnings.warn(f"{reason}; continuing from step {restored.step}", stacklevel=2)
    run.writer.know(dataset.facts(), restored.step, restored.damaged)
    return restored, not other_data and resume.is_complete(run.before, experiment.plan.steps, restored.step)


def _loop(run: Run, session: Session, start: int) -> tuple[Any, int, int]:
    """Runs the training loop. Returns the state, the number of steps it has taken, and the signal that stopped it."""
    plan, strategy = session.experiment.plan, run.strategy
    # Rates exclude the start of the decoding processes and the steps whose data is read before training begins.
    ahead = session.feed.begin(start, plan.steps - start)
    run.console.start(start)
    run.signal.defer()  # Up to here, an exception loses no training.
    work = loop.Work(
        session.run_steps,
        session.feed,
        lambda: strategy.put(multistep.empty_meter()),
        run.config.train.batch_size,
        run.config.train.steps_per_dispatch,
        rates_from=start + ahead,
    )
    ended = loop.run(plan, make_hooks(run, session), work, session.state, session.meter)
    session.feed.stop()
    run.console.finish()
    run.writer.wait()
    return ended


def _choose(run, session, state, step, stopped, complete) -> tuple[int, Any]:
    """Returns the step of the checkpoint to report, and its state."""
    reported = step
    if complete:
        reported = run.writer.record.content["reported_step"]
    elif run.config.eval.report == "best" and not _interrupted(run, stopped):
        reported = _best(run.folder) or step
    return reported, state if reported == step else _read(run.folder, reported, session.experiment)


def _interrupted(run, stopped):
    """Returns the number of the signal that ends the run, or 0."""
    # All processes must end the same way, so a signal that came too late to be agreed on is ignored.
    return stopped if processes.several() else stopped or run.signal.number


def _record(run: Run, session: Session, ending: dict[str, Any], missing: list[str], complete: bool) -> None:
    """Records all results of a run, or only the missing ones if it was already complete."""
    writer, results = run.writer, ending["results"]
    if not complete:
        writer.begin()
    if "test" in missing:
        if complete:
            writer.open_files()
        write_row(writer, session.experiment.plan, ending["reported_step"], "test", results["test"])
    writer.files.flush()
    if complete:
        writer.record.update(results=results)
        return
    rates = [row["images_per_second"] for row in read_rows(run.folder) if row["images_per_second"]]
    rate = statistics.median(rates) if rates else None
    writer.record.update(status="complete", flops_per_step=session.flops, images_per_second=rate, **ending)


def _diverged(run: Run, step: int) -> int:
    run.writer.end(status="diverged", diverged_at_step=step)
    run.console.finish()
    kept = f"; earlier checkpoints are kept in {run.folder}" if checkpoint_folder.exists(run.folder) else ""
    run.console.warn(
        f"diverged: the loss or a gradient is not finite at step {step}{kept}. Try a lower optim.learning_rate, "
        "optim.warmup_steps or optim.clip_norm"
    )
    return 1


def _record_failure(run: Run, error: BaseException) -> None:
    # An error that the user can fix, raised before any work was done, does not belong in the record of the run.
    if run.before.new and isinstance(error, Exception) and not isinstance(error, UserError | OSError):
        run.writer.write_down()
    if run.writer.begun:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        run.writer.record.update(status=status, error=f"{type(error).__name__}: {error}"[:2000])


def _best(folder):
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        return checkpoints.best()
    finally:
        checkpoints.close()


def _read(folder, step, experiment):
    """Returns the state of a checkpoint other than the newest."""
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        return checkpoints.restore(step, experiment.template())["state"]
    finally:
        checkpoints.close()


def _config_difference(mine, first):
    """Returns the differences between the config of a process and that of the first process, both given as JSON."""
    return "; ".join(differences(json.loads(first), json.loads(mine))) or "in what is logged or saved"
