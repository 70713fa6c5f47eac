"""A whole run: data, compilation, training or resuming, the final evaluation, and the record of it all."""

import contextlib
import errno
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imgclf_jax import checkpoint, compiler, data, feed, hosts, interrupt, loop, provenance, workdir
from imgclf_jax.config import differences, to_json
from imgclf_jax.console import Console
from imgclf_jax.errors import UserError
from imgclf_jax.logs import MetricsFiles, NoFiles, read_rows
from imgclf_jax.session import Session, prepare
from imgclf_jax.summary import show_model, show_results
from imgclf_jax.validate import Plan, validate
from imgclf_jax.validate import plan as make_plan

# Of a disk or a quota that is full, of one that fails or can no longer be written.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

# Of what is written down about a data set, that which is the same whether it is streamed or not.
COMPARABLE = ("class_names", "image_shape", "counts")


def train(config: ConfigDict, folder: Path, *, allow_config_change: bool = False, resume_command: str = "") -> int:
    """Trains in a workdir, or goes on with the run that is there.

    Args:
        config: a config; validated here.
        folder: the workdir, made if it is missing.
        allow_config_change: go on although the config differs from the one the run was started with.
        resume_command: the command line that continues this run, told to a user who interrupts it.

    Returns:
        The exit status: 0 complete, 1 diverged, 128 + signal when interrupted.

    Raises:
        UserError: anything that the user can mend; checkpoints that are there stay as they are. What any process finds
            before training begins is raised in all of them.
    """
    _, info = hosts.together(lambda: validate(config))
    hosts.same("config", json.dumps(to_json(config)), _config_difference)
    streamed = feed.is_streamed(config, info)
    folder = Path(hosts.gather(str(folder))[0])  # Its name may be the time, which differs between processes.
    changed = hosts.together(lambda: workdir.check_config(folder, config, allow_config_change))
    writes = hosts.is_first()
    console = Console(config.log.progress if writes else "silent", config.log.line_seconds)
    lock = hosts.together(lambda: workdir.open_workdir(folder) if writes else contextlib.nullcontext())
    with lock, interrupt.catch() as signal, _telling_of_storage(folder):
        for line in changed:
            console.warn(f"config changed: {line}")
        for overlap in info.overlaps:
            console.warn(overlap)
        console.print(f"workdir {folder}")
        if streamed:
            console.print(feed.notice(config, info))
        before = (workdir.read_json(folder / "run.json") or {}).get("data")
        record = workdir.RunRecord(folder, writes, seed=config.seed, data=before or {"name": info.name})
        hosts.when_lost(record.fail)
        try:
            record.update(provenance=provenance.collect())
            return _run(config, folder, console, record, signal, resume_command, allow_config_change, streamed)
        except loop.Diverged as diverged:
            record.update(status="diverged", diverged_at_step=diverged.step)
            console.finish()
            console.warn(
                f"diverged: the loss or a gradient is not finite at step {diverged.step}; checkpoints from before are "
                f"kept in {folder}. Try a lower optim.learning_rate, optim.warmup_steps or optim.clip_norm"
            )
            return 1
        except BaseException as error:
            console.finish()
            with contextlib.suppress(OSError):  # A full disk must not hide what happened.
                status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                record.update(status=status, error=f"{type(error).__name__}: {error}"[:2000])
            raise


@contextlib.contextmanager
def _telling_of_storage(folder):
    try:
        yield
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        raise UserError(
            f"cannot write to workdir {folder}: {error.strerror}; what was saved before is kept. Make room there and "
            "run the same command again with this --workdir"
        ) from error


def _run(config, folder, console, record, signal, resume_command, allow_change, streamed) -> int:
    dataset = hosts.first_alone(lambda: data.load(config.data, progress=console.task, stream=streamed))
    hosts.same("data set", json.dumps(_describe(dataset)), _data_difference)
    console.finish()
    if dataset.notice:
        console.warn(dataset.notice)
    # The bundled sample is smaller than the set it stands for: the plan is that of the examples there are.
    plan = make_plan(config, {name: len(split.labels) for name, split in dataset.splits.items()})
    _check_data(record.content["data"], dataset, folder, console, allow_change)
    record.update(data=_describe(dataset))
    if hosts.is_first():
        workdir.save_config(folder, config)
    if hosts.several():
        signal.defer()  # From here on all processes must stop at the same step.
    with compiler.quiet():
        session = prepare(config, plan, folder, dataset, console.task)
    start = int(session.state.step)
    if start:
        console.print(f"resuming at step {start} of {plan.steps}")
    show_model(console, config, plan, session.state.params, session.flops)
    files = MetricsFiles(folder, start, config.log.tensorboard) if hosts.is_first() else NoFiles()
    try:
        if start < plan.steps:
            session.feed(start, 1)  # The start of processes that decode is no part of the first rate.
        console.start(start)
        signal.defer()  # Until here nothing has been trained that would be lost.
        state, step, stopped = loop.run(
            plan,
            _hooks(session, plan, files, console, record, signal),
            session.run_steps,
            session.feed,
            session.state,
            session.meter,
            batch_size=config.train.batch_size,
            steps_per_dispatch=config.train.steps_per_dispatch,
        )
        session.feed.stop()
        console.finish()
        session.checkpoints.wait()
        reported = step

        def interrupted():
            """Of several processes, all must take the same way: what came too late to be agreed on is ignored."""
            return stopped if hosts.several() else stopped or signal.number

        if config.eval.report == "best" and not interrupted():
            best = session.checkpoints.best()
            if best is not None and best != step:
                state, reported = session.restore(best), best
        results: dict[str, dict[str, float | int]] = {}
        for name in ("train", "valid", "test"):
            if name in dataset.splits and not interrupted() and (name != "train" or config.eval.train):
                with compiler.quiet():
                    results[name] = session.evaluate(name, state)
        if number := interrupted():
            record.update(status="interrupted", step=step)
            console.print(f"interrupted at step {step} of {plan.steps}; saved. To go on:\n  {resume_command}")
            return 128 + number
        if "test" in results:
            _write_row(files, plan, reported, "test", results["test"])
        files.flush()
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
        if not hosts.several() or isinstance(sys.exc_info()[1], loop.Diverged | type(None)):
            with contextlib.suppress(OSError):
                files.close()
            session.checkpoints.close()


