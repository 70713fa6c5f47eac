"""Convolutions of the library and their gradients."""

from typing import Literal, NamedTuple

from imgclf_jax.onednn import library, primitives
from imgclf_jax.onednn.library import create, one_thread, sizes
from imgclf_jax.onednn.primitives import GRADIENT, SOURCE, TARGET, WORKING, Array, Run

Kind = Literal["forward", "images", "kernel"]
ANY = 1  # the layout that is best for a convolution
DIRECT = 1  # the algorithm
WEIGHTS, DIFF_WEIGHTS = 131, 132  # what a primitive is asked for
KERNEL = 33
PLACES = {
    "forward": (SOURCE, KERNEL, TARGET),
    "images": (SOURCE + GRADIENT, KERNEL, TARGET + GRADIENT),
    "kernel": (SOURCE, KERNEL + GRADIENT, TARGET + GRADIENT),
}
OPERANDS = {"forward": (0, 1, 2), "images": (2, 1, 0), "kernel": (0, 2, 1)}  # which of them: images, kernel, outputs


class Convolution(NamedTuple):
    """A convolution of images float [B, H, W, C] with a kernel [kh, kw, C / groups, O].

    Attributes:
        images: (B, H, W, C).
        kernel: (kh, kw, C / groups, O).
        outputs: (B, H', W', O).
        pads: rows and columns of zeros around the images.
        strides: steps of the window, in pixels.
        dilation: distances between the pixels of a window.
        groups: number of groups of channels.
        dtype: of the arrays; that of a kernel's gradient is float32.
    """

    images: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    outputs: tuple[int, int, int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    dtype: str


def prepare(kind: Kind, shape: Convolution) -> Run:
    """Prepares a convolution or one of its gradients.

    Args:
        kind: "forward": (images, kernel) -> outputs; "images": (gradient of the outputs, kernel) -> gradient of the
            images; "kernel": (images, gradient of the outputs) -> gradient of the kernel.
        shape: of the convolution.

    Returns:
        A function of the addresses of the two operands and of the result.

    Raises:
        Error: the library has no such convolution.
    """
    images, outputs = (primitives.images(each, shape.dtype) for each in (shape.images, shape.outputs))
    plain, free = _kernels(shape, "float32" if kind == "kernel" else shape.dtype)
    with one_thread():
        description = _description(kind, shape, images, free, outputs)
    best = primitives.asked(description, DIFF_WEIGHTS if kind == "kernel" else WEIGHTS)
    arrays = [Array(each, place) for each, place in zip((images, plain, outputs), OPERANDS[kind], strict=True)]
    given, steps = arrays[1], []
    same = library.load().dnnl_memory_desc_equal(best, plain)  # type: ignore[union-attr]
    if not same:
        arrays[1] = Array(best)
    working = Array(primitives.asked(description, primitives.SCRATCHPAD))
    steps = [(primitives.primitive(description), dict(zip((*PLACES[kind], WORKING), (*arrays, working), strict=True)))]
    if not same and kind == "kernel":
        steps.append((_reorder(best, plain), {SOURCE: arrays[1], TARGET: given}))
    elif not same:
        steps.insert(0, (_reorder(plain, best), {SOURCE: given, TARGET: arrays[1]}))
    return primitives.runner(steps, len(arrays))


def _description(kind, shape, images, kernel, outputs):
    """The description of the primitive that computes it, with the kernel in the layout that is best for that."""
    attributes = primitives.attributes()
    (top, bottom), (left, right) = shape.pads
    far = [distance - 1 for distance in shape.dilation]
    windows = [sizes(each) for each in (shape.strides, far, (top, left), (bottom, right))]
    _, any_kernel = _kernels(shape, shape.dtype)
    forward = create(
        "dnnl_convolution_forward_primitive_desc_create",
        *(primitives.engine(), primitives.TRAINING, DIRECT, images, any_kernel, None, outputs, *windows, attributes),
    )
    if kind == "forward":
        return forward
    if kind == "images":
        name, arrays = "dnnl_convolution_backward_data_primitive_desc_create", (images, kernel, outputs)
    else:
        name, arrays = "dnnl_convolution_backward_weights_primitive_desc_create", (images, kernel, None, outputs)
    return create(name, primitives.engine(), DIRECT, *arrays, *windows, forward, attributes)


def _kernels(shape, dtype):
    """The kernel [kh, kw, C / groups, O] as it lies in memory, and in any layout."""
    height, width, channels, features = shape.kernel
    dims, strides = [features, channels, height, width], [1, features, width * channels * features, channels * features]
    if shape.groups > 1:
        dims[:1] = [shape.groups, features // shape.groups]
        strides[:1] = [features // shape.groups, 1]
    free = create("dnnl_memory_desc_create_with_tag", len(dims), sizes(dims), primitives.DTYPES[dtype], ANY)
    return primitives.strided(dims, strides, dtype), free


def _reorder(before, after):
    with one_thread():
        engine = primitives.engine()
        return primitives.primitive(
            create("dnnl_reorder_primitive_desc_create", before, engine, after, engine, None)
        )
