"""Loads a trained network from a workdir, for evaluation, prediction, export and reports."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import augment, components, data, models
from imgclf_jax.config import own_parts
from imgclf_jax.devices import parallel, xla
from imgclf_jax.errors import UserError
from imgclf_jax.training import ranges
from imgclf_jax.training.experiment import Experiment, for_evaluation
from imgclf_jax.training.plan import plan as make_plan
from imgclf_jax.workdir import checkpoint, checkpoint_folder, provenance, record, saved_config

CHECKPOINTS = ("reported", "last", "best")


class Trained(NamedTuple):
    """A trained network.

    Attributes:
        folder: the workdir.
        record: the content of `run.json`; `data`, the facts about the data, is present even if the file was deleted.
        step: the step of the checkpoint.
        experiment: the functions of the config.
        variables: the network's variables for evaluation.
        normalization: maps images in [0, 1] to the inputs of the network.
    """

    folder: Path
    record: dict[str, Any]
    step: int
    experiment: Experiment
    variables: dict[str, Any]
    normalization: augment.Normalization

    @property
    def config(self) -> ConfigDict:
        """The config of the run."""
        return self.experiment.config

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, by label."""
        return self.experiment.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the uint8 images that the network accepts."""
        return self.experiment.image_shape


def load(
    folder: Path, which: str = "reported", settings: ConfigDict | None = None, strategy: parallel.Parallel | None = None
) -> Trained:
    """Restores a checkpoint of the run in a workdir.

    Args:
        folder: the workdir.
        which: "last", "best" (by validation accuracy) or "reported" (the one whose test accuracy the run printed, or
            the last one if the run is not complete). If the "last" or "reported" one is damaged, the one before it
            is used, with a warning.
        settings: a config that may differ from the run's in where and how it runs; by default, the run's own.
        strategy: where the variables are placed; by default, on one device.

    Raises:
        UserError: there is no run or no such checkpoint, or the checkpoint is damaged or of another model.
    """
    if which not in CHECKPOINTS:
        raise UserError(f"checkpoint={which!r} must be one of {', '.join(map(repr, CHECKPOINTS))}")
    folder = Path(folder)
    settings = settings or saved_config.load_config(folder)
    content = check(folder)
    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    try:
        facts = _facts(checkpoints, content, folder)
        _validate(settings, facts, folder)
        _check_parts(settings, content)
        experiment = for_evaluation(
            settings,
            _plan(settings, facts, folder),
            tuple(facts["image_shape"]),
            tuple(facts["class_names"]),
            strategy or parallel.alone(),
        )
        wanted = _step(checkpoints, folder, content, which)
        with xla.quiet():
            saved, step = _restore(checkpoints, experiment.evaluation_template(), wanted, which)
        if isinstance(names := checkpoints.notes(step).get("class_names"), list):
            experiment = dataclasses.replace(experiment, class_names=tuple(names))
    finally:
        checkpoints.close()
    variables, normalization = _variables(saved["state"]), augment.Normalization(**saved["inputs"])
    return Trained(folder, content | {"data": facts}, step, experiment, variables, normalization)


def _variables(state):
    """The variables for evaluation; see `imgclf_jax.training.state.TrainState.eval_variables`."""
    if state["ema"]:
        return {"params": state["ema"], "batch_stats": state.get("ema_stats", state["batch_stats"])}
    return {"params": state["params"], "batch_stats": state["batch_stats"]}


def _check_parts(settings, content):
    """Warns if a module of one's own is not the one that the run was trained with."""
    before = provenance.parts_of(content)
    now = components.sources([name for slot, name in own_parts(settings).items() if slot == "model.name"])
    for line in components.changes({name: part for name, part in before.items() if name in now}, now):
        warnings.warn(f"{line}; the network may not be the one that was trained", stacklevel=3)


def check(folder: Path) -> dict[str, Any]:
    """Returns the content of `run.json` in a workdir with a checkpoint; empty if the file was deleted. Reads little.

    Raises:
        UserError: there is no checkpoint, or `run.json` cannot be read.
    """
    content = record.read(folder) or {}
    if not checkpoint_folder.exists(folder):
        raise UserError(f"{folder} holds no checkpoint; give the workdir that training printed")
    components.remember(provenance.parts_of(content))  # for messages about those that are not found
    return content


def _facts(checkpoints, content, folder):
    """Returns the facts about the data from `run.json` or, if it lacks them, from the notes of the checkpoints."""
    facts = content.get("data")
    if record.is_described(facts):
        return facts
    for step in reversed(checkpoints.steps()):
        if record.is_described(noted := checkpoints.notes(step).get("data")):
            return noted
    lacking = [name for name in ("class_names", "image_shape", "counts") if not (facts or {}).get(name)]
    raise UserError(
        f"{folder / record.NAME} lacks {', '.join(lacking) or 'counts'} of the data, and so do the checkpoints; run "
        "the training command again with this --workdir to restore them"
    )


