"""The networks of the literature: sizes, costs, options, and what `train` and the image keys change."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from synthetic import learn, make_config

from imgclf_jax import models
from imgclf_jax.models import cost
from imgclf_jax.models.layers import drop_branches
from imgclf_jax.rng import image_keys

KEY = jax.random.key(0)
TINY_VIT = {"width": 8, "heads": 2, "depth": 2}
IMAGES = np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 3)).astype(np.float32)


def section(name, options=(), **fields):
    """A `model` section with options."""
    config = make_config({"model.name": name}, {f"model.{field}": value for field, value in fields.items()}).model
    return ConfigDict({**config.to_dict(), "options": dict(options)})


def create(name, options=(), classes=10, **fields):
    return models.create(section(name, options, **fields), classes)


def shapes(model, shape=(8, 8, 3)):
    return jax.eval_shape(model.init, KEY, jnp.zeros((1, *shape)))


def random_variables(model, shape=(8, 8, 3)):
    draws = np.random.default_rng(1)

    def draw(path, leaf):
        values = 0.3 * draws.standard_normal(leaf.shape, np.float32)
        return np.abs(values) + 0.5 if path[-1].key in ("scale", "var") else values

    return jax.tree_util.tree_map_with_path(draw, shapes(model, shape))


# Sizes: torchvision's documentation (resnet18, 34, 50, vit_b_16), DeiT's table 1 and timm (tiny, small), and the
# authors' tables in millions for wide ResNets. Costs: multiplications and additions, in thousands of millions.
LARGE = (224, 224, 3), 1000
SMALL = (32, 32, 3), 10
PUBLISHED = [
    ("resnet18", {"stem": "imagenet"}, LARGE, 11_689_512, 1.814),
    ("resnet34", {"stem": "imagenet"}, LARGE, 21_797_672, 3.664),
    ("resnet50", {"stem": "imagenet"}, LARGE, 25_557_032, 4.089),
    ("resnet18", {}, SMALL, 11_173_962, 0.556),
    ("wide_resnet", {"depth": 28, "widen": 10}, SMALL, 36_479_194, 5.24),
    ("wide_resnet", {"depth": 40, "widen": 4}, SMALL, 8_949_210, 1.30),
    ("wide_resnet", {}, SMALL, 2_748_890, 0.393),
    ("vit", {"size": "tiny", "patch": 16}, LARGE, 5_717_416, 1.25),
    ("vit", {"size": "small", "patch": 16}, LARGE, 22_050_664, 4.60),
    ("vit", {"size": "base", "patch": 16}, LARGE, 86_567_656, 17.56),
]


@pytest.mark.parametrize(("name", "options", "data", "parameters", "billions"), PUBLISHED)
def test_size_and_cost_are_the_published_ones(name, options, data, parameters, billions):
    shape, classes = data
    model = create(name, options, classes)
    variables = shapes(model, shape)
    assert sum(size for *_, size in cost.parameter_table(variables["params"])) == parameters
    forward, _ = cost.network_flops(model, variables, shape, 1)
    assert forward / 2e9 == pytest.approx(billions, rel=3e-3)


def test_pooling_by_the_mean_has_no_class_token():
    token, mean = (shapes(create("vit", {"pool": pool}), (32, 32, 3))["params"] for pool in ("token", "mean"))
    assert token["positions"].shape == (1, 65, 192) and mean["positions"].shape == (1, 64, 192)
    assert token.keys() - mean.keys() == {"token"}


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet"])
def test_group_normalization_has_no_state(name):
    variables = shapes(create(name, norm="group"))
    assert variables.keys() == {"params"}
    assert variables["params"].keys() == shapes(create(name))["params"].keys()


@pytest.mark.parametrize(("stem", "side", "expected"), [("cifar", 32, [32, 16, 8, 4]), ("imagenet", 64, [16, 8, 4, 2])])
def test_stages_halve_the_sides(stem, side, expected):
    model = create("resnet18", {"stem": stem, "width": 2})
    outputs = dict(cost.layer_outputs(model, shapes(model, (side, side, 3)), (side, side, 3), 1))
    assert [outputs[f"stage{stage}_block2"][1] for stage in (1, 2, 3, 4)] == expected
    assert [outputs[f"stage{stage}_block2"][3] for stage in (1, 2, 3, 4)] == [2, 4, 8, 16]


def test_a_vit_written_out():
    model = create("vit", {**TINY_VIT, "depth": 1, "patch": 4})
    params = random_variables(model)["params"]

    def layer_norm(x, layer):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * layer["scale"] + layer["bias"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    cut = np.stack([IMAGES[:, y : y + 4, x : x + 4].reshape(4, -1) for y in (0, 4) for x in (0, 4)], axis=1)
    x = np.concatenate([np.broadcast_to(params["token"], (4, 1, 8)), dense(cut, params["embed"])], axis=1)
    x = x + params["positions"]
    y, attention = layer_norm(x, params["block1_norm1"]), params["block1_attention"]
    query, key, value = (
        np.einsum("bnd,dhe->bhne", y, attention[name]["kernel"]) + attention[name]["bias"][:, None]
        for name in ("query", "key", "value")
    )
    weights = np.asarray(jax.nn.softmax(query @ key.swapaxes(2, 3) / 2, axis=-1))  # the root of 4 units a head
    x = x + np.einsum("bhne,hed->bnd", weights @ value, attention["out"]["kernel"]) + attention["out"]["bias"]
    hidden = dense(layer_norm(x, params["block1_norm2"]), params["block1_mlp1"])
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    x = x + dense(hidden, params["block1_mlp2"])
    expected = dense(layer_norm(x, params["norm"])[:, 0], params["output"])
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_a_basic_block_written_out():
    model = create("resnet18", {"width": 2})
    variables = random_variables(model)
    _, kept = jax.jit(lambda: model.apply(variables, IMAGES, capture_intermediates=True))()
    outputs = kept["intermediates"]
    layers, stats = (variables[part]["stage2_block1"] for part in ("params", "batch_stats"))

    def unit(x, suffix, stride):
        kernel = layers[f"conv{suffix}"]["kernel"]
        pad = kernel.shape[0] // 2
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((pad, pad),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        norm, running = layers[f"norm{suffix}"], stats[f"norm{suffix}"]
        return (np.asarray(y) - running["mean"]) / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]

    x = outputs["stage1_block2"]["__call__"][0]
    y = unit(np.maximum(unit(x, "1", 2), 0), "2", 1) + unit(x, "_shortcut", 2)
    np.testing.assert_allclose(outputs["stage2_block1"]["__call__"][0], np.maximum(y, 0), rtol=1e-3, atol=1e-4)


# Dropout and stochastic depth


RANDOM = {
    "wide_resnet": functools.partial(create, "wide_resnet", {"depth": 10, "widen": 1}, norm="group", dropout=0.5),
    "vit with dropout": functools.partial(create, "vit", TINY_VIT, dropout=0.5),
    "vit with stochastic depth": functools.partial(create, "vit", {**TINY_VIT, "stochastic_depth": 0.5}),
}


@pytest.mark.parametrize("name", RANDOM)
def test_draws_depend_on_the_key_of_an_image_alone(name):
    model = RANDOM[name]()
    variables = random_variables(model)

    @jax.jit
    def train(images, positions, key):
        return model.apply(variables, images, train=True, keys=image_keys(key, positions))

    same = np.repeat(IMAGES[:1], 8, axis=0)
    whole = np.asarray(train(same, np.arange(8), KEY))
    assert len(np.unique(np.round(whole[:, 0], 5))) > 1  # images draw independently
    order = np.array([5, 1, 7, 0, 2, 6, 3, 4])
    np.testing.assert_allclose(train(same, order, KEY), whole[order], rtol=1e-4, atol=1e-5)
    assert np.any(np.abs(np.asarray(train(same, np.arange(8), jax.random.key(1))) - whole) > 1e-3)
    evaluated = jax.jit(lambda images: model.apply(variables, images))(same)
    np.testing.assert_allclose(evaluated, np.repeat(evaluated[:1], 8, axis=0), rtol=1e-4, atol=1e-5)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    x = jnp.ones((400, 2, 3))
    dropped = np.asarray(drop_branches(x, 0.25, image_keys(KEY, jnp.arange(400))))
    kept = dropped[:, 0, 0] > 0
    np.testing.assert_allclose(dropped[kept], 1 / 0.75, rtol=1e-6)
    assert np.all(dropped[~kept] == 0)
    assert kept.mean() == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 400))
    assert drop_branches(x, 0.25, None) is x


def test_the_first_block_is_never_dropped():
    # The rate rises linearly from 0: of a network of one block none is dropped.
    model = create("vit", {**TINY_VIT, "depth": 1, "stochastic_depth": 0.9})
    traced = jax.make_jaxpr(lambda v, keys: model.apply(v, IMAGES, train=True, keys=keys))(
        shapes(model), image_keys(KEY, jnp.arange(4))
    )
    assert "random_bits" not in str(traced)


# Options


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet18", {"stm": "cifar"}, ["model.options.stm", "did you mean stem"]),
        ("resnet18", {"nonsense": 1}, ["model.options.nonsense", "stem, width"]),
        ("softmax", {"depth": 1}, ["softmax has no such option", "none"]),
        ("wide_resnet", {"dropout": 0.1}, ["model.options.dropout", "give --config.model.dropout=0.1"]),
        ("resnet18", {"stem": "mnist"}, ["'mnist'", "=cifar (or imagenet)"]),
        ("resnet18", {"width": "64"}, ["model.options.width='64'", "type int"]),
        ("resnet18", {"width": 0}, ["model.options.width=0", "at least 1"]),
        ("wide_resnet", {"depth": 18}, ["depth=18", "16, 22, 28"]),
        ("wide_resnet", {"widen": 0}, ["widen=0", "at least 1"]),
        ("vit", {"size": "giant"}, ["'giant'", "=tiny (or small, base)"]),
        ("vit", {"pool": "max"}, ["'max'", "=token (or mean)"]),
        ("vit", {"patch": 0}, ["patch=0", "at least 1"]),
        ("vit", {"patch": True}, ["patch=True", "type int"]),
        ("vit", {"heads": 5}, ["width=192", "5 heads"]),
        ("vit", {"stochastic_depth": 1}, ["stochastic_depth=1", "below 1"]),
        ("vit", {"patch": 5}, ["patch=5", "does not divide 32x32"]),
    ],
)
def test_a_problem_with_an_option_is_one_line(name, options, words):
    (line,) = models.problems(section(name, options), (32, 32, 3), 10)
    for word in words:
        assert word in line


def test_norms_by_model():
    assert models.problems(section("resnet18", norm="group")) == []
    (line,) = models.problems(section("cnn", norm="group"))
    assert "=none (or batch)" in line
    (line,) = models.problems(section("resnet18", norm="layer"))
    assert "=none (or batch, group)" in line
    (line,) = models.problems(section("resnet18", dropout=0.1))
    assert "resnet18 has no such option" in line


def test_every_network_of_the_zoo_is_a_module_with_its_options():
    for name in ("resnet18", "resnet34", "resnet50", "wide_resnet", "vit"):
        assert models.problems(section(name), (32, 32, 3), 10) == []
        assert isinstance(create(name), nn.Module)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"width": 2, "stem": "imagenet"}),
        ("wide_resnet", {"depth": 10, "widen": 1}),
        ("vit", {"width": 16, "heads": 2, "depth": 2, "patch": 11}),
    ],
)
def test_the_zoo_learns_eight_images(name, options):
    before, after = learn({"model.name": name, "optim.name": "adam", "optim.learning_rate": 5e-3}, options)
    assert after["accuracy"] == 1.0
    assert after["loss"] < 0.1 * before["loss"]
