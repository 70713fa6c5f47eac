"""Short names for groups of runs: from the sweep, the fields that differ, or the config file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgclf_jax import config as configs
from imgclf_jax.compare.reading import Run

_MOST_FIELDS = 2  # that a name lists in full


def name(firsts: Mapping[str, Run], given: Mapping[str, str]) -> dict[str, str]:
    """Names groups.

    A group has the name that a sweep gives it. Otherwise its name lists the fields that differ between the groups, as
    in "optim.learning_rate=0.1". If there are more than two, it is the name of the config file, if that differs between
    the groups; or else the fields that differ from the first group, which itself has the name of its config file. A
    single group has the name of its config file or folder.

    Args:
        firsts: identity -> one run of the group, in order.
        given: identity -> name from a sweep; it may have groups without a run, and lack some with runs.

    Returns:
        identity -> name, for every identity of both; the names are unique.
    """
    names = _from_fields(firsts) | dict(given)
    taken = list(names.values())
    return {
        identity: own if taken.count(own) == 1 else f"{own}-{identity[:8]}"
        for identity, own in names.items()
        if identity in firsts or identity in given
    }


def differing(firsts: Mapping[str, Run]) -> dict[str, dict[str, Any]]:
    """identity -> the fields of its config that differ between the groups and can change what training computes."""
    flat = {identity: configs.flatten(configs.to_json(run.config)) for identity, run in firsts.items()}
    paths = sorted({path for fields in flat.values() for path in fields})
    chosen = [
        path
        for path in paths
        if path not in (*configs.REPETITION, *configs.FREE)
        and not path.startswith(configs.NOT_MATHEMATICS)
        and any(fields.get(path) != next(iter(flat.values())).get(path) for fields in flat.values())
    ]
    return {identity: {path: fields.get(path) for path in chosen} for identity, fields in flat.items()}


def _from_fields(firsts):
    if not firsts:
        return {}
    files = {identity: _config_file(run) for identity, run in firsts.items()}
    first, *others = firsts
    own_name = files[first] or _folder(firsts[first])
    if not others:
        return {first: own_name}
    fields = differing(firsts)
    count = len(fields[first])
    if 0 < count <= _MOST_FIELDS:
        return {identity: _text(values) for identity, values in fields.items()}
    if len(set(files.values())) == len(files) and all(files.values()):
        return files
    base = fields[first]
    changes = {
        identity: {path: value for path, value in values.items() if value != base[path]}
        for identity, values in fields.items()
    }
    return {identity: _text(values) or own_name for identity, values in changes.items()}


def _text(values):
    return ", ".join(f"{path}={_value(value)}" for path, value in sorted(values.items()))


def _value(value):
    """A value as on the command line."""
    return value if isinstance(value, str) and value else repr(tuple(value) if isinstance(value, list) else value)


def _config_file(run):
    file = (run.record.get("provenance") or {}).get("config_file")
    return Path(file["path"]).stem if file else ""


def _folder(run):
    """The name of the run's folder, or of the folder above if it is only a number, a time, or a seed."""
    path = run.folder.resolve()
    plain = path.name.removeprefix("seed").replace("-", "").replace("fold", "")
    return path.parent.name if plain.isdigit() else path.name
