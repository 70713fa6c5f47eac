"""Small data sets, configs and experiments for the tests of the numerics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from imgclf_jax import augment
from imgclf_jax.config import default
from imgclf_jax.data import statistics
from imgclf_jax.data.types import Split
from imgclf_jax.devices import parallel
from imgclf_jax.training import exact_evaluation, experiment, multistep
from imgclf_jax.training.batches import Epoch, Examples
from imgclf_jax.training.plan import plan as make_plan

# One device on every machine: results that are compared bit for bit must not depend on how a sum is divided.
BASE = {"train.batch_size": 8, "train.epochs": 2.0, "eval.batch_size": 8, "parallel.devices": 1}
# A few units of every kind of layer.
SMALL_CNN = {"model.name": "cnn", "model.widths": (4, 6), "model.hidden": (10,), "optim.learning_rate": 0.05}
# For 16×16×3 images, the kernel of the hidden layer has 768 * 64 values, enough to be sharded; the rest is small.
LARGE_MLP = {
    "model.name": "mlp",
    "model.hidden": (64,),
    "model.dropout": 0.2,
    "augment.flip": True,
    "optim.name": "adam",
    "optim.learning_rate": 1e-3,
    "optim.ema_decay": 0.9,
    "train.batch_size": 16,
}
AUGMENTED = {
    "augment.crop": (6, 6),
    "augment.pad": 1,
    "augment.flip": True,
    "augment.contrast": (0.7, 1.3),
    "augment.brightness": 0.2,
}

IDENTITY = augment.Normalization(np.float32(0), np.float32(1))

LEARNING_STEPS = 100

needs_eight_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


def make_data(count: int, shape: tuple[int, int, int] = (8, 8, 3), classes: int = 10, seed: int = 0):
    """(images, labels), from numpy's legacy generator, whose streams are frozen (JAX's are not)."""
    draws = np.random.RandomState(seed)
    images = draws.randint(0, 256, (count, *shape)).astype(np.uint8)
    return images, draws.randint(0, classes, count).astype(np.int32)


def make_config(*changes: dict[str, Any]) -> ConfigDict:
    """The default config with `BASE` and then `changes`, which are keyed by "section.field"."""
    config = default()
    for change in (BASE, *changes):
        config.update_from_flattened_dict(change)
    return config


def with_options(config: ConfigDict, options: dict[str, Any] | None) -> ConfigDict:
    """The config with these `model.options`."""
    if options:
        with config.unlocked():
            config.model.options = ConfigDict(options)
    return config


def make_experiment(config: ConfigDict, images: np.ndarray, classes: int = 10, strategy: Any = None):
    """The experiment of `config` on a training split `images`."""
    plan = make_plan(config, {"train": len(images)})
    names = tuple(f"class {label}" for label in range(classes))
    return experiment.build(config, plan, images.shape[1:], names, strategy or parallel.create(config))


def make_normalization(config: ConfigDict, images: np.ndarray) -> augment.Normalization:
    """The normalization of `config` for a training split `images`."""
    return augment.normalization(config, images.shape[1:], statistics.of_images(images))


class Trainer:
    """An experiment on the devices of its config, compiled and called as the training loop does it.

    Attributes:
        strategy: the placement on devices.
        normalization: the normalization of the inputs.
        experiment: its functions.
        data: the images and labels, on the devices.
    """

    def __init__(self, config: ConfigDict, images: np.ndarray, labels: np.ndarray):
        self.strategy = strategy = parallel.create(config)
        self.normalization = strategy.put(make_normalization(config, images))
        self.experiment = make_experiment(config, images, strategy=strategy)
        self.data = Examples(*strategy.put_examples((images, labels)))
        self._init = self.experiment.compile_init()
        self._order = strategy.jit(self.experiment.sampler.order)
        self._evaluate = self.experiment.compile_evaluate()

    @functools.cached_property
    def _run(self):
        # Compiled for the first state. The tests also check that it accepts the states that it returns.
        return self.experiment.compile_run_steps().lower(**self._arguments(self.init())).compile()

    def _arguments(self, state, count=1):
        return {
            "state": state,
            "meter": self.strategy.put(multistep.empty_meter()),
            "normalization": self.normalization,
            "data": Epoch(self.data, self.order(int(state.step) // self.experiment.plan.steps_per_epoch)),
            "count": jnp.int32(count),
            "key": self.experiment.key,
        }

    def init(self):
        """The state before the first step."""
        return self._init(self.experiment.key)

    def order(self, epoch: int) -> jax.Array:
        """The order of an epoch's examples."""
        return self._order(self.experiment.key, epoch)

    def train(self, state: Any, *lengths: int):
        """(the state after dispatches of these lengths, the meter of each). `state` is donated."""
        meters = []
        for length in lengths:
            state, meter = self._run(**self._arguments(state, length))
            meters.append(jax.device_get(meter))
        return state, meters

    def evaluate(self, state: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
        """The exact evaluation of a split."""
        split = self.experiment.place(Split(images, labels, np.arange(len(labels))))
        return exact_evaluation.evaluate_split(
            self._evaluate, split, state.eval_variables(), self.normalization, 8, lambda done, total: None
        )


def assert_same_training(ours, theirs):
    """Compares (state, meters) of two topologies to float32 tolerance; counts must be equal."""
    (state, meters), (expected_state, expected_meters) = ours, theirs
    for meter, expected in zip(meters, expected_meters, strict=True):
        for name in ("accuracy", "count", "steps", "bad_step"):
            assert meter[name] == expected[name], name
        assert meter["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert meter["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert_same_state(state, expected_state)


def assert_same_state(ours, theirs, rtol=1e-4, atol=1e-5):
    """Compares two states; with `rtol=0, atol=0` bit for bit."""

    def compare(path, one, other):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, ours, theirs)


def learn(changes: dict[str, Any], options: dict[str, Any] | None = None):
    """The exact evaluation of eight images before and after training on them."""
    images, labels = (
        np.random.RandomState(0).randint(0, 256, (8, 22, 22, 3)).astype(np.uint8),
        np.arange(8, dtype=np.int32),
    )
    config = make_config(
        {"data.pixels": "standardized", "train.steps": LEARNING_STEPS, "train.epochs": 0.0, "optim.schedule": "cosine"},
        changes,
    )
    config = with_options(config, options)
    trainer = Trainer(config, images, labels)
    state = trainer.init()
    before = trainer.evaluate(state, images, labels)
    state, _ = trainer.train(state, LEARNING_STEPS)
    return before, trainer.evaluate(state, images, labels)
