"""Reads what a compiled program sends between devices from the text of its HLO (`compiled.as_text()`).

A program that takes many training steps is a loop; what is in the loop happens every step. The format of the text is
XLA's (https://openxla.org/xla/operation_semantics). This module reads each operation's name, the shape of its result,
and the computations that a loop calls.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_RESULT = re.compile(r"(?:ROOT )?%?[\w.-]+ = ")
_NAME = re.compile(r" ([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
# Operations that only name existing data, and copies.
_NO_KERNELS = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy", "copy-start", "copy-done"}
_BODY = re.compile(r"\bbody=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+[0-9a-z]*)\[([\d,<=]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")


class Buffer(NamedTuple):
    """An array that is sent.

    Attributes:
        dtype: the dtype in HLO's notation, such as "f32" or "u8".
        shape: the shape on one device.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size on one device. Elements of less than a byte are packed."""
        return -(-math.prod(self.shape) * _bits(self.dtype) // 8)


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`; the asynchronous form (`-start`) counts as the synchronous one.
        buffers: its results on one device; several if the compiler combined operations.
        depth: the number of loops around it; 0: it runs once.
        repeats: how often it runs in each turn of the outermost loop around it, as far as the compiler knows the
            lengths of the loops.
    """

    kind: str
    buffers: tuple[Buffer, ...]
    depth: int
    repeats: int = 1

    @property
    def bytes(self) -> int:
        """Size of all results on one device, each time that it runs."""
        return sum(buffer.bytes for buffer in self.buffers)


def read(text: str) -> list[Collective]:
    """Returns the collectives of a program, in the order of its text.

    Args:
        text: the optimized HLO module.
    """
    computations = _computations(text)
    loops = _loops(computations)
    collectives = []
    for name, lines in computations.items():
        for line in lines:
            shape, operation = _operation(line)
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                buffers = _buffers(shape if kind == operation else _result(shape, kind))
                collectives.append(Collective(kind, buffers, *loops[name]))
    return collectives


def in_loops(collectives: Iterable[Collective]) -> list[Collective]:
    """Returns the collectives that are in a loop. In a program that takes many steps, these are the steps' own."""
    return [collective for collective in collectives if collective.depth]


def count(collectives: Iterable[Collective]) -> int:
    """Returns how many collectives run in each turn of the outermost loop."""
    return sum(collective.repeats for collective in collectives)


def total_bytes(collectives: Iterable[Collective]) -> int:
    """Returns the bytes of all results on one device, per turn of the outermost loop."""
    return sum(collective.repeats * collective.bytes for collective in collectives)


def kernels(text: str) -> int:
    """Counts the operations that a device starts in a turn of a program's longest loop; 0 without a loop.

    A fusion counts as one operation, and so does a loop within that loop. Collectives and copies do not count.
    """
    computations = _computations(text)
    loops = _loops(computations)
    bodies = {name for lines in computations.values() for line in lines for name in _BODY.findall(line)}
    outer = [name for name in bodies & computations.keys() if loops[name][0] == 1]
    return max((sum(_is_kernel(line) for line in computations[name]) for name in outer), default=0)


def _is_kernel(line):
    operation = _operation(line)[1]
    return bool(operation) and operation not in _NO_KERNELS and not operation.startswith(KINDS)


def _operation(line):
    """Returns (shape of the result, name) of the operation in a line; both are empty if there is none."""
    match = _RESULT.match(line)
    if not match:
        return "", ""
    rest = line[match.end() :]
    shape = _split(rest, " ")[0]
    name = _NAME.match(rest, len(shape))
    return shape, name[1] if name else ""


def _computations(text):
    """Returns name -> lines, without comments, for every computation of a module."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        line = _COMMENT.sub("", line).strip()
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match[1], [])
        else:
            lines.append(line)
    return computations


def _loops(computations):
    """Returns name -> (number of loops around it, repeats) for every computation."""
    callers: dict[str, list[tuple[str, bool, int]]] = {name: [] for name in computations}
    for name, lines in computations.items():
        for line in lines:
            trips = int(match[1]) if (match := _TRIPS.search(line)) else 1
            for role, called in _CALLED.findall(line):
                for one in re.findall(r"[\w.-]+", called):
                    if one in callers:
                        callers[one].append((name, role in ("body", "condition"), trips))

    loops: dict[str, tuple[int, int]] = {}

    def visit(name):
        if name not in loops:
            around = [(visit(caller), is_loop, trips) for caller, is_loop, trips in callers[name]]
            # The outermost loop's own length does not count: repeats are per turn of that loop.
            loops[name] = max(
                (
                    (depth + is_loop, repeats * (trips if is_loop and depth else 1))
                    for (depth, repeats), is_loop, trips in around
                ),
                default=(0, 1),
            )
        return loops[name]

    for name in computations:
        visit(name)
    return loops


def _result(shape, kind):
    """Returns the result in the tuple (operands, results, ...) of an asynchronous start."""
    return shape if kind == "all-reduce" else _split(shape[1:-1], ",")[1]


def _split(text, separator):
    """Splits like `text.split(separator)`, but not within brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == separator and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _buffers(shape):
    layouts = re.sub(r"\{[^{}]*\}", "", shape)
    arrays = _ARRAY.findall(layouts)
    return tuple(
        Buffer(kind, tuple(int(side.lstrip("<=")) for side in sides.split(",") if side)) for kind, sides in arrays
    )


def _bits(dtype):
    if dtype == "pred":
        return 8
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0  # tokens and opaque handles
