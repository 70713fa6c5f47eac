"""Finds everything that is wrong with a config before any data is read, and turns durations into steps."""

import re

from ml_collections import ConfigDict

from imgclf_jax import augment, data, models
from imgclf_jax import config as configs
from imgclf_jax.devices import problems as parallel_problems
from imgclf_jax.errors import UserError
from imgclf_jax.training import optim, ranges
from imgclf_jax.training.plan import Plan, epoch_problems, plan

CHOICES = {
    "data.source": ("tfds", "sample", "folder"),
    "data.resize": ("stretch", "crop"),
    "data.on_bad": ("error", "skip"),
    "data.pixels": augment.PIXELS,
    "train.sampling": ("epoch", "replacement"),
    "train.last_batch": ("drop", "wrap"),
    "eval.report": ("last", "best"),
    "log.progress": ("auto", "bar", "lines", "none"),
}
_FIELD = re.compile(r"[\w.]+=")  # what a line about the value of a field begins with


def validate(config: ConfigDict) -> tuple[Plan, data.Info]:
    """Checks a config against itself, the data set's description and the devices.

    Returns:
        The plan, and what is known of the data set without reading it.

    Raises:
        UserError: all problems, a line each.
    """
    if problems := configs.field_problems(config):
        raise UserError("\n".join(problems))
    if wrong := ranges.wrong_types(config):
        raise UserError("\n".join(wrong))
    # Ranges come first, because of each field only the first problem is reported, and theirs names what is allowed.
    problems = value_problems(config) + configs.problems(config) + optim.problems(config.optim)
    problems += parallel_problems.problems(config.parallel, config.train.batch_size, config.train.accumulate)
    problems += _durations(config)
    info = None
    try:
        info = data.describe(config.data)
    except UserError as error:
        problems += str(error).splitlines()
    image_shape = info.image_shape if info else _image_shape(config)
    wrong_images = augment.problems(config.augment, image_shape) if image_shape else []
    input_shape = augment.input_shape(config, image_shape) if image_shape and not wrong_images else None
    problems += wrong_images + models.problems(config.model, input_shape, len(info.class_names) if info else None)
    if info:
        if "train" not in info.split_sizes:
            problems.append("data.train_split is empty; there is nothing to train on")
        elif not any("batch_size" in problem or "last_batch" in problem for problem in problems):
            problems += epoch_problems(config, info.split_sizes["train"])
        if config.eval.report == "best" and "valid" not in info.split_sizes:
            how = "add photos for validation" if config.data.source == "folder" else "set data.valid_split"
            problems.append(f'eval.report="best" needs a validation split; {how} or set eval.report="last"')
    if problems or info is None:
        raise UserError("\n".join(_first_of_each_field(problems)))
    found = plan(config, info.split_sizes)
    if too_long := _too_long(config, found):
        raise UserError("\n".join(too_long))
    return found, info


def warnings(config: ConfigDict, info: data.Info) -> list[str]:
    """Returns what a valid config does that its author may not expect, a line each; for training and `--mode=check`."""
    found = list(info.overlaps)
    if config.train.accumulate > 1 and config.model.norm == "batch":
        part = config.train.batch_size // config.train.accumulate
        found.append(
            f'train.accumulate={config.train.accumulate} with model.norm="batch": each part of {part} examples is '
            "normalised by its own statistics, so that the step is not the same as with --config.train.accumulate=1"
        )
    return found


def value_problems(config: ConfigDict, section: str = "") -> list[str]:
    """What is wrong with single values, a line each; `section`: only of the fields that begin with it."""
    found = [_choice(config, path, choices) for path, choices in CHOICES.items() if path.startswith(section)]
    return ranges.problems(config, section) + [problem for problem in found if problem]


def for_evaluation(config: ConfigDict) -> list[str]:
    """Returns what is wrong with the settings that evaluation uses, a line each; those of training are not checked."""
    found = [problem for section in ("data.", "eval.", "parallel.") for problem in value_problems(config, section)]
    return found or parallel_problems.problems(config.parallel)


def _choice(config, path, choices):
    value = _get(config, path)
    if value not in choices:
        return f"{path}={value!r} must be one of {', '.join(repr(choice) for choice in choices)}"
    return None


def _get(config, path):
    for part in path.split("."):
        config = config[part]
    return config


def _durations(config):
    found = []
    for section, stem, needed in (
        ("train", "", True),
        ("optim", "warmup_", False),
        ("eval", "every_", False),
        ("checkpoint", "every_", False),
    ):
        names = [f"{stem}steps", f"{stem}epochs"]
        values = {f"{section}.{name}": config[section][name] for name in names}
        given = {name: value for name, value in values.items() if value}
        both = " and ".join(f"{name}={value}" for name, value in given.items())
        if len(given) == 2:
            found.append(f"{both}: give one of the two, not both")
        elif needed and not given:
            found.append(f"how long to train? give {' or '.join(values)}")
    return found


def _too_long(config, plan):
    """Returns what exceeds the int32 numbers in which the devices count steps, and examples since the last row."""
    durations = {
        "train.epochs": plan.steps,
        "optim.warmup_epochs": plan.warmup_steps,
        "eval.every_epochs": plan.eval_every,
        "checkpoint.every_epochs": plan.checkpoint_every,
    }
    found = [
        f"{path}={_get(config, path)} amounts to {steps:.4g} steps; at most {ranges.STEPS} can be counted; for "
        f"instance --config.{path}=10"
        for path, steps in durations.items()
        if _get(config, path) and steps > ranges.STEPS
    ]
    row, most = min(plan.log_every, plan.steps), (2**31 - 1) // config.train.batch_size
    if row > most and not found:
        found.append(
            f"log.every_steps={config.log.every_steps}: more than {most} steps of {config.train.batch_size} examples "
            f"cannot be counted in a row; for instance --config.log.every_steps={min(most, 1000)}"
        )
    return found


def _first_of_each_field(problems):
    """Returns the first problem of each field. Several checks may refuse the same value; the first says enough."""
    found: dict[str, str] = {}
    for problem in problems:
        field = _FIELD.match(problem)  # None for other lines, which may hold file names with a "=".
        found.setdefault(field[0] if field else problem, problem)
    return list(found.values())


def _image_shape(config):
    """Where only the splits are wrong, the images' size is known, and what depends on it can be checked as well."""
    whole = config.data.copy_and_resolve_references()
    whole.update(train_split="train", valid_split="", test_split="")
    try:
        return data.describe(whole).image_shape
    except UserError:
        return None
