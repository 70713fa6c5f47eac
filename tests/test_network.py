"""predict/network.py: what a network gives from Python."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ROOT, environment
from synthetic import SMALL_CNN, make_config, make_data, make_experiment, make_normalization

from imgclf_jax.errors import UserError
from imgclf_jax.predict.network import Network
from imgclf_jax.training import trained

IMAGES, _ = make_data(5)


@pytest.fixture(scope="module")
def network():
    config = make_config(SMALL_CNN, {"model.norm": "batch"})
    experiment = make_experiment(config, np.concatenate([IMAGES, IMAGES]))
    variables = jax.jit(experiment.init)(experiment.key).eval_variables()
    normalization = make_normalization(config, IMAGES)
    return Network(trained.Trained(ROOT / "nowhere", {}, 3, experiment, variables, normalization), batch_size=4)


def test_probabilities_are_those_of_the_logits(network):
    logits = network.logits(IMAGES)
    assert logits.shape == (5, 10) and logits.dtype == np.float32
    np.testing.assert_allclose(network.probabilities(IMAGES), jax.nn.softmax(logits), atol=1e-6)
    np.testing.assert_array_equal(network(IMAGES), network.probabilities(IMAGES))
    assert network.logits(IMAGES[:0]).shape == (0, 10)


def test_the_default_features_are_what_the_logits_are_computed_from(network):
    features = network.features(IMAGES)
    assert features.shape == (5, 10)  # the hidden layer has 10 units
    output = network._network.variables["params"]["output"]
    logits = features @ np.asarray(output["kernel"]) + np.asarray(output["bias"])[None]
    np.testing.assert_allclose(logits, network.logits(IMAGES), atol=1e-5)


def test_layers_are_in_the_order_of_computation(network):
    assert network.layers == {
        "conv1": (4, 4, 4),
        "norm1": (4, 4, 4),
        "conv2": (2, 2, 6),
        "norm2": (2, 2, 6),
        "dense1": (10,),
        "output": (10,),
    }
    for layer, shape in network.layers.items():
        assert network.features(IMAGES, layer).shape == (5, *shape)
    np.testing.assert_allclose(jnp.maximum(network.features(IMAGES, "dense1"), 0), network.features(IMAGES), atol=1e-6)
    np.testing.assert_allclose(network.features(IMAGES, "output"), network.logits(IMAGES), atol=1e-6)


def test_mistakes_are_reported_in_one_line(network):
    with pytest.raises(UserError, match="no layer 'conv9'; there are conv1, "):
        network.features(IMAGES, "conv9")
    with pytest.raises(UserError, match=r"cat.jpg is a path.*imgclf_jax.predict --workdir=.*nowhere cat.jpg"):
        network("cat.jpg")
    with pytest.raises(UserError, match=r"uint8 \[N, 8, 8, 3\]"):
        network(IMAGES / 255)


def test_the_package_imports_nothing_heavy_until_a_network_is_loaded():
    code = "import sys, imgclf_jax; assert imgclf_jax.load and 'jax' not in sys.modules and 'flax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), cwd=ROOT)
