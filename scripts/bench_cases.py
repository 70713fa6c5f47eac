"""The cases that scripts/bench_step.py times: our step and its parts, PyTorch's step, the machine's matrix product."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from imgclf_jax import augment
from imgclf_jax.config import default
from imgclf_jax.data import statistics
from imgclf_jax.devices import parallel
from imgclf_jax.errors import UserError
from imgclf_jax.rng import image_keys, step_keys
from imgclf_jax.terminal.console import Console
from imgclf_jax.training import multistep, optim, sampling
from imgclf_jax.training.batches import Epoch, Examples
from imgclf_jax.training.experiment import Experiment, build
from imgclf_jax.training.plan import Plan

MOST_BYTES = 2**29  # of random images on the device; smaller data sets keep their size
PRODUCT, WHOLE, NETWORK = "matrix product", "whole step", "network step"
INPUT, FORWARD, BOTH, UPDATE = "gather, augment", "forward", "forward and backward", "optimizer"


class Case(NamedTuple):
    """Something to be timed.

    Attributes:
        name: its name in tables.
        run: steps -> None: takes this number of steps and waits until they are done.
        flops: FLOPs of the convolutions and matrix products of a step; 0 if there are none.
        images: examples per step; 0 if there are none.
        moved: the minimum number of bytes that a step reads and writes; 0 if it is hard to determine.
    """

    name: str
    run: Callable[[int], None]
    flops: int = 0
    images: int = 0
    moved: int = 0


class Setup(NamedTuple):
    """One experiment on random data.

    Attributes:
        experiment: its functions; its plan has as many examples as are kept.
        normalization: of its inputs.
        data: the training data, on the devices.
    """

    experiment: Experiment
    normalization: augment.Normalization
    data: Epoch


def on_one_device(config: ConfigDict) -> ConfigDict:
    """Returns the config for one device, with a small learning rate. Raises `UserError` if it asks for more devices."""
    if config.parallel.devices not in (0, 1):
        raise UserError(f"parallel.devices={config.parallel.devices}: only one device is measured; leave the field out")
    config = config.copy_and_resolve_references()
    config.parallel.devices = 1
    config.optim.learning_rate *= 1e-3
    return config


def without_augmentation(config: ConfigDict) -> ConfigDict:
    """Returns the config of the same experiment on images that are not augmented."""
    config = config.copy_and_resolve_references()
    config.augment.update(default().augment)
    return config


def set_up(config: ConfigDict, plan: Plan, image_shape: tuple[int, int, int], classes: int) -> Setup:
    """Makes random data and the experiment's functions.

    Args:
        config: a valid config from `on_one_device`.
        plan: its durations.
        image_shape: (H, W, C) of the data.
        classes: number of labels.
    """
    names = tuple(map(str, range(classes)))
    experiment = build(config, sized(plan, config, image_shape), image_shape, names, parallel.create(config))
    return with_data(experiment, *random_data(experiment))


def sized(plan: Plan, config: ConfigDict, image_shape: tuple[int, int, int], most: int = MOST_BYTES) -> Plan:
    """Returns the plan for as many examples as fit into `most` bytes."""
    examples = max(1, min(plan.train_count, most // math.prod(image_shape)))
    epoch = sampling.steps_per_epoch(examples, config.train.batch_size, config.train.last_batch)
    return plan._replace(train_count=examples, steps_per_epoch=max(1, epoch))


def random_data(experiment: Experiment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns images uint8 [N, H, W, C], labels int32 [N] and the order of an epoch, int32 [N]."""
    count, random = experiment.plan.train_count, np.random.default_rng(0)
    images = random.integers(0, 256, (count, *experiment.image_shape), np.uint8)
    labels = random.integers(0, len(experiment.class_names), count, np.int32)
    return images, labels, random.permutation(count).astype(np.int32)


def with_data(experiment: Experiment, images: np.ndarray, labels: np.ndarray, order: np.ndarray) -> Setup:
    """Copies data to the devices of an experiment."""
    strategy = experiment.strategy
    sums = statistics.of_images(images[:1000])
    normalization = augment.normalization(experiment.config, experiment.image_shape, sums)
    examples = Examples(*strategy.put_examples((images, labels)))
    return Setup(experiment, strategy.put(normalization), Epoch(examples, strategy.put(order)))


