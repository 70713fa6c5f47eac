"""Every model and every optimizer learns eight images by heart, through the real training step."""

import pytest
from synthetic import learn

from imgclf_jax.models import MODELS
from imgclf_jax.training.optim import OPTIMIZERS

SMALL = {
    "softmax": {},
    "mlp": {"model.hidden": (32,), "model.dropout": 0.1},
    "speednet": {"model.widths": (8, 16), "model.options": {"pool": "global", "logit_scale": 0.5}},
    "cnn": {"model.widths": (8, 8), "model.hidden": (16,), "model.norm": "batch"},
    "tutorial_cnn": {"model.widths": (8, 8, 16), "model.hidden": (32,)},
    "small_cnn": {"model.widths": (8, 8, 16), "model.hidden": (32,), "model.dropout": 0.1},
}
RATES = {"sgd": 0.05, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3, "muon": 3e-3, "muon_sgd": 0.03}


def test_every_kind_of_model_is_tried():
    assert MODELS.keys() - SMALL.keys() == {"resnet18", "resnet34", "resnet50", "wide_resnet", "vit"}  # see test_zoo.py


@pytest.mark.parametrize("name", SMALL)
def test_every_model_learns_eight_images(name):
    changes = {"model.name": name, "optim.name": "adam", "optim.learning_rate": 5e-3, **SMALL[name]}
    before, after = learn(changes)
    assert after["accuracy"] == 1.0
    assert after["loss"] < 0.1 * before["loss"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_eight_images(name):
    model = (
        {"model.name": "cnn", **SMALL["cnn"]} if name == "muon_sgd" else {"model.name": "mlp", "model.hidden": (32,)}
    )
    before, after = learn({**model, "optim.name": name, "optim.learning_rate": RATES[name]})
    assert after["accuracy"] == 1.0
    assert after["loss"] < 0.1 * before["loss"]
