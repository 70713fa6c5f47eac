"""The cases that scripts/scaling.py times: the whole step with each strategy, its input, its collectives."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import hlo_collectives
import jax
import jax.numpy as jnp
import numpy as np
from bench_cases import Case, Setup, product_case
from hlo_collectives import Collective
from jax import lax
from ml_collections import ConfigDict
from scaling_replay import collectives_alone

from imgclf_jax import augment
from imgclf_jax.augment import normalize as inputs
from imgclf_jax.data import Info
from imgclf_jax.devices import parallel
from imgclf_jax.errors import UserError
from imgclf_jax.rng import stream
from imgclf_jax.training import experiment, multistep, sampling
from imgclf_jax.training.steps import Batch
from imgclf_jax.training.validate import Plan, validate

MOST_BYTES = 2**27  # of random images on each device; larger data sets are cut to this size


class Point(NamedTuple):
    """One strategy on one number of devices.

    Attributes:
        strategy: "jit", "shard_map" or "pmap".
        devices: the number of devices.
    """

    strategy: str
    devices: int

    @property
    def name(self) -> str:
        """The name for tables and cases."""
        return f"{self.strategy} on {self.devices}"


class Prepared(NamedTuple):
    """A point, ready to be measured.

    Attributes:
        setup: its experiment and the data on its devices.
        cases: `whole`, `input` and, on several devices, `collectives`, by these names.
        collectives: the collectives of a step, read from the compiled program.
        kernels: the number of operations that a device starts in a step, read from the compiled program.
    """

    setup: Setup
    cases: dict[str, Case]
    collectives: list[Collective]
    kernels: int


def at_point(config: ConfigDict, point: Point, mode: str) -> ConfigDict:
    """Returns the config for a point.

    Args:
        config: `train.batch_size` is for one device with mode "weak", for all of them with "strong".
        point: strategy and number of devices.
        mode: "weak" or "strong".

    Raises:
        UserError: the config itself sets the number of devices, the strategy or the mesh.
    """
    for field, free in (("devices", (0,)), ("strategy", ("auto",)), ("mesh", ((),))):
        if config.parallel[field] not in free:
            raise UserError(f"parallel.{field}: use --devices and --strategies instead; leave the field out")
    config = config.copy_and_resolve_references()
    config.parallel.update(strategy=point.strategy, devices=point.devices)
    if mode == "weak":
        config.train.batch_size *= point.devices
    config.eval.batch_size = point.devices  # Nothing is evaluated.
    config.optim.learning_rate *= 1e-3  # No time depends on it, and nothing diverges.
    return config


def validated(configs: dict[Point, ConfigDict]) -> tuple[dict[Point, Plan], Info]:
    """Returns each config's plan, and facts about the data set. Raises `UserError` with the problems of all configs."""
    problems: dict[str, None] = {}
    plans = {}
    for point, config in configs.items():
        try:
            plans[point], info = validate(config)
        except UserError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise UserError("\n".join(problems))
    return plans, info


