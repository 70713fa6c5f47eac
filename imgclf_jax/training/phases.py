"""The parts of a run in their order: opening the workdir, loading, restoring, and finishing after the last step."""

import contextlib
import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgclf_jax import augment, components, data, models
from imgclf_jax.config import own_parts, to_json
from imgclf_jax.devices import parallel, processes, xla
from imgclf_jax.errors import UserError, flag
from imgclf_jax.storage import files as storage
from imgclf_jax.terminal.console import Console
from imgclf_jax.training import ancestor, metrics, multistep
from imgclf_jax.training.experiment import Experiment
from imgclf_jax.training.hooks import EARLY, PRUNED, write_row
from imgclf_jax.training.placed import placement
from imgclf_jax.training.plan import Plan, with_labels
from imgclf_jax.training.plan import plan as make_plan
from imgclf_jax.training.run import Calls, Run
from imgclf_jax.training.session import Restored, Session, restore
from imgclf_jax.training.summary import show_classes, show_results
from imgclf_jax.training.validate import warnings as config_warnings
from imgclf_jax.workdir import checkpoint_folder, resume, tensorboard
from imgclf_jax.workdir.checkpoint import Checkpoints
from imgclf_jax.workdir.claim import claim
from imgclf_jax.workdir.record import RunRecord
from imgclf_jax.workdir.rows import read_rows
from imgclf_jax.workdir.writer import Writer

SPLITS = ("train", "valid", "test")  # in the order of their results


class How(NamedTuple):
    """How to open a workdir; see `imgclf_jax.train.train`."""

    new: bool = False
    allow_config_change: bool = False
    config_file: dict[str, str] | None = None


@contextlib.contextmanager
def opened(
    config: ConfigDict,
    info: data.Info,
    strategy: parallel.Parallel,
    folder: Path,
    signal: Any,
    console: Console,
    calls: Calls,
    how: How | None = None,
) -> Iterator[Run]:
    """Claims a workdir within the block and prints what is to be known about the run. Changes nothing in it yet.

    Args:
        config: a valid config.
        info: the facts about its data set.
        strategy: the placement of arrays on devices.
        folder: the workdir.
        signal: the signal that asked to stop; see `imgclf_jax.terminal.interrupt`.
        console: where to print.
        calls: functions to call along the way.
        how: by default, an earlier run is continued if its config is the same.

    Raises:
        UserError: the workdir is in use, or is of another config.
    """
    first, how = processes.is_first(), how or How()
    claimed = processes.together(lambda: claim(folder, how.new) if first else contextlib.nullcontext())
    # Its name may be the current time, which differs between processes.
    folder = Path(processes.gather(str(getattr(claimed, "folder", folder)))[0])
    with claimed, storage.explain_errors(folder):
        parts = components.sources(own_parts(config).values())
        before = resume.inspect(folder, config, how.allow_config_change, parts)
        lines = [f"config changed: {line}" for line in before.changed] + config_warnings(config, info)
        for line in lines:
            console.warn(line)
        console.print(f"workdir {folder}")
        if line := placement(strategy).notice(config, info):
            console.print(line)
        record = RunRecord(folder, before.record, first)
        measured = [*metrics.create(config.metrics), *(metrics.TTA if augment.tta.is_on(config.eval.tta) else ())]
        writer = Writer(
            folder, config, claimed, record, how.config_file, columns=metrics.columns(measured), parts=parts
        )
        processes.when_lost(writer.fail)
        yield Run(config, folder, strategy, before, how.allow_config_change, console, writer, signal, calls)


def attempt(run: Run, work: Callable[[], int]) -> int:
    """Calls `work`, which returns an exit status, and records how it ended. Returns the exit status."""
    try:
        status = work()
    except multistep.Diverged as error:
        status = diverged(run, error.step)
    except BaseException as error:
        run.console.finish()
        with contextlib.suppress(OSError):  # A full disk must not hide what happened.
            record_failure(run, error)
        raise
    if status in (0, 1) and processes.is_first():
        conclude(run)
    return status


def conclude(run: Run) -> None:
    """Adds what `Calls.conclude` returns to the record of a run that is complete or has diverged."""
    conclusion, record = run.calls.conclude(run.folder), run.writer.record
    if any(record.content.get(name) != value for name, value in conclusion.items()):
        record.update(**conclusion)


def load(run: Run) -> tuple[data.Dataset, Plan]:
    """Reads the data, which must be the same in all processes, and makes the plan for it."""
    config, console = run.config, run.console
    dataset = processes.first_alone(lambda: data.load(config.data, progress=console.task, stream=run.strategy.streamed))
    processes.same("data set", json.dumps(dataset.facts()), resume.explain_difference)
    console.finish()
    if dataset.notice:
        console.warn(dataset.notice)
    show_classes(console, dataset, config)
    # The bundled sample is smaller than the data set that it replaces, so plan for the examples that were loaded.
    return dataset, with_labels(make_plan(config, dataset.counts), config, dataset.splits["train"].labels)


