"""Tiny prepared data sets for tests, written by TFDS's own builder."""

import io
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image


def make_config(**changes):
    config = ConfigDict(
        {
            "name": "cifar10",
            "source": "tfds",
            "dir": "",
            "train_split": "train",
            "valid_split": "",
            "test_split": "test",
            "labels": "",
            "options": {},
            "folds": 0,
            "fold": 0,
            "image_size": (),
            "resize": "stretch",
            "allow_sample": False,
            "archive": "",
            "url": "",
            "download": False,
        }
    )
    config.update(changes)
    return config


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_set(root, examples, image_shape, name="tiny", num_shards=2):
    """Writes {split: [(encoded image, label)]} as `root`/`name`/1.0.0 with two classes and no ids."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=image_shape),
                    "label": tfds.features.ClassLabel(names=["no", "yes"]),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(e) for split, e in examples.items()}

            def _generate_examples(self, listed):
                yield from ((i, {"image": image, "label": label}) for i, (image, label) in enumerate(listed))

        Tiny.name = name
        builder = Tiny(data_dir=root)
    config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=num_shards)
    builder.download_and_prepare(download_config=config, file_format="array_record")
    return Path(root) / name / "1.0.0"


def tiny_config(tiny, **changes):
    return make_config(name="tiny", dir=str(tiny.parents[1]), **changes)
