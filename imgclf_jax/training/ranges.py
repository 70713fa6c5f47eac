"""The values that each config field accepts. The defaults give the types, and the tables here give the limits."""

import math
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import config as configs


class Range(NamedTuple):
    """The numbers from `low` to `high`, compared in float32. An open end is excluded."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Returns whether a number is in the range. Floats are rounded to float32 first, as in use."""
        if isinstance(value, float):
            with np.errstate(over="ignore"):
                value = float(np.float32(value))
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        """Returns the range in words, for example "at least 0 and below 1"."""
        low = f"above {_number(self.low)}" if self.open_low else f"at least {_number(self.low)}"
        high = f"below {_number(self.high)}" if self.open_high else f"at most {_number(self.high)}"
        return f"{low} and {high}"


class Tuple(NamedTuple):
    """Tuples of `items` numbers, or of any length if `items` is `None`. The empty tuple turns a field off."""

    items: int | None
    whole: bool
    range: Range
    example: str


class Pairs(NamedTuple):
    """Tuples of pairs: of a pattern of parameters and a number or, if `first` is a range, of two numbers."""

    first: Range | None
    second: Range
    example: str


# Devices count steps in int32, and some computations look one epoch ahead.
STEPS = 2**30
EXAMPLES = 2**24  # in a batch; positions in it are int32 too
SIDE = 2**14  # pixels
FLOAT = float(np.finfo(np.float32).max)

FRACTION = Range(0, 1, open_high=True)
POSITIVE = Range(0, FLOAT, open_low=True)
NOT_NEGATIVE = Range(0, FLOAT)
DURATION = Range(0, STEPS)  # 0 means not given

NUMBERS = {
    "seed": Range(0, 2**32, open_high=True),  # JAX's keys are made from 32 bits
    "data.folds": Range(0, EXAMPLES),
    "data.fold": Range(0, EXAMPLES),
    "data.max_device_bytes": Range(0, 2**63, open_high=True),
    "data.workers": Range(0, 1024),
    "augment.rotation": Range(0, 180),
    "augment.width_shift": FRACTION,
    "augment.height_shift": FRACTION,
    "augment.shear": Range(0, 90, open_high=True),
    "augment.pad": Range(0, SIDE),
    "augment.policy_operations": Range(1, 100),
    "augment.policy_magnitude": Range(0, 30),
    "augment.hue": Range(0, 0.5),
    "augment.brightness": Range(0, 1),
    "augment.cutout": Range(0, SIDE),
    "augment.random_erasing": Range(0, 1),
    "augment.mixup": Range(0, 1000),
    "augment.cutmix": Range(0, 1000),
    "model.dropout": FRACTION,
    "optim.learning_rate": POSITIVE,
    "optim.final_fraction": Range(0, 1),
    "optim.decay_factor": Range(0, 1, open_low=True),
    "optim.warmup_steps": DURATION,
    "optim.warmup_epochs": DURATION,
    "optim.momentum": FRACTION,
    "optim.b1": FRACTION,
    "optim.b2": FRACTION,
    "optim.eps": NOT_NEGATIVE,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.clip_norm": NOT_NEGATIVE,
    "optim.label_smoothing": FRACTION,
    "optim.ema_decay": FRACTION,
    "optim.sam_rho": NOT_NEGATIVE,
    "optim.lookahead_every": DURATION,
    "optim.lookahead_decay": FRACTION,
    "optim.lookahead_power": NOT_NEGATIVE,
    "optim.lookahead_from": FRACTION,
    "train.batch_size": Range(1, EXAMPLES),
    "train.steps": DURATION,
    "train.epochs": DURATION,
    "train.patience": Range(0, STEPS),
    "train.accumulate": Range(1, EXAMPLES),
    "train.steps_per_dispatch": DURATION,
    "eval.batch_size": Range(1, EXAMPLES),
    "eval.every_steps": DURATION,
    "eval.every_epochs": DURATION,
    "log.every_steps": Range(1, STEPS),
    "log.line_seconds": Range(0, 10**9),
    "checkpoint.every_steps": DURATION,
    "checkpoint.every_epochs": DURATION,
    "checkpoint.keep": Range(1, 10**6),
    "checkpoint.keep_every": Range(0, STEPS),
    "parallel.devices": Range(0, 2**20),
}
TUPLES = {
    "data.split": Tuple(3, False, Range(0, 1), "(0.7, 0.15, 0.15)"),
    "data.image_size": Tuple(2, True, Range(1, SIDE), "(64, 64)"),
    "augment.zoom": Tuple(2, False, Range(0, 1000, open_low=True), "(0.8, 1.2)"),
    "augment.crop": Tuple(2, True, Range(1, 2 * SIDE), "(24, 24)"),
    "augment.random_resized_crop": Tuple(2, False, Range(0, 1, open_low=True), "(0.08, 1.0)"),
    "augment.sizes": Tuple(None, True, Range(1, SIDE), "(24, 28, 32)"),
    "augment.contrast": Tuple(2, False, Range(0, 1000), "(0.5, 1.5)"),
    "augment.saturation": Tuple(2, False, Range(0, 1000), "(0.5, 1.5)"),
    "optim.milestones": Tuple(None, False, Range(0, 1, open_low=True, open_high=True), "(0.5, 0.75)"),
    "model.widths": Tuple(None, True, Range(1, 2**20), "(32, 64)"),
    "model.hidden": Tuple(None, True, Range(1, 2**20), "(128,)"),
    "parallel.mesh": Tuple(2, True, Range(1, 2**20), "(4, 2)"),
}
PAIRS = {
    "optim.factors": Pairs(None, Range(1e-6, 1e6), "(('*/bias', 2.0),)"),
    "optim.freeze_after": Pairs(None, Range(0, STEPS, open_low=True), "(('conv1', 3.0),)"),
    "optim.knots": Pairs(Range(0, 1), NOT_NEGATIVE, "((0, 0.2), (0.25, 1.0), (1, 0.0))"),
}
# Tuples of names of your own parts.
PARTS = ("augment.extra", "metrics", "log.writers")
NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a tuple of texts"}


