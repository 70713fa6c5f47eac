"""Times the decoding of photos that stay on disk during training, and of a single thread that does nothing else.

    python scripts/bench_stream.py [--photos=DIR] [--side=224] [--batch_size=64] [--workers 0 1 2]

Measures the images/s that `imgclf_jax.data.stream` delivers, in chunks as the training loop takes them, for each number
of worker processes (0: threads), and the images/s of a plain loop over `Photos.read`. They take turns. Starting the
processes, and what is ready when the clock starts, do not count. Without `--photos` the script makes 256 JPEG files of
500×375 pixels.
"""

import argparse
import functools
import hashlib
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from imgclf_jax.data.folder import Photos
from imgclf_jax.data.stream import Chunks, Reader, in_flight

STEPS = 2  # batches per chunk
CHUNKS = 8  # per measurement


def main() -> None:
    """Prints one row for each way of decoding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder to search for .jpg files")
    parser.add_argument("--side", type=int, default=224, help="side of the resized images, in pixels")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.photos or _make_photos(Path(temporary))
        paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
        hashes = [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in paths]
        photos = Photos(folder, paths, hashes, (options.side, options.side), "stretch")
        ways = {"one thread, nothing else": lambda: _plain(photos, options)}
        for workers in options.workers:
            name = f"stream, {f'{workers} processes' if workers else 'threads'}"
            ways[name] = functools.partial(_streamed, photos, options, workers)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, measure in ways.items():
                rates[name].append(measure())
    print(f"{len(paths)} photos, resized to {options.side}×{options.side}, batches of {options.batch_size}")
    first = statistics.median(rates["one thread, nothing else"])
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"{name:<26} {middle:8.0f} images/s   {middle / first:5.2f}× ({min(values):.0f} to {max(values):.0f})")


def _plain(photos: Photos, options: argparse.Namespace) -> float:
    places = np.random.default_rng(0).integers(0, len(photos), CHUNKS * STEPS * options.batch_size)
    began = time.perf_counter()
    for place in places:
        photos.read(int(place))
    return len(places) / (time.perf_counter() - began)


def _streamed(photos: Photos, options: argparse.Namespace, workers: int) -> float:
    # Extra chunks, as many as may be decoded ahead: before the clock starts, to warm up, and at the end, so that no
    # worker runs out of work.
    ahead = 2 + in_flight(workers) // STEPS
    places = np.random.default_rng(0).integers(0, len(photos), ((2 * ahead + CHUNKS) * STEPS, options.batch_size))
    with Chunks(Reader(photos, places.__getitem__), 0, len(places), STEPS, workers, options.batch_size) as chunks:
        for _ in range(ahead):
            chunks.get()
        began = time.perf_counter()
        for _ in range(CHUNKS):
            chunks.get()
        return CHUNKS * STEPS * options.batch_size / (time.perf_counter() - began)


def _make_photos(folder: Path) -> Path:
    """Writes photos of smooth noise, which compresses like photographs."""
    draws = np.random.default_rng(0)
    for index in range(256):
        small = Image.fromarray(draws.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{index:03}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
