"""Turns a sweep into a checked list of runs, each with its config and its folder."""

import collections
import copy
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgclf_jax import config as configs
from imgclf_jax.errors import UserError
from imgclf_jax.sweep import validating
from imgclf_jax.sweep.spec import Sweep, plain
from imgclf_jax.training import ranges

FOLD, FOLDS = "data.fold", "data.folds"
# Fields that differ between the runs of a variant, or that its runs must share -> what sets them.
OURS = {"seed": "--seeds", FOLD: "folds=... of the Sweep", FOLDS: "folds=... of the Sweep"}
MOST_SEEDS = 100_000
NAME_LENGTH = 80  # of a folder, without its hash


class Group(NamedTuple):
    """A variant: the runs that differ in seed and fold alone.

    Attributes:
        name: its name; unique in the sweep.
        identity: `imgclf_jax.config.identity` of the config.
        changes: "section.field" -> value, as in the sweep.
        folder: its folder, relative to that of the sweep.
        config: its config, with the seed of the base.
    """

    name: str
    identity: str
    changes: dict[str, Any]
    folder: str
    config: ConfigDict


class Job(NamedTuple):
    """One run.

    Attributes:
        group: the variant.
        seed: the seed.
        fold: the fold that is held out; 0 without cross-validation.
        config: the config, locked, with the seed and the fold.
        folder: the run directory, relative to the folder of the sweep.
    """

    group: Group
    seed: int
    fold: int
    config: ConfigDict
    folder: str


class Study(NamedTuple):
    """A resolved sweep.

    Attributes:
        groups: the variants in the order of the sweep.
        runs: the runs in the order in which to run them: all variants with the first seed, then with the next.
        seeds: the seeds in the order given.
        folds: the number of folds; 0 without cross-validation.
        base: the config that the variants change, with the changes that are common to all.
    """

    groups: list[Group]
    runs: list[Job]
    seeds: list[int]
    folds: int
    base: ConfigDict


def resolve(
    sweep: Sweep,
    seeds: Sequence[int],
    check: Callable[[dict[str, ConfigDict]], list[str]] = validating.in_another_process,
) -> Study:
    """Returns the runs of a sweep. The config of each variant is checked once; no data is read.

    Args:
        sweep: a sweep whose base is a config; see `imgclf_jax.sweep.loading.load`.
        seeds: the seeds; see `parse_seeds`.
        check: {name: config} -> one line for each problem, called if nothing else is wrong. By default another process
            does it, because JAX would reserve the accelerator in this one, which then would lack it for the runs.

    Raises:
        UserError: something is wrong, with one line for each problem.
    """
    if not isinstance(sweep.base, ConfigDict):
        raise TypeError("the base of the sweep has not been loaded")
    base = copy.deepcopy(sweep.base).lock()
    problems = [f"changes: {line}" for line in _change_ours(base, sweep.changes)]
    problems += seed_problems(seeds) + _fold_problems(sweep.folds) + _name_problems(sweep.variants)
    folds = sweep.folds or base.data.get("folds", 0)  # so that --config.data.folds=5 runs every fold
    if folds and not problems:
        change(base, {FOLDS: folds, FOLD: 0})
    groups = []
    for variant in sweep.variants:
        config = copy.deepcopy(base).lock()
        problems += [f"{variant.name}: {line}" for line in _change_ours(config, variant.changes)]
        if not problems:
            groups.append(_group(variant, config))
    problems = problems or _same_configs(groups) or check({group.name: group.config for group in groups})
    if problems:
        raise UserError("\n".join(problems))
    runs = [_job(group, seed, fold, folds) for seed in seeds for fold in range(folds or 1) for group in groups]
    return Study(groups, runs, list(seeds), folds, base)


def change(config: ConfigDict, changes: Mapping[str, Any]) -> list[str]:
    """Changes fields of a config in place.

    Args:
        config: the config.
        changes: "section.field" -> value.

    Returns:
        One line for each field that does not exist or cannot hold its value.
    """
    lines = []
    for path, value in changes.items():
        section, _, key = str(path).rpartition(".")
        if section in configs.FREE:
            configs.set_option(config[section.split(".")[0]][section.split(".")[1]], key, plain(value))
        elif path in _fields():
            lines += _set(config, path, plain(value))
        elif path in config and isinstance(config[path], ConfigDict):
            lines.append(f"{path} is a section; name one of its fields, such as {path}.{next(iter(config[path]))}")
        else:
            lines.append(configs.unknown_field(str(path)))
    return lines


