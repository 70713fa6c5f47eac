"""What a compiled program sends between devices, read from the text of its HLO (`compiled.as_text()`).

A program that takes many training steps is a loop; what lies in it happens every step. The text is what XLA prints
(https://openxla.org/xla/operation_semantics); what is read are the operation's name, the shape of its result, and which
computations a loop calls.
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
# Names for what is there already, and copies.
_NO_KERNELS = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy", "copy-start", "copy-done"}
_BODY = re.compile(r"\bbody=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+[0-9a-z]*)\[([\d,<=]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")


class Buffer(NamedTuple):
    """An array that is sent.

    Attributes:
        dtype: as HLO writes it, such as "f32" or "u8".
        shape: on one device.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size on one device; what has less than a byte is packed."""
        return -(-math.prod(self.shape) * _bits(self.dtype) // 8)


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`; the asynchronous form (`-start`) is not told from the synchronous one.
        buffers: its results, on one device; several where the compiler combined operations.
        depth: number of loops that it lies in; 0: it runs once.
        repeats: how often the loops around it run it for each turn of the outermost one, as far as the compiler knows
            their lengths.
    """

    kind: str
    buffers: tuple[Buffer, ...]
    depth: int
    repeats: int = 1

    @property
    def bytes(self) -> int:
        """Of all results, on one device, each time that it runs."""
        return sum(buffer.bytes for buffer in self.buffers)


def read(text: str) -> list[Collective]:
    """The collectives of a program, in the order of its text.

    Args:
        text: the optimised HLO module.
    """
    computations = _computations(text)
    loops = _loops(computations)
    found = []
    for name, lines in computations.items():
        for line in lines:
            shape, operation = _operation(line)
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                buffers = _buffers(shape if kind == operation else _result(shape, kind))
                found.append(Collective(kind, buffers, *loops[name]))
    return found


def in_loops(found: Iterable[Collective]) -> list[Collective]:
    """Those that lie in a loop: of a program that takes many steps, the steps' own."""
    return [collective for collective in found if collective.depth]


def count(found: Iterable[Collective]) -> int:
    """How often devices meet, a turn of the outermost loop."""
    return sum(collective.repeats for collective in found)


def total_bytes(found: Iterable[Collective]) -> int:
    """Bytes of all results on one device, a turn of the outermost loop."""
    return sum(collective.repeats * collective.bytes for collective in found)


def kernels(text: str) -> int:
    """Operations that a device starts one after the other in a turn of a program's longest loop; 0 without a loop.

    What is fused into one counts as one, and so does a loop within that loop; collectives and copies do not count.
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
    """(shape of the result, name) of the operation in a line; empty where there is none."""
    match = _RESULT.match(line)
    if not match:
        return "", ""
    rest = line[match.end() :]
    shape = _split(rest, " ")[0]
    name = _NAME.match(rest, len(shape))
    return shape, name[1] if name else ""


def _computations(text):
    """Name -> lines, without comments, of every computation of a module."""
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
    """Name -> (number of loops around it, repeats), for the computations that loops call, directly or not."""
    callers: dict[str, list[tuple[str, bool, int]]] = {name: [] for name in computations}
    for name, lines in computations.items():
        for line in lines:
            trips = int(match[1]) if (match := _TRIPS.search(line)) else 1
            for role, called in _CALLED.findall(line):
                for one in re.findall(r"[\w.-]+", called):
                    if one in callers:
                        callers[one].append((name, role in ("body", "condition"), trips))

    found: dict[str, tuple[int, int]] = {}

    def visit(name):
        if name not in found:
            around = [(visit(caller), is_loop, trips) for caller, is_loop, trips in callers[name]]
            # The outermost loop's own length is left out: repeats are for each of its turns.
            found[name] = max(
                (
                    (depth + is_loop, repeats * (trips if is_loop and depth else 1))
                    for (depth, repeats), is_loop, trips in around
                ),
                default=(0, 1),
            )
        return found[name]

    for name in computations:
        visit(name)
    return found


def _result(shape, kind):
    """The part of an asynchronous start's tuple (operands, results, ...) that is the result."""
    return shape if kind == "all-reduce" else _split(shape[1:-1], ",")[1]


def _split(text, separator):
    """`text.split(separator)`, but not within brackets."""
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
    found = _ARRAY.findall(layouts)
    return tuple(
        Buffer(kind, tuple(int(side.lstrip("<=")) for side in sides.split(",") if side)) for kind, sides in found
    )


def _bits(dtype):
    if dtype == "pred":
        return 8
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0  # tokens and opaque handles