def random_data(plan: Plan, info: Info) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes images uint8 [N, H, W, C], labels int32 [N] and an epoch's order int32 [N]; `MOST_BYTES` limits N."""
    count = max(1, min(plan.train_count, MOST_BYTES // math.prod(info.image_shape)))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *info.image_shape), np.uint8)
    labels = random.integers(0, len(info.class_names), count, np.int32)
    return images, labels, random.permutation(count).astype(np.int32)


def prepare(point: Point, config: ConfigDict, plan: Plan, info: Info, data: tuple[np.ndarray, ...]) -> Prepared:
    """Compiles the step of a valid config. Its other cases are compiled when they first run."""
    images, labels, order = data
    epoch = sampling.steps_per_epoch(len(images), config.train.batch_size, config.train.last_batch)
    plan = plan._replace(train_count=len(images), steps_per_epoch=max(1, epoch))
    normalize = inputs.normalization(config.data.pixels, images[:1000], tuple(config.augment.crop))
    strategy = parallel.create(config.parallel, images.nbytes)
    built = experiment.build(config, plan, info.image_shape, len(info.class_names), normalize, strategy)
    placed = (*strategy.put_examples((images, labels)), strategy.put(order))
    setup = Setup(config, plan, built, normalize, strategy, placed)
    run, text = whole_step(setup)
    collectives = hlo_collectives.in_loops(hlo_collectives.read(text))
    size = config.train.batch_size
    cases = {
        "whole": Case(f"{point.name}: whole step", run, images=size),
        "input": Case(f"{point.name}: input", input_alone(setup), images=size),
    }
    if collectives:
        cases["collectives"] = Case(f"{point.name}: collectives", collectives_alone(strategy, collectives))
    return Prepared(setup, cases, collectives, hlo_collectives.kernels(text))


def whole_step(setup: Setup) -> tuple[Callable[[int], None], str]:
    """Returns steps as training takes them, all in one dispatch, and the text of the compiled program."""
    built, strategy = setup.experiment, setup.strategy
    run_steps = experiment.compile_run_steps(built, strategy)
    state = experiment.compile_init(built, strategy)(built.key)
    meter = strategy.put(jax.device_get(multistep.empty_meter()))
    text = run_steps.lower(state, meter, *setup.data, np.int32(1), built.key).compile().as_text()

    def run(steps: int) -> None:
        nonlocal state
        state, sums = run_steps(state, meter, *setup.data, np.int32(steps), built.key)
        check(sums, steps)

    return run, text


def check(sums: dict[str, jax.Array], steps: int) -> None:
    """Waits for the sums over some steps. Raises `UserError` if training ended early."""
    if int(sums["steps"]) != steps:
        raise UserError("the loss or a gradient is not finite, even on random data; lower optim.learning_rate")


class Ready(NamedTuple):
    """Replaces the training state when only the input is computed.

    Attributes:
        step: the step, int32.
        images: the batch, float32 [parts, B / parts, H, W, C], in the parts that gradients are accumulated over.
        labels: int32 [parts, B / parts].
    """

    step: jax.Array
    images: jax.Array
    labels: jax.Array


def input_alone(setup: Setup) -> Callable[[int], None]:
    """Gathering, augmentation and normalization in the loop that training runs, without the network."""
    config, built, strategy = setup.config, setup.experiment, setup.strategy
    size, parts = config.train.batch_size, config.train.accumulate

    def ready(key, batch):
        images = augment.augment(config.augment, stream(key, "augment"), batch["image"], batch["position"])
        return setup.normalize(images)

    def input_step(state: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        images = lax.map(lambda part: ready(key, part), batch) if parts > 1 else ready(key, _only(batch))[None]
        # Only the last turn's images are used, but the compiler cannot know which turn is the last.
        metrics = multistep.empty_meter()
        return Ready(state.step + 1, images, batch["label"]), metrics

    run_steps: Any = multistep.make_run_steps(
        input_step,
        batch_size=size,
        examples=setup.plan.train_count,
        steps_per_epoch=setup.plan.steps_per_epoch,
        replacement=config.train.sampling == "replacement",
        accumulate=parts,
        strategy=strategy,
    )

    def loop(images, labels, order, count, key):
        ones = strategy.share(jnp.ones((parts, size // parts)))
        nothing = ones[..., None, None, None] * jnp.zeros(built.input_shape)
        start = Ready(jnp.zeros((), jnp.int32), nothing, ones.astype(jnp.int32))
        last, sums = run_steps(start, multistep.empty_meter(), images, labels, order, count, key)
        return sums["steps"], strategy.all_sum((last.images.sum(), last.labels.sum()))

    compiled = strategy.compile(loop, examples=(0, 1))

    def run(steps: int) -> None:
        jax.block_until_ready(compiled(*setup.data, np.int32(steps), built.key))

    return run


def _only(tree):
    return jax.tree.map(lambda x: x[0], tree)


def references(prepared: dict[Point, Prepared]) -> dict[str, Case]:
    """Makes the cases to compare with: the device's matrix product, and a plain loop if one device is measured.

    Returns:
        `product` and possibly `plain`, by these names.
    """
    first = min(prepared, key=lambda point: point.devices)
    setup = prepared[first].setup
    product = product_case(setup._replace(strategy=parallel.alone()))
    cases = {"product": product}
    if first.devices == 1:
        cases["plain"] = Case("plain jax.jit", plain_loop(setup), images=setup.config.train.batch_size)
    return cases


def on_one_device(prepared: dict[Point, Prepared]) -> list[Case]:
    """Returns the whole steps that the plain loop of `references` is compared with."""
    return [one.cases["whole"] for point, one in prepared.items() if point.devices == 1]


def plain_loop(setup: Setup) -> Callable[[int], None]:
    """The training step on one device, in a hand-written loop without a strategy.

    It does the same work: it gathers the batch, takes the step and adds up its metrics.
    """
    config, built, epoch = setup.config, setup.experiment, setup.plan.steps_per_epoch
    size, count = config.train.batch_size, setup.plan.train_count
    device = jax.local_devices()[0]
    data = jax.device_put(jax.device_get(setup.data), device)

    def loop(state, sums, images, labels, order, steps, key):
        def one(_, carry):
            state, sums = carry
            if config.train.sampling == "replacement":
                indices = sampling.batch_with_replacement(key, state.step, size, count)
            else:
                indices = sampling.batch_from_order(order, state.step, size, epoch)
            batch = {"image": images[indices], "label": labels[indices]}
            state, metrics = built.train_step(state, batch, stream(key, "step", state.step))
            return state, {name: sums[name] + metrics[name] for name in sums}

        return lax.fori_loop(0, steps, one, (state, sums))

    compiled = jax.jit(loop, donate_argnums=0)
    state = jax.jit(built.init)(built.key)
    names = ("loss", "grad_norm", "correct", "count")
    zeros = {name: value for name, value in multistep.empty_meter().items() if name in names}

    def run(steps: int) -> None:
        nonlocal state
        state, sums = compiled(state, zeros, *data, np.int32(steps), built.key)
        sums["loss"].block_until_ready()

    return run
