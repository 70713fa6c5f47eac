"""What the operations of a compiled program compute and move, from the text of its HLO (`compiled.as_text()`).

The text is XLA's (https://openxla.org/xla/operation_semantics); the numbers follow from the shapes in it.
"""

import functools
import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+[0-9a-z]*)\[([\d,<=]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.-]+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_DILATION = re.compile(r"lhs_dilate=([\dx]+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_STATED = re.compile(r"\bflops = (\d+)")  # by a call of imgclf_jax.onednn
_SIZES = re.compile(r"(?<=^oneDNN)(\w+?)_\d+x.*")  # in its name
_ONEDNN_FEATURES = re.compile(r'"output_feature_dim":"(\d+)"')
# Operations that only run others, whose time is that of the others.
CONTAINERS = ("while", "conditional", "call")
_VIEWS = ("bitcast", "reshape")
_SLICES = ("slice", "dynamic-slice", "gather")
# Parts of the path to an operation that say nothing about it.
_PLUMBING = ("while", "body", "cond", "closed_call", "checkpoint")


class Operation(NamedTuple):
    """An operation of a compiled program.

    Attributes:
        kind: its opcode or, for a call of a library, the name of the library's function.
        flops: of the convolutions and matrix products in it, each time that it runs; a multiplication and an addition
            count as two. The multiplications with padding count, as usual; those with the holes of a dilated input,
            which are in gradients of strided convolutions, do not.
        bytes: what it reads and writes, each time that it runs: its operands and results. Of an operand that is sliced
            or gathered from, what is taken counts.
        source: the path to it in the traced function; "transpose(jvp(...))" in it is the backward pass.
    """

    kind: str
    flops: int
    bytes: int
    source: str


class _Array(NamedTuple):
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return -(-math.prod(self.shape) * _bits(self.dtype) // 8)


class _Instruction(NamedTuple):
    name: str
    opcode: str
    results: tuple[_Array, ...]
    operands: tuple[str, ...]
    text: str  # what is in the parentheses of the operands
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.results)


class Program:
    """A compiled program.

    Attributes:
        module: its name, which the events of a trace bear.
    """

    def __init__(self, text: str):
        """Reads the text of the optimized HLO module."""
        self.module = text.partition("HloModule ")[2].split(",")[0].split()[0] if "HloModule " in text else ""
        self._computations = _computations(text)
        self._places = {name: inside for inside, found in self._computations.items() for name in found}

    def operation(self, name: str) -> Operation | None:
        """Returns an operation, or `None` if there is none of this name.

        The CPU's runtime appends the name of a library's function to that of its call: "NAME__onednn$convolution".
        """
        if name not in self._places:
            name = name.partition("__")[0]
        if name not in self._places:
            return None
        inside = self._computations[self._places[name]]
        one = inside[name]
        target, source = _TARGET.search(one.attributes), _SOURCE.search(one.attributes)
        kind = _SIZES.sub(r"\1", target[1]) if one.opcode == "custom-call" and target else one.opcode
        return Operation(
            kind, self._flops(one, inside), self._bytes(one, inside), _shorten(source[1] if source else "")
        )

    def _flops(self, one, inside):
        if one.opcode == "fusion" and (called := _CALLED.search(one.attributes)):
            fused = self._computations.get(called[1], {})
            return sum(self._flops(part, fused) for part in fused.values())
        if stated := _STATED.search(one.attributes):
            return int(stated[1])
        arrays = [inside[name].results[0] for name in one.operands if name in inside and inside[name].results]
        if len(arrays) < 2 or not one.results:
            return 0
        return _flops(one, arrays[0].shape, arrays[1].shape)

    def _bytes(self, one, inside):
        if one.opcode in CONTAINERS:
            return 0
        operands = [inside[name] for name in one.operands if name in inside]
        if one.opcode in _SLICES:
            return 2 * one.bytes + sum(operand.bytes for operand in operands[1:])
        if one.opcode == "dynamic-update-slice" and len(operands) > 1:
            return 2 * operands[1].bytes
        if one.opcode == "fusion" and (called := _CALLED.search(one.attributes)):
            return self._fused_bytes(one, operands, self._computations.get(called[1], {}))
        # The other results of a call of a library are its working memory.
        written = one.results[0].bytes if one.opcode == "custom-call" and one.results else one.bytes
        return written + sum(operand.bytes for operand in operands)

    def _fused_bytes(self, one, operands, fused):
        numbers = {part.text: part for part in fused.values() if part.opcode == "parameter"}
        read = 0
        for index, operand in enumerate(operands):
            parameter = numbers.get(str(index))
            read += operand.bytes if parameter is None else min(operand.bytes, _read(parameter, fused))
        root = next((part for part in fused.values() if part.root), None)
        if root is None:
            return read + one.bytes
        parts = [fused[name] for name in root.operands if name in fused] if root.opcode == "tuple" else [root]
        return read + sum(_written(part, fused) for part in parts)


def _computations(text):
    """The instructions by name, of each computation by name."""
    computations: dict[str, dict[str, _Instruction]] = {}
    inside: dict[str, _Instruction] = {}
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (header := _COMPUTATION.match(line)):
            inside = computations.setdefault(header[1], {})
        elif (match := _INSTRUCTION.match(line)) and (one := _instruction(match[2], match[3], bool(match[1]))):
            inside[one.name] = one
    return computations


def _instruction(name, text, root):
    """The instruction in the text after "NAME = ", or `None`: "SHAPE OPCODE(OPERANDS), ATTRIBUTES"."""
    text = _COMMENT.sub("", text)
    shape, rest = _close(text) if text.startswith("(") else text.partition(" ")[::2]
    opcode, bracket, rest = rest.lstrip().partition("(")
    if not bracket:
        return None
    operands, attributes = _close(f"({rest}")
    arrays = tuple(
        _Array(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(shape)
    )
    return _Instruction(name, opcode, arrays, tuple(_NAME.findall(operands)), operands[1:-1], attributes, root)


def _close(text):
    """Splits text that begins with a bracket after the bracket that closes it."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[: place + 1], text[place + 1 :]
    return text, ""


@functools.cache
def _bits(dtype):
    size = re.search(r"\d+", dtype)
    return int(size[0]) if size else 8 if dtype == "pred" else 0


def _flops(one, left, right):
    """The FLOPs of an instruction with these shapes of its first two operands; 0 if it is no product."""
    result, target = one.results[0].shape, _TARGET.search(one.attributes)
    labels, name = _LABELS.search(one.attributes), target[1].lower() if target else ""
    if one.opcode == "dot" and (contracted := _CONTRACTED.search(one.attributes)):
        return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in contracted[1].split(",") if axis)
    if one.opcode == "convolution" and labels:
        dilation = _DILATION.search(one.attributes)
        holes = math.prod(map(int, dilation[1].split("x"))) if dilation else 1
        return _convolution(result, right, labels[2].index("o")) // holes
    if one.opcode != "custom-call":
        return 0
    if "conv" in name and labels:  # cuDNN: the labels are those of the forward convolution.
        output, kernel = result, right
        if "backwardinput" in name:
            output, kernel = left, right
        elif "backwardfilter" in name:
            output, kernel = right, result
        return _convolution(output, kernel, labels[2].index("o"))
    if "conv" in name and (axis := _ONEDNN_FEATURES.search(one.attributes)):
        return _convolution(result, right, int(axis[1]))
    if ("gemm" in name or "matmul" in name) and len(result) > 1:
        # Whatever is transposed: (batch m k) (batch k n) / (batch m n) = batch k².
        batch = math.prod(result[:-2])
        squared = math.prod(left) * math.prod(right) // max(math.prod(result) * batch, 1)
        return 2 * math.prod(result) * math.isqrt(squared)
    return 0


def _convolution(output, kernel, features):
    """The FLOPs of a convolution: of each output, the products with all of the kernel but its output features."""
    return 2 * math.prod(output) * math.prod(kernel) // max(kernel[features], 1)


def _read(one, inside):
    """The bytes that are read of a value in a fused computation: all, or what is sliced from it."""
    total = 0
    for user in inside.values():
        if one.name not in user.operands:
            continue
        first = user.operands[0] == one.name and one.name not in user.operands[1:]
        if user.opcode in _VIEWS:
            total += _read(user, inside)
        elif user.opcode in _SLICES and first:
            total += user.bytes
        elif not (user.opcode == "dynamic-update-slice" and first):  # In place: the rest stays as it is.
            return one.bytes
    return total


def _written(one, inside):
    """The bytes that a fused computation writes for one of its results."""
    while one.opcode in _VIEWS and one.operands and one.operands[0] in inside:
        one = inside[one.operands[0]]
    if one.opcode == "dynamic-update-slice" and len(one.operands) > 1 and one.operands[1] in inside:
        return inside[one.operands[1]].bytes
    return one.bytes


def _shorten(source):
    """The path without the function that was compiled and without its loops."""
    parts = source.split("/")
    if len(parts) > 1 and re.fullmatch(r"p?jit\(\w*\)", parts[0]):
        parts = parts[1:]
    return "/".join(part for part in parts if part not in _PLUMBING)
