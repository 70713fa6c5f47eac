"""Convolution whose gradients are fast on every backend.

On the CPU, oneDNN computes the convolution and its gradients where `imgclf_jax.onednn` serves them. Where it does not,
XLA's compiler rewrites convolutions to the layout of its fast kernels only in the entry computation, not inside loops
(https://github.com/jax-ml/jax/issues/12868). In a `lax.while_loop` over training steps, the gradients that JAX derives
have operands in permuted layouts and run tens of times slower than necessary. Here the gradients are written so that
every operation is a plain NHWC/HWIO convolution or a matrix product, which are fast everywhere. Depthwise convolutions
are in depthwise.py. On other backends, all of this is just `lax.conv_general_dilated`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from imgclf_jax import onednn
from imgclf_jax.models import depthwise

Padding = Literal["SAME", "VALID"]
Pads = tuple[tuple[int, int], ...]  # (above, below), (left, right) of the images, in pixels
NHWC = ("NHWC", "HWIO", "NHWC")
FEW_PIXELS = 16  # of an image; its convolution as one product takes the square of them
DTYPES = (jnp.float32, jnp.bfloat16)  # others are left to JAX


class Windows(NamedTuple):
    """Where a kernel is applied: for rows and columns.

    Attributes:
        pads: zeros around the images, in pixels; negative values crop.
        strides: steps of the window, in pixels.
        dilation: distances between the pixels of a window.
        groups: number of groups of channels, each with its own part of the kernel.
    """

    pads: Pads
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def conv2d(
    images: jax.Array,
    kernel: jax.Array,
    padding: Padding = "SAME",
    strides: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> jax.Array:
    """2-D convolution (cross-correlation).

    Args:
        images: float [B, H, W, C].
        kernel: float [kh, kw, C / groups, O].
        padding: "SAME" keeps H and W, divided by the stride and rounded up; "VALID" uses only whole windows.
        strides: steps of the window, in pixels.
        dilation: distance between the pixels of a window.
        groups: number of equal groups of channels; each group of outputs sees only its group of inputs.

    Returns:
        float [B, H', W', O], the same as `lax.conv_general_dilated`.
    """
    steps, far = _pair(strides), _pair(dilation)
    extents = [(side - 1) * step + 1 for side, step in zip(kernel.shape[:2], far, strict=True)]
    pads = tuple(lax.padtype_to_pads(images.shape[1:3], extents, steps, padding))
    return convolve(images, kernel, pads, steps, far, groups)


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    pads: Pads,
    strides: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> jax.Array:
    """`conv2d` with explicit padding: rows and columns of zeros around the images."""
    windows = Windows(pads, strides, dilation, groups)
    if jax.default_backend() != "cpu":
        return _conv(images, kernel, windows)
    tiny = math.prod(images.shape[1:3]) <= FEW_PIXELS and max(images.shape[1:3]) < min(kernel.shape[:2])
    if tiny and groups == 1 and strides == dilation == (1, 1):
        return _whole_image(images, kernel, pads)
    if onednn.serves_convolution(images, kernel, pads, dilation):
        return _conv_onednn(images, kernel, windows)
    if kernel.shape[2] == 1 and groups > 1:
        return depthwise.convolve(images, kernel, pads, strides, dilation)
    return _conv_cpu(images, kernel, windows)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **others: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` that is also fast inside loops: for `nn.Conv(conv_general_dilated=...)`.

    It serves two-dimensional convolutions of float32 or bfloat16 images [B, H, W, C] with a kernel [kh, kw, C / groups,
    O] on the CPU; there, the result has a reverse-mode derivative only. Everything else goes to JAX.
    """
    served = (
        jax.default_backend() == "cpu"
        and jnp.ndim(lhs) == jnp.ndim(rhs) == 4
        and lhs.dtype == rhs.dtype
        and lhs.dtype in DTYPES
        and preferred_element_type in (None, lhs.dtype)
        and batch_group_count == 1
        and set(lhs_dilation or (1,)) == {1}
        and not any(value is not None for value in others.values())
        and min(lhs.shape + rhs.shape) > 0
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
    )
    if not served:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
            **others,
        )
    strides, dilation = _pair(window_strides), _pair(rhs_dilation or 1)
    if isinstance(padding, str):
        return conv2d(lhs, rhs, padding.upper(), strides, dilation, feature_group_count)  # type: ignore[arg-type]
    pads = tuple((int(low), int(high)) for low, high in padding)
    return convolve(lhs, rhs, pads, strides, dilation, feature_group_count)


