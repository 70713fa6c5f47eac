"""Resolves split expressions ('train[:90%]', 'train[:100]+train[200:]') to ranges of stored examples.

TFDS's own parser reads them. Its answers are cached in small files, because importing it takes longer than the rest of
a warm start.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgclf_jax.data.types import Ranges
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import read_sealed, write_sealed_if_possible

ROLES = ("train", "valid", "test")
_SOURCES = ("tfds", "sample")  # the data sources whose splits are expressions


def are_expressions(config_data: Any) -> bool:
    """Returns whether expressions define the splits, and not the data themselves or `data.split`."""
    return config_data.source in _SOURCES


def configured(config_data: Any) -> dict[str, str]:
    """Returns the split expressions that are set, by role."""
    texts = {role: str(getattr(config_data, f"{role}_split") or "").strip() for role in ROLES}
    return {role: text for role, text in texts.items() if text}


def resolve(
    expressions: Mapping[str, str],
    shard_lengths: Mapping[str, tuple[int, ...]],
    memo_dir: Path | None,
    scaled_to: Mapping[str, int] | None = None,
    setting_names: Mapping[str, str] | None = None,
) -> dict[str, Ranges]:
    """Resolves all configured splits, or reports all problems with them at once.

    Args:
        expressions: the split expressions, by role.
        shard_lengths: the shard lengths of every stored split. Their sums are the sizes of the splits.
        memo_dir: the folder that caches answers between runs; None caches none.
        scaled_to: the sizes of the stored splits of a sample. Boundaries are resolved on the full sizes, then scaled
            down in proportion. Ranges that do not overlap in the full set do not overlap in the sample.
        setting_names: the names of the settings in messages, by role, if not `data.{role}_split`.

    Raises:
        UserError: one line for each split that is malformed, unknown, out of range or empty, that names an example
            twice, or that shares examples with the training split.
    """
    settings = {role: f"data.{role}_split" for role in ROLES} | dict(setting_names or {})
    sizes = {name: sum(lengths) for name, lengths in shard_lengths.items()}
    available = ", ".join(f"{n} ({size} examples)" for n, size in sizes.items())
    resolved: dict[str, Ranges] = {}
    problems = [] if "train" in expressions else [f"{settings['train']} is empty; available splits: {available}"]
    for role, text in expressions.items():
        ranges, problem = _resolve_one(text, shard_lengths, memo_dir)
        if not problem and not _count(ranges):
            problem = "selects no examples"
        if not problem and scaled_to is not None:
            ranges = tuple((n, _scale(a, n, sizes, scaled_to), _scale(b, n, sizes, scaled_to)) for n, a, b in ranges)
            if not _count(ranges):
                problem = "selects no examples once its boundaries are scaled down to the bundled sample; select more"
        ranges = _merge(ranges)
        if not problem and any(common((a,), (b,)) for a, b in itertools.combinations(ranges, 2)):
            problem = "names the same examples twice"
        if problem:
            problems.append(f"{settings[role]}={text!r}: {problem}; available splits: {available}")
        else:
            resolved[role] = ranges
    for role in ("valid", "test"):
        if shared := common(resolved.get("train", ()), resolved.get(role, ())):
            problems.append(
                f"{settings[role]}={expressions[role]!r} shares {shared} examples with {settings['train']}="
                f"{expressions['train']!r}: its results would be meaningless; make the splits disjoint"
            )
    if problems:
        raise UserError("\n".join(problems))
    return {role: resolved[role] for role in ROLES if role in resolved}


def overlaps(resolved: Mapping[str, Ranges]) -> tuple[str, ...]:
    """Returns sentences about overlaps that are allowed: a checkpoint may be chosen on images of the test split."""
    shared = common(resolved.get("valid", ()), resolved.get("test", ()))
    if not shared:
        return ()
    return (f"the validation and test splits share {shared} examples: the test result is not independent",)


def size(ranges: Ranges) -> int:
    """Returns the number of examples in `ranges`."""
    return _count(ranges)


def _resolve_one(text: str, shard_lengths: Mapping[str, tuple[int, ...]], memo_dir: Path | None) -> tuple[Ranges, str]:
    """Returns (ranges, '') or ((), problem)."""
    if text in shard_lengths:  # a whole split needs no parser
        return ((text, 0, sum(shard_lengths[text])),), ""
    question = json.dumps([text, sorted(shard_lengths.items())])
    memo = memo_dir / f"split-{hashlib.sha256(question.encode()).hexdigest()[:24]}.json" if memo_dir else None
    if memo is not None and (remembered := read_sealed(memo)) and remembered["question"] == question:
        return tuple((str(n), int(a), int(b)) for n, a, b in remembered["ranges"]), ""
    try:
        ranges = _parse(text, shard_lengths)
    except Exception as e:  # the parser raises ValueError, NotImplementedError, AssertionError, ...
        if "Unrecognized split format" in str(e):
            return (), "not an expression such as train, train[:90%] or train[:100]+train[200:]"
        reason = " ".join(str(e).split()).partition(". Should be one of ")[0]  # The message lists the splits anyway.
        return (), reason.rstrip(".") or repr(e)
    if memo is not None:
        write_sealed_if_possible(memo, {"question": question, "ranges": ranges})
    return ranges, ""


def _parse(text: str, shard_lengths: Mapping[str, tuple[int, ...]]) -> Ranges:
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=list(lengths), num_bytes=0, filename_template=None)
        for name, lengths in shard_lengths.items()
    }
    ranges = []
    for part in tfds.core.ReadInstruction.from_spec(text).to_absolute(infos):
        name = str(part.splitname)
        first, last = part.from_ or 0, part.to
        ranges.append((name, int(first), int(sum(shard_lengths[name]) if last is None else last)))
    return tuple(ranges)


def _merge(ranges: Ranges) -> Ranges:
    """Drops empty ranges and joins adjacent ones, so contiguous examples stay a view of the file."""
    merged: list[tuple[str, int, int]] = []
    for name, first, last in ranges:
        if last <= first:
            continue
        if merged and merged[-1][0] == name and merged[-1][2] == first:
            merged[-1] = (name, merged[-1][1], last)
        else:
            merged.append((name, first, last))
    return tuple(merged)


def _scale(boundary: int, name: str, sizes: Mapping[str, int], scaled_to: Mapping[str, int]) -> int:
    """Scales a boundary and rounds up. Disjoint ranges stay disjoint, and the first few examples stay at least one."""
    return -(-boundary * scaled_to[name] // sizes[name])


def _count(ranges: Ranges) -> int:
    return sum(max(0, last - first) for _, first, last in ranges)


def common(a: Ranges, b: Ranges) -> int:
    """Returns the number of examples in both `a` and `b`. Neither may name an example twice."""
    return sum(
        max(0, min(last_a, last_b) - max(first_a, first_b))
        for name_a, first_a, last_a in a
        for name_b, first_b, last_b in b
        if name_a == name_b
    )
