"""Decides by content which photos are for training, validation and test, and which are left out."""

import collections
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from imgclf_jax.data import splits
from imgclf_jax.data.folder import cut
from imgclf_jax.data.folder.layout import Listing, shown
from imgclf_jax.errors import UserError

if TYPE_CHECKING:
    from imgclf_jax.data.folder.cache import Seen

_MOST_LINES = 50  # files listed under one problem
_MOST_CLASSES = 10  # classes listed one by one
_SPLITS = {"train": "training", "valid": "validation", "test": "test"}


class Chosen(NamedTuple):
    """A photo of the data set: the index of its file in the listing, and its split."""

    file: int
    role: str


class Problem(NamedTuple):
    """A problem with several files, as an error, and as a notice if the files are left out."""

    error: str
    notice: str


def choose(listing: Listing, seen: "Seen") -> tuple[list[Chosen], list[Problem]]:
    """Returns the photos of the data set in order, and the problems with the files that are left out.

    Leaves out files that are not photos, photos under two classes (neither can be trusted), and training and validation
    photos that are also in a later split. The order is that of the listing. If photos are split by content, the order
    is by class and content, so file names make no difference.

    Photos are equal if their decoded pixels are equal. Copies in other lossless formats are therefore found.

    Args:
        listing: the files.
        seen: the results of reading them.
    """
    problems = []
    files, hashes, pixels = listing.files, seen.hashes, seen.pixels
    if any(seen.reasons):
        problems.append(_bad(listing, seen.reasons))
    good = [index for index, reason in enumerate(seen.reasons) if not reason]
    if ambiguous := _groups(good, pixels, [file.label for file in files]):
        problems.append(_under_two_classes(listing, ambiguous))
        good = _without(good, ambiguous)
    if listing.fractions is not None:
        good.sort(key=lambda index: (files[index].label, hashes[index], files[index].path))
        roles = cut.by_content(
            [files[i].label for i in good], [hashes[i] for i in good], [pixels[i] for i in good], listing.fractions
        )
        return [Chosen(*pair) for pair in zip(good, roles, strict=True)], problems
    if shared := _groups(good, pixels, [file.role for file in files]):
        last = [max(splits.ROLES.index(files[index].role) for index in group) for group in shared]
        dropped = [
            [index for index in group if splits.ROLES.index(files[index].role) < role]
            for group, role in zip(shared, last, strict=True)
        ]
        problems.append(_in_two_splits(listing, shared, dropped))
        good = _without(good, dropped)
    return [Chosen(index, files[index].role) for index in good], problems


def check_left(listing: Listing, chosen: Sequence[Chosen]) -> None:
    """Checks that every class and every split has a photo left.

    Raises:
        UserError: one has none.
    """
    split_by_folders = listing.fractions is None
    kinds = {(f.role, f.label) for f in listing.files}
    left = {(c.role if split_by_folders else "", listing.files[c.file].label) for c in chosen}
    if lost := sorted(kinds - left):
        names = ", ".join(f"{role} {listing.class_names[label]}".strip() for role, label in lost)
        raise UserError(
            f"{listing.place}: no {listing.noun}s are left of {names}; add {listing.noun}s, or delete the class "
            "everywhere"
        )
    if listing.fractions is not None:
        roles = collections.Counter(photo.role for photo in chosen)
        check_sizes(listing, {role: roles[role] for role in splits.ROLES})


def check_sizes(listing: Listing, sizes: dict[str, int]) -> None:
    """Checks that every split with a fraction above 0 gets a photo.

    Raises:
        UserError: one gets none.
    """
    fractions = zip(splits.ROLES, listing.fractions or (), strict=False)
    # With folds, validation photos are dealt from both splits.
    empty = [role for role, part in fractions if part and not sizes[role] and not (listing.folds and role == "valid")]
    if empty:
        raise UserError(
            f"data.split={listing.fractions}: {' and '.join(empty)} would get none of the {len(listing.files)} "
            f"{listing.noun}s, which are split class by class; give larger fractions, or 0 for a split that you do not "
            "want, e.g. --config.data.split='(0.6, 0.2, 0.2)' or --config.data.split='(0.8, 0.2, 0)'"
        )


def sparse_files(listing: Listing) -> tuple[str, ...]:
    """Returns sentences about classes with too few files for every split; () if the folders define the splits."""
    if listing.fractions is None:
        return ()
    return _sparse(listing, cut.all_different([file.label for file in listing.files], listing.fractions))


