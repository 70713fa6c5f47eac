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
from imgclf_jax.errors import UserError
from imgclf_jax.experiment import Experiment, build, compile_evaluate, compile_init, compile_run_steps, template
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
        epoch_order: epoch -> order of the examples.
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
    epoch_order: Callable[[int], jax.Array]
    evaluate: Callable[[str, TrainState], dict[str, float | int]]
    is_finite: Callable[[TrainState], bool]
    flops: int


def prepare(config: ConfigDict, plan: Plan, folder: Path, dataset: data.Dataset, resident: dict[str, Any]) -> Session:
    """Builds, restores and compiles.

    Args:
        config: a valid config.
        plan: its durations.
        folder: the workdir.
        dataset: its data.
        resident: filled with the splits' (images, labels) on the devices, by name.

    Raises:
        UserError: there are checkpoints but none of them can be read, or they are of other classes.
    """
    strategy = parallel.create(config.parallel, sum(split.images.nbytes for split in dataset.splits.values()))
    for name, split in dataset.splits.items():
        resident[name] = strategy.put_examples((split.images, split.labels))
    crop = tuple(config.augment.crop)
    normalize = inputs.normalization(config.data.pixels, dataset.splits["train"].images, crop)
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

    compiled_order = strategy.jit(lambda key, epoch: sampling.epoch_order(key, epoch, plan.train_count))
    order = functools.partial(compiled_order, key)
    # Compiled ahead of the loop, so that compilation is no part of the first rate.
    run_steps = compile_run_steps(experiment, strategy)
    run_steps = run_steps.lower(state, meter, *resident["train"], order(0), np.int32(1), key).compile()
    batch_size = config.train.batch_size
    _, flops = cost.network_flops(experiment.model, state.eval_variables(), experiment.input_shape, batch_size)
    evaluate_split = compile_evaluate(experiment, strategy)
    finite = strategy.jit(lambda tree: jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])))

    def exact(name: str, state: TrainState) -> dict[str, float | int]:
        count = len(dataset.splits[name].labels)
        sums = jax.device_get(evaluate_split(state.eval_variables(), *resident[name], np.int32(count)))
        return evaluate.result(sums, count)

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
        epoch_order=order,
        evaluate=exact,
        is_finite=lambda state: bool(finite((state.params, state.batch_stats))),
        flops=flops,
    )
