"""workdir/tensorboard.py: TensorBoard reads the hyperparameters and the pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from imgclf_jax import config as configs
from imgclf_jax.workdir import tensorboard


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def test_tensorboard_reads_what_was_added(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    (tmp_path / "tensorboard").mkdir()
    config = configs.default()
    config.update_from_flattened_dict({"optim.learning_rate": 0.25, "augment.flip": True})
    results = {"test": {"accuracy": 0.5, "loss": 1.5, "count": 8, "correct": 4}}
    tensorboard.add_hyperparameters(tmp_path, configs.to_json(config), results)
    for value in (10, 200):  # A second report replaces the pictures of the first.
        tensorboard.add_pictures(tmp_path, 70, {"confusion": png(value), "mistakes": png(1)})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("result/test_accuracy")[0].value == 0.5
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["optim.learning_rate"].number_value == 0.25 and values["augment.flip"].bool_value
    (shown,) = events.Images("confusion")
    assert (shown.step, shown.width, shown.height) == (70, 6, 4)
    assert np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))).min() == 200
    assert len(events.Images("mistakes")) == 1


def test_a_run_without_tensorboard_files_gets_none(tmp_path):
    tensorboard.add_pictures(tmp_path, 1, {"confusion": png(1)})
    assert not list(tmp_path.iterdir())
