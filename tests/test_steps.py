"""steps.py and state.py: the golden steps, and what a training step does besides the optimizer's formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import AUGMENTED, IDENTITY, SMALL_CNN, make_config, make_data, make_experiment, with_options

from imgclf_jax.rng import step_keys
from imgclf_jax.training.steps import make_eval_step

SMALL_MLP = {"model.name": "mlp", "model.hidden": (12,)}
IMAGES, LABELS = make_data(8)
BATCH = {"image": IMAGES, "label": LABELS}


def build(*changes, images=IMAGES):
    """(experiment, its compiled train step, the state that it starts from)."""
    changes = [dict(change) for change in changes]
    options = [change.pop("options", None) for change in changes]
    config = with_options(make_config(*changes), next(filter(None, options), None))
    experiment = make_experiment(config, images)
    step = jax.jit(experiment.train_step)
    return experiment, functools.partial(run_step, step), jax.jit(experiment.init)(experiment.key)


def run_step(step, state, batch, keys):
    return step(state, batch, IDENTITY, keys)


def step_key(experiment, step=0):
    return step_keys(experiment.key, step)


def train(experiment, train_step, state, steps, batch=BATCH):
    """The states after 0, 1, ..., `steps` steps, and the metrics of each step."""
    states, metrics = [state], []
    for step in range(steps):
        state, now = train_step(state, batch, step_key(experiment, step))
        states.append(state)
        metrics.append({name: value.item() for name, value in now.items()})
    return states, metrics


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close(actual, expected, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


# Golden steps. A change of these numbers is a change of what every config trains: say so in the change that does it.
# (loss a batch of 8, gradient norm, update norm), at the first and the third step.

EVERYTHING = {"optim.label_smoothing": 0.1, "optim.weight_decay": 1e-3, "optim.ema_decay": 0.9} | AUGMENTED
GOLDEN = {
    "softmax": (
        {"model.name": "softmax"},
        (18.420683, 2.7505324, 0.52260101),
        (9.1924162, 1.4871634, 0.45043612),
    ),
    "mlp": (
        SMALL_MLP | EVERYTHING | {"optim.name": "adam", "optim.learning_rate": 1e-3},
        (18.895358, 1.6329618, 0.037863184),
        (17.804306, 1.2168343, 0.027927881),
    ),
    "cnn": (
        SMALL_CNN | EVERYTHING | {"model.norm": "batch", "model.dropout": 0.2},
        (18.171122, 1.5626475, 0.14845736),
        (18.489807, 1.4387313, 0.18416683),
    ),
    "tutorial_cnn": (
        {"model.name": "tutorial_cnn", "optim.learning_rate": 0.01, "optim.clip_norm": 1.0},
        (18.025502, 2.2870478, 0.019),
        (17.274901, 2.0082757, 0.033618089),
    ),
    "resnet18": (
        {"model.name": "resnet18", "optim.learning_rate": 0.001, "options": {"width": 2}},
        (24.213627, 40.339119, 0.076644325),
        (20.639946, 17.038973, 0.047183752),
    ),
    "wide_resnet": (
        {"model.name": "wide_resnet", "model.dropout": 0.3, "optim.learning_rate": 0.01}
        | {"options": {"depth": 10, "widen": 1}},
        (16.555361, 4.9987621, 0.094976485),
        (15.567611, 4.7989244, 0.11129241),
    ),
    "vit": (
        {"model.name": "vit", "model.dropout": 0.1, "optim.name": "adamw", "optim.learning_rate": 1e-3}
        | {"options": {"width": 8, "heads": 2, "depth": 2, "stochastic_depth": 0.3}},
        (18.490543, 0.97163492, 0.047682077),
        (18.357643, 1.123682, 0.033663385),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_steps(name):
    changes, first, third = GOLDEN[name]
    size = 32 if name == "tutorial_cnn" else 8
    images, labels = make_data(8, (size, size, 3))
    _, metrics = train(*build(changes, images=images), steps=3, batch={"image": images, "label": labels})
    for expected, actual in ((first, metrics[0]), (third, metrics[2])):
        assert (actual["loss"], actual["grad_norm"], actual["update_norm"]) == pytest.approx(expected, rel=1e-4)


def test_the_golden_step_of_softmax_by_hand():
    pixels = (IMAGES / 255).reshape(8, -1)
    # All logits are zero, so every class has probability a tenth.
    errors = (0.1 - np.eye(10)[LABELS]) / 8
    gradient = np.vstack([pixels.T @ errors, errors.sum(0)])
    norm = np.sqrt(np.sum(gradient**2))
    # Nesterov's first step is 1 + momentum times the gradient.
    by_hand = (8 * np.log(10), norm, 0.1 * 1.9 * norm)
    assert GOLDEN["softmax"][1] == pytest.approx(by_hand, rel=1e-5)

    *built, start = build(GOLDEN["softmax"][0])
    (_, state), (metrics,) = train(*built, start, steps=1)
    assert (metrics["loss"], metrics["grad_norm"], metrics["update_norm"]) == pytest.approx(by_hand, rel=1e-5)
    np.testing.assert_allclose(state.params["output"]["kernel"], -0.19 * gradient[:-1], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(state.params["output"]["bias"], -0.19 * gradient[-1], rtol=1e-4, atol=1e-7)


# Purity


@pytest.fixture(scope="module")
def everything():
    """All that is random and all that has state, in one small network."""
    return build(SMALL_CNN, EVERYTHING, {"model.norm": "batch", "model.dropout": 0.2})


def test_a_step_is_a_function_of_its_arguments(everything):
    experiment, train_step, start = everything
    before = jax.device_get(start)
    first = jax.device_get(train_step(start, BATCH, step_key(experiment)))
    train_step(first[0], BATCH, step_key(experiment, 1))
    assert_same(train_step(start, BATCH, step_key(experiment)), first)
    assert_same(start, before)
    # Another build of the same config too.
    again, step_again, start_again = build(SMALL_CNN, EVERYTHING, {"model.norm": "batch", "model.dropout": 0.2})
    assert_same(start_again, before)
    assert_same(step_again(start_again, BATCH, step_key(again)), first)


def test_the_seed_changes_initialization_and_draws(everything):
    experiment, train_step, start = everything
    other, _, other_start = build(SMALL_CNN, EVERYTHING, {"model.norm": "batch", "model.dropout": 0.2, "seed": 1})
    assert np.any(start.params["conv1"]["kernel"] != other_start.params["conv1"]["kernel"])
    losses = {float(train_step(start, BATCH, step_key(e, s))[1]["loss"]) for e in (experiment, other) for s in (0, 1)}
    assert len(losses) == 4


def test_a_step_keeps_shapes_and_dtypes(everything):
    # `lax.while_loop` insists on it.
    experiment, train_step, start = everything
    after, metrics = train_step(start, BATCH, step_key(experiment))
    assert jax.tree.structure(after) == jax.tree.structure(start)
    for old, new in zip(jax.tree.leaves(start), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert {name: (value.shape, str(value.dtype)) for name, value in metrics.items()} == {
        "loss": ((), "float32"),
        "accuracy": ((), "int32"),
        "count": ((), "int32"),
        "grad_norm": ((), "float32"),
        "update_norm": ((), "float32"),
    }


def test_a_step_moves_everything_and_counts(everything):
    experiment, train_step, start = everything
    after, metrics = train_step(start, BATCH, step_key(experiment))
    assert int(start.step) == 0 and int(after.step) == 1
    assert int(metrics["count"]) == 8
    for part in ("params", "batch_stats", "ema", "ema_stats"):
        for old, new in zip(jax.tree.leaves(getattr(start, part)), jax.tree.leaves(getattr(after, part)), strict=True):
            assert np.any(old != new), part


# The loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_hits_in_numpy(smoothing):
    experiment, train_step, state = build(SMALL_MLP, {"optim.label_smoothing": smoothing})
    _, metrics = train_step(state, BATCH, step_key(experiment))
    logits = np.asarray(experiment.model.apply({"params": state.params}, IMAGES / np.float32(255)), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    # The true class has 1 - smoothing and its share of what all classes get.
    targets = (1 - smoothing) * np.eye(10)[LABELS] + smoothing / 10
    assert float(metrics["loss"]) == pytest.approx(-np.sum(targets * log_probabilities), rel=1e-5)
    assert int(metrics["accuracy"]) == np.sum(logits.argmax(-1) == LABELS)


def test_evaluation_is_not_smoothed():
    experiment, _, state = build(SMALL_MLP, {"optim.label_smoothing": 0.2})
    eval_step = make_eval_step(experiment.model, lambda images: images.astype(jnp.float32) / 255)
    batch = BATCH | {"mask": np.ones(8, bool)}
    plain, train_step, _ = build(SMALL_MLP)
    _, metrics = train_step(state, BATCH, step_key(plain))
    assert float(eval_step(state.eval_variables(), IDENTITY, batch)["loss"]) == pytest.approx(
        float(metrics["loss"]), rel=1e-5
    )


# Accumulation. An image must meet the same draws, whichever part of the batch it comes in.

RANDOM = AUGMENTED | {"model.dropout": 0.3, "optim.label_smoothing": 0.1}


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulating_is_the_same_step(parts, whole_step):
    built = build(SMALL_CNN, RANDOM, {"train.accumulate": parts})
    states, metrics = train(*built, steps=2)
    assert_close(states[-1].params, whole_step[0][-1].params)
    for ours, theirs in zip(metrics, whole_step[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.fixture(scope="module")
def whole_step():
    return train(*build(SMALL_CNN, RANDOM), steps=2)


def test_parts_of_a_batch_drop_the_units_that_the_whole_would_drop():
    # The same images in both parts: only different masks make the parts' losses differ.
    twice = {name: np.concatenate([values[:4], values[:4]]) for name, values in BATCH.items()}
    half = {name: values[:4] for name, values in BATCH.items()}
    changes = SMALL_MLP | {"model.dropout": 0.5}
    experiment, in_parts, start = build(changes, {"train.accumulate": 2})
    _, train_step, _ = build(changes)
    (state, metrics), (expected_state, expected) = (
        step(start, twice, step_key(experiment)) for step in (in_parts, train_step)
    )
    assert_close(state, expected_state)
    assert_close(metrics, expected)
    loss_of_first = float(train_step(start, half, step_key(experiment))[1]["loss"])
    assert abs(float(metrics["loss"]) - 2 * loss_of_first) > 1e-3


def test_running_statistics_move_once_a_step_for_any_number_of_parts():
    normed = SMALL_CNN | {"model.norm": "batch"}
    half = {name: values[:4] for name, values in BATCH.items()}
    twice = {name: np.concatenate([values, values]) for name, values in half.items()}
    experiment, in_parts, start = build(normed, {"train.accumulate": 2})
    _, train_step, _ = build(normed)
    # Both parts are the same images, so that the statistics of a part are those of the step.
    actual, _ = in_parts(start, twice, step_key(experiment))
    expected, _ = train_step(start, half, step_key(experiment))
    assert_close(actual.batch_stats, expected.batch_stats)
    # Of parts that differ, the mean counts.
    actual, _ = in_parts(start, BATCH, step_key(experiment))
    means = []
    for part in (slice(0, 4), slice(4, 8)):
        share = {name: values[part] for name, values in BATCH.items()}
        means.append(train_step(start, share, step_key(experiment))[0].batch_stats)
    assert_close(actual.batch_stats, jax.tree.map(lambda a, b: (a + b) / 2, *means))


def test_an_image_whose_logits_are_not_finite_is_not_a_hit():
    experiment, train_step, start = build({"model.name": "softmax"})
    bias = start.params["output"]["bias"].at[3].set(jnp.nan)
    broken = start.replace(params={"output": start.params["output"] | {"bias": bias}})
    zeros = BATCH | {"label": np.zeros(8, np.int32)}
    assert int(train_step(start, zeros, step_key(experiment))[1]["accuracy"]) == 8
    assert int(train_step(broken, zeros, step_key(experiment))[1]["accuracy"]) == 0


def test_a_share_of_a_batch_meets_the_draws_of_its_positions():
    experiment, train_step, start = build(SMALL_CNN, RANDOM)
    loss = float(train_step(start, BATCH, step_key(experiment))[1]["loss"])

    def loss_of(chosen, positions):
        share = {name: values[chosen] for name, values in BATCH.items()} | {"position": np.asarray(positions)}
        return float(train_step(start, share, step_key(experiment))[1]["loss"])

    shares = [0, 2, 4, 6], [7, 5, 3, 1]
    assert sum(loss_of(share, share) for share in shares) == pytest.approx(loss, rel=1e-5)
    assert abs(sum(loss_of(share, range(4)) for share in shares) - loss) > 1e-3


# The moving average


def test_the_average_follows_the_recursion(everything):
    experiment, train_step, start = everything
    states, _ = train(experiment, train_step, start, steps=4)
    assert_same((start.ema, start.ema_stats), (start.params, start.batch_stats))
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), (start.params, start.batch_stats))
    for step, state in enumerate(states[1:]):
        decay, new = min(0.9, (1 + step) / (10 + step)), (state.params, state.batch_stats)
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * np.asarray(new), expected, new)
        assert_close((state.ema, state.ema_stats), expected, rtol=1e-5)


def test_the_decay_reaches_what_was_asked_for(everything):
    # Far into training the warm-up of the decay, (1 + step) / (10 + step), is over.
    experiment, train_step, start = everything
    late = start.replace(step=jnp.int32(1000))
    after, _ = train_step(late, BATCH, step_key(experiment))
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, late.ema, after.params)
    assert_close(after.ema, expected, rtol=1e-5)


def test_evaluation_uses_the_average_where_there_is_one(everything):
    experiment, train_step, start = everything
    state, _ = train_step(start, BATCH, step_key(experiment))
    assert state.eval_variables()["params"] is state.ema
    assert state.eval_variables()["batch_stats"] is state.ema_stats
    plain, plain_step, plain_start = build(SMALL_MLP)
    state, _ = plain_step(plain_start, BATCH, step_key(plain))
    assert state.ema == {} and state.ema_stats == {}
    assert state.eval_variables()["params"] is state.params
    assert state.eval_variables()["batch_stats"] is state.batch_stats


def test_the_averages_do_not_share_memory_with_what_they_average(everything):
    # Both are donated to the step; one buffer cannot be donated twice.
    _, _, start = everything
    averages, raw = (
        jax.tree.leaves(tree) for tree in ((start.ema, start.ema_stats), (start.params, start.batch_stats))
    )
    for average, parameter in zip(averages, raw, strict=True):
        assert average.unsafe_buffer_pointer() != parameter.unsafe_buffer_pointer()


# Evaluation steps


def test_padding_counts_nothing_even_if_it_is_infinite():
    def prepare(images):
        floats = images.astype(jnp.float32)
        return jnp.where(images.max((1, 2, 3), keepdims=True) == 0, jnp.inf, floats / 255)

    experiment, _, state = build(SMALL_MLP)
    eval_step = make_eval_step(experiment.model, prepare)
    padded = {
        "image": np.concatenate([IMAGES[:5], np.zeros_like(IMAGES[:3])]),
        "label": np.concatenate([LABELS[:5], np.zeros(3, np.int32)]),
    }
    sums = eval_step(state.eval_variables(), IDENTITY, padded | {"mask": np.arange(8) < 5})
    unmasked = eval_step(state.eval_variables(), IDENTITY, padded | {"mask": np.ones(8, bool)})
    assert not np.isfinite(unmasked["loss"])  # it would have shown
    alone = {"image": IMAGES[:5], "label": LABELS[:5], "mask": np.ones(5, bool)}
    expected = eval_step(state.eval_variables(), IDENTITY, alone)
    assert int(sums["count"]) == 5
    assert int(sums["accuracy"]) == int(expected["accuracy"])
    assert float(sums["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)


def test_sam_takes_the_gradient_of_a_place_uphill():
    rho = 0.5
    experiment, train_step, start = build(SMALL_MLP, {"optim.momentum": 0.0, "optim.sam_rho": rho})
    _, plain, _ = build(SMALL_MLP, {"optim.momentum": 0.0})
    rate = float(experiment.schedule(0))

    def gradient(params):
        after, sums = plain(start.replace(params=params), BATCH, step_key(experiment))
        return jax.tree.map(lambda x, y: (x - y) / rate, params, after.params), sums

    first, sums = gradient(start.params)
    uphill = jax.tree.map(lambda x, g: x + rho * g / sums["grad_norm"], start.params, first)
    second, _ = gradient(uphill)
    found, found_sums = train_step(start, BATCH, step_key(experiment))
    expected = jax.tree.map(lambda x, g: x - rate * g, start.params, second)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), found.params, expected)
    assert float(found_sums["loss"]) == float(sums["loss"])  # that of the parameters, not of the place uphill
