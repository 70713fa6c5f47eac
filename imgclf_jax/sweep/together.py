"""Several runs of a sweep at once, in one program. Each of them writes its own run directory, as if it were alone."""

import contextlib
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgclf_jax import data
from imgclf_jax.devices import parallel, xla
from imgclf_jax.errors import UserError
from imgclf_jax.terminal import interrupt
from imgclf_jax.terminal.console import Console
from imgclf_jax.training import loop, members, multistep, phases
from imgclf_jax.training.hooks import EARLY, PRUNED, make_hooks, ran_out
from imgclf_jax.training.run import Calls, Run
from imgclf_jax.training.session import Restored, Session, prepare
from imgclf_jax.training.summary import show_model
from imgclf_jax.training.validate import validate
from imgclf_jax.workdir import checkpoint_folder


class Apart(Exception):
    """These runs cannot train in one program."""


def kind(config: ConfigDict, folder: Path) -> str:
    """Returns what runs must have in common to train together: all but the seed and numbers, and the steps so far."""
    return json.dumps([members.shape(config), checkpoint_folder.steps(folder)[-1:]], sort_keys=True)


def pays(config: ConfigDict) -> bool:
    """Whether several runs of a config in one program are faster than one after another, by what is known beforehand.

    Those of a dense network are; others train one on each device.
    """
    try:
        plan, info = validate(config)
    except UserError:  # The run itself will report it.
        return False
    strategy = parallel.create(config, info.image_bytes)
    here = not (strategy.streamed or strategy.sharded_data or len(plan.stages) > 1)
    return here and (strategy.devices > 1 or members.is_dense(config, info.image_shape))


def train(configs: Sequence[ConfigDict], folders: Sequence[Path], calls: Sequence[Calls]) -> int:
    """Trains several runs, or continues them, in one program.

    Args:
        configs: of the same `kind`, for which it `pays`.
        folders: their workdirs.
        calls: as for `imgclf_jax.train.train`.

    Returns:
        0, or 128 + the number of the signal that interrupted them. How each run ended is in its own record.

    Raises:
        Apart: they cannot train together; nothing has changed.
        UserError: as `imgclf_jax.train.train`.
    """
    infos = [validate(config)[1] for config in configs]
    strategy = parallel.create(configs[0], infos[0].image_bytes)
    consoles = [Console(configs[0].log.progress, configs[0].log.line_seconds)]
    consoles += [Console("silent") for _ in configs[1:]]
    with interrupt.catch() as signal, contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(phases.opened(config, info, strategy, folder, signal, console, call))
            for config, info, folder, console, call in zip(configs, infos, folders, consoles, calls, strict=True)
        ]
        try:
            return _run(runs)
        except Apart:
            raise
        except BaseException as error:
            consoles[0].finish()
            for run in runs:
                phases.record_failure(run, error)
            raise


def _run(runs: list[Run]) -> int:
    first = runs[0]
    dataset, plan = phases.load(first)
    base = first.calls.build(first.config, plan, dataset.image_shape, dataset.class_names, first.strategy)
    experiments = [base, *(base.varied(run.config) for run in runs[1:])]
    found = [phases.restore_run(run, each, dataset) for run, each in zip(runs, experiments, strict=True)]
    restored: list[Restored] = [each for each, _ in found]
    steps = {each.step for each in restored}
    over = any(ran_out(run, each.step) for run, each in zip(runs, restored, strict=True))
    if len(steps) > 1 or over or any(complete for _, complete in found):
        raise Apart
    where = members.stack(base, len(runs))
    with xla.quiet():
        make = functools.partial(members.training, [run.config for run in runs], restored, where)
        session = prepare(base, dataset, first.console.task, make)
    first.console.print(f"{len(runs)} runs in one program, on {where.strategy.devices} device(s)")
    show_model(first.console, first.config, plan, base.state_shapes().params, session.flops)
    sessions = [session._replace(experiment=each) for each in experiments]
    each = _Members(runs, sessions, where, dataset)
    try:
        start = steps.pop()
        first.console.start(start)
        first.signal.defer()  # Up to here, an exception loses no training.
        per_dispatch, batch = first.config.train.steps_per_dispatch, first.config.train.batch_size
        empty = functools.partial(members.empty_meter, where, base.measures)
        work = loop.Work(session.run_steps, session.feed, empty, batch, per_dispatch, start, members.means)
        state, step, stopped = loop.run(plan, each.hooks(), work, session.state, session.meter)
        first.console.finish()
        codes = [each.finish(index, state, step, stopped) for index in each.going]
        return max(codes, default=0)
    finally:
        for run in runs:
            run.writer.close()


class _Members:
    """Passes what happens in the loop on to each member.

    Attributes:
        going: the numbers of the members that have neither diverged nor been stopped early.
    """

    def __init__(self, runs: list[Run], sessions: list[Session], where: members.Stack, dataset: data.Dataset):
        self._runs, self._sessions, self._where, self._dataset = runs, sessions, where, dataset
        self._hooks = [make_hooks(run, session) for run, session in zip(runs, sessions, strict=True)]
        self.going = list(range(len(runs)))

    def hooks(self) -> loop.Hooks:
        """Returns the functions that the loop calls."""
        return loop.Hooks(self._progress, self._evaluate, self._save, self._stop)

    def finish(self, index: int, state: Any, step: int, stopped: int) -> int:
        """Evaluates and records a member at the end of its training. Returns its exit status."""
        run, session = self._runs[index], self._sessions[index]
        ended = phases.Ended(self._part(state, index), step, stopped)
        missing = phases.wanted(run, self._dataset)
        run.writer.wait()
        status = phases.finish(run, session, self._dataset.name, ended, None, missing)
        if run.writer.record.content["status"] == "complete":
            run.writer.record.update(together=len(self._runs))
            phases.conclude(run)
        return status

    def _part(self, tree, index):
        return self._where.member(tree, index, self._runs[index].strategy)

    def _progress(self, now):
        for index, means in enumerate(now.means):
            if index in self.going and isinstance(means, multistep.Diverged):
                self._leave(index, means)
            elif index in self.going:
                self._hooks[index].progress(now._replace(means=means))

    def _leave(self, index, diverged):
        run = self._runs[index]
        self.going.remove(index)
        run.writer.wait()
        phases.diverged(run, diverged.step)
        phases.conclude(run)

    def _evaluate(self, state, step):
        return {index: self._hooks[index].evaluate(self._part(state, index), step) for index in self.going}

    def _save(self, state, meter, step, accuracies):
        for index in list(self.going):
            accuracy = accuracies and accuracies[index]
            try:
                self._hooks[index].save(self._part(state, index), self._part(meter, index), step, accuracy)
            except multistep.Diverged as diverged:
                self._leave(index, diverged)
            if index in self.going and self._hooks[index].over():
                self.going.remove(index)
                self.finish(index, state, step, EARLY)
            if self._hooks[index].stop() == PRUNED and index in self.going:
                self.going.remove(index)
                run = self._runs[index]
                run.writer.wait()
                run.writer.end(status="pruned", step=step)

    def _stop(self):
        return self._runs[0].signal.number or (0 if self.going else PRUNED)