def problems(config: ConfigDict, *sections: str) -> list[str]:
    """Returns one line for each value of the wrong type or, if there is none, for each value out of range.

    Args:
        config: a config that has all fields of `imgclf_jax.config.default()`.
        sections: prefixes of the fields to check, such as "optim."; by default, all fields are checked.
    """
    return wrong_types(config, *sections) or _lines(config, sections, _out_of_range)


def wrong_types(config: ConfigDict, *sections: str) -> list[str]:
    """Returns one line for each value of the wrong type. Other checks need a config without these."""
    return _lines(config, sections, _wrong_type)


def _lines(config, sections, reason_of):
    lines = []
    for path, standard, required in all_fields():
        value = config
        for part in path.split("."):
            value = value[part]
        if not path.startswith(sections or "") or (value is None and standard is None):
            continue
        if reason := reason_of(path, value, required):
            lines.append(f"{path}={value!r} must be {reason}; for example {_flag(path, standard, required)}")
    return lines


def all_fields():
    """Yields (path, default, type) of every field, without the sections `imgclf_jax.config.FREE`."""
    config = configs.default()
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from (
                (f"{name}.{field}", config[name][field], config[name].get_type(field))
                for field in config[name]
                if f"{name}.{field}" not in configs.FREE
            )
        else:
            yield name, config[name], config.get_type(name)


def _wrong_type(path, value, required):
    if path in PARTS:
        fits = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
        return None if fits else 'a tuple of names, such as "module:name"'
    if path in PAIRS:
        first = str if PAIRS[path].first is None else float
        fits = isinstance(value, tuple | list) and all(_is_pair(pair, first) for pair in value)
        return None if fits else _describe_pairs(PAIRS[path])
    if path not in TUPLES:
        return None if _is(value, required) else NAMES[required]
    item = int if TUPLES[path].whole else float
    fits = isinstance(value, tuple | list) and all(_is(number, item) for number in value)
    return None if fits else _describe(TUPLES[path])


def _out_of_range(path, value, required):
    if path in NUMBERS:
        return None if NUMBERS[path].holds(value) else f"{NAMES[required]}, {NUMBERS[path]}"
    if path in PAIRS:
        pairs = PAIRS[path]
        fits = all((first if pairs.first is None else pairs.first.holds(first)) for first, _ in value)
        return None if fits and all(pairs.second.holds(second) for _, second in value) else _describe_pairs(pairs)
    if path not in TUPLES:
        return None
    kind = TUPLES[path]
    fits = (not value or kind.items in (None, len(value))) and all(map(kind.range.holds, value))
    return None if fits else _describe(kind)


def _describe(kind):
    size = "numbers" if kind.items is None else f"{kind.items} numbers"
    return f"() or a tuple of {size}, each {NAMES[int if kind.whole else float]}, {kind.range}"


def _is_pair(pair, first):
    return isinstance(pair, tuple | list) and len(pair) == 2 and _is(pair[0], first) and _is(pair[1], float)


def _describe_pairs(pairs):
    first = "a pattern of parameters" if pairs.first is None else f"a number, {pairs.first}"
    return f"() or a tuple of pairs: {first}, and a number, {pairs.second}"


def _is(value: Any, required: type) -> bool:
    """Returns whether a field accepts a value. Float fields accept whole numbers; numeric fields reject bools."""
    if required is bool or isinstance(value, bool | np.bool_):
        return required is bool and isinstance(value, bool)
    accepted = {int: int | np.integer, float: int | float | np.number}
    return isinstance(value, accepted.get(required, required))


def _flag(path, standard, required):
    if path in TUPLES or path in PAIRS:
        return f'--config.{path}="{(TUPLES | PAIRS)[path].example}"'
    if path in PARTS:
        return f"--config.{path}=\"('my_parts:name',)\""
    if standard is None:
        standard = {int: 100, float: 0.5}[required]
    return f"--config.{path}={standard!r}"


def _number(value):
    if isinstance(value, float):
        return f"{value:g}"
    power = value.bit_length() - 1
    return f"2**{power}" if value >= 10**6 and value == 2**power else str(value)
