"""A few steps of an optimizer on two parameters, for the tests of optimizers."""

import jax
import numpy as np
import optax
from synthetic import make_config

from imgclf_jax.training import optim

PARAMS = {
    "kernel": np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], np.float32),
    "bias": np.array([0.1, -0.2], np.float32),
}
RATE = 0.1
STEPS = 3


def optim_config(**fields):
    return make_config({f"optim.{name}": value for name, value in fields.items()}).optim


def gradients(step):
    draws = np.random.default_rng(step)
    return {name: draws.standard_normal(value.shape).astype(np.float32) for name, value in PARAMS.items()}


def run(config, schedule=lambda step: RATE, steps=STEPS, gradients=gradients, plan=None):
    """The parameters after `steps` steps."""
    optimizer = optim.create_optimizer(config, schedule, (), plan)
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(steps):
        updates, state = optimizer.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(actual, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))
