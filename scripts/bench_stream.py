"""Times the decoding of photos that stay on disk during training, and of a single thread that does nothing else.

    python scripts/bench_stream.py [--photos=DIR] [--side=224] [--batch_size=64] [--workers 0 1 2]
    python scripts/bench_stream.py --source=folder --photos=DIR     # or tar: as a data set, as training opens it

Measures the images/s that `imgclf_jax.data.stream` delivers, in chunks as the training loop takes them, for each number
of worker processes (0: threads), and the images/s of a plain loop over the images. They take turns. Starting the
processes, and what is ready when the clock starts, do not count. Without `--photos` the script makes 256 JPEG files of
500×375 pixels.

With `--source`, `DIR` is opened as by `data.source`, and its training split is read. The first line is then the time
that opening takes: listing, fingerprint and splits. The second time, the photos are not examined again.
"""

import argparse
import functools
import hashlib
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from imgclf_jax import config as configs
from imgclf_jax import data
from imgclf_jax.data.folder import Photos
from imgclf_jax.data.folder.contents import OwnFiles
from imgclf_jax.data.stream import Chunks, Reader, in_flight
from imgclf_jax.data.types import Images

STEPS = 2  # batches per chunk
CHUNKS = 8  # per measurement


def main() -> None:
    """Prints one row for each way of decoding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder to search for .jpg files, or that of --source")
    parser.add_argument("--source", choices=("folder", "tar"), help="open --photos as this data source")
    parser.add_argument("--side", type=int, default=224, help="side of the resized images, in pixels")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.source and not options.photos:
        parser.error("--source needs --photos=DIR")
    with tempfile.TemporaryDirectory() as temporary:
        photos = (
            _opened(options) if options.source else _found(options.photos or _make_photos(Path(temporary)), options)
        )
        ways = {"one thread, nothing else": lambda: _plain(photos, options)}
        for workers in options.workers:
            name = f"stream, {f'{workers} processes' if workers else 'threads'}"
            ways[name] = functools.partial(_streamed, photos, options, workers)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, measure in ways.items():
                rates[name].append(measure())
    print(f"{len(photos)} photos, resized to {options.side}×{options.side}, batches of {options.batch_size}")
    first = statistics.median(rates["one thread, nothing else"])
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"{name:<26} {middle:8.0f} images/s   {middle / first:5.2f}× ({min(values):.0f} to {max(values):.0f})")


def _opened(options: argparse.Namespace) -> Images:
    """Returns the training split of a data set, and prints how long it takes to open."""
    settings = configs.default().data
    settings.update(source=options.source, dir=str(options.photos), image_size=(options.side, options.side))
    began = time.perf_counter()
    dataset = data.load(settings, stream=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    count = sum(dataset.counts.values())
    print(f"{count} photos, {len(dataset.class_names)} classes: opened in {seconds:.1f} s, {peak:.2f} GiB of memory")
    return dataset.splits["train"].images


def _found(folder: Path, options: argparse.Namespace) -> Images:
    """Returns the .jpg files of a folder."""
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    hashes = [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in paths]
    return Photos(OwnFiles(folder, paths), hashes, (options.side, options.side), "stretch")


def _plain(photos: Images, options: argparse.Namespace) -> float:
    places = np.random.default_rng(0).integers(0, len(photos), CHUNKS * STEPS * options.batch_size)
    began = time.perf_counter()
    for place in places:
        photos[int(place)]
    return len(places) / (time.perf_counter() - began)


def _streamed(photos: Images, options: argparse.Namespace, workers: int) -> float:
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
