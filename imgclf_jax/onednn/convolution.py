"""Convolutions of the library and their gradients."""

from typing import Literal, NamedTuple

from imgclf_jax.onednn import clib, primitives
from imgclf_jax.onednn.clib import create, one_thread, sizes
from imgclf_jax.onednn.primitives import GRADIENT, SOURCE, TARGET, WORKING, Array, Run

Kind = Literal["forward", "images", "kernel"]
ANY = 1  # the layout that is best for a convolution
DIRECT = 1  # the algorithm
WEIGHTS, DIFF_WEIGHTS = 131, 132  # what a primitive is asked for
KERNEL = 33
ROW = 32  # pixels
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
    count = _beside(shape) if kind == "kernel" else 1
    joint = _joint(shape, count) if count > 1 else shape
    images, outputs = (primitives.images(each, shape.dtype) for each in (joint.images, joint.outputs))
    plain, free = _kernels(shape, "float32" if kind == "kernel" else shape.dtype)
    with one_thread():
        description = _description(kind, joint, images, free, outputs)
    best = primitives.asked(description, DIFF_WEIGHTS if kind == "kernel" else WEIGHTS)
    arrays = [Array(each, place) for each, place in zip((images, plain, outputs), OPERANDS[kind], strict=True)]
    before, after = [], []
    if count > 1:
        (top, _), (left, _) = shape.pads
        arrays[0], copies = _joined(shape.images, joint.images, count, (top, left), shape.dtype, operand=0)
        arrays[2], others = _joined(shape.outputs, joint.outputs, count, (0, 0), shape.dtype, operand=1)
        before = [*copies, *others]
    if not clib.load().dnnl_memory_desc_equal(best, plain):
        given, arrays[1] = arrays[1], Array(best)
        if kind == "kernel":
            after = [(primitives.reorder(best, plain), {SOURCE: arrays[1], TARGET: given})]
        else:
            before = [(primitives.reorder(plain, best), {SOURCE: given, TARGET: arrays[1]})]
    working = Array(primitives.asked(description, primitives.SCRATCHPAD))
    places = dict(zip((*PLACES[kind], WORKING), (*arrays, working), strict=True))
    return primitives.runner([*before, (primitives.primitive(description), places), *after], len(arrays))


def _beside(shape):
    """How many images to put side by side for the kernel's gradient.

    In bfloat16, the library sums over the pixels of a row, 32 in one instruction, so rows should be that long. From
    half of that on, the copies take longer than they save.
    """
    width = shape.images[2] + sum(shape.pads[1])
    simple = shape.strides == shape.dilation == (1, 1) and shape.groups == 1 and shape.dtype == "bfloat16"
    return min(ROW // width, shape.images[0]) if simple and 2 * width < ROW else 1


def _joint(shape, count):
    """The convolution whose images are `count` images side by side, padding included.

    The gradient of the outputs is zero for windows that see two images.
    """
    batch, height, width, channels = shape.images
    rows, columns = height + sum(shape.pads[0]), count * (width + sum(shape.pads[1]))
    return shape._replace(
        images=(-(-batch // count), rows, columns, channels),
        outputs=(-(-batch // count), shape.outputs[1], columns, shape.outputs[3]),
        pads=((0, 0), (0, shape.kernel[1] - 1)),
    )


def _joined(before, after, count, corner, dtype, operand):
    """Images [B, H, W, C] in memory of `after`, side by side, with zeros around them; and the steps that copy them."""
    batch, height, width, channels = before
    groups, rows, columns, _ = after
    image, slot = height * width * channels, columns // count * channels
    strides = image, count * image, 1, width * channels, channels
    given = primitives.strided((count, groups, channels, height, width), strides, dtype)
    strides = slot, rows * columns * channels, 1, columns * channels, channels
    slots = primitives.strided((count, groups, channels, rows, columns // count), strides, dtype)
    array, steps = Array(primitives.images(after, dtype)), []
    full, rest = divmod(batch, count)
    for start, dims in (0, (count, full)), (full, (rest, 1)):
        if min(dims):
            dims = *dims, channels, height, width
            source = primitives.part(given, dims, (0, start, 0, 0, 0))
            target = primitives.part(slots, dims, (0, start, 0, *corner))
            places = {SOURCE: Array(source, operand), TARGET: Array(target, of=array)}
            steps.append((primitives.reorder(source, target), places))
    return array, steps


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
    arrays = (images, kernel, outputs) if kind == "images" else (images, kernel, None, outputs)
    name = f"dnnl_convolution_backward_{'data' if kind == 'images' else 'weights'}_primitive_desc_create"
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
