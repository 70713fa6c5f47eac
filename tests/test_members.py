"""members.py: runs that train in one program compute what they would compute alone."""

import jax
import numpy as np
import pytest
from synthetic import AUGMENTED, SMALL_CNN, Trainer, make_config, make_data

from imgclf_jax.training import members, multistep
from imgclf_jax.training.session import Restored

IMAGES, LABELS = make_data(24)
STEPS, DISPATCH = 5, 2  # An epoch has 3 steps.
MLP = {"model.name": "mlp", "model.hidden": (12,), "train.batch_size": 8}
SOFTMAX = {"model.name": "softmax", "train.batch_size": 8}
CNN = SMALL_CNN | AUGMENTED | {"model.norm": "batch", "model.dropout": 0.2, "train.batch_size": 8}
# A value other than 0 for each number, and another one.
NUMBERS = {
    "optim.learning_rate": (0.1, 0.02),
    "optim.momentum": (0.9, 0.5),
    "optim.weight_decay": (1e-2, 1e-3),
    "optim.clip_norm": (0.5, 1.0),
    "optim.label_smoothing": (0.1, 0.2),
    "optim.ema_decay": (0.9, 0.2),
    "augment.hue": (0.1, 0.2),
    "augment.contrast": ((0.5, 1.5), (0.9, 1.1)),
    "augment.brightness": (0.1, 0.3),
    "augment.saturation": ((0.5, 1.5), (0.9, 1.1)),
}


class Split:
    def __init__(self, examples):
        self.examples = examples


def configs(base, *changes):
    return [make_config(base, {"seed": 3 + index}, change) for index, change in enumerate(changes)]


def together(configs, steps=STEPS):
    """(states, means) of all members after `steps` steps, in dispatches."""
    first = Trainer(configs[0], IMAGES, LABELS)
    where = members.stack(first.experiment, len(configs))
    start = [Restored(None, 0, {}, {})] * len(configs)
    parts = members.training(configs, start, where, first.experiment, Split(first.data), first.normalization, {})
    state, meter, step = parts.state, parts.meter, 0
    while step < steps:
        data, served = parts.feed(step, steps - step)
        count = min(served, DISPATCH)
        state, meter = parts.run_steps(state, meter, data, count, step)
        step += count
    each = [where.member(state, index, first.strategy) for index in range(len(configs))]
    return jax.device_get(each), members.means(jax.device_get(meter))


def alone(config, steps=STEPS):
    """(state, means) of a run that trains by itself."""
    trainer = Trainer(config, IMAGES, LABELS)
    state, meter, step = trainer.init(), trainer.strategy.put(multistep.empty_meter()), 0
    while step < steps:
        count = min(DISPATCH, steps - step, 3 - step % 3)
        state, meter = trainer._run(**trainer._arguments(state, count) | {"meter": meter})
        step += count
    return jax.device_get(state), multistep.means(jax.device_get(meter))


def assert_close(found, expected, tolerance):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("base", [SOFTMAX, MLP | {"model.dropout": 0.2, "augment.flip": True}], ids=["softmax", "mlp"])
def test_dense_networks_in_one_batch_are_those_of_single_runs(base):
    several = configs(base, {}, {}, {})
    for config, state, means in zip(several, *together(several), strict=True):
        assert_close((state, means), alone(config), 1e-5)


def test_convolutional_networks_in_turn_have_the_bits_of_single_runs():
    several = configs(CNN, {}, {})
    for config, state, means in zip(several, *together(several), strict=True):
        assert_close((state, means), alone(config), 0)


@pytest.mark.parametrize("base", [MLP, CNN], ids=["mlp", "cnn"])
def test_members_are_spread_over_devices(base):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    several = configs(base | {"parallel.devices": 4}, {}, {}, {}, {})
    first = Trainer(several[0], IMAGES, LABELS)
    assert members.stack(first.experiment, 4).strategy.devices == 4
    assert members.stack(first.experiment, 6).strategy.devices == 3
    for config, state, means in zip(several, *together(several), strict=True):
        config.parallel.devices = 1
        assert_close((state, means), alone(config), 1e-5)


def test_numbers_vary_in_one_program():
    assert set(NUMBERS) == set(members.NUMBERS)
    several = configs(MLP, *({path: values[index] for path, values in NUMBERS.items()} for index in (0, 1)))
    assert set(members.numbers(several)) == set(NUMBERS)
    assert members.shape(several[0]) == members.shape(several[1])
    for config, state, means in zip(several, *together(several), strict=True):
        assert_close((state, means), alone(config), 1e-4)


@pytest.mark.parametrize("path", ["optim.weight_decay", "optim.ema_decay", "augment.contrast"])
def test_what_is_off_is_another_program(path):
    on, off = (make_config(MLP, {path: value}) for value in (NUMBERS[path][0], type(NUMBERS[path][0])()))
    assert members.shape(on) != members.shape(off)


def test_a_member_that_diverges_does_not_disturb_the_others():
    several = configs(MLP, {}, {"optim.learning_rate": 1e38}, {})
    states, means = together(several)
    assert isinstance(means[1], multistep.Diverged) and 1 <= means[1].step <= 3
    for index in (0, 2):
        assert_close((states[index], means[index]), alone(several[index]), 1e-5)


def test_networks_with_convolutions_are_known():
    assert members.is_dense(make_config(MLP), (8, 8, 3)) and members.is_dense(make_config(SOFTMAX), (8, 8, 3))
    assert not members.is_dense(make_config(CNN), (8, 8, 3))
