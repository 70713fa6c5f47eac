"""What the page shows of an image: its most probable classes, and what the network looked at."""

import base64
import io
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

from imgclf_jax.data import decode
from imgclf_jax.predict import reading
from imgclf_jax.predict.network import Network
from imgclf_jax.report.thumbnails import under

SHOWN = 5  # most classes per image
SIDE = 480  # most pixels of a side of the pictures on the page
SMALL = 120  # photos of fewer pixels are enlarged, pixel by pixel


class Answers:
    """A network that answers about the content of image files, for one thread at a time.

    The programs are compiled here, so that the first answer is as fast as the others.

    Args:
        network: the trained network.
        run: its name on the page.

    Raises:
        UserError: photos do not have the network's number of channels.
    """

    def __init__(self, network: Network, run: str):
        reading.check_channels(network.image_shape, run)
        self._network, self._run = network, run
        self._lock = threading.Lock()
        self._evaluate(np.zeros(network.image_shape, np.uint8))

    def about(self) -> dict[str, Any]:
        """What the page says of the network."""
        height, width, channels = self._network.image_shape
        names = list(self._network.class_names)
        return {"run": self._run, "classes": names, "height": height, "width": width, "gray": channels == 1}

    def answer(self, encoded: bytes) -> dict[str, Any]:
        """Returns what the page shows of an image, as JSON values.

        The keys are `classes`: the most probable ones, as objects of `name` and `probability`; `others`: the number of
        the other classes; `photo`: the data URL of the part of the photo that the network gets; `heat`: the same,
        with what the network looked at; and `milliseconds`: the time that this took.

        Args:
            encoded: the content of an image file.

        Raises:
            decode.BadPhoto: it is not an image, or the network gives it NaN.
        """
        with self._lock:  # Photos are large when they are decoded, and the network uses all cores.
            began = time.perf_counter()
            height, width, channels = self._network.image_shape
            resize = self._network.config.data.resize
            image = decode.decode(encoded, channels).image
            pixels = decode.pixels(image, (height, width), resize)
            probabilities, heat = self._evaluate(pixels)
            if np.isnan(probabilities).any():
                raise decode.BadPhoto(reading.NOT_FINITE)
            names = self._network.class_names
            best = reading.best(probabilities, SHOWN)
            picture = _thumbnail(image, (height, width), resize)
            return {
                "classes": [{"name": names[label], "probability": float(probabilities[label])} for label in best],
                "others": len(names) - len(best),
                "photo": _url(picture),
                "heat": _url(_under(picture, heat)),
                "milliseconds": round(1000 * (time.perf_counter() - began)),
            }

    def close(self) -> None:
        """Waits for the answer in progress. There are no further answers."""
        self._lock.acquire(timeout=5)

    def _evaluate(self, pixels):
        """Returns (probabilities [classes], what the network looked at [H, W]) of an image uint8 [H, W, C]."""
        probabilities, maps = self._network.explain(pixels[None])
        return probabilities[0], maps[0]


def _under(picture, heat):
    """A picture under its heat map, float [H, W] from 0 to 1, which is enlarged to its size."""
    size = picture.size
    enlarged = np.asarray(Image.fromarray(np.nan_to_num(heat)).resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray(under(np.asarray(picture.convert("RGB")), enlarged.clip(0, 1)))


def _thumbnail(image, image_size, resize):
    """The part of a decoded image that the network gets, without its distortion, of at most `SIDE` pixels."""
    box = decode.seen(image, image_size, resize)
    width, height = box[2] - box[0], box[3] - box[1]
    side = max(width, height)
    scale = SIDE / side if side > SIDE else max(1, SIDE // 2 // side) if side < SMALL else 1
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    return image.resize(size, sampling, box, reducing_gap=2)


def _url(image):
    """An image as a data URL."""
    file = io.BytesIO()
    kind = "png" if image.mode == "RGBA" else "jpeg"
    image.save(file, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