def parse_seeds(text: str) -> list[int]:
    """Parses the value of `--seeds`: "5" is the seeds 0 to 4, "3,5,8" these three, and "5:10" 5 to 9.

    Lists may hold intervals: "0:3,7".

    Raises:
        UserError: the text has another form, or a seed is given twice.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,12}(:[0-9]{1,12})?", item) for item in items):
        advice = "write how many (5 is 0 to 4), a list (3,5,8) or an interval (5:10 is 5 to 9)"
        raise UserError(f"--seeds={text}: {advice}")
    if len(items) == 1 and ":" not in text:
        items = [f"0:{text.strip()}"]
    seeds: list[int] = []
    for item in items:
        first, colon, end = item.partition(":")
        found = range(int(first), int(end) if colon else int(first) + 1)
        if len(found) + len(seeds) > MOST_SEEDS:
            raise UserError(f"--seeds={text}: at most {MOST_SEEDS} seeds")
        if not found:
            raise UserError(f"--seeds={text}: there are no seeds in {item}; for example --seeds=3")
        seeds += found
    if lines := seed_problems(seeds):
        raise UserError(f"--seeds={text}: {lines[0]}")
    return seeds


def seed_problems(seeds: Sequence[int]) -> list[str]:
    """Returns one line for each seed that is repeated or not a seed."""
    lines = [] if seeds else ["there are no seeds; for example --seeds=3"]
    for seed, count in collections.Counter(seeds).items():
        if not isinstance(seed, int) or isinstance(seed, bool) or not ranges.NUMBERS["seed"].holds(seed):
            lines.append(f"seed {seed!r} must be a whole number, {ranges.NUMBERS['seed']}")
        elif count > 1:
            lines.append(f"seed {seed} is given {count} times")
    return lines


def folder_name(name: str, identity: str) -> str:
    """Returns NAME-HASH8: a name with the characters that every file system and shell accepts, and a hash."""
    text = re.sub(r"[()\[\]'\"]", "", name)
    text = re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", text).lstrip(".-")
    return f"{text[:NAME_LENGTH] or '_'}-{identity[:8]}"


def run_folder(group_folder: str, seed: int, fold: int, folds: int) -> str:
    """Returns the run directory, relative to the folder of the sweep."""
    return f"{group_folder}/seed{seed}" + (f"-fold{fold}" if folds else "")


def _group(variant, config):
    identity = configs.identity(config)
    changes = {path: plain(value) for path, value in variant.changes.items()}
    return Group(variant.name, identity, changes, folder_name(variant.name, identity), config)


def _job(group, seed, fold, folds):
    config = copy.deepcopy(group.config).lock()
    change(config, {"seed": seed} | ({FOLD: fold} if folds else {}))
    return Job(group, seed, fold, config, run_folder(group.folder, seed, fold, folds))


def _set(config, path, value):
    *sections, field = path.split(".")
    owner = config
    for section in sections:
        owner = owner[section]
    try:
        owner[field] = value
    except (TypeError, ValueError):
        with owner.unlocked(), owner.ignore_type():
            owner[field] = value
    # The line ends with a flag as an example, but the mistake is in a file.
    wrong = (line.partition("; for example")[0] for line in ranges.wrong_types(config, path))
    return [line for line in wrong if line.startswith(f"{path}=")]


@functools.cache
def _fields():
    return {path for path, *_ in ranges.all_fields()}


def _change_ours(config, changes):
    """As `change`, except for the fields in `OURS`, which are problems."""
    lines = [f"{path} cannot be changed here; it is set by {OURS[path]}" for path in changes if path in OURS]
    return lines + change(config, {path: value for path, value in changes.items() if path not in OURS})


def _fold_problems(folds):
    if not isinstance(folds, int) or isinstance(folds, bool) or folds < 0 or folds == 1:
        return [f"folds={folds!r} must be 0 or a whole number of at least 2"]
    return []


def _name_problems(variants):
    if not variants:
        return ["the sweep is empty; give it at least one variant"]
    names = [variant.name for variant in variants]
    lines = []
    for name in dict.fromkeys(names):
        if not isinstance(name, str) or not name.strip():
            number = names.index(name) + 1
            lines.append(f"variant {number} has the name {name!r}; give it a name with letters or digits")
        elif not name.isprintable():
            lines.append(f"the name {name!r} has characters that cannot be printed")
        elif names.count(name) > 1:
            lines.append(f"{names.count(name)} variants have the name {name}")
    return lines


def _same_configs(groups):
    first: dict[str, Group] = {}
    lines = []
    for group in groups:
        other = first.setdefault(group.identity, group)
        if other is not group:
            old, new = (configs.flatten(configs.to_json(each.config)) for each in (other, group))
            differ = sorted(path for path in old if old[path] != new.get(path))
            why = f"; {', '.join(differ)} does not change what is computed" if differ else ""
            lines.append(f"{other.name} and {group.name} are the same config{why}; remove one of them")
    return lines