def notices(listing: Listing, seen: "Seen", chosen: Sequence[Chosen]) -> list[str]:
    """Returns warnings about the chosen photos that are not known before they are read, one line each."""
    lines = []
    if listing.fractions is not None:
        counts = collections.Counter((listing.files[photo.file].label, photo.role) for photo in chosen)
        known = sparse_files(listing)
        lines = [line for line in _sparse(listing, counts) if line not in known]
    noted = [(shown(listing.files[c.file].path), seen.notes[c.file]) for c in chosen if seen.notes[c.file]]
    if noted:
        from imgclf_jax.data import decode

        lines.append(f"{listing.name}: {decode.odd(noted, len(chosen))}")
    return lines


def _sparse(listing, counts):
    def number(count):
        return f"{count} {listing.noun}{'s' * (count != 1)}"

    def name(label):
        return f"class {shown(listing.class_names[label])}"

    found = []
    least = sum(map(bool, listing.fractions))
    todo = f"; give it at least {least} different {listing.noun}s, or leave the class out"
    for label, count, lacking in cut.sparse(counts, listing.fractions):
        if kept := [role for role in lacking if not listing.folds or role == "test"]:
            places = " and none ".join(f"in the {_SPLITS[role]} split" for role in kept)
            found.append(f"{name(label)} has {number(count)}, so none {places}{todo}")
    if listing.folds:
        pool: collections.Counter[int] = collections.Counter()
        for (label, role), count in counts.items():
            pool[label] += count * (role != "test")
        for label, count in sorted((+pool).items()):
            if count < listing.folds:
                line = (
                    f"{name(label)} has {number(count)} for {listing.folds} folds, so "
                    f"{listing.folds - count} of them hold out none"
                )
                found.append(line + ", and without the fold of the only one there is none to train on" * (count == 1))
    lines = found[:_MOST_CLASSES]
    if more := max(0, len(found) - _MOST_CLASSES):
        parts = "fold" if listing.folds else "split"
        lines.append(
            f"{more} more {'class has' if more == 1 else 'classes have'} too few {listing.noun}s for every {parts}"
        )
    return tuple(lines)


def _groups(indices: Iterable[int], contents: Sequence[str], kinds: Sequence[object]) -> list[list[int]]:
    """Returns the groups of indices with equal content but different `kinds`."""
    first: dict[str, int] = {}
    same: dict[str, list[int]] = {}  # Of contents that are there more than once: a list for each takes too much memory.
    for index in indices:
        if (other := first.setdefault(contents[index], index)) != index:
            same.setdefault(contents[index], [other]).append(index)
    return [group for group in same.values() if len({kinds[index] for index in group}) > 1]


def _without(indices, groups):
    dropped = {index for group in groups for index in group}
    return [index for index in indices if index not in dropped]


def _bad(listing, reasons):
    bad = [(file.path, reason) for file, reason in zip(listing.files, reasons, strict=True) if reason]
    kinds = collections.Counter(reason.partition(":")[0] for _, reason in bad)
    summary = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
    first, of = shown(bad[0][0]), len(listing.files)
    return Problem(
        f"{listing.place}: {len(bad)} of {of} files cannot be read as photos; replace or delete them, or leave them "
        f"out with --config.data.on_bad=skip{_lines(f'{shown(path)}: {reason}' for path, reason in bad)}",
        f"{listing.name}: {len(bad)} of {of} files cannot be read as photos and are left out ({summary}), e.g. {first}",
    )


def _under_two_classes(listing, groups):
    return Problem(
        f"{listing.place}: {listing.noun}s that are under two classes: {len(groups)}; delete the wrong copies, or "
        f"leave out all of them with --config.data.on_bad=skip{_equal(listing, groups)}",
        f"{listing.name}: {listing.noun}s left out because they are under two classes: {len(groups)}, e.g. "
        f"{_chain(listing, groups[0])}",
    )


def _in_two_splits(listing, groups, dropped):
    counts = collections.Counter(listing.files[index].role for group in dropped for index in group)
    summary = " and ".join(f"{counts[role]} ({role})" for role in splits.ROLES if counts[role])
    return Problem(
        f"{listing.place}: {listing.noun}s that are in two splits, which makes results meaningless: {len(groups)}; "
        "delete one copy of each, or leave out the copy for training (for validation, if the other one is for the "
        f"test) with --config.data.on_bad=skip{_equal(listing, groups)}",
        f"{listing.name}: {listing.noun}s left out because a later split has them too: {summary}, e.g. "
        f"{_chain(listing, groups[0])}",
    )


def _equal(listing, groups):
    return _lines(_chain(listing, group) for group in groups)


def _chain(listing, group):
    return " = ".join(shown(listing.files[index].path) for index in group)


def _lines(texts):
    texts = list(texts)
    more = [f"... and {len(texts) - _MOST_LINES} more"] if len(texts) > _MOST_LINES else []
    return "".join(f"\n  {text}" for text in texts[:_MOST_LINES] + more)