def our_cases(whole: Setup, network: Setup) -> list[Case]:
    """Makes the cases for the machine's matrix product, for both steps and for their parts; nothing is compiled yet.

    Args:
        whole: the config's experiment.
        network: the same experiment without augmentation.
    """
    forward, step = network.experiment.network_flops()
    size = network.experiment.config.train.batch_size
    pixels = size * math.prod(network.experiment.input_shape)
    state = network.experiment.state_shapes()
    params, others = _bytes(state.params), _bytes(state.opt_state) + _bytes(state.ema)
    return [
        product_case(whole),
        Case(WHOLE, training(whole), step, size),
        Case(NETWORK, training(network), step, size),
        # uint8 in, float32 out.
        Case(INPUT, input_part(whole), images=size, moved=5 * pixels),
        Case(FORWARD, forward_part(network), forward, size),
        Case(BOTH, backward_part(network), step, size),
        # The gradients are read, everything else is read and written.
        Case(UPDATE, update_part(network), images=size, moved=3 * params + 2 * others),
    ]


def product_case(setup: Setup) -> Case:
    """Makes the case of a square matrix product in the config's dtype, large enough for the machine's full rate."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    dtype = jnp.dtype(setup.experiment.config.model.dtype)
    # Scaled so that products of products neither overflow nor vanish.
    strategy = setup.experiment.strategy
    matrix = strategy.put(np.random.default_rng(0).standard_normal((side, side), np.float32) / math.sqrt(side))
    matrix = matrix.astype(dtype)
    multiply = strategy.jit(jnp.matmul)

    def run(steps: int) -> None:
        result = matrix
        for _ in range(steps):
            result = multiply(result, matrix)
        result.block_until_ready()

    return Case(PRODUCT, run, flops=2 * side**3)


def training(setup: Setup) -> Callable[[int], None]:
    """Steps as training takes them: all of them in one dispatch."""
    run_steps = setup.experiment.compile_run_steps()
    state, key = setup.experiment.compile_init()(setup.experiment.key), setup.experiment.key
    fixed = {"normalization": setup.normalization, "data": setup.data, "key": key}

    def run(steps: int) -> None:
        nonlocal state
        state, meter = run_steps(state=state, meter=multistep.empty_meter(), count=jnp.int32(steps), **fixed)
        if int(meter["steps"]) != steps:
            raise UserError("the loss or a gradient is not finite, even on random data; lower optim.learning_rate")

    return run


def input_part(setup: Setup) -> Callable[[int], None]:
    """The input of the network: gathers a batch, augments and normalizes it."""
    experiment, size = setup.experiment, setup.experiment.sampler.batch_size

    def body(index, batch, data):
        # The comparison is never true, but the compiler cannot know that: it cannot leave out any step.
        step = index + (batch[0, 0, 0, 0] > 1e30)
        images, *_ = data.batch(experiment.strategy, experiment.sampler, step, experiment.key)
        images = images.reshape(size, *images.shape[2:])
        key = step_keys(experiment.key, step).augment
        return setup.normalization(augment.augment(experiment.config.augment, key, images, jnp.arange(size)))

    return looped(setup, body, jnp.zeros((size, *experiment.input_shape)), setup.data)


def make_loss(experiment: Experiment) -> Callable[..., tuple[jax.Array, Any]]:
    """Makes (params, batch_stats, images float32 [B, H, W, C], labels [B], step) -> (sum of losses, batch_stats)."""

    def loss(params, batch_stats, images, labels, step):
        variables = {"params": params, "batch_stats": batch_stats}
        keys = image_keys(step_keys(experiment.key, step).dropout, jnp.arange(len(labels)))
        logits, changed = experiment.model.apply(variables, images, train=True, keys=keys, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
        return losses.sum(), changed.get("batch_stats", {})

    return loss


def forward_part(setup: Setup) -> Callable[[int], None]:
    """The forward pass: the loss of a batch of network inputs."""
    loss = make_loss(setup.experiment)

    def body(index, carry, labels):
        images, params, batch_stats = carry
        total, batch_stats = loss(params, batch_stats, images, labels, index)
        return *touch((images, params), total), batch_stats

    images, labels, state = ready_batch(setup)
    return looped(setup, body, (images, state.params, state.batch_stats), labels)


def backward_part(setup: Setup) -> Callable[[int], None]:
    """The forward and backward pass: the loss and gradients of a batch of network inputs."""
    differentiate = jax.value_and_grad(make_loss(setup.experiment), has_aux=True)

    def body(index, carry, labels):
        images, params, batch_stats, _ = carry
        (total, batch_stats), gradients = differentiate(params, batch_stats, images, labels, index)
        return *touch((images, params), total), batch_stats, gradients  # carried, so that all are written

    images, labels, state = ready_batch(setup)
    return looped(setup, body, (images, state.params, state.batch_stats, state.params), labels)


def update_part(setup: Setup) -> Callable[[int], None]:
    """The update: new parameters from summed gradients, with the gradients' norm and the moving average."""
    config, size = setup.experiment.config, setup.experiment.config.train.batch_size
    optimizer = optim.create_optimizer(
        config.optim, setup.experiment.schedule, config.init.freeze, setup.experiment.plan
    )
    decay = config.optim.ema_decay

    def body(_, carry, unused):
        gradients, params, opt_state, ema = carry
        mean = jax.tree.map(lambda gradient: gradient / size, gradients)
        updates, opt_state = optimizer.update(mean, opt_state, params)
        params = optax.apply_updates(params, updates)
        if decay:
            ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
        return touch(gradients, optax.global_norm(mean)), params, opt_state, ema

    state = setup.experiment.compile_init()(setup.experiment.key)
    gradients = jax.tree.map(lambda parameter: 0.01 * parameter + 1e-4, state.params)
    return looped(setup, body, (gradients, state.params, state.opt_state, state.ema), ())


