"""models/speednet.py: the sizes that the authors publish, whitening, and what its layers start as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgclf_jax import models
from imgclf_jax.config import default
from imgclf_jax.models.cost import network_flops
from imgclf_jax.models.speednet import WHITENING, SpeedNet

IMAGES = jnp.zeros((1, 32, 32, 3))


def variables(model, images=IMAGES):
    return model.init(jax.random.key(0), images)


def test_parameters_and_flops():
    """airbench94: 1.97 million parameters, and 0.36 PFLOP for 9.9 epochs of 50,000 images.

    Products with the zeros around an image are not counted here, which is a seventh of all.
    """
    model = SpeedNet(10)
    found = variables(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(found["params"])) == 1_971_640
    step = network_flops(model, found, (32, 32, 3), 1)[1]
    assert step * 50_000 * 9.9 == pytest.approx(0.36e15 * 6 / 7, rel=0.03)


def test_whitened_patches_are_uncorrelated():
    images = np.random.default_rng(0).uniform(-1, 1, (40, 12, 12, 3)).cumsum(1).cumsum(2).astype(np.float32)
    kernel = SpeedNet(10).from_images(images)[WHITENING]
    patches = np.stack([images[:, i : i + 11, j : j + 11] for i in range(2) for j in range(2)], 3)
    outputs = patches.reshape(-1, 12) @ kernel.reshape(12, 24)
    moments = outputs[:, :12].T @ outputs[:, :12] / len(outputs)
    np.testing.assert_allclose(moments, np.eye(12), atol=0.05)
    np.testing.assert_array_equal(outputs[:, 12:], -outputs[:, :12])


def test_first_outputs_of_a_convolution_are_its_inputs():
    kernel = variables(SpeedNet(10))["params"]["group1"]["conv1"]["kernel"]
    expected = np.zeros((3, 3, 24, 24))
    expected[1, 1] = np.eye(24)
    np.testing.assert_array_equal(kernel[..., :24], expected)
    assert 0 < jnp.abs(kernel[..., 24:]).max() <= 1 / np.sqrt(9 * 24)


def test_three_convolutions_have_a_shortcut():
    """If the last normalization gives its bias alone, the group returns the activation of that and of its start."""
    model = SpeedNet(10, depth=3, activation="relu", widths=(8, 8, 8), pool="global")
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    start = variables(model, images)
    plain = SpeedNet(10, depth=2, activation="relu", widths=(8, 8, 8), pool="global").apply(start, images)
    assert jnp.abs(model.apply(start, images) - plain).max() > 1e-4


def test_options_are_checked():
    config = default()
    config.model.name = "speednet"
    assert models.problems(config.model, (32, 32, 3), 10) == []
    assert "too small" in models.problems(config.model, (24, 24, 3), 10)[0]
    config.model.options.pool = "global"
    assert models.problems(config.model, (24, 24, 3), 10) == []
    config.model.options.activation = "tanh"
    assert "activation=gelu (or silu, relu)" in models.problems(config.model, (32, 32, 3), 10)[0]
