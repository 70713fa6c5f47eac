"""muon_sgd.py against the published optimizers, written out in numpy with the kernels as PyTorch keeps them."""

import jax
import numpy as np
import optax
import pytest
from synthetic import make_config

from imgclf_jax.config import set_option
from imgclf_jax.training import members, muon_sgd, optim
from imgclf_jax.training.plan import Plan

STEPS = 9
SHAPES = {
    "conv1": {"kernel": (3, 3, 4, 8), "bias": (8,)},  # as a matrix, 36×8
    "conv2": {"kernel": (1, 1, 3, 8)},  # 3×8: more outputs than inputs
    "conv3": {"kernel": (3, 3, 4, 8)},
    "output": {"kernel": (6, 10)},
}
KERNELS = [f"conv{number}/kernel" for number in (1, 2, 3)]


def draw(seed):
    draws = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: draws.standard_normal(shape).astype(np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def flat(tree):
    return {f"{layer}/{name}": np.asarray(leaf) for layer, leaves in tree.items() for name, leaf in leaves.items()}


def rate(step):
    return 0.24 * (1 - step / STEPS)


def config_of(options=None, **fields):
    fields = {"name": "muon_sgd", "momentum": 0.6, "weight_decay": 0.02, "decay_mask": "all"} | fields
    config = make_config({f"optim.{name}": value for name, value in fields.items()}).optim
    for name, value in (options or {}).items():
        set_option(config.options, name, value)
    return config


def plan_of(steps):
    return Plan(steps, steps, 0, 0, 0, 1, steps, 0)


def train(config, gradients=draw, steps=STEPS, frozen=()):
    """The parameters after each step."""
    optimizer = optim.create_optimizer(config, rate, frozen, plan_of(STEPS))
    params = draw(100)
    state, found, update = optimizer.init(params), [params], jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, found[-1])
        found.append(optax.apply_updates(found[-1], updates))
    return [flat(params) for params in found]


def newton_schulz(matrix, steps=3, coefficients=(3.4445, -4.7750, 2.0315)):
    a, b, c = coefficients
    x = matrix / np.linalg.norm(matrix)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def by_hand(resets=lambda step: True, nesterov=True, decoupled=0.0, factors=None, iterate=newton_schulz):
    """The parameters after each step, in float64. `resets`: step, from 1 -> whether the norms are set in it."""
    params = {path: leaf.astype(np.float64) for path, leaf in flat(draw(100)).items()}
    memory = {path: np.zeros_like(leaf) for path, leaf in params.items()}
    found = [dict(params)]
    for step in range(STEPS):
        for path, gradient in flat(draw(step)).items():
            lr, factor = rate(step), (factors or {}).get(path, 1.0)
            if path not in KERNELS:
                total = factor * gradient + 0.02 * params[path]
                memory[path] = 0.85 * memory[path] + total
                ahead = total + 0.85 * memory[path] if nesterov else memory[path]
                params[path] = params[path] - lr * ahead
                continue
            kernel = params[path].transpose(3, 2, 0, 1)  # as in PyTorch
            memory[path] = 0.6 * memory[path] + gradient
            ahead = gradient + 0.6 * memory[path] if nesterov else memory[path]
            if resets(step + 1):
                kernel = kernel * len(kernel) ** 0.5 / np.linalg.norm(kernel)
            direction = iterate(ahead.transpose(3, 2, 0, 1).reshape(len(kernel), -1)).reshape(kernel.shape)
            kernel = (kernel - lr * factor * direction) * (1 - lr * decoupled)
            params[path] = kernel.transpose(2, 3, 1, 0)
        found.append(dict(params))
    return found


