"""`--mode=check`: shows the effect of a config without reading data or allocating parameters."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgclf_jax import augment, components, data
from imgclf_jax.config import own_parts
from imgclf_jax.devices import parallel, xla
from imgclf_jax.errors import UserError
from imgclf_jax.models import cost
from imgclf_jax.terminal.console import Console, count
from imgclf_jax.training import ancestor
from imgclf_jax.training.experiment import build
from imgclf_jax.training.placed import placement
from imgclf_jax.training.session import check_classes
from imgclf_jax.training.summary import show_model
from imgclf_jax.training.validate import validate, warnings
from imgclf_jax.workdir import checkpoint_folder, resume
from imgclf_jax.workdir.claim import check_usable


def check(config: ConfigDict, folder: Path | None = None, allow_config_change: bool = False) -> None:
    """Prints the parameter table, output shapes, FLOPs and the memory that the compiled step needs.

    It also reports the warnings and errors of training, as far as they can be determined without reading the data and
    the checkpoints. Nothing is written.

    Args:
        config: the config.
        folder: the workdir that the config is for; `None` for a new one.
        allow_config_change: whether the config may differ from that of the run in `folder`, as for training.

    Raises:
        UserError: the config is not valid, or the run in `folder` cannot continue with it.
    """
    plan, info = validate(config)
    console = Console()
    changes = [] if folder is None else _workdir(folder, config, info, allow_config_change)
    for line in (*changes, *warnings(config, info)):
        console.warn(line)
    if info.notice:
        console.warn(info.notice)
    with xla.quiet():
        new = folder is None or not checkpoint_folder.exists(folder)
        _check(config, plan, info, console, new)


def _workdir(folder: Path, config: ConfigDict, info: data.Info, allow_change: bool) -> list[str]:
    """Returns the warnings of training in `folder`; raises `UserError` if training would reject the config."""
    check_usable(folder)
    before = resume.inspect(folder, config, allow_change, components.sources(own_parts(config).values()))
    facts = before.record.get("data") or {}
    if checkpoint_folder.exists(folder):
        check_classes(facts.get("class_names") or info.class_names, folder, info.class_names, info.location)
        shape = tuple(facts.get("image_shape") or info.image_shape)
        if shape != info.image_shape:
            sizes = ["×".join(map(str, size)) for size in (shape, info.image_shape)]
            raise UserError(
                f"the checkpoints in {folder} are of images of {sizes[0]}; those of {info.location} are {sizes[1]}; "
                "choose another --workdir"
            )
    return [f"config changed: {line}" for line in before.changed]


def _check(config, plan, info, console, new):
    strategy = parallel.create(config, info.image_bytes)
    experiment = build(config, plan, info.image_shape, info.class_names, strategy)
    if new and (start := ancestor.load(experiment)):
        console.print(start.line)
    memory = _compile(experiment).memory_analysis()
    counts = ", ".join(f"{name} {size:,}" for name, size in info.split_sizes.items())
    console.print(f"data {info.name}: {counts}" + ("" if info.is_prepared else " (not prepared yet)"))
    state, batch = experiment.template()["state"], config.train.batch_size
    show_model(console, config, plan, state.params, experiment.network_flops()[1])
    layers = cost.layer_outputs(experiment.model, state.eval_variables(), experiment.input_shape, batch)
    layers = [("images", (batch, *experiment.input_shape)), *layers]
    console.table(("output of", "shape"), [(name, "×".join(map(str, shape))) for name, shape in layers])
    if line := placement(strategy).notice(config, info):
        console.print(line)
    params, whole = _bytes(state.params), _bytes(state)
    rows = [
        placement(strategy).memory(strategy, experiment.sampler, experiment.image_shape),
        ("parameters", params),
        ("optimizer state, averages, statistics", whole - params),
        ("intermediate values of a step", memory.temp_size_in_bytes if memory else None),
    ]
    total = sum(size for _, size in rows if size)
    table = [(name, "?" if size is None else f"{count(size)}B") for name, size in rows]
    console.table(("memory on each device", "size"), table, ("total", f"{count(total)}B"))
    console.print("config is valid")


def _compile(experiment):
    """Returns `run_steps`, compiled without allocating any of its arguments."""
    template = experiment.template()
    return (
        experiment.compile_run_steps()
        .lower(
            state=template["state"],
            meter=template["meter"],
            normalization=augment.Normalization(**template["inputs"]),
            data=experiment.data_stand_ins(),
            count=jax.ShapeDtypeStruct((), jnp.int32),
            key=experiment.key,
        )
        .compile()
    )


def _bytes(tree):
    """Returns the number of bytes of a tree on each device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
