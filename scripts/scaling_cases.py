"""The cases that scripts/scaling.py times: the whole step with each strategy, its input, its collectives."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import hlo_collectives
import jax
import jax.numpy as jnp
import numpy as np
from bench_cases import Case, Setup, product_case, random_data, sized, with_data
from hlo_collectives import Collective
from jax import lax
from ml_collections import ConfigDict
from scaling_replay import collectives_alone

from imgclf_jax import augment
from imgclf_jax.data import Info
from imgclf_jax.devices import parallel
from imgclf_jax.errors import UserError
from imgclf_jax.rng import StepKeys, step_keys
from imgclf_jax.training import multistep
from imgclf_jax.training.experiment import build
from imgclf_jax.training.placed import placement
from imgclf_jax.training.plan import Plan
from imgclf_jax.training.steps import Batch
from imgclf_jax.training.validate import validate

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


def prepare(point: Point, config: ConfigDict, plan: Plan, info: Info) -> Prepared:
    """Compiles the step of a valid config; its other cases are compiled when they first run."""
    plan = sized(plan, config, info.image_shape, MOST_BYTES)
    strategy = parallel.create(config, plan.train_count * math.prod(info.image_shape))._replace(streamed=False)
    experiment = build(config, plan, info.image_shape, info.class_names, strategy)
    setup = with_data(experiment, *random_data(experiment))
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
    """Returns steps as training takes them, many in one dispatch; and the text of the compiled program."""
    experiment = setup.experiment
    run_steps, state = experiment.compile_run_steps(), experiment.compile_init()(experiment.key)
    fixed = {"normalization": setup.normalization, "data": setup.data, "key": experiment.key}
    fixed["meter"] = experiment.strategy.put(multistep.empty_meter())
    text = run_steps.lower(state=state, count=np.int32(1), **fixed).compile().as_text()

    def run(steps: int) -> None:
        nonlocal state
        state, sums = run_steps(state=state, count=np.int32(steps), **fixed)
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
    """Gathering, augmentation and normalisation, in the loop that training runs, with nothing after them."""
    built, strategy = setup.experiment, setup.experiment.strategy
    config, size, parts = built.config, built.sampler.batch_size, built.config.train.accumulate

    def ready(normalization, key, batch):
        return normalization(
            augment.augment(config.augment, key, batch["image"], batch["position"], batch.get("mirrored"))
        )

    def input_step(state: Any, batch: Batch, normalization: Any, keys: StepKeys) -> tuple[Any, Any]:
        batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        one = functools.partial(ready, normalization, keys.augment)
        images = lax.map(one, batch) if parts > 1 else one(_only(batch))[None]
        # The images that the loop carries are those of the last turn, but no compiler knows which turn that will be.
        return Ready(state.step + 1, images, batch["label"]), multistep.empty_meter()

    run_steps: Any = multistep.make_run_steps(input_step, built.sampler, strategy)

    def loop(normalization, data, count, key):
        ones = strategy.share(jnp.ones((parts, size // parts)))
        nothing = ones[..., None, None, None] * jnp.zeros((1, 1, *built.input_shape))
        start = Ready(jnp.zeros((), jnp.int32), nothing, ones.astype(jnp.int32))
        last, sums = run_steps(start, multistep.empty_meter(), normalization, data, count, key)
        return sums["steps"], strategy.all_sum((last.images.sum(), last.labels.sum()))

    compiled = strategy.compile(loop, shardings={"data": placement(strategy).training_shardings(strategy)})

    def run(steps: int) -> None:
        count = np.int32(steps)
        last = compiled(normalization=setup.normalization, data=setup.data, count=count, key=built.key)
        jax.block_until_ready(last)

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
    alone = dataclasses.replace(setup.experiment, strategy=parallel.alone())
    product = product_case(setup._replace(experiment=alone))
    found = {"product": product}
    if first.devices == 1:
        found["plain"] = Case("plain jax.jit", plain_loop(setup), images=setup.experiment.config.train.batch_size)
    return found


def on_one_device(prepared: dict[Point, Prepared]) -> list[Case]:
    """Returns the whole steps that the plain loop of `references` is compared with."""
    return [one.cases["whole"] for point, one in prepared.items() if point.devices == 1]


def plain_loop(setup: Setup) -> Callable[[int], None]:
    """The training step on one device, in a hand-written loop without a strategy.

    It does the same work: it gathers the batch, takes the step and adds up its metrics.
    """
    built, sampler, device = setup.experiment, setup.experiment.sampler, jax.local_devices()[0]
    data, normalization = jax.device_put(jax.device_get((setup.data, setup.normalization)), device)

    def loop(state, sums, data, steps, key):
        def one(_, carry):
            state, sums = carry
            indices = sampler.indices(key, data.order, state.step)
            batch = {"image": data.examples.images[indices], "label": data.examples.labels[indices]}
            state, metrics = built.train_step(state, batch, normalization, step_keys(key, state.step))
            return state, {name: sums[name] + metrics[name] for name in sums}

        return lax.fori_loop(0, steps, one, (state, sums))

    compiled = jax.jit(loop, donate_argnums=0)
    state = jax.jit(built.init)(built.key)
    zeros = {name: value for name, value in multistep.empty_meter().items() if name not in ("steps", "bad_step")}

    def run(steps: int) -> None:
        nonlocal state
        state, sums = compiled(state, zeros, data, np.int32(steps), built.key)
        sums["loss"].block_until_ready()

    return run
