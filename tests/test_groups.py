"""groups.py: learning rates and decays of groups of parameters, and parameters that freeze in the course of a run."""

import jax
import numpy as np
import optax
import pytest
from optimizing import PARAMS, RATE, assert_close, gradients, norm, optim_config, run

from imgclf_jax.training import freezing, groups, optim
from imgclf_jax.training.plan import Plan

PLAN = Plan(8, 4, 0, 0, 0, 1, 32, 0)  # 2 epochs of 4 steps


def torch_sgd(rates, decays, steps=6):
    """The parameters after each step of PyTorch's SGD with Nesterov momentum, with a rate step -> float for each."""
    params = {name: value.astype(np.float64) for name, value in PARAMS.items()}
    buffers, found = {}, []
    for step in range(steps):
        for name, gradient in gradients(step).items():
            gradient = gradient + decays[name] * params[name]
            buffers[name] = gradient + 0.9 * buffers[name] if name in buffers else gradient
            params[name] = params[name] - rates[name](step) * (gradient + 0.9 * buffers[name])
        found.append(dict(params))
    return found


def test_factors_are_the_parameter_groups_of_pytorch():
    def schedule(step):
        return 0.1 * (1 - step / 6)

    config = optim_config(factors=(("bias", 64.0), ("*", 0.5)), weight_decay=0.02, decay_mask="all")
    rates = {"bias": lambda step: 64 * schedule(step), "kernel": lambda step: 0.5 * schedule(step)}
    expected = torch_sgd(rates, {"bias": 0.02 / 64, "kernel": 0.02 / 0.5})
    for steps in (1, 2, 6):
        assert_close(run(config, schedule, steps), expected[steps - 1])


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_factors_scale_what_the_gradient_does_and_not_the_decay(name):
    def change(factor, gradients, decay):
        fields = {"name": name, "momentum": 0.0, "nesterov": False, "decay_mask": "all", "weight_decay": decay}
        if factor != 1:
            fields["factors"] = (("*", factor),)
        after = run(optim_config(**fields), lambda step: 1e-3, steps=1, gradients=gradients)
        return {name: after[name] - PARAMS[name] for name in PARAMS}

    whole, scaled = (change(factor, gradients, 0.0) for factor in (1.0, 4.0))
    for key in PARAMS:
        np.testing.assert_allclose(scaled[key], 4 * whole[key], rtol=2e-3)
    if name in ("adam", "rmsprop"):  # which normalize the decay together with the gradient
        return
    whole, scaled = (change(factor, lambda step: jax.tree.map(np.zeros_like, PARAMS), 0.5) for factor in (1.0, 4.0))
    for key in PARAMS:
        assert np.any(whole[key])
        np.testing.assert_allclose(scaled[key], whole[key], rtol=2e-3)


def test_without_factors_and_frozen_parameters_the_state_has_its_old_form():
    # Checkpoints of earlier versions have it.
    plain = optim.create_optimizer(optim_config(weight_decay=0.1, clip_norm=1.0), lambda step: RATE, (), PLAN)
    expected = optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1, optim.kernels), optax.sgd(lambda step: RATE, 0.9)
    )
    assert jax.tree.structure(plain.init(PARAMS)) == jax.tree.structure(expected.init(PARAMS))


def test_clipping_sees_the_gradients_of_all_groups():
    config = optim_config(momentum=0.0, clip_norm=0.5, factors=(("bias", 2.0),))
    factor = 0.5 / norm(gradients(0))
    found = run(config, steps=1)
    for name, ratio in (("bias", 2), ("kernel", 1)):
        expected = PARAMS[name] - RATE * ratio * factor * gradients(0)[name]
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


def test_the_rate_of_a_parameter_that_freezes_falls_to_zero_apart_from_the_schedule():
    # 0.75 epochs are 3 steps. PyTorch's learning rate comes after momentum and decay.
    fields = {"learning_rate": 0.2, "factors": (("bias", 3.0),), "freeze_after": (("bias", 0.75),)}
    config = optim_config(**fields, weight_decay=0.02, decay_mask="all")
    rates = {"bias": lambda step: 0.6 * max(0, 1 - step / 3), "kernel": lambda step: 0.05}
    expected = torch_sgd(rates, {"bias": 0.02 / 3, "kernel": 0.02})
    for steps in (1, 2, 3, 6):
        assert_close(run(config, lambda step: 0.05, steps, plan=PLAN), expected[steps - 1])


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_nothing_moves_what_is_frozen(name):
    fields = {"name": name, "weight_decay": 0.1, "decay_mask": "all", "freeze_after": (("kernel", 0.5),)}
    before, at_end, later = (run(optim_config(**fields), steps=steps, plan=PLAN) for steps in (1, 2, 6))
    assert np.all(before["kernel"] != at_end["kernel"])
    np.testing.assert_array_equal(at_end["kernel"], later["kernel"])
    assert np.all(at_end["bias"] != later["bias"])


def test_frozen_kernels_of_muon_are_not_scaled_either():
    params = {"conv": {"kernel": np.ones((3, 3, 2, 4), np.float32)}, "bias": np.ones(4, np.float32)}
    config = optim_config(name="muon_sgd", freeze_after=(("conv", 0.5),), weight_decay=0.1)
    optimizer = optim.create_optimizer(config, lambda step: RATE, (), PLAN)
    state, kernels = optimizer.init(params), []
    for step in range(4):
        draws = jax.tree.map(lambda leaf, s=step: np.cos(s + np.arange(leaf.size)).reshape(leaf.shape), params)
        updates, state = optimizer.update(draws, state, params)
        params = optax.apply_updates(params, updates)
        kernels.append(params["conv"]["kernel"])
    assert np.any(kernels[0] != kernels[1])
    np.testing.assert_array_equal(kernels[1], kernels[3])


def test_parameters_freeze_in_the_order_of_the_steps():
    config = optim_config(freeze_after=(("group1/*", 1.5), ("*/bias", 0.5), ("whiten", 1e-9)))
    ends = freezing.ends(config, PLAN)
    assert ends == (("whiten", 1), ("*/bias", 2), ("group1/*", 6))
    assert groups.of("group1/conv1/kernel", (), ends) == (1.0, 6)
    assert groups.of("group1/norm1/bias", (("group1", 2), ("*/bias", 3)), ends) == (2, 2)  # the earliest step
    assert groups.of("output/kernel", (("*/bias", 3),), ends) == (1.0, None)
    assert freezing.ends(optim_config(), PLAN) == ()


def test_patterns_must_match_parameters():
    assert optim.parameter_problems(optim_config(factors=(("b*", 2.0),), freeze_after=(("*l", 1.0),)), PARAMS) == []
    lines = optim.parameter_problems(optim_config(factors=(("bais", 2.0),), freeze_after=(("conv1", 1.0),)), PARAMS)
    assert [line.partition(" ")[0] for line in lines] == ["optim.factors='bais'", "optim.freeze_after='conv1'"]
    assert all("matches no parameter; the network has bias, kernel" in line for line in lines)