def ready_batch(setup: Setup) -> tuple[jax.Array, jax.Array, Any]:
    """Makes network inputs float32 [B, H, W, C], labels int32 [B], and an initial state."""
    experiment = setup.experiment
    images, labels, _ = setup.data.batch(experiment.strategy, experiment.sampler, jnp.int32(0), experiment.key)
    images, labels = images.reshape(-1, *images.shape[2:]), labels.reshape(-1)
    return setup.normalization(images / 255), labels, experiment.compile_init()(experiment.key)


def touch(tree: Any, value: jax.Array) -> Any:
    """Adds a tiny multiple of `value` to one element of each array, in place.

    To the compiler, the arrays are then new in every iteration. It cannot move computations on them out of the loop,
    and it needs `value` before the next iteration begins.
    """

    def one(array):
        start = (0,) * array.ndim
        element = jax.lax.dynamic_slice(array, start, (1,) * array.ndim)
        return jax.lax.dynamic_update_slice(array, element + (1e-30 * value).astype(array.dtype), start)

    return jax.tree.map(one, tree)


def looped(setup: Setup, body: Callable[..., Any], start: Any, constants: Any) -> Callable[[int], None]:
    """Compiles iterations of `body(index, carry, constants) -> carry`, all in one dispatch."""

    def loop(count, start, constants):
        return jax.lax.fori_loop(0, count, lambda index, carry: body(index, carry, constants), start)

    compiled = setup.experiment.strategy.jit(loop)

    def run(steps: int) -> None:
        jax.block_until_ready(compiled(jnp.int32(steps), start, constants))

    return run


def torch_cases(
    network: Setup, torch_networks: ModuleType, cores: int, torch_compile: bool, console: Console
) -> list[Case]:
    """Makes the cases of the network step in PyTorch, in both memory formats if there are convolutions."""
    device = torch_networks.configure(jax.default_backend(), cores)
    experiment, size = network.experiment, network.experiment.config.train.batch_size
    flops = experiment.network_flops()[1]
    convolves = any(leaf.ndim == 4 for leaf in jax.tree.leaves(experiment.state_shapes().params))
    cases = []
    for compiled in (False, True) if torch_compile else (False,):
        for channels_last in (False, True) if convolves else (False,):
            layout = " NHWC" if channels_last else " NCHW"
            name = "PyTorch" + " compiled" * compiled + layout * convolves
            options = {"channels_last": channels_last, "compiled": compiled}
            model, shape = experiment.model, experiment.input_shape
            run = torch_networks.training(experiment.config, model, shape, device, **options)
            try:
                run(1)
            except Exception as error:
                if not compiled:
                    raise
                console.warn(f"{name} is left out: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            else:
                cases.append(Case(name, run, flops, size))
    return cases


def _bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
