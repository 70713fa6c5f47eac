"""Trains as `python -m imgclf_jax.main` does, but in memory alone: no workdir, no checkpoints, no rows.

For the scripts that time whole epochs and whole runs. Programs are compiled once and serve all seeds.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import data
from imgclf_jax.data.types import Split
from imgclf_jax.devices import parallel, xla
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.console import Console
from imgclf_jax.training import ancestor, loop, multistep
from imgclf_jax.training.experiment import Experiment, build
from imgclf_jax.training.plan import Plan, with_labels
from imgclf_jax.training.plan import plan as make_plan
from imgclf_jax.training.session import Restored, Session, Training, from_images, one_run, prepare
from imgclf_jax.training.state import TrainState
from imgclf_jax.training.validate import validate


class Loaded(NamedTuple):
    """A valid config and its data.

    Attributes:
        config: the config.
        plan: its durations.
        dataset: its data, in memory.
        strategy: the placement on devices.
    """

    config: ConfigDict
    plan: Plan
    dataset: data.Dataset
    strategy: parallel.Parallel


class Ready(NamedTuple):
    """A compiled experiment with its data on the devices.

    Attributes:
        session: its compiled parts. Its state is that before the first step of the config's own seed.
        split: the training split on the devices.
        restored: what a run starts from.
        dataset: the data on the host.
    """

    session: Session
    split: Any
    restored: Restored
    dataset: data.Dataset

    @property
    def plan(self) -> Plan:
        """The durations."""
        return self.session.experiment.plan


def load(config: ConfigDict, console: Console) -> Loaded:
    """Checks a config and reads its data. Raises `UserError` as training does."""
    _, info = validate(config)
    strategy = parallel.create(config, info.image_bytes)
    dataset = data.load(config.data, progress=console.task, stream=strategy.streamed)
    console.finish()
    if dataset.notice:
        console.warn(dataset.notice)
    plan = with_labels(make_plan(config, dataset.counts), config, dataset.splits["train"].labels)
    return Loaded(config, plan, dataset, strategy)


def ready(loaded: Loaded, console: Console, more: Mapping[str, Split] | None = None) -> Ready:
    """Compiles the experiment of a config and places its data.

    Args:
        loaded: the config and its data.
        console: shows progress.
        more: further splits to evaluate, by name.
    """
    config, plan, dataset, strategy = loaded
    experiment = build(config, plan, dataset.image_shape, dataset.class_names, strategy)
    restored = Restored(None, 0, {}, {}, ancestor.load(experiment))
    splits: list[Any] = []

    def first(experiment: Experiment, split: Any, *rest: Any) -> Training:
        splits.append(split)
        return one_run(restored, experiment, split, *rest)

    dataset = dataclasses.replace(dataset, splits={**dataset.splits, **(more or {})})
    with xla.quiet():
        session = prepare(experiment, dataset, console.task, first)
    console.finish()
    return Ready(session, splits[0], restored, dataset)


def begin(ready: Ready, seed: int) -> Training:
    """Makes the state before the first step of a run with a seed, and what trains it. It compiles nothing large.

    What the network computes from training images is computed anew.
    """
    experiment = ready.session.experiment
    config = experiment.config.copy_and_resolve_references()
    config.seed = seed
    normalization = ready.session.normalization
    with xla.quiet():
        known = from_images(experiment, ready.dataset, normalization)
        return one_run(ready.restored, experiment.repeated(config), ready.split, normalization, known)


def take(
    ready: Ready, training: Training, steps: int, progress: Callable[[loop.Progress], None] = lambda now: None
) -> TrainState:
    """Takes steps from the state of a run, in dispatches as training takes them, and waits until they are done.

    Args:
        ready: the compiled experiment.
        training: see `begin`. The buffers of its state are reused.
        steps: the step to stop at; the plan's for a whole run.
        progress: see `imgclf_jax.training.loop.Hooks`; a row is due after every epoch.

    Raises:
        UserError: the loss or a gradient is not finite.
    """
    experiment = ready.session.experiment
    config, plan = experiment.config, ready.plan
    plan = plan._replace(steps=steps, log_every=plan.steps_per_epoch, eval_every=0, checkpoint_every=0)
    hooks = loop.Hooks(progress, lambda state, step: None, lambda *saved: None, lambda: 0, ready.session.agree)
    empty = lambda: experiment.strategy.put(multistep.empty_meter(experiment.measures))  # noqa: E731
    size, most = config.train.batch_size, config.train.steps_per_dispatch
    work = loop.Work(training.run_steps, training.feed, empty, size, most)
    try:
        state, _, _ = loop.run(plan, hooks, work, training.state, training.meter)
    except multistep.Diverged as error:
        raise UserError(f"diverged: the loss or a gradient is not finite at step {error.step}") from error
    jax.block_until_ready(state)
    return state


def at_step(ready: Ready, training: Training, step: int) -> Training:
    """Returns a training whose state claims to have taken a number of steps: to run the programs of later steps."""
    counter = ready.session.experiment.strategy.put(np.int32(step))
    return training._replace(state=training.state.replace(step=counter))


def stages(ready: Ready) -> list[int]:
    """Returns the steps from which another program takes the steps; the first is 0."""
    return [stage.first for stage in ready.plan.stages]


def flops(ready: Ready) -> int:
    """Returns the FLOPs of the products of a whole run; see `imgclf_jax.models.cost`."""
    return ready.session.flops * ready.plan.steps


def evaluate(ready: Ready, split: str, state: TrainState) -> dict[str, float | int]:
    """Returns the result of exact evaluation on a split, with test-time augmentation if the config asks for it."""
    with xla.quiet():
        return ready.session.evaluate(split, state, tta=True)


def seconds_of(call: Callable[[], Any]) -> float:
    """Calls a function, and returns the seconds until it returned."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
