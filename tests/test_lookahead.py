"""lookahead.py: slow weights and statistics against a loop that is written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_runs import config_of, run
from runs import bits, record, rows
from synthetic import IDENTITY, SMALL_CNN, make_config, make_data, make_experiment

from imgclf_jax.config import set_option
from imgclf_jax.rng import step_keys
from imgclf_jax.training import lookahead, trained

STEPS = 12
IMAGES, LABELS = make_data(8)
BATCH = {"image": IMAGES, "label": LABELS}
BASE = SMALL_CNN | {"model.norm": "batch", "train.epochs": 0.0, "train.steps": STEPS}
AIRBENCH = {"optim.lookahead_every": 5, "optim.lookahead_decay": 0.95**5, "optim.lookahead_power": 3.0}
TAIL = {"optim.lookahead_every": 3, "optim.lookahead_decay": 0.7, "optim.lookahead_from": 0.5}


def build(*changes):
    experiment = make_experiment(make_config(BASE, *changes), IMAGES)
    step = jax.jit(experiment.train_step)
    return lambda state: step(state, BATCH, IDENTITY, step_keys(experiment.key, state.step))[0], experiment


def weights(state):
    return state.params, state.batch_stats


def slow_weights(state):
    return state.ema, state.ema_stats


def airbench(taken):
    """The decay after a step, or `None`."""
    return None if taken % 5 else 0.95**5 * (taken / STEPS) ** 3


def tail(taken):
    if taken <= 6:
        return 0.0
    return None if (taken - 6) % 3 else 0.7


@pytest.mark.parametrize(("fields", "decay_of"), [(AIRBENCH, airbench), (TAIL, tail)], ids=["airbench", "tail"])
def test_slow_weights_and_the_return_to_them(fields, decay_of):
    step, experiment = build(fields)
    plain, _ = build()
    state = jax.jit(experiment.init)(experiment.key)
    expected = state.replace(ema={}, ema_stats={})
    slow = weights(expected)
    for taken in range(1, STEPS + 1):
        state, expected = step(state), plain(expected)
        decay = decay_of(taken)
        if decay is not None:
            slow = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, slow, weights(expected))
            params, stats = jax.tree.map(jnp.asarray, slow)
            expected = expected.replace(params=params, batch_stats=stats)
        for ours, theirs in ((weights(state), weights(expected)), (slow_weights(state), slow)):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), ours, theirs)
    found = state.eval_variables()
    assert found["params"] is state.ema and found["batch_stats"] is state.ema_stats


def test_between_the_times_slow_weights_keep_their_bits_and_then_both_are_the_same():
    step, experiment = build(AIRBENCH)
    state = jax.jit(experiment.init)(experiment.key)
    for taken in range(1, STEPS + 1):
        before, state = slow_weights(state), step(state)
        same = jax.tree.map(np.array_equal, slow_weights(state), weights(state))
        assert all(jax.tree.leaves(same)) == (taken % 5 == 0)
        if taken % 5:
            jax.tree.map(np.testing.assert_array_equal, slow_weights(state), before)


def test_until_it_begins_the_weights_themselves_are_evaluated():
    step, experiment = build(TAIL)
    plain, _ = build()
    state = jax.jit(experiment.init)(experiment.key)
    expected = state.replace(ema={}, ema_stats={})
    for _ in range(6):
        state, expected = step(state), plain(expected)
        jax.tree.map(np.testing.assert_array_equal, slow_weights(state), weights(state))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *map(weights, (state, expected))
        )


def test_a_first_time_after_the_end_is_refused():
    def found(steps, **fields):
        config = make_config({f"optim.lookahead_{name}": value for name, value in fields.items()})
        return lookahead.problems(config.optim, steps)

    assert found(5, every=5) == found(10, every=5, **{"from": 0.5}) == found(1) == []
    for steps, fields in ((4, {}), (8, {"from": 0.5})):
        (line,) = found(steps, every=5, **fields)
        assert line.startswith("optim.lookahead_every=5:") and "--config.optim.lookahead_from=0.0" in line


def test_a_run_with_all_of_it_is_resumed_to_the_bit(tmp_path):
    fields = {
        "data.source": "sample",
        "data.train_split": "train[:5000]",
        "data.dir": "",
        "optim.name": "muon_sgd",
        "optim.lookahead_every": 2,
        "optim.lookahead_from": 0.25,
        "optim.factors": (("*/bias", 2.0), ("output", 0.5)),
        "optim.freeze_after": (("conv1", 0.08), ("norm1", 0.04)),
        "optim.schedule": "knots",
        "optim.knots": ((0, 0.2), (0.25, 1.0), (1, 0.1)),
    }
    config = config_of(tmp_path, fields)
    set_option(config.optim.options, "norm_every", 2)
    whole, part = run(config, tmp_path / "whole"), run(config, tmp_path / "part", until=6)
    assert record(part)["step"] == 6
    run(config, part)
    assert rows(part) == rows(whole) and bits(part, 12) == bits(whole, 12)
    assert record(part)["results"] == record(whole)["results"]
    saved = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in bits(whole, 12)}
    for path, leaf in jax.tree.leaves_with_path(trained.load(whole).variables["params"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.asarray(leaf).tobytes() == saved[f"state/ema/{name}"]
