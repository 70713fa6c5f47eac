"""Images of a data set, and weights, as small pictures with captions."""

import base64
import io
from typing import NamedTuple

import numpy as np

from imgclf_jax.report import drawing
from imgclf_jax.report.drawing import Picture
from imgclf_jax.report.markup import shorten

LARGEST = 224  # pixels; larger images are scaled down to this
TINY = 64  # pixels; images up to this size are enlarged with sharp pixels


class Thumbnail(NamedTuple):
    """A small picture.

    Attributes:
        image: uint8 [H, W, C] with 1, 3 or 4 channels.
        caption: its lines; long ones are shortened for display.
        title: text alternative with details.
        heat: the same image under its heat map, of the same shape but with 3 channels.
    """

    image: np.ndarray
    caption: tuple[str, ...]
    title: str = ""
    heat: np.ndarray | None = None


def is_tiny(image: np.ndarray) -> bool:
    """Whether to show an image [H, W, C] enlarged, with sharp pixels."""
    return max(image.shape[:2]) <= TINY


def small(image: np.ndarray, largest: int = LARGEST) -> np.ndarray:
    """The image uint8 [H, W, C], scaled down if it is larger than `largest` pixels."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = largest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = np.asarray(Image.fromarray(_for_pil(image)).resize(size, Image.Resampling.LANCZOS))
    return scaled.reshape(size[1], size[0], image.shape[2])


def under(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image uint8 [H, W, C] in gray, and over it a heat map float [H, W] from 0 to 1: uint8 [H, W, 3].

    The colors are those of Matplotlib's inferno, which gets lighter throughout and suits the color-blind.
    """
    import matplotlib

    gray = np.broadcast_to(image[..., :3].mean(axis=-1, keepdims=True), (*image.shape[:2], 3))
    colors = matplotlib.colormaps["inferno"](0.25 + 0.75 * heat)[..., :3] * 255
    share = (0.75 * np.sqrt(heat))[..., None]
    return np.round((1 - share) * gray + share * colors).astype(np.uint8)


def encode(image: np.ndarray) -> str:
    """The image uint8 [H, W, C] as a data URL: a PNG if it `is_tiny` or not opaque, otherwise a JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    kind = "png" if is_tiny(image) or image.shape[2] == 4 else "jpeg"
    Image.fromarray(_for_pil(image)).save(buffer, kind, optimize=True, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def grid(thumbnails: list[Thumbnail], name: str, alt: str, columns: int) -> Picture:
    """Draws all thumbnails in one picture, for the files. The page shows them one by one.

    Args:
        thumbnails: at least one.
        name: of the files.
        alt: text alternative.
        columns: number of thumbnails in a row.
    """
    rows = -(-len(thumbnails) // columns)
    lines = max(len(thumbnail.caption) for thumbnail in thumbnails)
    tallest = max(_size(thumbnail.image)[0] for thumbnail in thumbnails)
    width, height = 1.45, tallest + 0.15 + 0.16 * lines  # of a cell, in inches
    with drawing.drawing(width * columns, height * rows) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))  # One axes for all: the layout of many takes seconds.
        axes.set_axis_off()
        for index, thumbnail in enumerate(thumbnails):
            left, top = index % columns * width, index // columns * height
            high, wide = _size(thumbnail.image)
            center, foot = left + width / 2, top + 0.05 + tallest
            axes.imshow(
                _for_pil(thumbnail.image),
                cmap="gray",
                vmin=0,
                vmax=255,
                interpolation="none" if is_tiny(thumbnail.image) else None,
                extent=(center - wide / 2, center + wide / 2, foot, foot - high),
            )
            text = "\n".join(shorten(line, 22) for line in thumbnail.caption)
            axes.text(center, foot + 0.05, text, ha="center", va="top", fontsize=8)
        axes.set(xlim=(0, width * columns), ylim=(height * rows, 0))
        return drawing.finish(figure, name, alt)


def _size(image):
    """(height, width) in inches in the drawing."""
    height, width = image.shape[:2]
    return 1.25 * height / max(height, width), 1.25 * width / max(height, width)


def _for_pil(image):
    return image[..., 0] if image.shape[-1] == 1 else image
