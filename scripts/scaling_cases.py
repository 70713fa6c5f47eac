"""What scripts/scaling.py times: the whole step under a strategy on some devices, its input, its collectives."""

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

MOST_BYTES = 2**27  # of random images on each device; larger data sets are imitated in this size


class Point(NamedTuple):
    """One strategy on one number of devices.

    Attributes:
        strategy: "jit", "shard_map" or "pmap".
        devices: how many.
    """

    strategy: str
    devices: int

    @property
    def name(self) -> str:
        """For tables and the names of cases."""
        return f"{self.strategy} on {self.devices}"


class Prepared(NamedTuple):
    """A point, ready to be measured.

    Attributes:
        setup: its experiment and the data on its devices.
        cases: `whole`, `input` and, on several devices, `collectives`, by these names.
        collectives: those of a step, from the compiled program.
        kernels: operations that a device starts in a step, likewise.
    """

    setup: Setup
    cases: dict[str, Case]
    collectives: list[Collective]
    kernels: int


def at_point(config: ConfigDict, point: Point, mode: str) -> ConfigDict:
    """The config at a point.

    Args:
        config: `train.batch_size` is that of one device with mode "weak", of all of them with "strong".
        point: strategy and number of devices.
        mode: "weak" or "strong".

    Raises:
        UserError: where the config itself says how many devices or which strategy.
    """
    for field, free in (("devices", (0,)), ("strategy", ("auto",)), ("mesh", ((),))):
        if config.parallel[field] not in free:
            raise UserError(f"parallel.{field}: --devices and --strategies say what is measured; leave it out")
    config = config.copy_and_resolve_references()
    config.parallel.update(strategy=point.strategy, devices=point.devices)
    if mode == "weak":
        config.train.batch_size *= point.devices
    config.eval.batch_size = point.devices  # Nothing is evaluated.
    config.optim.learning_rate *= 1e-3  # No time depends on it, and nothing diverges.
    return config


def validated(configs: dict[Point, ConfigDict]) -> tuple[dict[Point, Plan], Info]:
    """The plan of each config, and the data set that is imitated. Raises `UserError` with what is wrong of any."""
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
    """Images uint8 [N, H, W, C], labels int32 [N] and an epoch's order int32 [N], of the data set's size or less."""
    count = max(1, min(plan.train_count, MOST_BYTES // math.prod(info.image_shape)))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *info.image_shape), np.uint8)
    labels = random.integers(0, len(info.class_names), count, np.int32)
    return images, labels, random.permutation(count).astype(np.int32)


def prepare(point: Point, config: ConfigDict, plan: Plan, info: Info, data: tuple[np.ndarray, ...]) -> Prepared:
    """Compiles the step of a valid config; its other cases are compiled when they first run."""
    images, labels, order = data
    epoch = sampling.steps_per_epoch(len(images), config.train.batch_size, config.train.last_batch)
    plan = plan._replace(train_count=len(images), steps_per_epoch=max(1, epoch))
    normalize = inputs.normalization(config.data.pixels, images[:1000], tuple(config.augment.crop))
    strategy = parallel.create(config.parallel, images.nbytes)
    built = experiment.build(config, plan, info.image_shape, len(info.class_names), normalize, strategy)
    placed = (*strategy.put_examples((images, labels)), strategy.put(order))
    setup = Setup(config, plan, built, normalize, strategy, placed)
    run, text = whole_step(setup)
    found = hlo_collectives.in_loops(hlo_collectives.read(text))
    size = config.train.batch_size
    cases = {
        "whole": Case(f"{point.name}: whole step", run, images=size),
        "input": Case(f"{point.name}: input", input_alone(setup), images=size),
    }
    if found:
        cases["collectives"] = Case(f"{point.name}: collectives", collectives_alone(strategy, found))
    return Prepared(setup, cases, found, hlo_collectives.kernels(text))


def whole_step(setup: Setup) -> tuple[Callable[[int], None], str]:
    """Steps as training takes them, so many in one dispatch; and the compiled program's text."""
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
    """Waits for the sums over some steps. Raises `UserError` where training ended early."""
    if int(sums["steps"]) != steps:
        raise UserError("the loss or a gradient is not finite, even on random data; lower optim.learning_rate")


class Ready(NamedTuple):
    """What stands in for a training state where only the input is made.

    Attributes:
        step: its number, int32.
        images: its batch, float32 [parts, B / parts, H, W, C], in the parts that gradients are accumulated over.
        labels: int32 [parts, B / parts].
    """

    step: jax.Array
    images: jax.Array
    labels: jax.Array


def input_alone(setup: Setup) -> Callable[[int], None]:
    """Gathering, augmentation and normalisation, in the loop that training runs, with nothing after them."""
    config, built, strategy = setup.config, setup.experiment, setup.strategy
    size, parts = config.train.batch_size, config.train.accumulate

    def ready(key, batch):
        images = augment.augment(config.augment, stream(key, "augment"), batch["image"], batch["position"])
        return setup.normalize(images)

    def input_step(state: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        images = lax.map(lambda part: ready(key, part), batch) if parts > 1 else ready(key, _only(batch))[None]
        # Of what the loop carries the images are the last turn's, but no compiler knows which turn that will be.
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
    """What the steps are compared with: the device's matrix product, and, where one device is measured, a plain loop.

    Returns:
        `product` and, perhaps, `plain`, by these names.
    """
    first = min(prepared, key=lambda point: point.devices)
    setup = prepared[first].setup
    product = product_case(setup._replace(strategy=parallel.alone()))
    found = {"product": product}
    if first.devices == 1:
        found["plain"] = Case("plain jax.jit", plain_loop(setup), images=setup.config.train.batch_size)
    return found


def on_one_device(prepared: dict[Point, Prepared]) -> list[Case]:
    """The whole steps that `references`' plain loop is compared with."""
    return [one.cases["whole"] for point, one in prepared.items() if point.devices == 1]


def plain_loop(setup: Setup) -> Callable[[int], None]:
    """The training step in a loop that is written by hand and knows nothing of strategies, on one device.

    The same work: the batch is gathered, the step taken, its metrics are added up.
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