def _restore(checkpoints, like, wanted, which):
    """Returns (saved tree, step) of the checkpoint of step `wanted`, or of the newest readable one before it."""
    try:
        if which == "best":
            return checkpoints.restore(wanted, like, partial=True), wanted
        newest = checkpoints.restore_newest(like, wanted, partial=True)
    except checkpoint.OtherModel:
        raise
    except UserError as error:
        tried = [wanted] if which == "best" else range(wanted + 1)
        others = [str(step) for step in checkpoints.steps() if step not in tried]
        advice = f"; there are checkpoints of step {', '.join(others)}: use --checkpoint=last" if others else ""
        raise UserError(f"{error}{advice}") from error
    for reason in newest.damaged.values():
        instead = f"the one of step {newest.step} is used instead; its accuracy may differ"
        warnings.warn(f"{reason}; {instead}", stacklevel=4)
    return newest.tree, newest.step


def check_classes(trained: Trained, dataset: data.Dataset) -> None:
    """Raises `UserError` unless the data set has the classes that the network was trained on, in the same order."""
    if dataset.class_names != trained.class_names:
        raise UserError(
            f"the classes of {dataset.location} are {', '.join(dataset.class_names)}; those of the network in "
            f"{trained.folder} are {', '.join(trained.class_names)}"
        )


def _validate(settings, facts, folder):
    """Raises `UserError` for settings that no run can have, because the files of a workdir may have been edited."""
    image_shape, classes = tuple(facts["image_shape"]), len(facts["class_names"])
    if problems := ranges.problems(settings, "optim.", "augment.", "model."):
        raise UserError("\n".join(f"{folder / 'config.json'}: {problem}" for problem in problems))
    problems = augment.problems(settings.augment, image_shape)
    if settings.data.pixels not in augment.PIXELS:
        problems.append(f"data.pixels={settings.data.pixels!r} must be one of {', '.join(map(repr, augment.PIXELS))}")
    problems += models.problems(
        settings.model, None if problems else augment.input_shape(settings, image_shape), classes
    )
    if problems:
        raise UserError("\n".join(f"{folder / 'config.json'}: {problem}" for problem in problems))


def _plan(settings, facts, folder):
    try:
        return make_plan(settings, facts["counts"])
    except (ArithmeticError, ValueError) as error:  # No run can have these durations.
        raise UserError(f"{folder / 'config.json'}: the durations are invalid ({error})") from error


def _step(checkpoints, folder, content, which):
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{folder} holds no checkpoint; give the workdir that training printed")
    if which == "reported":
        step = content.get("reported_step")
        if step is not None and step not in steps:
            warnings.warn(
                f"the reported checkpoint, that of step {step}, is not in {folder}; the one of step {steps[-1]} is "
                "used instead; its accuracy may differ from the reported one",
                stacklevel=3,
            )
        return step if step in steps else steps[-1]
    step = checkpoints.best() if which == "best" else steps[-1]
    if step is None:
        raise UserError(f"{folder} has no best checkpoint, because it was trained without a validation split; use last")
    return step


def predictor(trained: Trained, batch_size: int = 256, log: bool = False) -> Callable[..., np.ndarray]:
    """Returns the network as a function: images uint8 [N, H, W, C] -> class probabilities float32 [N, classes].

    Args:
        trained: the network.
        batch_size: see `in_batches`.
        log: whether to return log probabilities, because probabilities may be too small for float32.
    """
    finish = jax.nn.log_softmax if log else jax.nn.softmax
    return in_batches(trained, lambda *arguments: finish(trained.experiment.logits(*arguments)), batch_size)


def in_batches(trained: Trained, function: Callable[..., Any], batch_size: int = 256) -> Callable[..., Any]:
    """Returns a function of any number of images, uint8 [N, H, W, C] -> [N, ...], compiled.

    `images` is an array, or an object whose slices can be converted to arrays. Batches are padded to a power of two, to
    compile few shapes. The optional second argument, `progress`, is called with the number of images done so far, and
    `more` is a tuple of other arrays [N, ...] for `function`. The function raises `UserError` if the images do not have
    the shape and dtype that the network was trained on.

    Args:
        trained: the network.
        function: (variables, normalization, images, *more) -> [B, ...], or a tuple of such arrays.
        batch_size: largest number of images in a batch.
    """
    compiled = jax.jit(function)

    def predict(images: Any, progress: Callable[[int], None] = lambda done: None, more: tuple[Any, ...] = ()) -> Any:
        _check(trained, images)
        if not len(images):
            like = [jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in (images, *more)]
            one = jax.eval_shape(compiled, trained.variables, trained.normalization, *like)
            return jax.tree.map(lambda x: np.zeros((0, *x.shape[1:]), x.dtype), one)
        scores = []
        for start in range(0, len(images), batch_size):
            batch = [np.asarray(x[start : start + batch_size]) for x in (images, *more)]
            count = len(batch[0])
            size = min(batch_size, 1 << (count - 1).bit_length())
            batch = [np.pad(x, [(0, size - count), *[(0, 0)] * (x.ndim - 1)]) for x in batch]
            with xla.quiet():
                padded = compiled(trained.variables, trained.normalization, *batch)
            scores.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], padded))
            progress(start + count)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *scores)

    return predict


def _check(trained, images):
    if tuple(images.shape[1:]) != trained.image_shape or images.dtype != np.uint8:
        raise UserError(
            f"images {images.dtype} [{', '.join(map(str, images.shape))}]: the network in {trained.folder} takes uint8 "
            f"[N, {', '.join(map(str, trained.image_shape))}]"
        )
