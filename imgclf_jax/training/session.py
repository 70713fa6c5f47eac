"""Prepares a run: compiles an experiment, places its data and restores or creates the state to start from."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imgclf_jax import augment, data
from imgclf_jax.data import statistics
from imgclf_jax.devices import processes, xla
from imgclf_jax.errors import UserError
from imgclf_jax.training import multistep, stages
from imgclf_jax.training.ancestor import Ancestor
from imgclf_jax.training.exact_evaluation import evaluate_split
from imgclf_jax.training.experiment import Experiment
from imgclf_jax.training.state import TrainState
from imgclf_jax.workdir import checkpoint_folder
from imgclf_jax.workdir.checkpoint import Checkpoints, OtherModel

IMAGES = 5000  # the most training images that initial variables are computed from


class Session(NamedTuple):
    """The parts of a run, compiled and on the devices.

    Attributes:
        experiment: the functions of the config.
        normalization: the normalization of the inputs, on the devices. Every checkpoint stores it.
        state: the state to start from.
        meter: the sums since the last row, to continue from.
        run_steps: (state, meter, data, count, step) -> (state, meter), compiled; see `imgclf_jax.training.loop.Work`.
        program: step -> the compiled program that takes it, for a single run; `None` before its stage begins.
        feed: the source of the data of `run_steps`; see `imgclf_jax.training.placed`.
        evaluate: (split name, state, whether with the views of `eval.tta`; by default not) -> exact result.
        agree: see `imgclf_jax.training.loop.Hooks`.
        is_finite: state -> whether all its parameters and statistics are finite.
        flops: FLOPs of the matrix products and convolutions of a step.
    """

    experiment: Experiment
    normalization: augment.Normalization
    state: TrainState
    meter: multistep.Meter
    run_steps: Callable[..., tuple[TrainState, multistep.Meter]]
    program: Callable[[int], Any]
    feed: Any
    evaluate: Callable[..., dict[str, float | int]]
    agree: Callable[..., jax.Array] | None
    is_finite: Callable[[TrainState], bool]
    flops: int


class Training(NamedTuple):
    """The parts of a session that train; see `Session`."""

    state: Any
    meter: multistep.Meter
    run_steps: Callable[..., tuple[Any, multistep.Meter]]
    feed: Any


class Restored(NamedTuple):
    """The state restored from a workdir.

    Attributes:
        tree: the content of the newest undamaged checkpoint; `None` if there is none.
        step: the number of steps taken; 0 if there is no checkpoint.
        notes: the notes in the checkpoint; see `imgclf_jax.workdir.checkpoint.Checkpoints.notes`.
        damaged: newer checkpoints that cannot be read; see `imgclf_jax.workdir.checkpoint.Found`.
        ancestor: the network to start from if there is no checkpoint; `None`: random parameters.
    """

    tree: dict[str, Any] | None
    step: int
    notes: dict[str, Any]
    damaged: dict[int, str]
    ancestor: Ancestor | None = None


def restore(experiment: Experiment, folder: Path, location: str) -> Restored:
    """Reads the newest checkpoint of a workdir, without changing the workdir.

    Args:
        experiment: the experiment that the checkpoint must fit.
        folder: the workdir.
        location: the place of the data set, for messages.

    Raises:
        UserError: there are checkpoints, but none of them can be read, or they are of another model or other classes.
    """
    if not processes.from_first(lambda: checkpoint_folder.exists(folder)):
        return Restored(None, 0, {}, {})
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        try:
            newest = checkpoints.restore_newest(experiment.template())
        except OtherModel:
            # If the classes differ, that is the more helpful message.
            _check_classes(checkpoints.notes(checkpoints.steps()[-1]), folder, experiment, location)
            raise
        if newest is None:
            return Restored(None, 0, {}, {})
        notes = checkpoints.notes(newest.step)
        _check_classes(notes, folder, experiment, location)
        return Restored(newest.tree, newest.step, notes, newest.damaged)
    finally:
        checkpoints.close()


def _check_classes(notes, folder, experiment, location):
    names = notes.get("class_names")
    if isinstance(names, list):
        check_classes(names, folder, experiment.class_names, location)


def check_classes(saved: Sequence[str], folder: Path, names: Sequence[str], location: str) -> None:
    """Raises `UserError` unless the classes `saved` in the checkpoints of `folder` are the `names` of the data set."""
    if tuple(saved) != tuple(names):
        raise UserError(
            f"the checkpoints in {folder} are of the classes {', '.join(map(str, saved))}; those of {location} are "
            f"{', '.join(names)}; choose another --workdir"
        )


def prepare(
    experiment: Experiment, dataset: data.Dataset, progress: data.Progress, training: Callable[..., Training]
) -> Session:
    """Places the data of an experiment, compiles its functions, and makes the state to start from.

    Args:
        experiment: the functions of the config.
        dataset: its data.
        progress: called during passes over images on disk.
        training: (experiment, training split on the devices, normalization, initial variables that are computed from
            training images, by path) -> the parts that train, such as `one_run` with a restored state.

    Raises:
        UserError: an image cannot be read.
    """
    strategy = experiment.strategy
    splits = {name: experiment.place(split) for name, split in dataset.splits.items()}
    normalization = strategy.put(_normalization(experiment, dataset, progress))
    parts = training(experiment, splits["train"], normalization, from_images(experiment, dataset, normalization))

    def evaluate_by_name(name: str, state: TrainState, tta: bool = False) -> dict[str, float | int]:
        show = functools.partial(progress, f"evaluating {name}")
        variables, batch_size = state.eval_variables(), experiment.config.eval.batch_size
        evaluate, measured = experiment.compile_evaluate(tta), experiment.evaluated(tta)
        return evaluate_split(evaluate, splits[name], variables, normalization, batch_size, show, measured)

    finite = experiment.compiled("finite", lambda: strategy.jit(_finite))
    agree = strategy.highest if processes.several() else None
    if agree is not None:
        agree(np.zeros(2, np.int32)).block_until_ready()  # compiles it
    return Session(
        experiment=experiment,
        normalization=normalization,
        state=parts.state,
        meter=parts.meter,
        run_steps=parts.run_steps,
        program=lambda step: experiment.programs.get(_program_name(stages.at(experiment.plan.stages, step))),
        feed=parts.feed,
        evaluate=evaluate_by_name,
        agree=agree,
        is_finite=lambda state: bool(finite((state.params, state.batch_stats))),
        flops=experiment.compiled("flops", experiment.network_flops)[1],
    )


def one_run(
    restored: Restored,
    experiment: Experiment,
    split: Any,
    normalization: augment.Normalization,
    known: dict[str, np.ndarray],
) -> Training:
    """Returns the parts that train one run from a restored state, or from `known` variables; see `prepare`."""
    strategy, config = experiment.strategy, experiment.config
    # The seed is an argument: the program serves all seeds.
    key = experiment.compiled("key", lambda: strategy.jit(jax.random.key))(strategy.put(np.uint32(config.seed)))
    if restored.tree:
        state, meter = restored.tree["state"], restored.tree["meter"]
    else:
        known = known | (restored.ancestor.known if restored.ancestor else {})
        state, meter = experiment.initial(key, known), strategy.put(multistep.empty_meter(experiment.measures))
    feed = split.feed(experiment.sampler, experiment.plan.steps, key, config.data.workers)
    # Compile now, so that compile time does not count towards the first images/s.
    return Training(state, meter, _compile(experiment, state, meter, normalization, key, restored.step), feed)


def from_images(
    experiment: Experiment, dataset: data.Dataset, normalization: augment.Normalization
) -> dict[str, np.ndarray]:
    """Returns the initial variables that a network computes from the first training images, by path.

    Only a model with a method `from_images` has any; see `imgclf_jax.models.speednet`.

    Args:
        experiment: the functions of the config.
        dataset: its data.
        normalization: of its inputs.
    """
    make = getattr(experiment.model, "from_images", None)
    if make is None:
        return {}
    split = dataset.splits["train"]
    images = jnp.asarray(split.images[: min(IMAGES, len(split))])
    seen = normalization(augment.central(experiment.config.augment, images))
    return make(np.asarray(seen))


def _finite(tree):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _normalization(experiment, dataset, progress):
    config, train, sums = experiment.config, dataset.splits["train"], None
    if config.data.pixels != "unit":
        squares = config.data.pixels == "standardized"
        sums = processes.first_alone(lambda: statistics.of_split(train, dataset.fingerprint, progress, squares))
    return augment.normalization(config, experiment.image_shape, sums)


def _program_name(stage):
    return f"run_steps from {stage.first}"


def _compile(experiment, state, meter, normalization, key, start):
    """Returns `run_steps`. All its arguments must be on the devices; see the transfer guard in `loop.py`.

    The program of the first steps is compiled at once, and those of later stages when they begin.
    """
    strategy, plan = experiment.strategy, experiment.plan
    # The arrays themselves are given away to the first step.
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), (state, meter)
    )

    def compile_stage(stage):
        arguments = {"data": experiment.data_stand_ins(), "normalization": normalization, "key": key}
        count = strategy.put(np.int32(1))
        return (
            experiment.compile_run_steps(stage).lower(state=like[0], meter=like[1], count=count, **arguments).compile()
        )

    def program_of(step):
        stage = stages.at(plan.stages, step)
        name = _program_name(stage)
        if name not in experiment.programs:
            with xla.quiet(), jax.transfer_guard("allow"):  # Constants are copied.
                experiment.compiled(name, functools.partial(compile_stage, stage))
        return experiment.programs[name]

    program_of(start)

    def run_steps(state, meter, data, count, step):
        program, count = program_of(step), strategy.put(np.int32(count))
        return program(state=state, meter=meter, normalization=normalization, data=data, count=count, key=key)

    return run_steps
