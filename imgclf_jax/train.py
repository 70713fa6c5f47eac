"""`--mode=train`: a whole run. Loads the data, builds or resumes, trains, evaluates and records the results."""

import functools
import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from imgclf_jax import components
from imgclf_jax.config import differences, own_parts, to_json
from imgclf_jax.devices import parallel, processes, xla
from imgclf_jax.terminal import interrupt
from imgclf_jax.terminal.console import Console
from imgclf_jax.training import loop, multistep, phases
from imgclf_jax.training.hooks import make_hooks
from imgclf_jax.training.plan import Plan
from imgclf_jax.training.run import Calls, Run
from imgclf_jax.training.session import Session, one_run, prepare
from imgclf_jax.training.summary import show_model, show_results
from imgclf_jax.training.validate import validate
from imgclf_jax.workdir import resume, saved_config


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
    processes.same("code", json.dumps(_digests(config)), lambda mine, first: "a module of your own differs")
    strategy = parallel.create(config, info.image_bytes)
    console = Console(config.log.progress if processes.is_first() else "silent", config.log.line_seconds)
    how = phases.How(new, allow_config_change, config_file)
    with (
        interrupt.catch() as signal,
        phases.opened(config, info, strategy, folder, signal, console, calls or Calls(), how) as run,
    ):
        return phases.attempt(run, lambda: _run(run))


def _run(run: Run) -> int:
    """Runs the remaining steps and evaluations of a run. Returns the exit status."""
    dataset, plan = phases.load(run)
    if processes.is_first():
        run.calls.on_data(dataset.facts())
    experiment = run.calls.build(run.config, plan, dataset.image_shape, dataset.class_names, run.strategy)
    restored, complete = phases.restore_run(run, experiment, dataset)
    # A complete run is unchanged, except that missing evaluations are added.
    results = dict(run.writer.record.content.get("results") or {}) if complete else {}
    missing = [name for name in phases.wanted(run, dataset) if name not in results]
    if complete and not missing:
        resume.heal(run.folder, run.config)
        early = "stopped_early" in run.writer.record.content
        taken = f"stopped early at step {restored.step}" if early else f"all {plan.steps:,} steps were taken before"
        run.console.print(f"complete: {taken}; nothing is left to do")
        if processes.is_first() and (measured := saved_config.load_config(run.folder).eval.tta) != run.config.eval.tta:
            run.console.print(
                f"the results are those with eval.tta={measured}; add --mode=eval for those of this config"
            )
        seconds = run.writer.record.content.get("wall_time_seconds", 0.0)
        show_results(run.console, run.folder, dataset.name, results, seconds)
        return 0
    with xla.quiet():
        session = prepare(experiment, dataset, run.console.task, functools.partial(one_run, restored))
    if restored.step:
        run.console.print(f"resuming at step {restored.step} of {plan.steps}")
    show_model(run.console, run.config, plan, session.state.params, session.flops)
    try:
        # Nothing is left to train of a complete run, even of one that stopped early.
        steps = restored.step if complete else plan.steps
        ended = _loop(run, session, restored.step, plan._replace(steps=steps))
        return phases.finish(run, session, dataset.name, ended, results if complete else None, missing)
    finally:
        session.feed.close()
        # After an error in one of several processes, closing would deadlock: the others are waiting for this process.
        if not processes.several() or isinstance(sys.exc_info()[1], multistep.Diverged | type(None)):
            run.writer.close()


def _loop(run: Run, session: Session, start: int, plan: Plan) -> phases.Ended:
    """Runs the training loop from the step `start` to the end of the plan."""
    strategy = run.strategy
    # Rates exclude the start of the decoding processes and the steps whose data is read before training begins.
    ahead = session.feed.begin(start, plan.steps - start)
    run.console.start(start)
    run.signal.defer()  # Up to here, an exception loses no training.
    with run.calls.watch(session, run.console) as run_steps:
        work = loop.Work(
            run_steps,
            session.feed,
            lambda: strategy.put(multistep.empty_meter(session.experiment.measures)),
            run.config.train.batch_size,
            run.config.train.steps_per_dispatch,
            rates_from=start + ahead,
        )
        ended = phases.Ended(*loop.run(plan, make_hooks(run, session), work, session.state, session.meter))
    session.feed.stop()
    run.console.finish()
    run.writer.wait()
    return ended


def _digests(config):
    """Returns the digests of the modules of one's own, which may be in different folders on different machines."""
    parts = components.sources(own_parts(config).values())
    return {name: part.get("sha256") or part.get("version") for name, part in parts.items()}


def _config_difference(mine, first):
    """Returns the differences between the config of a process and that of the first process, both given as JSON."""
    return "; ".join(differences(json.loads(first), json.loads(mine))) or "in what is logged or saved"
