"""The networks: their parameters, what they compute, and what `train` changes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from synthetic import IDENTITY, make_config, make_data, with_options

from imgclf_jax import models
from imgclf_jax.models import cost
from imgclf_jax.rng import image_keys
from imgclf_jax.training.steps import make_eval_step

KEY = jax.random.key(0)
SMALL = {
    "softmax": {},
    "mlp": {"hidden": (16, 12)},
    "cnn": {"widths": (3, 4), "hidden": (16, 12)},
    "tutorial_cnn": {"widths": (3, 4), "hidden": (16,)},
    "small_cnn": {"widths": (4,), "hidden": (16,), "dropout": 0.0},
    "resnet18": {"options": {"width": 2}},
    "wide_resnet": {"options": {"depth": 10, "widen": 1}},
    "vit": {"options": {"width": 8, "heads": 2, "depth": 2}},
}


def create(name, classes=10, options=None, **fields):
    changes = {f"model.{field}": value for field, value in fields.items()}
    return models.create(with_options(make_config({"model.name": name}, changes), options).model, classes)


def small(name, classes=10, **fields):
    return create(name, classes, **(SMALL[name] | fields))


def shapes(model, shape=(8, 8, 3)):
    return jax.eval_shape(model.init, KEY, jnp.zeros((1, *shape)))


def variables_of(model, shape=(8, 8, 3)):
    """Random variables in which nothing is zero, so that it shows whether each is used; numpy has no compiler."""
    draws = np.random.default_rng(0)

    def draw(path, leaf):
        values = 0.3 * draws.standard_normal(leaf.shape, np.float32)
        return np.abs(values) + 0.5 if path[-1].key in ("scale", "var") else values

    return jax.tree_util.tree_map_with_path(draw, shapes(model, shape))


def floats(count=4, shape=(8, 8, 3), seed=0):
    return (make_data(count, shape, seed=seed)[0] / 255).astype(np.float32)


# Parameters


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("softmax", {}, {"output/bias": (10,), "output/kernel": (3072, 10)}),
        (
            "mlp",
            {},
            {"dense1/bias": (512,), "dense1/kernel": (3072, 512), "output/bias": (10,), "output/kernel": (512, 10)},
        ),
        (
            "cnn",
            {},
            {
                "conv1/bias": (64,),
                "conv1/kernel": (3, 3, 3, 64),
                "conv2/bias": (128,),
                "conv2/kernel": (3, 3, 64, 128),
                "conv3/bias": (256,),
                "conv3/kernel": (3, 3, 128, 256),
                "dense1/bias": (256,),
                "dense1/kernel": (4096, 256),
                "dense2/bias": (128,),
                "dense2/kernel": (256, 128),
                "output/bias": (10,),
                "output/kernel": (128, 10),
            },
        ),
        (
            # A bias before batch normalization would have no effect.
            "cnn",
            {"widths": (8,), "hidden": (), "norm": "batch"},
            {
                "conv1/kernel": (3, 3, 3, 8),
                "norm1/bias": (8,),
                "norm1/scale": (8,),
                "output/bias": (10,),
                "output/kernel": (2048, 10),
            },
        ),
        (
            "tutorial_cnn",
            {},
            {
                "conv1/bias": (32,),
                "conv1/kernel": (3, 3, 3, 32),
                "conv2/bias": (64,),
                "conv2/kernel": (3, 3, 32, 64),
                "conv3/bias": (64,),
                "conv3/kernel": (3, 3, 64, 64),
                "dense1/bias": (64,),
                "dense1/kernel": (1024, 64),
                "output/bias": (10,),
                "output/kernel": (64, 10),
            },
        ),
        (
            "small_cnn",
            {"head": "sigmoid"},
            {
                "conv1/bias": (32,),
                "conv1/kernel": (3, 3, 3, 32),
                "conv2/bias": (32,),
                "conv2/kernel": (3, 3, 32, 32),
                "conv3/bias": (64,),
                "conv3/kernel": (3, 3, 32, 64),
                "dense1/bias": (64,),
                "dense1/kernel": (256, 64),
                "output/bias": (1,),
                "output/kernel": (64, 1),
            },
        ),
    ],
)
def test_parameters(name, options, expected):
    model = create(name, **options)
    if options.get("hidden") == ():
        model = model.copy(hidden=())  # in a config () means the model's own
    variables = shapes(model, (32, 32, 3))
    table = cost.parameter_table(variables["params"])
    assert {path: shape for path, shape, _ in table} == expected
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("name", "count"), [("softmax", 30_730), ("mlp", 1_578_506), ("cnn", 1_453_834), ("tutorial_cnn", 122_570)]
)
def test_number_of_parameters_on_cifar10(name, count):
    # The tutorial's network: what Keras prints in https://www.tensorflow.org/tutorials/images/cnn.
    table = cost.parameter_table(shapes(create(name), (32, 32, 3))["params"])
    assert sum(size for _, _, size in table) == count


@jax.jit
def initial_parameters(key):
    """Of a tutorial_cnn and of a cnn, compiled together."""
    tutorial, cnn = create("tutorial_cnn", widths=(48,), hidden=(64,)), create("cnn", widths=(64,), hidden=(128,))
    return [model.init(key, jnp.zeros((1, 6, 6, 16)))["params"] for model in (tutorial, cnn)]


def test_initialization_is_random_in_the_right_measure():
    tutorial, cnn = jax.tree.map(np.asarray, initial_parameters(KEY))
    for name in ("conv1", "dense1"):
        kernel = tutorial[name]["kernel"]
        area = math.prod(kernel.shape[:-2])
        limit = math.sqrt(6 / (area * (kernel.shape[-2] + kernel.shape[-1])))  # Glorot and Bengio 2010, eq. 16
        assert 0.95 * limit < np.abs(kernel).max() <= limit
        assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=0.05)
        assert np.all(tutorial[name]["bias"] == 0)
    for name in ("conv1", "dense1"):
        fan_in = math.prod(cnn[name]["kernel"].shape[:-1])
        assert cnn[name]["kernel"].std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)  # He et al. 2015, eq. 10
        assert np.all(cnn[name]["bias"] == 0)


def test_initialization_follows_the_key():
    first, again, other = (initial_parameters(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first[1]["dense1"]["kernel"] != other[1]["dense1"]["kernel"])


# What they compute


def dense(x, layer):
    return x.reshape(len(x), -1) @ layer["kernel"] + layer["bias"][None]


def convolution(x, layer, padding):
    y = lax.conv_general_dilated(x, layer["kernel"], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + layer["bias"][None, None, None]


def pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def softmax_by_hand(params, x):
    return dense(x, params["output"])


def mlp_by_hand(params, x):
    for name in ("dense1", "dense2"):
        x = jnp.maximum(dense(x, params[name]), 0)
    return dense(x, params["output"])


def cnn_by_hand(params, x):
    for name in ("conv1", "conv2"):
        x = pool(jnp.maximum(convolution(x, params[name], "SAME"), 0))
    return mlp_by_hand(params, x)


def tutorial_cnn_by_hand(params, x):
    # Keras: Conv2D with ReLU, MaxPooling2D, ..., Conv2D with ReLU, Flatten, Dense with ReLU, Dense.
    x = pool(jnp.maximum(convolution(x, params["conv1"], "VALID"), 0))
    x = jnp.maximum(convolution(x, params["conv2"], "VALID"), 0)
    x = jnp.maximum(dense(x, params["dense1"]), 0)
    return dense(x, params["output"])


def small_cnn_by_hand(params, x):
    # The Keras blog: Conv2D, ReLU, MaxPooling2D, ..., Flatten, Dense with ReLU, Dropout, Dense.
    x = pool(jnp.maximum(convolution(x, params["conv1"], "VALID"), 0))
    x = jnp.maximum(dense(x, params["dense1"]), 0)
    return dense(x, params["output"])


@pytest.mark.parametrize(
    "by_hand", [softmax_by_hand, mlp_by_hand, cnn_by_hand, tutorial_cnn_by_hand, small_cnn_by_hand]
)
@pytest.mark.parametrize(("shape", "classes"), [((8, 8, 3), 10), ((11, 9, 1), 3)])
def test_logits_equal_the_network_written_out(by_hand, shape, classes):
    model = small(by_hand.__name__.removesuffix("_by_hand"), classes)
    variables = variables_of(model, shape)
    images = floats(4, shape)
    logits, expected = jax.jit(lambda: (model.apply(variables, images), by_hand(variables["params"], images)))()
    assert logits.shape == (4, classes)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "small_cnn"])
def test_the_sigmoid_head_is_binary_cross_entropy_on_one_unit(name):
    model = small(name, 2, head="sigmoid")
    variables, images = variables_of(model), floats(16)
    labels = make_data(16, classes=2)[1]
    middle = np.median(model.apply(variables, images)[:, 1])
    variables["params"]["output"]["bias"] -= middle  # so that both classes are predicted
    logits, state = model.apply(variables, images, capture_intermediates=True)
    unit = state["intermediates"]["output"]["__call__"][0][:, 0]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(losses, optax.sigmoid_binary_cross_entropy(unit, labels), rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(logits)[:, 1], jax.nn.sigmoid(unit), rtol=1e-5)
    np.testing.assert_array_equal(logits.argmax(-1), unit > 0)
    assert 0 < np.sum(unit > 0) < 16


def test_a_new_softmax_knows_nothing():
    images, labels = make_data(16)
    model = create("softmax")
    eval_step = make_eval_step(model, lambda images: images.astype(jnp.float32) / 255)
    variables = jax.jit(model.init)(KEY, jnp.zeros((1, 8, 8, 3)))
    sums = eval_step(variables, IDENTITY, {"image": images, "label": labels, "mask": np.ones(16, bool)})
    # Every logit is zero, every probability a tenth.
    assert float(sums["loss"]) / 16 == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computes_in_bfloat16_on_float32_parameters(name):
    model, exact = small(name, dtype="bfloat16"), small(name)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes(model)))
    variables, images = variables_of(model), floats()
    logits, expected = jax.jit(lambda: (model.apply(variables, images), exact.apply(variables, images)))()
    assert logits.dtype == jnp.bfloat16
    error = np.abs(np.asarray(logits, np.float32) - expected).max()
    # Roundings add up over 17 layers.
    assert 0 < error < (0.1 if name == "resnet18" else 0.03) * np.abs(expected).max()


def test_bfloat16_gradients_are_float32():
    model = small("cnn", dtype="bfloat16", norm="batch")
    variables, images = variables_of(model), floats()

    def loss(params):
        logits, changed = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return logits.astype(jnp.float32).sum(), changed

    gradients, changed = jax.eval_shape(jax.grad(loss, has_aux=True), variables["params"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((gradients, changed)))


# What `train` changes


@pytest.mark.parametrize("name", ["mlp", "cnn", "tutorial_cnn", "small_cnn"])
def test_dropout_acts_in_training_only(name):
    model, without = small(name, dropout=0.5), small(name)
    variables, images = variables_of(model), floats()

    @jax.jit
    def apply(key):
        def train(model):
            return model.apply(variables, images, train=True, keys=image_keys(key, jnp.arange(4)))

        return train(model), train(without), model.apply(variables, images), without.apply(variables, images)

    dropped, undropped, evaluated, plain = apply(jax.random.key(1))
    np.testing.assert_array_equal(undropped, plain)
    np.testing.assert_array_equal(evaluated, plain)
    assert np.any(np.asarray(dropped) != plain)
    np.testing.assert_array_equal(apply(jax.random.key(1))[0], dropped)
    assert np.any(np.asarray(apply(jax.random.key(2))[0]) != dropped)


@pytest.mark.parametrize("name", ["mlp", "cnn", "tutorial_cnn", "small_cnn"])
def test_what_dropout_drops_of_an_image_depends_on_its_key_alone(name):
    model = small(name, dropout=0.5)
    variables, images = variables_of(model), floats(6)

    @jax.jit
    def train(images, positions):
        return model.apply(variables, images, train=True, keys=image_keys(KEY, positions))

    whole = np.asarray(train(images, np.arange(6)))
    # Neither the images around it nor their number matter, nor where in the batch it stands.
    others = [4, 1, 2]
    np.testing.assert_allclose(train(images[others], np.array(others)), whole[others], rtol=1e-4, atol=1e-5)
    # The same image with other keys.
    elsewhere = train(images[others], np.array([0, 3, 5]))
    assert np.all(np.abs(elsewhere - whole[others]).max(1) > 1e-3)


def test_dropout_drops_the_asked_fraction_and_keeps_the_mean():
    # With constant hidden units and an output of ones each logit is the sum of the units that are left.
    model = create("mlp", classes=2, hidden=(400,), dropout=0.25)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes(model, (2, 2, 1))["params"])
    params["dense1"]["bias"] += 1
    params["output"]["kernel"] += 1
    images = np.zeros((50, 2, 2, 1), np.float32)
    keys = image_keys(KEY, jnp.arange(50))
    logits = model.apply({"params": params}, images, train=True, keys=keys)[:, 0]
    kept = np.asarray(logits) * 0.75  # units left, a row
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-3)
    assert np.unique(np.round(kept)).size > 5  # each image has its own draw
    assert kept.mean() == pytest.approx(300, abs=5 * math.sqrt(400 * 0.25 * 0.75 / 50))


@pytest.fixture(scope="module")
def normed():
    model = small("cnn", norm="batch")
    return model, variables_of(model)


def test_batch_norm_follows_the_batch_in_training(normed):
    model, variables = normed
    images = floats(6)
    train = jax.jit(lambda images: model.apply(variables, images, train=True, mutable=["batch_stats"]))
    logits, changed = train(images)
    kernel = {"kernel": variables["params"]["conv1"]["kernel"], "bias": np.zeros(3, np.float32)}
    pooled = np.asarray(pool(convolution(images, kernel, "SAME")), np.float64)
    before, after = variables["batch_stats"]["norm1"], changed["batch_stats"]["norm1"]
    expected = 0.9 * before["mean"] + 0.1 * pooled.mean((0, 1, 2))
    np.testing.assert_allclose(after["mean"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * pooled.var((0, 1, 2)), rtol=1e-4)
    others, _ = train(images[:3])
    assert np.abs(np.asarray(logits)[:3] - others).max() > 1e-3  # the rest of the batch matters


def test_batch_norm_uses_running_statistics_in_evaluation(normed):
    model, variables = normed
    stats = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    images = floats(6)
    apply = jax.jit(lambda stats, images: model.apply({"params": variables["params"], "batch_stats": stats}, images))
    whole = np.asarray(apply(stats, images))
    np.testing.assert_allclose(whole[:3], apply(stats, images[:3]), rtol=1e-4, atol=1e-5)
    assert np.abs(whole - apply(variables["batch_stats"], images)).max() > 1e-3


# What is refused


def test_every_model_accepts_the_defaults():
    for name in models.MODELS:
        assert models.problems(make_config({"model.name": name}).model) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "alexnet"}, ["'alexnet'", "give --config.model.name=", "mlp", "tutorial_cnn"]),
        (
            {"name": "softmax", "hidden": (3,)},
            ["model.hidden", "softmax has no such option", "--config.model.hidden='()'"],
        ),
        ({"name": "softmax", "dropout": 0.5}, ["model.dropout", "softmax has no such option", "leave it out"]),
        ({"name": "mlp", "widths": (3,)}, ["model.widths", "mlp has no such option"]),
        ({"name": "mlp", "norm": "batch"}, ["model.norm", "mlp has no such option"]),
        (
            {"name": "tutorial_cnn", "norm": "batch"},
            ["model.norm", "tutorial_cnn has no such option", "--config.model.norm=none"],
        ),
        ({"name": "cnn", "widths": (3, 0)}, ["model.widths=(3, 0)", "positive whole numbers"]),
        ({"name": "cnn", "hidden": (2.5,)}, ["model.hidden=(2.5,)", "positive whole numbers"]),
        ({"name": "cnn", "norm": "layer"}, ["model.norm='layer'", "--config.model.norm=none (or batch)"]),
        ({"name": "cnn", "dropout": 1.0}, ["model.dropout=1.0", "below 1"]),
        ({"name": "cnn", "dropout": -0.1}, ["model.dropout=-0.1", "at least 0"]),
        ({"name": "small_cnn", "head": "tanh"}, ["model.head='tanh'", "--config.model.head=", "softmax", "sigmoid"]),
        ({"name": "cnn", "dtype": "float16"}, ["model.dtype='float16'", "bfloat16"]),
    ],
)
def test_problems_name_the_field_and_what_to_do(changes, words):
    config = make_config({f"model.{field}": value for field, value in changes.items()})
    (line,) = models.problems(config.model)
    for word in words:
        assert word in line


@pytest.mark.parametrize(("classes", "head"), [(2, "sigmoid"), (3, "softmax"), (10, "softmax")])
def test_the_head_follows_the_number_of_classes(classes, head):
    config = make_config({"model.name": "small_cnn", "model.head": "auto"}).model
    assert models.problems(config, (32, 32, 3), classes) == []
    assert models.head_of(models.create(config, classes)) == head
    given = make_config({"model.name": "small_cnn", "model.head": head}).model
    assert models.create(config, classes) == models.create(given, classes)


def test_a_sigmoid_for_three_classes_is_refused_with_the_flag_to_type():
    config = make_config({"model.name": "small_cnn", "model.head": "sigmoid"}).model
    (line,) = models.problems(config, (32, 32, 3), 3)
    assert line.endswith("needs two classes, but the data has 3; give --config.model.head=softmax")


def test_a_sigmoid_separates_two_classes():
    config = make_config({"model.name": "small_cnn", "model.head": "sigmoid"}).model
    assert models.problems(config, num_classes=2) == []
    (line,) = models.problems(config, num_classes=3)
    assert "the data has 3" in line


@pytest.mark.parametrize(
    ("name", "smallest"), [("cnn", 8), ("tutorial_cnn", 18), ("small_cnn", 22), ("softmax", 1), ("mlp", 1)]
)
def test_images_that_the_convolutions_use_up_are_refused(name, smallest):
    config = make_config({"model.name": name}).model
    assert models.problems(config, (smallest, smallest + 1, 3)) == []
    shape = (1, smallest, smallest, 3)
    jax.eval_shape(models.create(config, 10).init, jax.random.key(0), jnp.zeros(shape))  # The bound is not too low,
    if smallest > 1:  # nor too high.
        (line,) = models.problems(config, (smallest, smallest - 1, 3))
        assert f"{smallest}x{smallest - 1}" in line
