"""Reports all problems of a config before any data is read, and converts its durations to steps."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgclf_jax import augment, components, data, models, onednn
from imgclf_jax import config as configs
from imgclf_jax.augment import extra
from imgclf_jax.data import splits
from imgclf_jax.devices import half_precision
from imgclf_jax.devices import problems as parallel_problems
from imgclf_jax.errors import UserError, flag, unknown
from imgclf_jax.training import ancestor, freezing, lookahead, losses, metrics, optim, ranges, stages
from imgclf_jax.training.plan import Plan, epoch_problems, plan

CHOICES = {
    "data.resize": ("stretch", "crop"),
    "data.on_bad": ("error", "skip"),
    "data.examine": ("auto", "decode", "read"),
    "data.pixels": augment.PIXELS,
    "train.sampling": ("epoch", "replacement", "balanced"),
    "train.last_batch": ("drop", "wrap"),
    "eval.report": ("last", "best"),
    "eval.tta": tuple(augment.tta.WEIGHTS),
    "log.progress": ("auto", "bar", "lines", "json", "none"),
}
_FIELD = re.compile(r"[\w.]+=")  # the beginning of a line about a field's value


def validate(config: ConfigDict) -> tuple[Plan, data.Info]:
    """Checks a config for consistency and against the description of the data set and the devices.

    Returns:
        The plan, and the facts about the data set that are known without reading it.

    Raises:
        UserError: the config has problems; the message has one line per problem.
    """
    if problems := configs.field_problems(config):
        raise UserError("\n".join(problems))
    if wrong := ranges.wrong_types(config):
        raise UserError("\n".join(wrong))
    # Range checks come first: only the first problem of each field is reported, and theirs states the allowed values.
    problems = value_problems(config) + configs.problems(config) + optim.problems(config.optim)
    problems += ancestor.field_problems(config.init)
    batch = config.train.batch_size, config.train.accumulate
    uneven = parallel_problems.problems(config.parallel, *batch)
    # Pairs are asked for only if the batch can be divided at all.
    problems += uneven or augment.pair_problems(config.augment, *batch, config.parallel.devices or jax.device_count())
    problems += _durations(config)
    if config.train.patience and not (config.eval.every_steps or config.eval.every_epochs):
        problems.append(
            f"train.patience={config.train.patience} counts evaluations during training; say how often with "
            "--config.eval.every_epochs=1"
        )
    if config.augment.flip_mode == "alternating" and config.train.sampling != "epoch":
        problems.append('augment.flip_mode="alternating" needs epochs; give --config.train.sampling=epoch')
    info = None
    try:
        info = data.describe(config.data)
    except UserError as error:
        problems += str(error).splitlines()
    image_shape = info.image_shape if info else _image_shape(config)
    wrong_images = augment.problems(config.augment, image_shape) if image_shape else []
    classes = len(info.class_names) if info else None
    if image_shape and not wrong_images:
        size = augment.output_size(config.augment, image_shape[:2])
        wrong_images = extra.problems(config.augment.extra, (*size, image_shape[2]), classes or 3)
    problems += losses.problems(config.loss, classes) + metrics.problems(config.metrics, classes or 10)
    problems += [line for name in config.log.writers for line in _missing("log.writers", name)]
    input_shape = augment.input_shape(config, image_shape) if image_shape and not wrong_images else None
    problems += wrong_images + models.problems(config.model, input_shape, classes)
    if info:
        if "train" not in info.split_sizes:
            problems.append("data.train_split is empty; there is nothing to train on")
        elif not any("batch_size" in problem or "last_batch" in problem for problem in problems):
            problems += epoch_problems(config, info.split_sizes["train"])
        if config.eval.report == "best" and "valid" not in info.split_sizes:
            by_name = splits.are_expressions(config.data)
            how = flag("data.valid_split", "train[45000:]") if by_name else flag("data.split", (0.7, 0.15, 0.15))
            problems.append(
                f"eval.report='best' needs a validation split; give one, e.g. with {how}, or give "
                "--config.eval.report=last"
            )
        if config.train.patience and "valid" not in info.split_sizes:
            problems.append(
                f"train.patience={config.train.patience} needs a validation split; give one, or give "
                "--config.train.patience=0"
            )
    if problems or info is None or input_shape is None:
        raise UserError("\n".join(_first_of_each_field(problems)))
    network = config, input_shape, len(info.class_names)
    if wrong := _parameter_problems(*network) + stages.problems(*network):
        raise UserError("\n".join(wrong))
    durations = plan(config, info.split_sizes)
    wrong_durations = _too_long(config, durations) or lookahead.problems(config.optim, durations.steps)
    if wrong_durations := wrong_durations or _never_kept(config, durations):
        raise UserError("\n".join(wrong_durations))
    return durations, info


def _missing(slot, name):
    try:
        components.find(name, {}, slot)
    except UserError as error:
        return [str(error)]
    return []


def warnings(config: ConfigDict, info: data.Info) -> list[str]:
    """Returns one line for each surprising effect of a valid config; training and `--mode=check` print them."""
    lines = list(info.overlaps)
    if config.train.accumulate > 1 and config.model.norm == "batch":
        part = config.train.batch_size // config.train.accumulate
        lines.append(
            f'train.accumulate={config.train.accumulate} with model.norm="batch": each part of {part} examples is '
            "normalized by its own statistics, so the step differs from that with --config.train.accumulate=1"
        )
    if config.model.dtype == "bfloat16" and (cost := half_precision.emulated()):
        lines.append(f"model.dtype='bfloat16': {cost}; for that, add --config.model.dtype=float32")
    if config.model.name not in ("softmax", "mlp", "vit") and (advice := onednn.advice()):
        lines.append(advice)
    return lines


def value_problems(config: ConfigDict, section: str = "") -> list[str]:
    """Returns one line for each invalid value of a field whose name begins with `section`."""
    lines = [_choice(config, path, choices) for path, choices in CHOICES.items() if path.startswith(section)]
    if "data.source".startswith(section) and not components.is_own(config.data.source):
        lines.append(_choice(config, "data.source", tuple(data.SOURCES)))
    return ranges.problems(config, section) + [line for line in lines if line]


def for_evaluation(config: ConfigDict) -> list[str]:
    """Returns one line per problem with the settings that evaluation uses; those of training are not checked."""
    lines = [line for section in ("data.", "eval.", "parallel.") for line in value_problems(config, section)]
    return lines or parallel_problems.problems(config.parallel)


def _choice(config, path, choices):
    value = _get(config, path)
    if value not in choices:
        return unknown(path, value, choices)
    return None


def _get(config, path):
    for part in path.split("."):
        config = config[part]
    return config


def _durations(config):
    lines = []
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
            lines.append(f"{both}: give one, not both")
        elif needed and not given:
            lines.append(f"the length of training is missing; give {' or '.join(values)}")
    return lines


def _parameter_problems(config, input_shape, classes):
    """Returns one line per problem with the fields of an otherwise valid config that name parameters."""
    if not (config.init.freeze or config.optim.factors or config.optim.freeze_after or config.optim.name == "muon_sgd"):
        return []
    model, images = models.create(config.model, classes), jnp.zeros((1, *input_shape))
    shapes: Any = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    lines = freezing.problems(config.init.freeze, shapes) if config.init.freeze else []
    return lines + optim.parameter_problems(config.optim, shapes["params"])


def _too_long(config, plan):
    """Returns one line for each duration that overflows the int32 counters of steps, or of examples between rows."""
    durations = {
        "train.epochs": plan.steps,
        "optim.warmup_epochs": plan.warmup_steps,
        "eval.every_epochs": plan.eval_every,
        "checkpoint.every_epochs": plan.checkpoint_every,
    }
    lines = [
        f"{path}={_get(config, path)} amounts to {steps:.4g} steps, but at most {ranges.STEPS} can be counted; for "
        f"example --config.{path}=10"
        for path, steps in durations.items()
        if _get(config, path) and steps > ranges.STEPS
    ]
    lines += [
        f"optim.freeze_after={tuple(config.optim.freeze_after)!r}: the epochs of {pattern!r} amount to {steps:.4g} "
        f"steps, but at most {ranges.STEPS} can be counted"
        for pattern, steps in freezing.ends(config.optim, plan)
        if steps > ranges.STEPS
    ]
    row, most = min(plan.log_every, plan.steps), (2**31 - 1) // config.train.batch_size
    if row > most and not lines:
        lines.append(
            f"log.every_steps={config.log.every_steps}: a row cannot count more than {most} steps of "
            f"{config.train.batch_size} examples; for example --config.log.every_steps={min(most, 1000)}"
        )
    return lines


def _never_kept(config, plan):
    """Returns a line if `checkpoint.keep_every` asks for checkpoints of steps at which none is saved."""
    keep_every, intervals = config.checkpoint.keep_every, [n for n in (plan.checkpoint_every, plan.eval_every) if n]
    if not keep_every or any(keep_every % every == 0 for every in intervals):
        return []
    every = min(intervals, default=0)
    if not every:
        saved = f"checkpoints are saved only at the end; also set --config.checkpoint.every_steps={keep_every}"
    else:
        saved = f"checkpoints are saved every {every} steps; give a multiple of that, for example "
        saved += f"--config.checkpoint.keep_every={every * max(1, round(keep_every / every))}"
    return [f"checkpoint.keep_every={keep_every}: {saved}"]


def _first_of_each_field(problems):
    """Returns the first problem of each field. Several checks may reject the same value; one report is enough."""
    first: dict[str, str] = {}
    for problem in problems:
        field = _FIELD.match(problem)  # None for other lines, even if they name a file with a "=".
        first.setdefault(field[0] if field else problem, problem)
    return list(first.values())


def _image_shape(config):
    """Returns (H, W, C) even if the splits are wrong, so that checks that need only the size can run; or `None`."""
    whole = config.data.copy_and_resolve_references()
    whole.update(train_split="train", valid_split="", test_split="", folds=0, fold=0)
    try:
        return data.describe(whole).image_shape
    except UserError:
        return None
