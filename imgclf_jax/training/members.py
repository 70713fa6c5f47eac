"""Several runs in one program: their states are stacked along a first axis, and each takes its own steps.

The members differ in the seed, and perhaps in the fields of `NUMBERS`. They share the examples, and nothing else: each
has its own initialization, order, augmentation and dropout, those of a run that trains alone.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from imgclf_jax import augment, models
from imgclf_jax.config import flatten, to_json
from imgclf_jax.devices import parallel
from imgclf_jax.models import cost
from imgclf_jax.training import multistep
from imgclf_jax.training.batches import Epoch
from imgclf_jax.training.experiment import Experiment, alternates, step_of
from imgclf_jax.training.metrics import METRICS
from imgclf_jax.training.resident import Feed
from imgclf_jax.training.session import Restored, Training

# The fields whose values only enter arithmetic, so that a program can take them as arguments. 0 means that a part is
# left out, which is another program.
NUMBERS = (
    "optim.learning_rate",
    "optim.momentum",
    "optim.weight_decay",
    "optim.clip_norm",
    "optim.label_smoothing",
    "optim.ema_decay",
    "augment.hue",
    "augment.contrast",
    "augment.brightness",
    "augment.saturation",
)


def shape(config: ConfigDict) -> dict[str, Any]:
    """Returns what configs must have in common to train in one program, a JSON object.

    It leaves out the seed, what is only logged or kept, and the numbers that are not 0.
    """
    fields = {path: value for path, value in flatten(to_json(config)).items() if not path.startswith(WITHOUT)}
    return fields | {path: "on" for path in NUMBERS if fields[path]}


# Fields that no program depends on.
WITHOUT = ("seed", "data.workers", "log.", "checkpoint.keep")


def numbers(configs: Sequence[ConfigDict]) -> dict[str, np.ndarray]:
    """Returns the `NUMBERS` in which configs differ, float32 [members] or, for a range (low, high), [members, 2]."""
    values = {path: [_get(config, path) for config in configs] for path in NUMBERS}
    return {path: np.asarray(each, np.float32) for path, each in values.items() if len(set(each)) > 1}


def is_dense(config: ConfigDict, image_shape: tuple[int, int, int]) -> bool:
    """Whether the network has no convolution, so that one batch of several networks is as fast as one network.

    The convolutions of several networks are one grouped convolution, which is many times slower.

    Args:
        config: a valid config.
        image_shape: (H, W, C) of the images of the data set.
    """
    model = models.create(config.model, 2)
    images = jax.ShapeDtypeStruct((1, *augment.input_shape(config, image_shape)), jnp.float32)
    traced = jax.make_jaxpr(lambda images: model.init(jax.random.key(0), images, train=False))(images)
    return "conv_general_dilated" not in cost.primitives(traced)


class Stack(NamedTuple):
    """Where the members are.

    Attributes:
        members: how many there are.
        strategy: the devices among which the members are divided equally.
        vmapped: whether the members of a device compute as one batch; otherwise one after the other.
    """

    members: int
    strategy: parallel.Parallel
    vmapped: bool

    @property
    def cut(self) -> NamedSharding:
        """The sharding of arrays [members, ...]."""
        return NamedSharding(self.strategy.mesh, PartitionSpec(parallel.AXES))

    def put(self, tree: Any) -> Any:
        """Copies arrays [members, ...] to the devices of the members."""
        return jax.tree.map(lambda array: jax.device_put(array, self.cut), tree)

    def join(self, trees: Sequence[Any]) -> Any:
        """Returns the trees of all members as one, in which each leaf is [members, ...]."""
        everywhere = jax.device_put(tuple(trees), self.strategy.replicated)
        return jax.jit(_join, out_shardings=self.cut)(everywhere)

    def member(self, tree: Any, index: int, strategy: parallel.Parallel) -> Any:
        """Returns the part of one member, on all devices of a strategy."""
        part = jax.jit(_part, out_shardings=self.strategy.replicated)(tree, index)
        return jax.device_put(part, strategy.replicated)


def _join(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _part(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def stack(experiment: Experiment, count: int) -> Stack:
    """Returns the placement of `count` members: on as many devices of the experiment as divide them equally."""
    devices = experiment.strategy.mesh.devices.ravel()
    used = max(number for number in range(1, len(devices) + 1) if count % number == 0)
    mesh = Mesh(devices[:used].reshape(used, 1), parallel.AXES)
    return Stack(count, parallel.Parallel("jit", mesh), is_dense(experiment.config, experiment.image_shape))


def training(
    configs: Sequence[ConfigDict],
    restored: Sequence[Restored],
    where: Stack,
    experiment: Experiment,
    split: Any,
    normalization: augment.Normalization,
    known: dict[str, np.ndarray],
) -> Training:
    """Returns the parts that train all members, with stacked states and meters; see `imgclf_jax.training.session`.

    Args:
        configs: those of the members.
        restored: the states to start from, all of the same step.
        where: the placement of the members.
        experiment: the experiment of one of them.
        split: the training split on the devices.
        normalization: on the devices.
        known: see `imgclf_jax.training.session.prepare`.
    """
    strategy = where.strategy
    keys = [experiment.strategy.put(jax.random.key_data(jax.random.key(config.seed))) for config in configs]
    keys = [jax.random.wrap_key_data(key) for key in keys]
    if restored[0].tree:
        trees = [each.tree for each in restored if each.tree]
        state, meter = where.join([tree["state"] for tree in trees]), where.join([tree["meter"] for tree in trees])
    else:
        known = known | (restored[0].ancestor.known if restored[0].ancestor else {})
        state, meter = (
            where.join([experiment.initial(key, known) for key in keys]),
            empty_meter(where, experiment.measures),
        )
    fixed = {"key": where.join(keys), "varying": where.put(numbers(configs))}
    examples, fixed["normalization"] = jax.device_put((split.examples, normalization), strategy.replicated)
    order = experiment.compiled(
        f"orders of {where.members}",
        lambda: jax.jit(jax.vmap(experiment.sampler.order, in_axes=(0, None)), out_shardings=where.cut),
    )
    feed = Feed(examples, strategy, experiment.plan.steps_per_epoch, functools.partial(order, fixed["key"]))

    def compile_steps():
        run = jax.jit(make_run_members(experiment, where), donate_argnames=("state",))
        start = int(np.asarray(state.step).max())
        data, count = feed(start, 1)[0], strategy.put(np.int32(1))
        return run.lower(state=state, meter=meter, data=data, count=count, **fixed).compile()

    name = f"{where.members} members that differ in {', '.join(fixed['varying']) or 'the seed'}"
    compiled = experiment.compiled(name, compile_steps)

    def run_steps(state, meter, data, count, step):
        return compiled(state=state, meter=meter, data=data, count=strategy.put(np.int32(count)), **fixed)

    return Training(state, meter, run_steps, feed)


def make_run_members(experiment: Experiment, where: Stack) -> Any:
    """Returns `run_steps` (see `imgclf_jax.training.multistep`) for all members.

    Its arguments `state`, `meter`, `key`, `varying` (see `numbers`) and the order in `data` begin with an axis of
    members.
    """
    alone = parallel.alone()
    classes = len(experiment.class_names)
    model = models.create(experiment.config.model, classes)

    def parts(varying):
        step = step_of(_filled(experiment.config, varying), experiment.plan, model, classes, alone)
        return step, experiment.sampler, alone, alternates(experiment.config)

    def in_turn(members, examples, normalization, count):
        def one(member):
            carry, (order, key, varying) = member
            run_steps = multistep.make_run_steps(*parts(varying))
            return run_steps(*carry, normalization, Epoch(examples, order), count, key)

        return jax.lax.map(one, members)

    def as_a_batch(members, examples, normalization, count):
        def one(carry, fixed):
            order, key, varying = fixed
            return multistep.make_one_step(*parts(varying))(*carry, normalization, Epoch(examples, order), key)

        # Not a vmap of the loop: it would compare and select the whole state of each member in each step.
        carry, fixed = members
        return jax.lax.fori_loop(0, count, lambda _, carry: jax.vmap(one)(carry, fixed), carry)

    def here(members, shared):
        batched = where.vmapped and where.members > where.strategy.devices
        return (as_a_batch if batched else in_turn)(members, *shared)

    # check_vma: the check of what is replicated does not see through custom derivatives.
    cut, whole = PartitionSpec(parallel.AXES), PartitionSpec()
    spread = jax.shard_map(here, mesh=where.strategy.mesh, in_specs=(cut, whole), out_specs=cut, check_vma=False)

    def run_members(state, meter, normalization, data, count, key, varying):
        return spread(((state, meter), (data.order, key, varying)), (data.examples, normalization, count))

    return run_members


def empty_meter(where: Stack, measures: Iterable[str] = METRICS) -> multistep.Meter:
    """Returns the meters of all members with all sums at zero, on the devices."""
    zeros = multistep.empty_meter(measures)
    return where.put({name: np.stack([zero] * where.members) for name, zero in zeros.items()})


def means(meter: multistep.Meter) -> list[dict[str, float] | multistep.Diverged]:
    """Returns `multistep.means` of each member, or how it diverged."""
    found: list[dict[str, float] | multistep.Diverged] = []
    for index in range(len(meter["bad_step"])):
        try:
            found.append(multistep.means({name: sums[index] for name, sums in meter.items()}))
        except multistep.Diverged as diverged:
            found.append(diverged)
    return found


def _filled(config, varying):
    """Returns a config with traced numbers."""
    filled = ConfigDict(config.to_dict(), type_safe=False)
    for path, value in varying.items():
        section, name = path.split(".")
        filled[section][name] = value if value.ndim == 0 else tuple(value)
    return filled


def _get(config, path):
    section, name = path.split(".")
    return config[section][name]