def restore_run(run: Run, experiment: Experiment, dataset: data.Dataset) -> tuple[Restored, bool]:
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
    start = run.before.record.get("ancestor") or restored.notes.get("ancestor")
    if restored.tree is None:
        with xla.quiet():
            restored = restored._replace(ancestor=ancestor.load(experiment))
        start = restored.ancestor.facts if restored.ancestor else None
        if restored.ancestor:
            run.console.print(restored.ancestor.line)
    run.writer.know(dataset.facts(), models.head_of(experiment.model), restored.step, restored.damaged, start)
    return restored, not other_data and resume.is_complete(run.before, experiment.plan.steps, restored.step)


class Ended(NamedTuple):
    """The end of a training loop; see `imgclf_jax.training.loop.run`.

    Attributes:
        state: the state.
        step: the number of steps that it has taken.
        stopped: the signal that stopped it, `PRUNED`, `EARLY`, or 0.
    """

    state: Any
    step: int
    stopped: int


def wanted(run: Run, dataset: data.Dataset) -> list[str]:
    """Returns the splits to evaluate at the end."""
    return [name for name in SPLITS if name in dataset.splits and (name != "train" or run.config.eval.train)]


def finish(
    run: Run, session: Session, name: str, ended: Ended, known: dict[str, Any] | None, missing: list[str]
) -> int:
    """Evaluates what is missing after the last step, and records how the run ended. Returns the exit status.

    Args:
        run: the run.
        session: its compiled parts.
        name: of the data set.
        ended: the end of its training.
        known: the results so far, if the run was complete before.
        missing: the splits that are to be evaluated.
    """
    complete, plan, results = known is not None, session.experiment.plan, known or {}
    reported, state = _choose(run, session, ended, complete)
    for split in missing:
        if not _interrupted(run, ended.stopped):
            with xla.quiet():
                results[split] = session.evaluate(split, state, tta=split != "train")
    if ended.stopped == PRUNED:
        run.writer.end(status="pruned", step=ended.step)
        run.console.result(f"pruned at step {ended.step} of {plan.steps}; saved. The same command continues it")
        run.console.emit({"status": "pruned", "step": ended.step, "workdir": str(run.folder)})
        return 0
    if number := _interrupted(run, ended.stopped):
        run.writer.end(status="interrupted", step=ended.step)
        command = run.calls.resume_command(run.folder)
        run.console.result(f"interrupted at step {ended.step} of {plan.steps}; saved. To continue:\n  {command}")
        end = {"status": "interrupted", "step": ended.step, "workdir": str(run.folder), "command": command}
        run.console.emit(end)
        return 128 + number
    results = {split: results[split] for split in SPLITS if split in results}
    ending = {"step": ended.step, "reported_step": reported, "results": results}
    if ended.stopped == EARLY and not complete:
        ending["stopped_early"] = {"step": ended.step, "patience": run.config.train.patience}
        run.console.print(f"stopped early at step {ended.step} of {plan.steps}")
    _record(run, session, ending, missing, complete)
    show_results(run.console, run.folder, name, results, run.writer.record.wall_time)
    return 0


def _choose(run, session, ended, complete):
    """Returns the step of the checkpoint to report, and its state."""
    state, step, stopped = ended
    reported = step
    if complete:
        reported = run.writer.record.content["reported_step"]
    elif run.config.eval.report == "best" and not _interrupted(run, stopped):
        reported = _best(run.folder) or step
    return reported, state if reported == step else _read(run.folder, reported, session.experiment)


def _interrupted(run, stopped):
    """Returns the number of the signal that ends the run, or 0."""
    # All processes must end the same way, so a signal that came too late to be agreed on is ignored.
    stopped = 0 if stopped == EARLY else stopped
    return stopped if processes.several() else stopped or run.signal.number


def _record(run: Run, session: Session, ending: dict[str, Any], missing: list[str], complete: bool) -> None:
    """Records all results of a run, or only the missing ones if it was already complete."""
    writer, results = run.writer, ending["results"]
    if not complete:
        writer.begin()
    if "test" in missing:
        if complete:
            writer.open_files()
        write_row(run, session.experiment, ending["reported_step"], "test", results["test"])
    writer.files.flush()
    if complete:
        writer.record.update(results=results)
        return
    rates = [row["images_per_second"] for row in read_rows(run.folder) if row["images_per_second"]]
    rate = statistics.median(rates) if rates else None
    writer.record.update(status="complete", flops_per_step=session.flops, images_per_second=rate, **ending)
    if run.config.log.tensorboard and processes.is_first():
        with contextlib.suppress(OSError):  # The run is complete without it.
            tensorboard.add_hyperparameters(run.folder, to_json(run.config), results)


def diverged(run: Run, step: int) -> int:
    """Records that a run has diverged at a step, and says so. Returns the exit status."""
    run.writer.end(status="diverged", diverged_at_step=step)
    run.console.finish()
    run.console.emit({"status": "diverged", "step": step, "workdir": str(run.folder)})
    kept = f"; earlier checkpoints are kept in {run.folder}" if checkpoint_folder.exists(run.folder) else ""
    run.console.warn(
        f"diverged: the loss or a gradient is not finite at step {step}{kept}. Try a lower learning rate, "
        f"{flag('optim.learning_rate', float(f'{run.config.optim.learning_rate / 3:.1g}'))}, or also "
        "--config.optim.warmup_epochs=1 or --config.optim.clip_norm=1"
    )
    return 1


def record_failure(run: Run, error: BaseException) -> None:
    """Records an error, unless the run has not begun and the user can fix the cause."""
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
