"""What a run works with once its config is known: data on the devices, functions compiled, a state to start from."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import data
from imgclf_jax.augment import normalize as inputs
from imgclf_jax.data import statistics
from imgclf_jax.data.types import LazyImages
from imgclf_jax.devices import parallel, processes
from imgclf_jax.errors import UserError
from imgclf_jax.models import cost
from imgclf_jax.training import exact_evaluation, multistep, sampling
from imgclf_jax.training.experiment import (
    Experiment,
    build,
    compile_evaluate,
    compile_init,
    compile_run_steps,
    template,
)
from imgclf_jax.training.feed import Resident, Streamed
from imgclf_jax.training.state import TrainState
from imgclf_jax.training.validate import Plan
from imgclf_jax.workdir import checkpoint_folder
from imgclf_jax.workdir.checkpoint import Checkpoints, OtherModel


class Session(NamedTuple):
    """What training works with, compiled and on the devices.

    Attributes:
        experiment: the functions of the config.
        template: what a checkpoint holds; see `imgclf_jax.training.experiment.template`.
        state: to start from.
        meter: sums since the last row, to start from.
        inputs: the normalisation's arrays, which go into every checkpoint.
        agree: see `imgclf_jax.training.loop.Hooks`.
        run_steps: compiled, see `imgclf_jax.training.multistep`.
        feed: what `run_steps` works on, see `imgclf_jax.training.feed`.
        evaluate: (split name, state) -> exact result.
        is_finite: state -> whether all its parameters and statistics are.
        flops: matrix-product and convolution FLOPs of a step.
    """

    experiment: Experiment
    template: dict[str, Any]
    state: TrainState
    meter: multistep.Meter
    inputs: dict[str, Any]
    agree: Callable[..., jax.Array] | None
    run_steps: Callable[..., Any]
    feed: Resident | Streamed
    evaluate: Callable[[str, TrainState], dict[str, float | int]]
    is_finite: Callable[[TrainState], bool]
    flops: int


class Restored(NamedTuple):
    """The state that was found in a workdir.

    Attributes:
        strategy: the devices that the state is placed on.
        template: what a checkpoint holds; see `imgclf_jax.training.experiment.template`.
        tree: the content of the newest undamaged checkpoint; `None` if there is none.
        step: the number of steps it has taken; 0 if there is no checkpoint.
        notes: the notes in it; see `imgclf_jax.workdir.checkpoint.Checkpoints.notes`.
        damaged: newer checkpoints that cannot be read; see `imgclf_jax.workdir.checkpoint.Found`.
    """

    strategy: parallel.Parallel
    template: dict[str, Any]
    tree: dict[str, Any] | None
    step: int
    notes: dict[str, Any]
    damaged: dict[int, str]


def restore(config: ConfigDict, plan: Plan, folder: Path, dataset: data.Dataset) -> Restored:
    """Reads the newest checkpoint of a workdir; changes nothing there.

    Args:
        config: a valid config.
        plan: its durations.
        folder: the workdir.
        dataset: its data.

    Raises:
        UserError: there are checkpoints, but none of them can be read, or they belong to another model or to other
            classes.
    """
    streamed = isinstance(dataset.splits["train"].images, LazyImages)
    image_bytes = sum(split.images.nbytes for split in dataset.splits.values())
    strategy = parallel.create(config.parallel, image_bytes, streamed)
    # Only the shapes of the normalisation are needed.
    blank = np.zeros((1, *dataset.image_shape), np.uint8)
    like = inputs.normalization(config.data.pixels, blank, tuple(config.augment.crop))
    experiment = build(config, plan, dataset.image_shape, len(dataset.class_names), like, strategy)
    content = template(experiment, like, strategy)
    if not processes.from_first(lambda: checkpoint_folder.exists(folder)):
        return Restored(strategy, content, None, 0, {}, {})
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        try:
            found = checkpoints.restore_newest(content)
        except OtherModel:
            # If the classes differ, that is the more helpful message.
            _check_classes(checkpoints.notes(checkpoints.steps()[-1]), folder, dataset)
            raise
        if found is None:
            return Restored(strategy, content, None, 0, {}, {})
        notes = checkpoints.notes(found.step)
        _check_classes(notes, folder, dataset)
        return Restored(strategy, content, found.tree, found.step, notes, found.damaged)
    finally:
        checkpoints.close()


def _check_classes(notes, folder, dataset):
    names = notes.get("class_names")
    if isinstance(names, list) and names != list(dataset.class_names):
        raise UserError(
            f"the checkpoints in {folder} are of the classes {', '.join(map(str, names))}; those of "
            f"{dataset.location} are {', '.join(dataset.class_names)}; choose another --workdir"
        )


def prepare(
    config: ConfigDict, plan: Plan, dataset: data.Dataset, restored: Restored, progress: data.Progress
) -> Session:
    """Builds the functions of a run, puts its data on the devices and compiles.

    Args:
        config: a valid config.
        plan: its durations.
        dataset: its data.
        restored: the state to start from.
        progress: told of passes over images that stay on disk.

    Raises:
        UserError: an image cannot be read.
    """
    splits, strategy = dataset.splits, restored.strategy
    streamed = isinstance(splits["train"].images, LazyImages)
    resident = {
        name: strategy.put_examples((split.images, split.labels)) for name, split in splits.items() if not streamed
    }
    train, sums = splits["train"], None
    if streamed and config.data.pixels != "unit":
        sums = processes.first_alone(lambda: statistics.of_stream(train, dataset.fingerprint, progress))
    normalize = inputs.normalization(config.data.pixels, train.images, tuple(config.augment.crop), sums)
    experiment = build(config, plan, dataset.image_shape, len(dataset.class_names), normalize, strategy)
    key = strategy.jit(lambda: experiment.key)()
    state = restored.tree["state"] if restored.tree else compile_init(experiment, strategy)(key)
    meter = restored.tree["meter"] if restored.tree else strategy.put(multistep.empty_meter())

    feed = _feed(config, plan, train, resident.get("train"), strategy, key)
    # Compiled ahead of the loop, so that compilation is no part of the first rate.
    run_steps = compile_run_steps(experiment, strategy)
    run_steps = run_steps.lower(state, meter, *feed.describe(), np.int32(1), key).compile()
    batch_size = config.train.batch_size
    _, flops = cost.network_flops(experiment.model, state.eval_variables(), experiment.input_shape, batch_size)
    evaluate_split = compile_evaluate(experiment, strategy)
    finite = strategy.jit(lambda tree: jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])))

    def exact(name: str, state: TrainState) -> dict[str, float | int]:
        variables, count = state.eval_variables(), len(splits[name])
        if streamed:
            told = functools.partial(progress, f"evaluating {name}")
            sums = exact_evaluation.stream(
                evaluate_split, variables, splits[name], strategy, config.eval.batch_size, told
            )
        else:
            sums = evaluate_split(variables, *resident[name], np.int32(count))
        return exact_evaluation.result(jax.device_get(sums), count)

    agree = strategy.highest if processes.several() else None
    if agree is not None:
        agree(np.zeros(2, np.int32)).block_until_ready()  # Compiled ahead, for the same reason.

    return Session(
        experiment=experiment,
        template=restored.template,
        state=state,
        meter=meter,
        inputs=normalize._asdict(),
        agree=agree,
        run_steps=lambda *arguments: run_steps(*arguments, key),
        feed=feed,
        evaluate=exact,
        is_finite=lambda state: bool(finite((state.params, state.batch_stats))),
        flops=flops,
    )


def _feed(config, plan, split, resident, strategy, key) -> Resident | Streamed:
    batch_size, steps = config.train.batch_size, plan.steps_per_epoch
    if resident is not None:
        order = strategy.jit(lambda key, epoch: sampling.epoch_order(key, epoch, plan.train_count))
        images, labels = resident
        return Resident(images, labels, functools.partial(order, key), steps)
    compiled = strategy.jit(
        functools.partial(
            sampling.epoch_batches,
            batch_size=batch_size,
            count=plan.train_count,
            steps=steps,
            replacement=config.train.sampling == "replacement",
        )
    )
    batches = compiled.lower(key, np.int32(0)).compile()
    return Streamed(
        split,
        lambda epoch: batches(key, np.int32(epoch)),
        plan,
        strategy,
        batch_size=batch_size,
        accumulate=config.train.accumulate,
        workers=config.data.workers,
    )
