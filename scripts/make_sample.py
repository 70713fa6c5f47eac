"""Makes the bundled sample of CIFAR-10: 4,000 training and 1,000 test images, 400 and 100 per class.

    python scripts/make_sample.py --data_dir=DIR

DIR holds the real set, prepared as array_record (DIR/cifar10/3.0.2). A seeded shuffle chooses the images of each class.
They are written in rounds of one image per class, in a new order each round, so the class counts of any prefix differ
by at most one. Pixels and ids are unchanged. The same input gives the same examples in the same order.
"""

import argparse
import io
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imgclf_jax.data.tfds import catalog, prepared, records, sample
from imgclf_jax.storage import seals

SEED = 20090408  # arbitrary, but must not change
PER_CLASS = {"train": 400, "test": 100}
SHARD_BYTES = 1_600_000  # of records; with padding, files stay under 2 MB
DESCRIPTION = (
    "A SAMPLE of CIFAR-10, not the data set: 4,000 of the 50,000 training images (400 a class) and 1,000 of the "
    "10,000 test images (100 a class), pixels and ids unchanged, in an order of which any prefix is balanced. For "
    "trying code out; accuracies on it compare with nothing published."
)


def choose(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> list[int]:
    """Chooses `per_class` examples of each class, in an order in which every prefix is balanced.

    Args:
        labels: int [N].
        per_class: how many examples of each class.
        rng: the source of randomness.

    Returns:
        The indices of the examples.
    """
    classes = np.unique(labels)
    chosen = np.stack([rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in classes])  # [class, rank]
    return [int(i) for rank in range(per_class) for i in rng.permutation(chosen[:, rank])]


def encode(image: np.ndarray) -> bytes:
    """Encodes a uint8 [H, W, 3] image as the smallest PNG that Pillow can make."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_chosen(source: prepared.Stored, name: str, rng: np.random.Generator) -> list[dict]:
    """Reads the chosen examples of a stored split, in order and ready to be written."""
    images, labels, ids = zip(*records.read_split(source, source.splits[name], source.image_shape), strict=True)
    all_images, all_labels = np.concatenate(images), np.concatenate(labels)
    all_ids = [i for batch in ids for i in batch]
    order = choose(all_labels, PER_CLASS[name], rng)
    return [{"id": all_ids[i], "image": encode(all_images[i]), "label": int(all_labels[i])} for i in order]


def write(examples: dict[str, list[dict]], source: prepared.Stored, root: Path) -> None:
    """Writes the splits as `root`/cifar10/<version> with TFDS's own writer, in the order given."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import download
    from tensorflow_datasets.core.utils import shard_utils

    parent = tfds.builder_cls(catalog.SAMPLED)

    class SmallShards(shard_utils.ShardConfig):
        """Makes small shards. TFDS's own rule never makes one below 64 MiB."""

        def get_number_shards(self, total_size: int, *args, **kwargs) -> int:
            return math.ceil(total_size / SHARD_BYTES)

    class Config(download.DownloadConfig):
        """A download config that uses `SmallShards`."""

        def get_shard_config(self) -> shard_utils.ShardConfig:
            return SmallShards()

    with tfds.core.registered.skip_registration():

        class Sample(parent):  # type: ignore[misc, valid-type]
            """CIFAR-10 with other examples."""

            name = catalog.SAMPLED

            def _info(self):
                info = super()._info()
                return tfds.core.DatasetInfo(
                    builder=self,
                    description=DESCRIPTION,
                    features=info.features,
                    supervised_keys=info.supervised_keys,
                    homepage=info.homepage,
                    citation=info.citation,
                    disable_shuffling=True,  # keep the balanced order
                )

            def _split_generators(self, dl_manager):
                self.info.features["label"].names = list(source.class_names)
                return {name: self._generate_examples(e) for name, e in examples.items()}

            def _generate_examples(self, listed: list[dict]) -> Iterator[tuple[int, dict]]:
                yield from enumerate(listed)

    Sample.__module__ = parent.__module__
    builder = Sample(data_dir=root)
    builder.download_and_prepare(download_config=Config(try_download_gcs=False), file_format="array_record")


def main() -> None:
    """Replaces the bundled sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder that holds cifar10/3.0.2")
    args = parser.parse_args()
    folder = prepared.find(args.data_dir, catalog.SAMPLED)
    if folder is None:
        parser.error(f"--data_dir={args.data_dir}: does not hold a prepared {catalog.SAMPLED}")
    source = prepared.read(folder)
    rng = np.random.default_rng(SEED)
    examples = {name: read_chosen(source, name, rng) for name in PER_CLASS}
    with tempfile.TemporaryDirectory() as temporary:
        write(examples, source, Path(temporary))
        target = sample.FOLDER / catalog.SAMPLED
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(temporary) / catalog.SAMPLED, target)
    seals.seal(target / catalog.KNOWN[catalog.SAMPLED].version)
    files = [p for p in target.rglob("*") if p.is_file()]
    print(f"{target}: {len(files)} files, {sum(p.stat().st_size for p in files) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