def pads(kernel: jax.Array, padding: Padding) -> Pads:
    """The explicit padding of a named one, with stride 1, for a kernel [kh, kw, C, O]."""
    return tuple(((side - 1) // 2, side // 2) if padding == "SAME" else (0, 0) for side in kernel.shape[:2])


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int) else value
    return rows, columns


def _conv(images: jax.Array, kernel: jax.Array, windows: Windows) -> jax.Array:
    pads, strides, dilation, groups = windows
    return lax.conv_general_dilated(
        images, kernel, strides, pads, rhs_dilation=dilation, dimension_numbers=NHWC, feature_group_count=groups
    )


def _cropped(images, kernel, windows):
    """`_conv` in which negative padding has been cropped from the images."""
    crop = [(max(0, -low), max(0, -high)) for low, high in windows.pads]
    (top, bottom), (left, right) = crop
    images = images[:, top : images.shape[1] - bottom, left : images.shape[2] - right]
    return _conv(images, kernel, windows._replace(pads=tuple((max(0, a), max(0, b)) for a, b in windows.pads)))


def _whole_image(images, kernel, pads):
    """The convolution of images that are smaller than the kernel, as one matrix product.

    XLA would exchange the two, and the result is a convolution that its kernels do not serve.
    """
    batch, height, width, channels = images.shape
    (top, bottom), (left, right) = pads
    rows, columns = height + top + bottom - kernel.shape[0] + 1, width + left + right - kernel.shape[1] + 1
    # Around the kernel, there are zeros for the pixels that an output does not see.
    around = [(length + side, length + side) for length, side in zip((height, width), kernel.shape[:2], strict=True)]
    padded = jnp.pad(kernel, (*around, (0, 0), (0, 0)))
    starts = [
        (around[0][0] + top - row, around[1][0] + left - column) for row in range(rows) for column in range(columns)
    ]
    seen = jnp.stack([padded[y : y + height, x : x + width] for y, x in starts], axis=3)
    products = images.reshape(batch, -1) @ seen.reshape(height * width * channels, -1)
    return products.reshape(batch, rows, columns, -1)


def _is_product(kernel, windows):
    """Whether a convolution is a matrix product over the channels."""
    return kernel.shape[:2] == (1, 1) and windows.groups == 1 and windows.pads == ((0, 0), (0, 0))


def _value(images, kernel, windows):
    if not _is_product(kernel, windows):
        return _conv(images, kernel, windows)
    down, across = windows.strides
    return _product(images[:, ::down, ::across], kernel[0, 0])


def _product(images, matrix):
    """float [B, H, W, C] by [C, O]."""
    rows = images.reshape(-1, images.shape[-1])
    return (rows @ matrix).reshape(*images.shape[:-1], matrix.shape[-1])


_conv_cpu = jax.custom_vjp(_value, nondiff_argnums=(2,))


def _forward(images, kernel, windows):
    return _value(images, kernel, windows), (images, kernel)


def _backward(windows, saved, gradient):
    images, kernel = saved
    return _image_gradient(images.shape, kernel, gradient, windows), _kernel_gradient(images, kernel, gradient, windows)


_conv_cpu.defvjp(_forward, _backward)


def _shape(images, kernel, windows):
    outputs = jax.eval_shape(functools.partial(_conv, windows=windows), images, kernel).shape
    pads, strides, dilation, groups = windows
    return onednn.Convolution(images.shape, kernel.shape, outputs, pads, strides, dilation, groups, str(images.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_onednn(images, kernel, windows):
    return onednn.convolve("forward", images, kernel, _shape(images, kernel, windows))


def _onednn_forward(images, kernel, windows):
    return _conv_onednn(images, kernel, windows), (images, kernel)


def _onednn_backward(windows, saved, gradient):
    images, kernel = saved
    shape = _shape(images, kernel, windows)
    to_images = onednn.convolve("images", gradient, kernel, shape)
    return to_images, onednn.convolve("kernel", images, gradient, shape)


_conv_onednn.defvjp(_onednn_forward, _onednn_backward)


def _image_gradient(shape, kernel, gradient, windows):
    """One convolution for each position of a pixel relative to the stride, then all of them interleaved.

    A pixel meets only the taps of the kernel at its own position modulo the stride. With stride 1, this is a single
    convolution, with the kernel rotated by 180 degrees.
    """
    down, across = windows.strides
    if down == across == 1:
        return _every_nth(shape, kernel, gradient, windows, (0, 0))
    rows = []
    for row in range(down):
        columns = [_every_nth(shape, kernel, gradient, windows, (row, column)) for column in range(across)]
        rows.append(jnp.stack(columns, axis=3))
    whole = jnp.stack(rows, axis=2)
    whole = whole.reshape(shape[0], whole.shape[1] * down, -1, shape[3])
    return whole[:, : shape[1], : shape[2]]


def _every_nth(shape, kernel, gradient, windows, offset):
    """The gradient of the pixels offset, offset + stride, ...: float [B, H / stride, W / stride, C], rounded up.

    In padded coordinates, tap t of window o meets the pixel o · stride + t · dilation.
    """
    taps, steps, pads, sizes = [], [], [], []
    for axis in range(2):
        stride, dilation, low = windows.strides[axis], windows.dilation[axis], windows.pads[axis][0]
        start, place = divmod(offset[axis] + low, stride)
        here = [tap for tap in range(kernel.shape[axis]) if tap * dilation % stride == place]
        size = -(-shape[axis + 1] // stride)
        sizes.append(size)
        if here:
            common = math.gcd(stride, dilation)
            step, first = dilation // common, here[0] * dilation // stride - start
            taps.append(slice(here[0], None, stride // common))
            steps.append(step)
            pads.append((first + (len(here) - 1) * step, size - gradient.shape[axis + 1] - first))
    if len(taps) < 2:
        return jnp.zeros((shape[0], *sizes, shape[3]), gradient.dtype)
    rotated = _rotated(kernel[taps[0], taps[1]], windows.groups)
    if rotated.shape[:2] == (1, 1) and windows.groups == 1:
        return _pad(_product(gradient, rotated[0, 0]), pads)
    return _cropped(gradient, rotated, Windows(tuple(pads), (1, 1), tuple(steps), windows.groups))


def _rotated(kernel, groups):
    """The kernel rotated by 180 degrees, from outputs to inputs: [kh, kw, O / groups, C]."""
    height, width, channels, features = kernel.shape
    if height * width > 1:
        kernel = jnp.flip(kernel, (0, 1))
    kernel = kernel.reshape(height, width, channels, groups, features // groups)
    return kernel.transpose(0, 1, 4, 3, 2).reshape(height, width, features // groups, groups * channels)


def _kernel_gradient(images, kernel, gradient, windows):
    """The images correlated with the gradient: a convolution with channels and examples swapped.

    Strides and dilation change places: the pixels of the gradient are `strides` apart, and the taps `dilation`.
    """
    if _is_product(kernel, windows):
        down, across = windows.strides
        rows = images[:, ::down, ::across].reshape(-1, images.shape[-1])
        return (rows.T @ gradient.reshape(-1, gradient.shape[-1])).reshape(kernel.shape)
    _, strides, dilation, groups = windows
    pads = depthwise.full_pads(images.shape, kernel.shape, gradient.shape, *windows[:3])
    batch, height, width, channels = images.shape
    images = images.reshape(batch, height, width, groups, channels // groups).transpose(4, 1, 2, 3, 0)
    images = images.reshape(channels // groups, height, width, groups * batch)
    transposed = _cropped(images, gradient.transpose(1, 2, 0, 3), Windows(pads, dilation, strides, groups))
    return transposed.transpose(1, 2, 0, 3)


def _pad(images, pads):
    """Rows and columns of zeros around images; negative values crop."""
    if not any(value for side in pads for value in side):
        return images
    zero = jnp.zeros((), images.dtype)
    return lax.pad(images, zero, ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))
