"""A whole run: data, compilation, training or resuming, the final evaluation, and the record of it all."""

import contextlib
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from imgclf_jax import data
from imgclf_jax.config import differences, to_json
from imgclf_jax.devices import processes, xla
from imgclf_jax.errors import UserError
from imgclf_jax.storage import files as storage
from imgclf_jax.terminal import interrupt
from imgclf_jax.terminal.console import Console
from imgclf_jax.training import feed, loop
from imgclf_jax.training.session import Session, prepare, restore
from imgclf_jax.training.summary import not_finite, show_model, show_results
from imgclf_jax.training.validate import Plan, validate
from imgclf_jax.training.validate import plan as make_plan
from imgclf_jax.training.validate import warnings as config_warnings
from imgclf_jax.workdir import checkpoint_folder, resume
from imgclf_jax.workdir.checkpoint import Checkpoints
from imgclf_jax.workdir.claim import claim
from imgclf_jax.workdir.record import RunRecord
from imgclf_jax.workdir.rows import METRICS, read_rows
from imgclf_jax.workdir.writer import Writer


def train(
    config: ConfigDict,
    folder: Path,
    *,
    new: bool = False,
    allow_config_change: bool = False,
    resume_command: Callable[[Path], str] = lambda folder: "",
    config_file: dict[str, str] | None = None,
) -> int:
    """Trains in a workdir, or goes on with the run that is there.

    Args:
        config: a config; validated here.
        folder: the workdir, made if it is missing.
        new: whether the workdir must be a new one. If the name is taken, -2, -3 and so on is appended to it.
        allow_config_change: go on although the config differs from the one the run was started with.
        resume_command: maps the workdir to the command line that continues this run. It is printed when a signal
            interrupts the run.
        config_file: the result of `imgclf_jax.workdir.provenance.describe_file`, which goes into the record.

    Returns:
        The exit status: 0 complete, 1 diverged, 128 + signal when interrupted.

    Raises:
        UserError: something is wrong that the user can fix. Existing checkpoints stay as they are; before the first
            new step, so does everything else. An error that any process finds before training begins is raised in all
            of them.
    """
    _, info = processes.together(lambda: validate(config))
    processes.same("config", json.dumps(to_json(config)), _config_difference)
    streamed = feed.is_streamed(config, info)
    writes = processes.is_first()
    console = Console(config.log.progress if writes else "silent", config.log.line_seconds)
    claimed = processes.together(lambda: claim(folder, new) if writes else contextlib.nullcontext())
    # Its name may be the time, which differs between processes.
    folder = Path(processes.gather(str(getattr(claimed, "folder", folder)))[0])
    with claimed, interrupt.catch() as signal, storage.explain_errors(folder):
        before = resume.inspect(folder, config, allow_config_change)
        for line in before.changed:
            console.warn(f"config changed: {line}")
        for line in config_warnings(config, info):
            console.warn(line)
        console.print(f"workdir {folder}")
        if streamed:
            console.print(feed.notice(config, info))
        record = RunRecord(folder, before.record, writes)
        writer = Writer(folder, config, claimed, record, config_file, columns=METRICS)
        processes.when_lost(writer.fail)
        try:
            return _run(config, folder, console, writer, before, signal, resume_command, allow_config_change, streamed)
        except loop.Diverged as diverged:
            writer.end(status="diverged", diverged_at_step=diverged.step)
            console.finish()
            kept = f"; checkpoints from before are kept in {folder}" if checkpoint_folder.exists(folder) else ""
            console.warn(
                f"diverged: the loss or a gradient is not finite at step {diverged.step}{kept}. Try a lower "
                "optim.learning_rate, optim.warmup_steps or optim.clip_norm"
            )
            return 1
        except BaseException as error:
            console.finish()
            with contextlib.suppress(OSError):  # A full disk must not hide what happened.
                # An error that the user can fix, raised before anything was done, is not part of the run's history.
                if before.new and isinstance(error, Exception) and not isinstance(error, UserError | OSError):
                    writer.write_down()
                if writer.begun:
                    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                    record.update(status=status, error=f"{type(error).__name__}: {error}"[:2000])
            raise


