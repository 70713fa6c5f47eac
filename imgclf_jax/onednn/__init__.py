"""Convolutions and their gradients by the C library oneDNN, inside compiled programs on the CPU.

PyTorch's convolutions are oneDNN's, too. XLA has none for the gradient of a kernel, and takes two to six times as long
for it. A program with these calls can be kept in JAX's compilation cache.
"""

import functools
import math
import operator
import os
import platform
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imgclf_jax.onednn import calls, clib, convolution, elementwise, pooling
from imgclf_jax.onednn.convolution import Convolution, Kind

__all__ = [
    *("activation", "activation_gradient", "advice", "convolve", "max_pool", "max_pool_gradient"),
    *("Convolution", "serves", "serves_convolution", "threads"),
]

IMAGES, THREADS, WHOLE = "images", "threads", "whole"  # what an array's first axis is


def serves(images: jax.Array) -> bool:
    """Whether a layer with these images [B, ...] can be computed here.

    It needs a CPU, the library, a dtype that the processor multiplies, sizes that are known, an image for each thread,
    and a single device, because XLA would not divide such a call among several.
    """
    return (
        jax.default_backend() == "cpu"
        and str(images.dtype) in clib.dtypes()
        and all(isinstance(size, int) and size > 0 for size in images.shape)
        and images.shape[0] >= threads()
        and jax.device_count() == 1
    )


def serves_convolution(
    images: jax.Array, kernel: jax.Array, pads: Sequence[tuple[int, int]], dilation: Sequence[int]
) -> bool:
    """Whether a convolution of images [B, H, W, C] with a kernel [kh, kw, C / groups, O] can be computed here.

    Its pads must not crop the images, and there must be outputs.
    """
    spaces = (
        size + sum(side) - (length - 1) * far
        for size, side, length, far in zip(images.shape[1:3], pads, kernel.shape[:2], dilation, strict=True)
    )
    return (
        serves(images)
        and kernel.dtype == images.dtype
        and min(kernel.shape) > 0
        and min(value for side in pads for value in side) >= 0
        and min(spaces) > 0
    )


def advice() -> str | None:
    """Returns that the library is missing and what to do, if this machine could use it."""
    usable = platform.system() == "Linux" and platform.machine() == "x86_64" and jax.default_backend() == "cpu"
    if not usable or jax.device_count() > 1 or clib.find():
        return None
    return f"this processor computes convolutions faster with oneDNN: pip install {clib.PACKAGE}"


def convolve(kind: Kind, left: jax.Array, right: jax.Array, shape: Convolution) -> jax.Array:
    """A convolution or one of its gradients; see `convolution.prepare` for what is given and returned."""
    result = {"forward": shape.outputs, "images": shape.images, "kernel": (threads(), *shape.kernel)}[kind]
    dtype = jnp.float32 if kind == "kernel" else left.dtype
    flops = 2 * math.prod(shape.outputs) * math.prod(shape.kernel[:3])
    sizes = [shape.images, shape.kernel, *shape.pads, shape.strides, shape.dilation, (shape.groups,)]
    divided = {
        "forward": (IMAGES, WHOLE, IMAGES),
        "images": (IMAGES, WHOLE, IMAGES),
        "kernel": (IMAGES, IMAGES, THREADS),
    }[kind]

    def prepare(count):
        part = shape._replace(images=(count, *shape.images[1:]), outputs=(count, *shape.outputs[1:]))
        return convolution.prepare(kind, part)

    (value,) = _call(f"{kind}_{shape.dtype}", sizes, prepare, (left, right), ((result, dtype),), divided, flops)
    return value.sum(axis=0).astype(left.dtype) if kind == "kernel" else value


def max_pool(images: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Max-pooling with stride equal to the window, and the place of each maximum, for the gradient.

    Args:
        images: float [B, H, W, C].
        window: side of the square window in pixels.

    Returns:
        float [B, H // window, W // window, C], and uint8 of the same shape.
    """
    batch, height, width, channels = images.shape
    pooled = batch, height // window, width // window, channels
    results = (pooled, images.dtype), (pooled, jnp.uint8)
    return _pool("forward", images.shape, window, (images,), results)


def max_pool_gradient(gradient: jax.Array, places: jax.Array, shape: tuple[int, ...], window: int) -> jax.Array:
    """The gradient of the images of this shape, from that of `max_pool` and its places."""
    (value,) = _pool("images", shape, window, (gradient, places), ((shape, gradient.dtype),))
    return value


def _pool(kind, shape, window, operands, results):
    dtype = str(operands[0].dtype)

    def prepare(count):
        return pooling.prepare(kind, (count, *shape[1:]), window, dtype)

    return _call(f"max_pool_{kind}_{dtype}", [shape, (window,)], prepare, operands, results, (IMAGES,) * 3)


def activation(function: str, x: jax.Array) -> jax.Array:
    """An activation function, "gelu" or "silu", of float [B, ...]."""
    return _activation("forward", function, (x,))


def activation_gradient(function: str, gradient: jax.Array, x: jax.Array) -> jax.Array:
    """The gradient of x, from that of `activation`."""
    return _activation("images", function, (gradient, x))


def _activation(kind, function, operands):
    shape, dtype = operands[0].shape, operands[0].dtype

    def prepare(count):
        return elementwise.prepare(kind, function, count * math.prod(shape[1:]), str(dtype))

    divided = (IMAGES,) * (len(operands) + 1)
    (value,) = _call(f"{function}_{kind}_{dtype}", [shape], prepare, operands, ((shape, dtype),), divided)
    return value


def _call(name, sizes, prepare, operands, results, divided, flops=0):
    """Calls the library in a compiled program, with the images divided among threads.

    Args:
        name: of the function.
        sizes: all that it depends on, besides.
        prepare: from a number of images to the function of addresses that computes them.
        operands: its arrays.
        results: (shape, dtype) of each.
        divided: what the first axis of each operand and result is: IMAGES, THREADS, or WHOLE for anything else.
        flops: of the call.
    """
    name = f"oneDNN_{name}_" + "_".join("x".join(map(str, each)) for each in (*sizes, (threads(),)))
    specs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
    if not calls.is_registered(name):
        arrays = [*operands, *specs]
        batch = next(len(x) for x, axis in zip(arrays, divided, strict=True) if axis == IMAGES)
        strides = [math.prod(x.shape[1:]) * x.dtype.itemsize for x in arrays]
        calls.register(name, _parts(batch, threads(), prepare, strides, divided))
    return jax.ffi.ffi_call(name, specs, vmap_method="sequential")(*operands, flops=np.int64(flops))


def _parts(batch, count, prepare, strides, divided):
    """Functions of the addresses of all arrays, each for a part of the images."""
    starts = [batch * index // count for index in range(count + 1)]
    ends = starts[1:]
    runs = {size: prepare(size) for size in {end - start for start, end in zip(starts, ends, strict=False)}}
    parts = []
    for index, (start, end) in enumerate(zip(starts, ends, strict=False)):
        first = {IMAGES: start, THREADS: index, WHOLE: 0}
        parts.append((runs[end - start], [first[a] * s for a, s in zip(divided, strides, strict=True)]))
    return [functools.partial(_moved, run, offsets) for run, offsets in parts]


def _moved(run, offsets, addresses):
    run(*map(operator.add, addresses, offsets))


@functools.cache
def threads() -> int:
    """The number of XLA's threads: the processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