def assert_same(found, expected, tolerance=1e-3):
    """Compares parameters after each step. The tolerance is for Muon's kernels, relative to the way they went."""
    way = dict.fromkeys(KERNELS, 0.0)
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for path, value in theirs.items():
            if path in KERNELS:
                way[path] += np.linalg.norm(value - expected[max(step - 1, 0)][path])
                assert np.linalg.norm(ours[path] - value) <= tolerance * way[path], (path, step)
            else:
                np.testing.assert_allclose(ours[path], value, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.fixture
def float32(monkeypatch):
    monkeypatch.setattr(muon_sgd, "PRECISION", np.float32)


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_airbench94_muon(float32, nesterov):
    found, expected = train(config_of(nesterov=nesterov)), by_hand(nesterov=nesterov)
    assert_same(found, expected)
    # The comparison would notice a norm that is not set, another kind of momentum or a bias without decay.
    with pytest.raises(AssertionError):
        assert_same(found, by_hand(lambda step: False, nesterov))
    with pytest.raises(AssertionError):
        assert_same(found, by_hand(nesterov=not nesterov))


def test_bfloat16_moves_kernels_by_little():
    assert_same(train(config_of()), by_hand(), tolerance=0.05)


def test_norms_are_set_before_the_update():
    def nothing(step):
        return jax.tree.map(np.zeros_like, draw(step))

    _, after = train(config_of(weight_decay=0.0), nothing, steps=1)
    for path in KERNELS:
        assert np.linalg.norm(after[path]) == pytest.approx(8**0.5, rel=1e-5)
    np.testing.assert_array_equal(after["output/kernel"], flat(draw(100))["output/kernel"])


@pytest.mark.parametrize(
    ("options", "resets"),
    [
        ({"norm_every": 0}, ()),
        ({"norm_every": 4}, (4, 8)),
        # The interval is 2 + floor(4.5 · step / 9): 2, 3, 3, 4, 4, 5, 5, 6, 6.
        ({"norm_every": 2, "norm_growth": 4.5}, (3, 9)),
    ],
)
def test_norms_are_set_at_intervals_that_may_grow(float32, options, resets):
    found = train(config_of(options | {"decoupled_decay": 0.3}))
    assert_same(found, by_hand(lambda step: step in resets, decoupled=0.3))


def test_options_are_passed_on(float32):
    numbers = (3.0, -4.0, 1.9)
    found = train(config_of({"newton_schulz_steps": 2, "coefficients": numbers}))
    assert_same(found, by_hand(iterate=lambda matrix: newton_schulz(matrix, 2, numbers)))
    momentum = train(config_of({"sgd_momentum": 0.0}))
    sgd = flat(draw(100))["conv1/bias"] - rate(0) * (flat(draw(0))["conv1/bias"] + 0.02 * flat(draw(100))["conv1/bias"])
    np.testing.assert_allclose(momentum[1]["conv1/bias"], sgd, rtol=1e-5)


def test_factors_are_ratios_of_the_other_rates_to_that_of_muon(float32):
    factors = {"conv1/bias": 2.5, "output/kernel": 0.5, "conv2/kernel": 3.0}
    found = train(config_of(factors=tuple(factors.items())))
    assert_same(found, by_hand(factors=factors))


def test_numbers_may_be_traced():
    # Those of several runs in one program.
    fields = {"name": "muon_sgd", "decay_mask": "all", "factors": (("*/bias", 2.0),), "schedule": "linear"}
    whole = make_config({f"optim.{name}": value for name, value in fields.items()})
    numbers = {"optim.learning_rate": 0.24, "optim.momentum": 0.6, "optim.weight_decay": 0.02}
    params, gradients = draw(100), draw(0)

    @jax.jit
    def change(numbers):
        config = members._filled(whole, numbers).optim
        optimizer = optim.create_optimizer(config, optim.create_schedule(config, STEPS, 0), (), plan_of(STEPS))
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    first = by_hand(factors={"conv1/bias": 2.0})[1]
    for path, update in flat(change(jax.tree.map(np.float32, numbers))).items():
        assert np.linalg.norm(flat(params)[path] + update - first[path]) < 0.02 * np.linalg.norm(first[path]), path


def test_frozen_kernels_stay():
    first, *_, last = train(config_of(), frozen=("conv1/kernel",))
    np.testing.assert_array_equal(last["conv1/kernel"], first["conv1/kernel"])
    assert np.all(last["conv3/kernel"] != first["conv3/kernel"])


@pytest.mark.parametrize("shape", [(216, 64), (9, 64), (64, 64)])
def test_singular_values_become_about_1_and_vectors_stay(shape):
    matrices = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    found = muon_sgd.orthogonal(matrices, muon_sgd.Iteration(5, (3.4445, -4.7750, 2.0315)))
    assert str(found.dtype) == "bfloat16"
    for matrix, ours in zip(matrices, np.asarray(found, np.float64), strict=True):
        values = np.linalg.svd(ours, compute_uv=False)
        assert values.max() < 1.3 and np.median(values) > 0.6
        expected = newton_schulz(matrix.astype(np.float64), steps=5)
        assert np.linalg.norm(ours - expected) < 0.1 * np.linalg.norm(expected)


def test_a_gradient_or_kernel_of_zeros_is_no_nan():
    matrices = np.zeros((1, 9, 4), np.float32)
    assert not np.any(np.asarray(muon_sgd.orthogonal(matrices, muon_sgd.Iteration(3, (3.0, -4.0, 2.0))), np.float32))
    optimizer = optim.create_optimizer(config_of(), rate, (), plan_of(STEPS))
    zeros = jax.tree.map(np.zeros_like, draw(0))
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(zeros), zeros)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sgd_momentm": 0.5}, ["optim.options.sgd_momentm", "did you mean sgd_momentum?"]),
        ({"sgd_momentum": 1}, ["optim.options.sgd_momentum=1", "below 1"]),
        ({"sgd_momentum": "high"}, ["optim.options.sgd_momentum='high'", "float"]),
        ({"newton_schulz_steps": 0}, ["optim.options.newton_schulz_steps=0", "from 1 to 100"]),
        ({"newton_schulz_steps": 2.5}, ["must be of type int"]),
        ({"coefficients": (1.0, 2.0)}, ["optim.options.coefficients=(1.0, 2.0)", "three numbers"]),
        ({"coefficients": (1.0, 2.0, "3")}, ["three numbers"]),
        ({"decoupled_decay": -0.1}, ["at least 0"]),
        ({"norm_every": -1}, ["optim.options.norm_every=-1"]),
        ({"norm_growth": float("inf")}, ["optim.options.norm_growth=inf"]),
    ],
)
def test_options_are_checked(options, words):
    (line,) = optim.problems(config_of(options))
    for word in words:
        assert word in line
    assert optim.problems(config_of({"norm_every": 2, "sgd_momentum": 0, "coefficients": (3, -4, 2)})) == []


def test_a_network_without_convolutions_is_refused():
    params = draw(0)
    assert optim.parameter_problems(config_of(), params) == []
    (line,) = optim.parameter_problems(config_of(), {"output": params["output"]})
    assert "convolutions" in line and "--config.optim.name=muon" in line
