"""Max-pooling of the library and its gradient."""

from typing import Literal

from imgclf_jax.onednn import primitives
from imgclf_jax.onednn.clib import create, one_thread, sizes
from imgclf_jax.onednn.primitives import GRADIENT, SOURCE, TARGET, WORKING, Array, Run

Kind = Literal["forward", "images"]
MAX = 0x1FF  # the algorithm
PLACES = 64  # the argument with the place of each maximum in its window


def prepare(kind: Kind, images: tuple[int, ...], window: int, dtype: str) -> Run:
    """Prepares max-pooling with stride equal to the window, or its gradient.

    Args:
        kind: "forward": images -> (highest, places); "images": (gradient of `highest`, places) -> gradient of the
            images. Places are uint8, one for each of `highest`.
        images: their shape (B, H, W, C). Rows and columns that do not fill a window are dropped.
        window: side of the square window in pixels.
        dtype: of all arrays but the places.

    Returns:
        A function of the addresses of operands and results.

    Raises:
        Error: the library has no such pooling.
    """
    batch, height, width, channels = images
    pooled = batch, height // window, width // window, channels
    pixels, highest = primitives.images(images, dtype), primitives.images(pooled, dtype)
    places = Array(primitives.images(pooled, "uint8"), 1 if kind == "images" else 2)
    square, none = sizes((window, window)), sizes((0, 0))
    windows, attributes = (square, square, none, none, none), primitives.attributes()
    engine = primitives.engine()
    with one_thread():
        description = create(
            "dnnl_pooling_forward_primitive_desc_create",
            *(engine, primitives.TRAINING, MAX, pixels, highest, *windows, attributes),
        )
        if kind == "images":
            name = "dnnl_pooling_backward_primitive_desc_create"
            description = create(name, engine, MAX, pixels, highest, *windows, description, attributes)
    working = {WORKING: Array(primitives.asked(description, primitives.SCRATCHPAD))}
    arrays = {SOURCE: Array(pixels, 0), TARGET: Array(highest, 1)}
    if kind == "images":
        arrays = {SOURCE + GRADIENT: Array(pixels, 2), TARGET + GRADIENT: Array(highest, 0)}
    return primitives.runner([(primitives.primitive(description), {**arrays, PLACES: places, **working})], 3)