def _check_data(before, dataset, folder, console, allow_change):
    """Training must not go on with other data than it began with, unless that is meant."""
    fingerprint = before.get("fingerprint", dataset.fingerprint)
    if fingerprint == dataset.fingerprint or not checkpoint.exists(folder):
        return
    described = _describe(dataset)
    # Streamed before and now not, or the other way round: nothing that is known of both tells more than this.
    comparable = _kind(fingerprint) == _kind(dataset.fingerprint)
    if not comparable and all(before.get(name) == described[name] for name in COMPARABLE):
        return
    places = [f"{before['name']} in {before['location']}", f"{dataset.name} in {dataset.location}"]
    what = f"{places[0]} has changed" if places[0] == places[1] else " -> ".join(places)
    if not allow_change:
        raise UserError(
            f"workdir {folder} holds a run on other data ({what}; fingerprint {fingerprint[:12]} -> "
            f"{dataset.fingerprint[:12]}); choose another --workdir, or insist with --allow_config_change"
        )
    console.warn(f"data changed: {what}")


def _kind(fingerprint):
    return fingerprint.rpartition(":")[0]


def _hooks(session: Session, plan: Plan, files: MetricsFiles | NoFiles, console: Console, record, signal) -> loop.Hooks:
    learning_rate = jax.jit(session.experiment.schedule)

    def progress(now: loop.Progress):
        epoch = now.step / plan.steps_per_epoch
        if now.row:
            with compiler.quiet():
                rate = float(learning_rate(now.step - 1))
            files.write(
                step=now.step,
                epoch=epoch,
                split="train",
                loss=now.loss,
                accuracy=now.accuracy,
                learning_rate=rate,
                images_per_second=round(now.images_per_second, 1),
            )
        values = f"loss {now.loss:.4f}  accuracy {now.accuracy:.4f}  {now.images_per_second:,.0f} images/s"
        console.train(now.step, plan.steps, f"epoch {epoch:.2f}  {values}", now.row)

    def evaluate_valid(state, step):
        if not plan.valid_count:
            return None
        with compiler.quiet():
            result = session.evaluate("valid", state)
        _write_row(files, plan, step, "valid", result)
        values = f"validation loss {result['loss']:.4f}  accuracy {result['accuracy']:.4f}"
        console.print(f"step {step}/{plan.steps}  epoch {step / plan.steps_per_epoch:.2f}  {values}")
        return result["accuracy"]

    def save(state, meter, step, valid_accuracy):
        with compiler.quiet():
            if not session.is_finite(state):
                raise loop.Diverged(step)
            # The rows up to this step must be there before the checkpoint that will not write them again.
            files.flush()
            payload = {"state": state, "meter": meter, "inputs": session.inputs}
            session.checkpoints.save(step, payload, valid_accuracy)
        record.update(step=step)

    return loop.Hooks(progress, evaluate_valid, save, lambda: signal.number, session.agree)


def _config_difference(mine, first):
    return "; ".join(differences(json.loads(first), json.loads(mine))) or "in what is logged or saved"


def _data_difference(mine, first):
    mine, first = json.loads(mine), json.loads(first)
    return "; ".join(f"{name}: {first[name]} -> {mine[name]}" for name in first if first[name] != mine[name])


def _write_row(files, plan, step, split, result):
    epoch = step / plan.steps_per_epoch
    files.write(step=step, epoch=epoch, split=split, loss=result["loss"], accuracy=result["accuracy"])


def _describe(dataset: data.Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "location": dataset.location,
        "fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "counts": {name: len(split.labels) for name, split in dataset.splits.items()},
    }
