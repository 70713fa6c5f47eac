"""`--mode=check`: what a config would do, without reading data or allocating a parameter."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgclf_jax import data
from imgclf_jax.augment.normalize import Normalization
from imgclf_jax.devices import parallel, xla
from imgclf_jax.errors import UserError
from imgclf_jax.models import cost
from imgclf_jax.terminal.console import Console, count
from imgclf_jax.training import feed, multistep
from imgclf_jax.training.experiment import build, compile_run_steps
from imgclf_jax.training.summary import show_model
from imgclf_jax.training.validate import validate, warnings
from imgclf_jax.workdir import checkpoint_folder, resume
from imgclf_jax.workdir.claim import check_usable


def check(config: ConfigDict, folder: Path | None = None, allow_config_change: bool = False) -> None:
    """Prints the parameter table, output shapes, FLOPs and the memory that the compiled step needs.

    It also prints what training would warn about, and refuses what training would refuse, as far as that can be known
    without reading the data and the checkpoints. Nothing is written.

    Args:
        config: the config.
        folder: the workdir that the config is meant for; `None`: a new one.
        allow_config_change: whether the config may differ from that of the run in `folder`, as for training.

    Raises:
        UserError: the config is not valid, or the run in `folder` cannot go on with it.
    """
    plan, info = validate(config)
    console = Console()
    changes = [] if folder is None else _workdir(folder, config, info, allow_config_change)
    for line in (*changes, *warnings(config, info)):
        console.warn(line)
    if info.notice:
        console.warn(info.notice)
    with xla.quiet():
        _check(config, plan, info, console)


def _workdir(folder: Path, config: ConfigDict, info: data.Info, allow_change: bool) -> list[str]:
    """Returns what training in `folder` would warn about; raises `UserError` for what it would refuse."""
    check_usable(folder)
    found = resume.inspect(folder, config, allow_change)
    before = found.record.get("data") or {}
    if checkpoint_folder.exists(folder):
        names = tuple(before.get("class_names") or info.class_names)
        if names != info.class_names:
            raise UserError(
                f"the checkpoints in {folder} are of the classes {', '.join(names)}; those of {info.location} are "
                f"{', '.join(info.class_names)}; choose another --workdir"
            )
        shape = tuple(before.get("image_shape") or info.image_shape)
        if shape != info.image_shape:
            sizes = ["×".join(map(str, size)) for size in (shape, info.image_shape)]
            raise UserError(
                f"the checkpoints in {folder} are of images of {sizes[0]}; those of {info.location} are {sizes[1]}; "
                "choose another --workdir"
            )
    return [f"config changed: {line}" for line in found.changed]


def _check(config, plan, info, console):
    image_bytes = sum(info.split_sizes.values()) * math.prod(info.image_shape)
    streamed = feed.is_streamed(config, info)
    strategy = parallel.create(config.parallel, image_bytes, streamed)
    channels = jnp.zeros(info.image_shape[-1])
    classes = len(info.class_names)
    experiment = build(config, plan, info.image_shape, classes, Normalization(channels, channels), strategy)

    state = strategy.describe(jax.eval_shape(experiment.init, experiment.key))
    batch = config.train.batch_size
    if streamed:
        steps = feed.chunk_steps(batch, info.image_shape)
        images, labels, order = feed.chunk(strategy, steps, batch, config.train.accumulate, info.image_shape)
    else:
        images = jax.ShapeDtypeStruct((plan.train_count, *info.image_shape), jnp.uint8)
        order = labels = jax.ShapeDtypeStruct((plan.train_count,), jnp.int32)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    meter = jax.eval_shape(multistep.empty_meter)
    run_steps = compile_run_steps(experiment, strategy)
    compiled = run_steps.lower(state, meter, images, labels, order, scalar, experiment.key).compile()

    _, flops = cost.network_flops(experiment.model, state.eval_variables(), experiment.input_shape, batch)
    counts = ", ".join(f"{name} {size:,}" for name, size in info.split_sizes.items())
    console.print(f"data {info.name}: {counts}" + ("" if info.is_prepared else " (not prepared yet)"))
    show_model(console, config, plan, state.params, flops)
    layers = cost.layer_outputs(experiment.model, state.eval_variables(), experiment.input_shape, batch)
    layers = [("images", (batch, *experiment.input_shape)), *layers]
    console.table(("output of", "shape"), [(name, "×".join(map(str, shape))) for name, shape in layers])
    memory = compiled.memory_analysis()
    if streamed:
        console.print(feed.notice(config, info))
        what, data_bytes = "two chunks of streamed data, as uint8", 2 * _bytes((images, labels))
    else:
        what = "training data, as uint8"
        data_bytes = (images.size + 4 * labels.size) // (strategy.devices if strategy.sharded_data else 1)
    params, whole = _bytes(state.params), _bytes(state)
    rows = [
        (what, data_bytes),
        ("parameters", params),
        ("optimiser, averages, statistics", whole - params),
        ("intermediate values of a step", memory.temp_size_in_bytes if memory else None),
    ]
    total = sum(size for _, size in rows if size)
    table = [(name, "?" if size is None else f"{count(size)}B") for name, size in rows]
    console.table(("memory on each device", "size"), table, ("total", f"{count(total)}B"))
    console.print("config is valid")


def _bytes(tree):
    """What a device holds of it."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
