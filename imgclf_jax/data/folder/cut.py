"""Cuts the photos of each class into training, validation and test splits."""

import collections
import functools
from collections.abc import Sequence
from typing import NamedTuple

from imgclf_jax.data import splits

Fractions = tuple[float, float, float]
Counts = dict[tuple[int, str], int]  # (label, role) -> number of photos


class Sparse(NamedTuple):
    """A class with too few photos for every split.

    Attributes:
        label: the label of the class.
        photos: how many photos it has.
        lacking: the roles of the splits that should have photos of it but have none.
    """

    label: int
    photos: int
    lacking: tuple[str, ...]


def by_content(labels: Sequence[int], hashes: Sequence[str], pixels: Sequence[str], fractions: Fractions) -> list[str]:
    """Returns the role of each photo. Orders the photos of each class by `hashes` and cuts them by `fractions`.

    The names and the order of the files make no difference. Photos of a class with equal pixels all get the role of the
    first one, so no photo is in two splits. The first photo of each class is for training. A class with at least as
    many different photos as there are splits has one or more in every split.

    Args:
        labels: the label of each photo.
        hashes: the digest of each file's content.
        pixels: the digest of each photo's pixels; equal files have equal pixels.
        fractions: the fractions for training, validation and test; 0 means no such split.

    Returns:
        One of `splits.ROLES` per photo.
    """
    roles = [""] * len(labels)
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    for indices in members.values():
        indices.sort(key=lambda index: hashes[index])
        trained, validated = _cuts(len(indices), fractions)
        first: dict[str, int] = {}  # the first position of each different photo, by pixels
        for position, index in enumerate(indices):
            first.setdefault(pixels[index], position)
        assigned = {content: (position >= trained) + (position >= validated) for content, position in first.items()}
        filled = dict(zip(assigned, _fill(list(assigned.values()), fractions), strict=True))
        for index in indices:
            roles[index] = splits.ROLES[filled[pixels[index]]]
    return roles


def all_different(labels: Sequence[int], fractions: Fractions) -> Counts:
    """Returns how many photos of each class `by_content` puts into each split if no two photos are equal."""
    counts: Counts = {}
    for label, count in collections.Counter(labels).items():
        for role, part in _parts(count, fractions).items():
            counts[label, role] = part
    return counts


def sparse(counts: Counts, fractions: Fractions) -> list[Sparse]:
    """Returns the classes without photos in a split that should have some, ordered by label.

    Args:
        counts: the number of photos by (label, role).
        fractions: the fractions for training, validation and test.
    """
    wanted = [role for role, fraction in zip(splits.ROLES, fractions, strict=True) if fraction]
    totals: collections.Counter[int] = collections.Counter()
    for (label, _), count in counts.items():
        totals[label] += count
    classes = []
    for label, count in sorted(totals.items()):
        if lacking := tuple(role for role in wanted if not counts.get((label, role))):
            classes.append(Sparse(label, count, lacking))
    return classes


@functools.lru_cache(1024)
def _parts(count: int, fractions: Fractions) -> dict[str, int]:
    contents = [f"{index:020}" for index in range(count)]
    return dict(collections.Counter(by_content([0] * count, contents, contents, fractions)))


def _cuts(count, fractions):
    """Returns the first positions of validation and test among `count` photos."""
    trained = max(1, round(count * fractions[0]))
    # Without a test split, ignore rounding errors: the sum of the other two fractions may not be exactly 1.
    validated = count if not fractions[2] else max(trained, round(count * (fractions[0] + fractions[1])))
    return trained, validated if fractions[1] else trained


def _fill(assigned, fractions):
    """Returns the split number of each different photo; cuts again if a split is empty although there are enough."""
    wanted = [split for split, fraction in enumerate(fractions) if fraction]
    counts = [assigned.count(split) for split in range(len(fractions))]
    if len(assigned) < len(wanted) or all(counts[split] for split in wanted):
        return assigned
    while empty := [split for split in wanted if not counts[split]]:
        counts[counts.index(max(counts))] -= 1
        counts[empty[0]] += 1
    return [split for split, count in enumerate(counts) for _ in range(count)]
