"""optim.py against the formulas of the papers, in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizing import PARAMS, RATE, STEPS, assert_close, gradients, norm, optim_config, run
from synthetic import make_config

from imgclf_jax import models
from imgclf_jax.config import set_option
from imgclf_jax.training import optim


def by_hand(formula, steps=STEPS):
    """The parameters after `steps` of `formula(gradient, memory, step) -> (direction, memory)`, in float64."""
    params = {name: value.astype(np.float64) for name, value in PARAMS.items()}
    memory = {name: {} for name in params}
    for step in range(steps):
        for name, gradient in gradients(step).items():
            params[name] = params[name] - RATE * formula(gradient.astype(np.float64), memory[name], step, params[name])
    return params


def sgd(gradient, memory, step, params):
    return gradient


def momentum(gradient, memory, step, params):
    memory["v"] = 0.8 * memory.get("v", 0) + gradient
    return memory["v"]


def nesterov(gradient, memory, step, params):
    # Sutskever et al. 2013, in the form that evaluates the gradient at the parameters themselves.
    return gradient + 0.8 * momentum(gradient, memory, step, params)


def adam(gradient, memory, step, params):
    memory["m"] = 0.7 * memory.get("m", 0) + 0.3 * gradient
    memory["v"] = 0.9 * memory.get("v", 0) + 0.1 * gradient**2
    unbiased = memory["m"] / (1 - 0.7 ** (step + 1)), memory["v"] / (1 - 0.9 ** (step + 1))
    return unbiased[0] / (np.sqrt(unbiased[1]) + 0.01)


def adamw(gradient, memory, step, params):
    return adam(gradient, memory, step, params) + 0.2 * params * (params.ndim > 1)


def rmsprop(gradient, memory, step, params):
    memory["v"] = 0.9 * memory.get("v", 0) + 0.1 * gradient**2
    return gradient / np.sqrt(memory["v"] + 0.01)


def rmsprop_momentum(gradient, memory, step, params):
    return momentum(rmsprop(gradient, memory, step, params), memory.setdefault("trace", {}), step, params)


ADAM = {"b1": 0.7, "b2": 0.9, "eps": 0.01}


@pytest.mark.parametrize(
    ("fields", "formula"),
    [
        ({"name": "sgd", "momentum": 0.0, "nesterov": False}, sgd),
        ({"name": "sgd", "momentum": 0.0, "nesterov": True}, sgd),
        ({"name": "sgd", "momentum": 0.8, "nesterov": False}, momentum),
        ({"name": "sgd", "momentum": 0.8, "nesterov": True}, nesterov),
        ({"name": "adam", **ADAM}, adam),
        ({"name": "adamw", **ADAM, "weight_decay": 0.2}, adamw),
        ({"name": "rmsprop", **ADAM, "momentum": 0.0}, rmsprop),
        ({"name": "rmsprop", **ADAM, "momentum": 0.8, "nesterov": False}, rmsprop_momentum),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_steps_follow_the_formula(fields, formula):
    assert_close(run(optim_config(**fields)), by_hand(formula))


@pytest.mark.parametrize(("name", "formula"), [("sgd", sgd), ("adam", adam), ("rmsprop", rmsprop)])
def test_weight_decay_is_an_l2_gradient(name, formula):
    def decayed(gradient, memory, step, params):
        return formula(gradient + 0.2 * params * (params.ndim > 1), memory, step, params)

    fields = {"name": name, **ADAM, "momentum": 0.0, "weight_decay": 0.2}
    assert_close(run(optim_config(**fields)), by_hand(decayed))


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_weight_decay_leaves_biases_alone_by_default(name):
    def nothing(step):
        return jax.tree.map(np.zeros_like, PARAMS)

    def decay(mask):
        # A small rate: the adaptive optimizers' first step is large, however small the gradient.
        config = optim_config(name=name, weight_decay=0.1, decay_mask=mask)
        return run(config, lambda step: 1e-3, steps=1, gradients=nothing)

    kernels, everything = decay("kernels"), decay("all")
    np.testing.assert_array_equal(kernels["bias"], PARAMS["bias"])
    for decayed, before in (
        (kernels["kernel"], PARAMS["kernel"]),
        (everything["kernel"], PARAMS["kernel"]),
        (everything["bias"], PARAMS["bias"]),
    ):
        assert np.all(np.abs(decayed) < np.abs(before))


def test_clipping_bounds_the_global_norm_and_keeps_the_direction():
    clipped = run(optim_config(momentum=0.0, clip_norm=0.5), steps=1)
    factor = 0.5 / norm(gradients(0))
    assert factor < 1
    expected = {name: PARAMS[name] - RATE * factor * gradient for name, gradient in gradients(0).items()}
    assert_close(clipped, expected)


def test_a_gradient_below_the_bound_is_not_clipped():
    loose = run(optim_config(momentum=0.0, clip_norm=100.0))
    assert_close(loose, by_hand(sgd))


def test_clipping_comes_before_weight_decay():
    clipped = run(optim_config(momentum=0.0, clip_norm=0.5, weight_decay=0.3), steps=1)
    factor = 0.5 / norm(gradients(0))
    expected = PARAMS["kernel"] - RATE * (factor * gradients(0)["kernel"] + 0.3 * PARAMS["kernel"])
    np.testing.assert_allclose(clipped["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_the_rate_is_that_of_the_step(name):
    # Nothing moves as long as the rate is zero, and from then on everything does.
    rates = jnp.array([0.0, 0.0, 0.1])
    still = run(optim_config(name=name, momentum=0.0), lambda step: rates[step], steps=2)
    moved = run(optim_config(name=name, momentum=0.0), lambda step: rates[step], steps=3)
    for key, before in PARAMS.items():
        np.testing.assert_array_equal(still[key], before)
        assert np.all(moved[key] != before)


# Schedules


def rate(step, steps, warmup, **fields):
    return float(optim.create_schedule(optim_config(learning_rate=0.4, **fields), steps, warmup)(step))


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"),
    [
        ("constant", 0.4, 0.4),
        ("linear", (0.4 + 0.04) / 2, 0.04),
        ("cosine", (0.4 + 0.04) / 2, 0.04),
        ("exponential", (0.4 * 0.04) ** 0.5, 0.04),
    ],
)
@pytest.mark.parametrize("warmup", [0, 20])
def test_schedules_warm_up_to_the_peak_and_decay_to_the_final_fraction(schedule, halfway, end, warmup):
    steps = 100 + warmup

    def at(step):
        return rate(step, steps, warmup, schedule=schedule, final_fraction=0.1)

    if warmup:
        assert at(0) == 0
        assert at(5) == pytest.approx(0.1)
        assert at(10) == pytest.approx(0.2)
    assert at(warmup) == pytest.approx(0.4)
    assert at(warmup + 50) == pytest.approx(halfway)
    assert at(steps) == pytest.approx(end)
    if schedule != "exponential":
        assert at(steps + 10) == pytest.approx(end)


KNOTS = ((0, 0.2), (0.25, 1.0), (0.8, 0.5), (0.9, 0.5))


def test_knots_are_joined_by_lines():
    def at(step, steps=200):
        return rate(step, steps, 0, schedule="knots", knots=KNOTS)

    expected = {0: 0.2, 25: 0.6, 50: 1.0, 105: 0.75, 160: 0.5, 170: 0.5, 180: 0.5, 200: 0.5, 300: 0.5}
    assert {step: at(step) for step in expected} == pytest.approx({s: 0.4 * value for s, value in expected.items()})
    # A knot may fall between two steps.
    assert at(1, 10) == pytest.approx(0.4 * (0.2 + 0.8 * 0.4)) and at(3, 10) == pytest.approx(0.4 * (1 - 0.5 / 11))


def test_knots_are_the_triangle_of_airbench():
    # 476 steps, of which int(0.23 · 476) = 109 rise.
    knots = ((0, 0.2), (109 / 476, 1.0), (1, 0.07))
    for step in (0, 1, 54, 108, 109, 110, 300, 475):
        rise = 0.2 * (1 - step / 109) + step / 109
        fall = (1 - (step - 109) / 367) + 0.07 * (step - 109) / 367
        found = rate(step, 476, 0, schedule="knots", knots=knots)
        assert found == pytest.approx(0.4 * (rise if step < 109 else fall), rel=1e-5)


def test_cosine_is_a_cosine():
    for step, cosine in ((25, np.cos(np.pi / 4)), (75, np.cos(3 * np.pi / 4))):
        expected = 0.4 * (0.1 + 0.9 * (1 + cosine) / 2)
        assert rate(step, 100, 0, schedule="cosine", final_fraction=0.1) == pytest.approx(expected)


def test_schedules_end_at_zero_by_default():
    for schedule in ("linear", "cosine", "one_cycle"):
        assert rate(100, 100, 10, schedule=schedule) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("warmup", [0, 20])
def test_steps_fall_at_fractions_of_the_whole_run(warmup):
    def at(step):
        return rate(step, 200, warmup, schedule="step", milestones=(0.25, 0.5, 0.75), decay_factor=0.2)

    if warmup:
        assert at(0) == 0 and at(10) == pytest.approx(0.2)
    for first, last, expected in ((warmup, 49, 0.4), (50, 99, 0.08), (100, 149, 0.016), (150, 250, 0.0032)):
        assert at(first) == pytest.approx(expected) and at(last) == pytest.approx(expected)


def test_no_drop_is_lost_if_two_milestones_are_one_step_or_in_the_warm_up():
    fields = {"schedule": "step", "milestones": (0.5, 0.51), "decay_factor": 0.1}
    assert rate(5, 10, 0, **fields) == pytest.approx(0.004)
    assert rate(8, 10, 8, **fields) == pytest.approx(0.004)


@pytest.mark.parametrize("milestones", [(), (0.75, 0.5)])
def test_milestones_must_increase(milestones):
    (line,) = optim.problems(optim_config(schedule="step", milestones=milestones))
    assert "optim.milestones" in line and "(0.5, 0.75)" in line
    assert optim.problems(optim_config(milestones=milestones)) == []


@pytest.mark.parametrize(("warmup", "top"), [(0, 30), (40, 40)])
def test_one_cycle_rises_from_zero_and_falls_to_the_final_fraction(warmup, top):
    def at(step):
        return rate(step, 100, warmup, schedule="one_cycle", final_fraction=0.1)

    assert at(0) == 0
    assert at(top // 2) == pytest.approx(0.2)
    assert at(top) == pytest.approx(0.4)
    assert at((top + 100) // 2) == pytest.approx((0.4 + 0.04) / 2)
    assert at(100) == pytest.approx(0.04)


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 0), (3, 5)])
def test_the_shortest_runs_have_a_finite_rate(schedule, steps, warmup):
    fields = {"schedule": schedule, "final_fraction": 0.5, "knots": KNOTS}
    rates = [rate(step, steps, warmup, **fields) for step in range(steps + 1)]
    assert all(0 <= value <= 0.4 * (1 + 1e-6) for value in rates)


# What is refused


def test_the_defaults_and_every_name_are_accepted():
    assert optim.problems(optim_config()) == []
    for name in optim.OPTIMIZERS:
        assert optim.problems(optim_config(name=name)) == []
    for schedule in optim.SCHEDULES:
        assert optim.problems(optim_config(schedule=schedule, final_fraction=0.1, knots=KNOTS)) == []


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", "lion", ["optim.name='lion'", "=sgd (or adam, adamw, rmsprop"]),
        ("schedule", "steps", ["optim.schedule='steps'", "one_cycle"]),
        ("schedule", "exponential", ["optim.final_fraction", "above 0"]),
        ("decay_mask", "biases", ["optim.decay_mask='biases'", "=kernels (or all)"]),
    ],
)
def test_problems_name_the_field_and_what_to_do(field, value, words):
    (line,) = optim.problems(optim_config(**{field: value}))
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"knots": ()}, ["optim.knots=()", "two or more pairs"]),
        (
            {"knots": ((0, 1.0), (0.5, 0.5), (0.5, 0.1))},
            ["optim.knots", "increasing", "((0, 0.2), (0.25, 1.0), (1, 0.0))"],
        ),
        ({"warmup_steps": 3, "knots": KNOTS}, ["optim.warmup_steps=3", "no warm-up"]),
        ({"warmup_epochs": 0.5, "knots": KNOTS}, ["optim.warmup_epochs=0.5"]),
        (
            {"schedule": "constant", "lookahead_every": 5, "ema_decay": 0.9},
            ["optim.lookahead_every=5", "optim.ema_decay=0.9"],
        ),
        ({"schedule": "constant", "name": "optax:lion", "factors": (("bias", 2.0),)}, ["optim.factors", "optax:lion"]),
        ({"schedule": "constant", "name": "optax:lion", "freeze_after": (("bias", 2.0),)}, ["optim.freeze_after"]),
    ],
)
def test_problems_of_knots_lookahead_and_groups(fields, words):
    (line,) = optim.problems(optim_config(**({"schedule": "knots"} | fields)))
    for word in words:
        assert word in line


def test_only_some_optimizers_have_options():
    config = optim_config(name="sgd")
    set_option(config.options, "nesterov", True)
    (line,) = optim.problems(config)
    assert "optim.options: sgd takes none" in line


def test_muon_orthogonalizes_kernels_and_leaves_the_rest_to_adam():
    draws = np.random.default_rng(0)
    shapes = {
        "conv1": {"kernel": (3, 3, 4, 8), "bias": (8,)},
        "dense1": {"kernel": (20, 6)},
        "attention": {"query": {"kernel": (8, 2, 4)}, "out": {"kernel": (2, 4, 8)}},
        "output": {"kernel": (6, 10)},
    }
    params = jax.tree.map(
        lambda shape: draws.standard_normal(shape).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    grads = jax.tree.map(lambda x: draws.standard_normal(x.shape).astype(np.float32), params)

    def update(config):
        optimizer = optim.create_optimizer(config, lambda step: RATE)
        return jax.device_get(optimizer.update(grads, optimizer.init(params), params)[0])

    found, adam = update(optim_config(name="muon", nesterov=False)), update(optim_config(name="adam"))
    for kernel, shape in (
        (found["conv1"]["kernel"], (36, 8)),
        (found["dense1"]["kernel"], (20, 6)),
        (found["attention"]["query"]["kernel"], (8, 8)),
        (found["attention"]["out"]["kernel"], (8, 8)),
    ):
        # Newton-Schulz takes all singular values to about 1; the root mean square is then scaled to that of Adam.
        values = np.linalg.svd(kernel.reshape(shape), compute_uv=False) / (RATE * 0.2 * np.sqrt(max(shape)))
        assert values.min() > 0.6 and values.max() < 1.3, values
    for ours, theirs in ((found["conv1"]["bias"], adam["conv1"]["bias"]), (found["output"], adam["output"])):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), ours, theirs)


def test_muon_decays_weights_apart_from_the_gradient():
    zeros = lambda step: jax.tree.map(np.zeros_like, PARAMS)  # noqa: E731
    found = run(optim_config(name="muon", weight_decay=0.1), steps=1, gradients=zeros)
    assert_close(found, {"kernel": PARAMS["kernel"] * (1 - RATE * 0.1), "bias": PARAMS["bias"]})


def test_biases_and_embeddings_of_a_transformer_are_no_kernels():
    model = models.create(make_config({"model.name": "vit"}).model, 10)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))["params"]
    kernels = {path[-1].key for path, decays in jax.tree.leaves_with_path(optim.kernels(params)) if decays}
    assert kernels == {"kernel"}
