"""What a run works with once its config is known: data on the devices, functions compiled, a state to start from."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import cost, data, dispatch, evaluate, hosts, inputs, parallel, sampling
from imgclf_jax.checkpoint import Checkpoints
from imgclf_jax.data import statistics
from imgclf_jax.data.types import LazyImages
from imgclf_jax.errors import UserError
from imgclf_jax.experiment import Experiment, build, compile_evaluate, compile_init, compile_run_steps, template
from imgclf_jax.feed import Resident, Streamed
from imgclf_jax.state import TrainState
from imgclf_jax.validate import Plan


class Session(NamedTuple):
    """What training works with, compiled and on the devices.

    Attributes:
        experiment: the functions of the config.
        checkpoints: of the workdir.
        restore: step -> the state saved there.
        state: to start from.
        meter: sums since the last row, to start from.
        inputs: the normalisation's arrays, which go into every checkpoint.
        agree: see `imgclf_jax.loop.Hooks`.
        run_steps: compiled, see `imgclf_jax.dispatch`.
        feed: what `run_steps` works on, see `imgclf_jax.feed`.
        evaluate: (split name, state) -> exact result.
        is_finite: state -> whether all its parameters and statistics are.
        flops: matrix-product and convolution FLOPs of a step.
    """

    experiment: Experiment
    checkpoints: Checkpoints
    restore: Callable[[int], TrainState]
    state: TrainState
    meter: dispatch.Meter
    inputs: dict[str, Any]
    agree: Callable[..., jax.Array] | None
    run_steps: Callable[..., Any]
    feed: Resident | Streamed
    evaluate: Callable[[str, TrainState], dict[str, float | int]]
    is_finite: Callable[[TrainState], bool]
    flops: int


def prepare(config: ConfigDict, plan: Plan, folder: Path, dataset: data.Dataset, progress: data.Progress) -> Session:
    """Builds, restores and compiles.

    Args:
        config: a valid config.
        plan: its durations.
        folder: the workdir.
        dataset: its data.
        progress: told of passes over images that stay on disk.

    Raises:
        UserError: there are checkpoints but none of them can be read, or they are of other classes; an image cannot be
            read.
    """
    splits = dataset.splits
    streamed = isinstance(splits["train"].images, LazyImages)
    strategy = parallel.create(config.parallel, sum(split.images.nbytes for split in splits.values()), streamed)
    resident = {
        name: strategy.put_examples((split.images, split.labels)) for name, split in splits.items() if not streamed
    }
    train, sums = splits["train"], None
    if streamed and config.data.pixels != "unit":
        sums = hosts.first_alone(lambda: statistics.of_stream(train, dataset.fingerprint, progress))
    normalize = inputs.normalization(config.data.pixels, train.images, tuple(config.augment.crop), sums)
    experiment = build(config, plan, dataset.image_shape, len(dataset.class_names), normalize, strategy)
    key = strategy.jit(lambda: experiment.key)()
    content = template(experiment, normalize, strategy)
    checkpoints = Checkpoints(folder, config.checkpoint.keep, class_names=dataset.class_names)
    found = checkpoints.restore_newest(content)
    if found and (names := checkpoints.class_names(found[1])) not in (None, dataset.class_names):
        raise UserError(
            f"the checkpoints in {folder} are of the classes {', '.join(names)}; those of {dataset.location} are "
            f"{', '.join(dataset.class_names)}; choose another --workdir"
        )
    state = found[0]["state"] if found else compile_init(experiment, strategy)(key)
    meter = found[0]["meter"] if found else strategy.put(dispatch.empty_meter())

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
            sums = evaluate.stream(evaluate_split, variables, splits[name], strategy, config.eval.batch_size, told)
        else:
            sums = evaluate_split(variables, *resident[name], np.int32(count))
        return evaluate.result(jax.device_get(sums), count)

    agree = strategy.highest if hosts.several() else None
    if agree is not None:
        agree(np.zeros(2, np.int32)).block_until_ready()  # Compiled ahead, for the same reason.

    return Session(
        experiment=experiment,
        checkpoints=checkpoints,
        restore=lambda step: checkpoints.restore(step, content)["state"],
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
