"""Every model and every optimizer learns eight images by heart, through the real training step."""

import numpy as np
import pytest
from synthetic import Trainer, make_config, with_options

from imgclf_jax.models import MODELS
from imgclf_jax.training.optim import OPTIMIZERS

IMAGES = np.random.RandomState(0).randint(0, 256, (8, 22, 22, 3)).astype(np.uint8)
LABELS = np.arange(8, dtype=np.int32)
STEPS = 100
SMALL = {
    "softmax": {},
    "mlp": {"model.hidden": (32,), "model.dropout": 0.1},
    "cnn": {"model.widths": (8, 8), "model.hidden": (16,), "model.norm": "batch"},
    "tutorial_cnn": {"model.widths": (8, 8, 16), "model.hidden": (32,)},
    "small_cnn": {"model.widths": (8, 8, 16), "model.hidden": (32,), "model.dropout": 0.1},
    "resnet18": {"options": {"width": 2, "stem": "imagenet"}},
    "wide_resnet": {"options": {"depth": 10, "widen": 1}},
    "vit": {"options": {"width": 16, "heads": 2, "depth": 2, "patch": 11}},
}
RATES = {"sgd": 0.05, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3, "muon": 3e-3}


def test_every_kind_of_model_is_tried():
    assert MODELS.keys() - SMALL.keys() == {"resnet34", "resnet50"}  # the blocks of resnet18, and deeper


def learn(changes, options=None):
    """The exact evaluation of the eight images before and after training on them."""
    config = make_config(
        {"data.pixels": "standardized", "train.steps": STEPS, "train.epochs": 0.0, "optim.schedule": "cosine"}, changes
    )
    config = with_options(config, options)
    trainer = Trainer(config, IMAGES, LABELS)
    state = trainer.init()
    before = trainer.evaluate(state, IMAGES, LABELS)
    state, _ = trainer.train(state, STEPS)
    return before, trainer.evaluate(state, IMAGES, LABELS)


@pytest.mark.parametrize("name", SMALL)
def test_every_model_learns_eight_images(name):
    changes = {"model.name": name, "optim.name": "adam", "optim.learning_rate": 5e-3, **SMALL[name]}
    before, after = learn(changes, changes.pop("options", None))
    assert after["accuracy"] == 1.0
    assert after["loss"] < 0.1 * before["loss"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_eight_images(name):
    before, after = learn(
        {"model.name": "mlp", "model.hidden": (32,), "optim.name": name, "optim.learning_rate": RATES[name]}
    )
    assert after["accuracy"] == 1.0
    assert after["loss"] < 0.1 * before["loss"]
