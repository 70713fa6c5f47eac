"""predict/heat_maps.py: on images where the place that decides is known, that place is found."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from synthetic import make_config, make_data, make_experiment, make_normalization
from test_models import create, shapes

from imgclf_jax.predict import heat_maps
from imgclf_jax.predict.network import Network
from imgclf_jax.training import trained

SIDE, PATCH = 24, 6


class Stock(nn.Module):
    """A network as a stranger writes it."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(12, (3, 3), name="last")(x))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


class Scanned(nn.Module):
    """The outputs of its inner layers cannot be taken out of the loop."""

    @nn.compact
    def __call__(self, x, train=False):
        def more(layer, x, _):
            return nn.relu(layer(x)), None

        x = nn.Conv(4, (3, 3), name="first")(x)
        loop = nn.scan(more, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = loop(nn.Conv(4, (3, 3), name="loop"), x, None)
        return nn.Dense(3)(x.mean(axis=(1, 2)))


class Tokens(nn.Module):
    """Attention over patches, whose queries [B, tokens, heads, channels] are no feature map."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16)(x.reshape(len(x), 8, -1))
        return nn.Dense(3)(nn.MultiHeadDotProductAttention(8)(x).mean(axis=1))


def initial(model, images):
    return jax.jit(model.init)(jax.random.key(0), images)


def maps_of(model, variables, images, *classes):
    return jax.jit(functools.partial(heat_maps.heat_maps, model.apply))(variables, images, *classes)


def with_patches(count, seed):
    """Gray noise with a bright patch whose color is the class: (images, classes, corners of the patches)."""
    draws = np.random.default_rng(seed)
    images = draws.uniform(-0.2, 0.2, (count, SIDE, SIDE, 3)).astype(np.float32)
    classes, corners = draws.integers(0, 3, count), draws.integers(0, SIDE - PATCH + 1, (count, 2))
    for image, label, (top, left) in zip(images, classes, corners, strict=True):
        image[top : top + PATCH, left : left + PATCH] = np.eye(3)[label]
    return images, classes, corners


def train(model, images, classes, steps=80):
    variables = initial(model, images[:1])
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(variables, state, images, classes):
        def loss(variables):
            logits = model.apply(variables, images, train=False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

        changes, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, changes), state

    state = optimizer.init(variables)
    for index in range(steps):
        batch = slice(index * 16, index * 16 + 16)
        variables, state = step(variables, state, images[batch], classes[batch])
    return variables


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (Stock, ("last", 0)),
        (functools.partial(create, "cnn", 3, widths=(6, 12), hidden=(16,)), ("conv2", 0)),
        (functools.partial(create, "mlp", 3, hidden=(32,)), None),
    ],
    ids=["stock", "cnn", "mlp"],
)
def test_the_patch_that_decides_is_found(make, layer):
    model = make()
    images, classes, _ = with_patches(1280, seed=0)
    variables = train(model, images, classes)
    images, classes, corners = with_patches(100, seed=1)
    logits, maps = maps_of(model, variables, images, classes)
    logits, maps = np.asarray(logits), np.asarray(maps)
    plain = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(variables, images)
    np.testing.assert_allclose(logits, plain, atol=1e-4)
    assert (logits.argmax(axis=1) == classes).mean() > 0.95
    assert heat_maps.feature_layer(lambda x: model.apply(variables, x, train=False), images) == layer
    assert maps.shape == (100, SIDE, SIDE) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1
    hits = 0
    for one, (top, left) in zip(maps, corners, strict=True):
        row, column = np.unravel_index(one.argmax(), one.shape)
        hits += top - 2 <= row < top + PATCH + 2 and left - 2 <= column < left + PATCH + 2
    assert hits >= 90


@pytest.mark.parametrize(("module", "layer"), [(Scanned, ("first", 0)), (Tokens, None)])
def test_odd_modules_have_maps(module, layer):
    model, images = module(), with_patches(2, seed=0)[0]
    variables = initial(model, images)
    assert heat_maps.feature_layer(lambda x: model.apply(variables, x, train=False), images) == layer
    _, maps = maps_of(model, variables, images)
    assert maps.shape == (2, SIDE, SIDE) and np.isfinite(maps).all()


def test_both_classes_of_a_sigmoid_head_have_a_map():
    model = create("cnn", 2, widths=(4,), hidden=(8,), head="sigmoid")
    images = with_patches(4, seed=0)[0]
    variables = initial(model, images)
    for label in (0, 1):
        _, maps = maps_of(model, variables, images, jnp.full(4, label))
        assert (maps.max(axis=(1, 2)) > 0).any()


def test_maps_of_unpadded_convolutions_are_in_the_middle():
    """Six rows of 4 pixels each are 24 of the 32; without a correction they would be stretched over all."""
    model = create("tutorial_cnn", 3, widths=(4, 4, 4), hidden=(8,))
    variables = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), shapes(model, (32, 32, 3)))
    logits_of = functools.partial(model.apply, variables)
    assert heat_maps._steps(logits_of, (1, 32, 32, 3), ("conv2", 0), (1, 6, 6, 4)) == (4, 4)
    spread = np.asarray(heat_maps._spread(jnp.eye(6)[None, :1], 2, 32, 4.0))[0, 0]
    assert spread.argmax() in (4, 5, 6) and spread[0] < 0.2  # the first of six steps of 4 pixels around 15.5


def test_explain_gives_the_probabilities_and_maps_in_the_frame_of_the_photo():
    config = make_config({"model.name": "cnn", "model.widths": (4,), "model.hidden": (6,), "augment.crop": (12, 12)})
    images, classes = make_data(5, (16, 18, 3))
    experiment = make_experiment(config, np.concatenate([images, images]))
    variables = jax.jit(experiment.init)(experiment.key).eval_variables()
    place = trained.Trained("nowhere", {}, 3, experiment, variables, make_normalization(config, images))
    network = Network(place, batch_size=4)
    probabilities, maps = network.explain(images)
    np.testing.assert_allclose(probabilities, network(images), atol=1e-6)
    assert maps.shape == (5, 16, 18) and maps[:, :2].max() == maps[:, :, :3].max() == 0 < maps[:, 2:-2, 3:-3].max()
    np.testing.assert_allclose(network.explain(images, probabilities.argmax(axis=1))[1], maps, atol=1e-6)
    assert (network.explain(images, classes)[1] != maps).any()
    assert [x.shape for x in network.explain(images[:0])] == [(0, 10), (0, 16, 18)]
