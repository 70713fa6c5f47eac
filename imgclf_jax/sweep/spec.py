"""The description of a sweep: a base config and variants of it, as plain data.

Nothing here knows which fields exist or what they accept; `imgclf_jax.sweep.resolving` checks that.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgclf_jax import config as configs
from imgclf_jax.errors import UserError

Key = str | tuple[str, ...]  # a field, or several fields that change together


class Variant(NamedTuple):
    """One variant of a config.

    Attributes:
        name: its name in folders and tables.
        changes: "section.field" -> value; the other fields are those of the base.
    """

    name: str
    changes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `get_sweep()` returns.

    Attributes:
        base: the config that the variants change, or the name of a config of the package ("cnn"), or the path of a file
            relative to the file of the sweep ("../cnn.py").
        variants: the variants. The first is the baseline of comparisons unless another is chosen there.
        changes: "section.field" -> value, for the base and so for all variants.
        folds: the number of folds of cross-validation; each variant is then trained once for each fold and seed. 0: no
            cross-validation.
    """

    base: str | PathLike[str] | ConfigDict
    variants: Sequence[Variant]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folds: int = 0


def variants(named: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
    """Returns variants with chosen names: {name: {"section.field": value}}. {} is the base itself.

    Raises:
        UserError: `named` has another form.
    """
    return [Variant(name, _changes("variants", name, changes)) for name, changes in _items("variants", named)]


def minus_one(ingredients: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
    """Returns an ablation: the base with all of its ingredients, and one variant without each of them.

    Args:
        ingredients: {name: the changes that turn it off}, for example {"flip": {"augment.flip": False}}.

    Returns:
        The variant "all", which is the base, then "no_NAME" for each ingredient.

    Raises:
        UserError: `ingredients` has another form.
    """
    items = _items("minus_one", ingredients)
    return [
        Variant("all", {}),
        *(Variant(f"no_{name}", _changes("minus_one", name, changes)) for name, changes in items),
    ]


def grid(fields: Mapping[Key, Iterable[Any]]) -> list[Variant]:
    """Returns every combination of values; the last field changes fastest.

    Args:
        fields: {"section.field": values}, or {("section.field", "section.other"): tuples of values} for fields that
            change together.

    Returns:
        The variants, named after their values: "learning_rate=0.01,dropout=0.5".

    Raises:
        UserError: `fields` has another form, or a field has no values.
    """
    return [combination(fields, chosen) for chosen in itertools.product(*_columns("grid", fields))]


def zipped(fields: Mapping[Key, Iterable[Any]]) -> list[Variant]:
    """Returns the first values of all fields together, then the second values, and so on; named as in `grid`.

    Raises:
        UserError: `fields` has another form, or the fields have different numbers of values.
    """
    columns = _columns("zipped", fields)
    if len({len(column) for column in columns}) > 1:
        counts = ", ".join(f"{key_text(key)} has {len(column)}" for key, column in zip(fields, columns, strict=True))
        raise UserError(f"zipped: every field needs the same number of values, but {counts}")
    return [combination(fields, chosen) for chosen in zip(*columns, strict=True)]


def product(*lists: Sequence[Variant]) -> list[Variant]:
    """Returns every combination of variants, one from each list; the last list changes fastest.

    Names are joined by ",", and changes are merged.

    Raises:
        UserError: two variants of a combination change the same field, or an argument is not a list of variants.
    """
    for variants in lists:
        check_variants("product", variants)
    return [functools.reduce(_join, chosen) for chosen in itertools.product(*lists)] if lists else []


def combination(fields: Iterable[Key], chosen: Iterable[Any]) -> Variant:
    """Returns the variant in which each field, or group of fields, has the chosen value, named after its values."""
    changes: dict[str, Any] = {}
    for key, value in zip(fields, chosen, strict=True):
        changes |= {key: value} if isinstance(key, str) else dict(zip(key, value, strict=True))
    return Variant(",".join(f"{short_name(path)}={value_text(value)}" for path, value in changes.items()), changes)


def check_variants(where: str, variants: Any) -> None:
    """Raises the `UserError` for what is not a list of variants. `where` begins its message."""
    wrong = None if isinstance(variants, list | tuple) and not isinstance(variants, Variant) else variants
    wrong = next((item for item in variants if not isinstance(item, Variant)), None) if wrong is None else wrong
    if wrong is not None:
        raise UserError(f"{where}: {_brief(wrong)} is not a list of variants, such as sweep.variants({{...}})")


@functools.cache
def short_name(path: str) -> str:
    """Returns the shortest end of a field's path that no other field of a config has: "dropout", "optim.name"."""
    parts = path.split(".")
    for start in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[start:])
        if not any(other != path and f".{other}".endswith(f".{end}") for other in _field_names()):
            return end
    return path


def value_text(value: Any) -> str:
    """Returns a value as it is written in names."""
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, tuple | list):
        return f"({','.join(map(value_text, value))})"
    return str(value)


def key_text(key: Key) -> str:
    """Returns a key of `grid` as it is written in messages."""
    return key if isinstance(key, str) else f"({', '.join(map(str, key))})"


def plain(value: Any) -> Any:
    """Returns a value without NumPy's types, and with tuples for lists, so that it compares equal after JSON."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def values_of(where: str, key: Key, values: Any) -> list[Any]:
    """Returns the values of a field, or of fields that change together, checked for their number.

    Raises:
        UserError: there are none, they are not a sequence, or `key` is not a field or a tuple of fields. `where`
            begins the message.
    """
    if not isinstance(key, str) and not (isinstance(key, tuple) and key and all(isinstance(name, str) for name in key)):
        raise UserError(f'{where}: {key!r} is not a field; write "section.field", or a tuple of such names')
    if isinstance(values, str | bytes | Mapping | None) or not isinstance(values, Iterable):
        raise UserError(f"{where}: {key_text(key)} needs a tuple of values, for example ({values!r},)")
    found = [plain(value) for value in values]
    if not found:
        raise UserError(f"{where}: {key_text(key)} has no values")
    for value in found if isinstance(key, tuple) else ():
        if not isinstance(value, tuple) or len(value) != len(key):
            raise UserError(f"{where}: {key_text(key)} needs {len(key)} values each time, not {value!r}")
    return found


def _columns(where, fields):
    columns = [values_of(where, key, values) for key, values in _items(where, fields)]
    names = [name for key in fields for name in ([key] if isinstance(key, str) else key)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: {', '.join(repeated)} is given twice")
    return columns


def _items(where, named) -> Iterator[tuple[Any, Any]]:
    if not isinstance(named, Mapping):
        raise UserError(f"{where} takes a dict, not {_brief(named)}")
    if not named:
        raise UserError(f"{where} was given an empty dict")
    return iter(named.items())


def _changes(where, name, changes):
    if not isinstance(changes, Mapping):
        raise UserError(f'{where}: {name} needs a dict {{"section.field": value}}, not {_brief(changes)}')
    return {path: plain(value) for path, value in changes.items()}


def _join(first, second):
    if both := sorted(first.changes.keys() & second.changes.keys()):
        raise UserError(f"product: {first.name} and {second.name} both change {', '.join(both)}")
    return Variant(f"{first.name},{second.name}", first.changes | second.changes)


def _brief(value):
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


@functools.cache
def _field_names():
    return tuple(configs.flatten(configs.to_json(configs.default())))