def _run(config, folder, console, writer, before, signal, resume_command, allow_change, streamed) -> int:
    dataset = processes.first_alone(lambda: data.load(config.data, progress=console.task, stream=streamed))
    facts = dataset.facts()
    processes.same("data set", json.dumps(facts), resume.explain_difference)
    console.finish()
    if dataset.notice:
        console.warn(dataset.notice)
    # The bundled sample is smaller than the set it stands for: the plan is that of the examples there are.
    plan = make_plan(config, {name: len(split.labels) for name, split in dataset.splits.items()})
    if processes.several():
        signal.defer()  # From here on, all processes must stop at the same step.
    with xla.quiet():
        restored = restore(config, plan, folder, dataset)
    known = resume.known_data(before, restored.notes) if restored.tree else {}
    other_data = resume.check_data(known, facts, folder, console.warn, allow_change)
    for reason in restored.damaged.values():
        if processes.is_first():
            warnings.warn(f"{reason}; going on from step {restored.step}", stacklevel=2)
    writer.know(facts, restored.step, restored.damaged)

    record = writer.record
    wanted = [name for name in ("train", "valid", "test") if name in dataset.splits]
    wanted = [name for name in wanted if name != "train" or config.eval.train]
    # A complete run stays as it is, except that missing evaluations are added.
    complete = not other_data and resume.is_complete(before, plan.steps, restored.step)
    results = dict(record.content.get("results") or {}) if complete else {}
    if complete and all(name in results for name in wanted):
        resume.heal(folder, config)
        console.print(f"complete: all {plan.steps:,} steps were taken before, and nothing is left to do")
        show_results(console, folder, dataset.name, results, record.content.get("wall_time_seconds", 0.0))
        return 0

    with xla.quiet():
        session = prepare(config, plan, dataset, restored, console.task)
    start = restored.step
    if start:
        console.print(f"resuming at step {start} of {plan.steps}")
    show_model(console, config, plan, session.state.params, session.flops)
    try:
        # Rates include neither the start of the decoding processes nor the steps whose data they have read by then.
        ahead = session.feed(start, plan.steps - start)[1] if streamed and start < plan.steps else 0
        console.start(start)
        signal.defer()  # Until here, nothing has been trained that an exception could lose.
        state, step, stopped = loop.run(
            plan,
            _hooks(session, plan, writer, console, signal),
            session.run_steps,
            session.feed,
            session.state,
            session.meter,
            batch_size=config.train.batch_size,
            steps_per_dispatch=config.train.steps_per_dispatch,
            rates_from=start + ahead,
        )
        session.feed.stop()
        console.finish()
        writer.wait()

        def interrupted():
            """Of several processes, all must take the same way: what came too late to be agreed on is ignored."""
            return stopped if processes.several() else stopped or signal.number

        reported = step
        if complete:
            reported = record.content["reported_step"]
        elif config.eval.report == "best" and not interrupted():
            reported = _best(folder) or step
        if reported != step:
            state = _read(folder, reported, session)
        missing = [name for name in wanted if name not in results]
        for name in missing:
            if not interrupted():
                with xla.quiet():
                    results[name] = session.evaluate(name, state)
        if number := interrupted():
            writer.end(status="interrupted", step=step)
            command = resume_command(folder)
            console.print(f"interrupted at step {step} of {plan.steps}; saved. To go on:\n  {command}")
            return 128 + number
        results = {name: results[name] for name in ("train", "valid", "test") if name in results}
        if complete:
            if "test" in missing:
                writer.open_files()
                _write_row(writer, plan, reported, "test", results["test"])
                writer.files.flush()
            record.update(results=results)
        else:
            writer.begin()
            if "test" in results:
                _write_row(writer, plan, reported, "test", results["test"])
            writer.files.flush()
            rates = [row["images_per_second"] for row in read_rows(folder) if row["images_per_second"]]
            record.update(
                status="complete",
                step=step,
                reported_step=reported,
                flops_per_step=session.flops,
                images_per_second=statistics.median(rates) if rates else None,
                results=results,
            )
        show_results(console, folder, dataset.name, results, record.wall_time)
        return 0
    finally:
        session.feed.close()
        # After an error in one of several processes an orderly end would wait for the others, who wait for this one.
        if not processes.several() or isinstance(sys.exc_info()[1], loop.Diverged | type(None)):
            writer.close()


def _best(folder):
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        return checkpoints.best()
    finally:
        checkpoints.close()


def _read(folder, step, session):
    """The state of a checkpoint other than the newest."""
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        return checkpoints.restore(step, session.template)["state"]
    finally:
        checkpoints.close()


def _hooks(session: Session, plan: Plan, writer: Writer, console: Console, signal) -> loop.Hooks:
    learning_rate = jax.jit(session.experiment.schedule)

    def progress(now: loop.Progress):
        writer.begin()
        writer.poll()
        epoch = now.step / plan.steps_per_epoch
        if now.row:
            with xla.quiet():
                rate = float(learning_rate(now.step - 1))
            writer.files.write(
                step=now.step,
                epoch=epoch,
                split="train",
                loss=now.loss,
                accuracy=now.accuracy,
                learning_rate=rate,
                images_per_second=None if now.images_per_second is None else round(now.images_per_second, 1),
            )
        values = f"loss {now.loss:.4f}  accuracy {now.accuracy:.4f}"
        if now.images_per_second is not None:
            values += f"  {now.images_per_second:,.0f} images/s"
        console.train(now.step, plan.steps, f"epoch {epoch:.2f}  {values}", now.row)

    def evaluate_valid(state, step):
        if not plan.valid_count:
            return None
        with xla.quiet():
            result = session.evaluate("valid", state)
        _write_row(writer, plan, step, "valid", result)
        values = f"validation loss {result['loss']:.4f}  accuracy {result['accuracy']:.4f}"
        values += not_finite(result)
        console.print(f"step {step}/{plan.steps}  epoch {step / plan.steps_per_epoch:.2f}  {values}")
        return result["accuracy"]

    def save(state, meter, step, valid_accuracy):
        with xla.quiet():
            if not session.is_finite(state):
                raise loop.Diverged(step)
            writer.save(step, {"state": state, "meter": meter, "inputs": session.inputs}, valid_accuracy)

    return loop.Hooks(progress, evaluate_valid, save, lambda: signal.number, session.agree)


def _config_difference(mine, first):
    return "; ".join(differences(json.loads(first), json.loads(mine))) or "in what is logged or saved"


def _write_row(writer, plan, step, split, result):
    epoch = step / plan.steps_per_epoch
    writer.files.write(step=step, epoch=epoch, split=split, loss=result["loss"], accuracy=result["accuracy"])
