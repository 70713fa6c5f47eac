"""mixing.py: pairs, weights and boxes; the step on mixed targets; the same with every strategy and number of parts."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from synthetic import Trainer, assert_same_training, make_config, make_data, needs_eight_devices

from imgclf_jax import augment
from imgclf_jax.augment.mixing import mix
from imgclf_jax.rng import step_keys
from imgclf_jax.training.state import TrainState
from imgclf_jax.training.steps import make_train_step

SIZE = (10, 12)
IMAGES = np.random.default_rng(0).random((6, *SIZE, 3), np.float32)
TARGETS = np.eye(6, dtype=np.float32)
PARTNERS = [1, 0, 3, 2, 5, 4]
BOTH = {"mixup": 0.5, "cutmix": 1.0}


@cache
def compiled(alphas):
    return jax.jit(partial(mix, **dict(alphas)))


def run(alphas, seed, images=IMAGES, targets=TARGETS):
    return tuple(map(np.asarray, compiled(tuple(alphas.items()))(jax.random.key(seed), images, targets)))


def test_mixup_blends_pairs_as_it_blends_their_targets():
    images, targets = run({"mixup": 0.5}, 3)
    kept = targets[0, 0]
    assert 0 < kept < 1
    np.testing.assert_allclose(targets, kept * TARGETS + (1 - kept) * TARGETS[PARTNERS], atol=1e-6)
    np.testing.assert_allclose(images, kept * IMAGES + (1 - kept) * IMAGES[PARTNERS], atol=1e-6)
    assert images.dtype == targets.dtype == np.float32 and images.min() >= 0 and images.max() <= 1


def test_cutmix_takes_one_box_from_the_partner_and_counts_its_pixels():
    shares = []
    for seed in range(40):
        images, targets = run({"cutmix": 1.0}, seed)
        taken = (images == IMAGES[PARTNERS]).all(-1)
        assert ((images == IMAGES).all(-1) ^ taken).all()
        assert (taken == taken[0]).all()
        rows, columns = taken[0].any(1), taken[0].any(0)
        np.testing.assert_array_equal(taken[0], rows[:, None] & columns[None, :])
        share = taken[0].mean()
        np.testing.assert_allclose(targets, (1 - share) * TARGETS + share * TARGETS[PARTNERS], atol=1e-6)
        shares.append(share)
    assert len(set(shares)) > 15 and 0.1 < np.mean(shares) < 0.5


def test_the_weight_has_a_beta_distribution():
    weigh = jax.jit(jax.vmap(lambda key: mix(key, IMAGES[:2, :1, :1], TARGETS[:2], mixup=0.4)[1][0, 0]))
    kept = np.asarray(weigh(jax.random.split(jax.random.key(1), 2000)))
    assert stats.kstest(kept, "beta", (0.4, 0.4)).pvalue > 1e-3


def test_with_both_on_each_batch_gets_one_of_the_two():
    boxes = []
    for seed in range(60):
        images, targets = run(BOTH, seed)
        boxes.append(np.isin(images, IMAGES).all())
        alone = run({"cutmix": 1.0} if boxes[-1] else {"mixup": 0.5}, seed)
        np.testing.assert_allclose(images, alone[0], atol=1e-6)
        np.testing.assert_allclose(targets, alone[1], atol=1e-6)
    assert 18 < sum(boxes) < 42


def test_targets_stay_probabilities_with_an_unchanged_mean():
    smoothed = np.float32(0.9) * TARGETS + np.float32(0.1) / 6
    for seed in range(5):
        _, targets = run(BOTH, seed, IMAGES[..., :1], smoothed)
        np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
        np.testing.assert_allclose(targets.mean(0), smoothed.mean(0), atol=1e-6)
        assert targets.min() > 0


def test_a_share_of_whole_pairs_is_mixed_like_the_batch():
    whole = run(BOTH, 5)
    part = run(BOTH, 5, IMAGES[2:4], TARGETS[2:4])
    np.testing.assert_allclose(part[0], whole[0][2:4], atol=1e-6)
    np.testing.assert_allclose(part[1], whole[1][2:4], atol=1e-6)


def test_off_is_nothing():
    assert augment.mixing(make_config().augment) is None


# --- in a training step

CHANGES = {
    "model.name": "mlp",
    "model.hidden": (12,),
    "augment.mixup": 0.5,
    "augment.cutmix": 1.0,
    "augment.flip": True,
    "optim.label_smoothing": 0.1,
    "train.batch_size": 16,
}
TRAIN = make_data(64, seed=1)


def test_loss_and_hits_are_those_of_the_targets():
    images, labels = make_data(4, classes=3)
    logits = np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.5], [0.0, 3.0, 1.0], [0.0, 1.0, 2.0]], np.float32)

    class Fixed:
        def apply(self, variables, images, **_):
            return logits * variables["params"], {}

    weights = {}

    def fixed_mix(key, images, targets, positions):
        weights["given"] = targets
        return images, 0.3 * targets + 0.7 * targets[::-1]

    optimizer, one = optax.sgd(0.0), jnp.float32(1)
    step = make_train_step(
        Fixed(), optimizer, lambda key, images, *_: images / 255, mix=fixed_mix, classes=3, label_smoothing=0.3
    )
    state = TrainState(jnp.int32(0), one, {}, optimizer.init(one), None, None)
    identity = augment.Normalization(np.float32(0), np.float32(1))
    _, sums = step(state, {"image": images, "label": labels}, identity, step_keys(jax.random.key(0), 0))
    smoothed = 0.7 * np.eye(3)[labels] + 0.1
    np.testing.assert_allclose(weights["given"], smoothed, rtol=1e-6)
    targets = 0.3 * smoothed + 0.7 * smoothed[::-1]
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert float(sums["loss"]) == pytest.approx(-(targets * log_probabilities).sum(), rel=1e-5)
    assert int(sums["accuracy"]) == (logits.argmax(-1) == targets.argmax(-1)).sum()


@cache
def trained(strategy, devices, accumulate=1):
    topology = {"parallel.strategy": strategy, "parallel.devices": devices, "train.accumulate": accumulate}
    ours = Trainer(make_config(CHANGES, topology), *TRAIN)
    return ours.train(ours.init(), *[1] * 3)


@needs_eight_devices
@pytest.mark.parametrize(("strategy", "devices"), [("jit", 8), ("pmap", 8), ("shard_map", 2)])
def test_the_same_with_every_strategy(strategy, devices):
    assert_same_training(trained(strategy, devices), trained("jit", 1))


def test_the_same_in_parts():
    assert_same_training(trained("jit", 1, accumulate=4), trained("jit", 1))


# --- problems


def test_alphas_below_zero_are_refused():
    config = make_config({"augment.mixup": -0.5}).augment
    assert augment.problems(config, (8, 8, 3)) == [
        "augment.mixup=-0.5 is out of range; give --config.augment.mixup=0 (off) or more, such as 0.2"
    ]


@pytest.mark.parametrize(
    ("batch", "accumulate", "devices", "line"),
    [
        (8, 1, 4, None),
        (8, 2, 2, None),
        (
            9,
            1,
            1,
            "train.batch_size=9 on 1 device(s) does not give each device an even number of examples, for the pairs of "
            "augment.mixup=0.2; use --config.train.batch_size=8 or --config.train.batch_size=10",
        ),
        (
            8,
            2,
            4,
            "train.batch_size=8 in train.accumulate=2 parts on 4 device(s) does not give each device an even number of "
            "examples, for the pairs of augment.mixup=0.2; use --config.train.batch_size=16",
        ),
    ],
)
def test_pairs_must_be_whole(batch, accumulate, devices, line):
    off, on = make_config().augment, make_config({"augment.mixup": 0.2}).augment
    assert augment.pair_problems(off, batch, accumulate, devices) == []
    assert augment.pair_problems(on, batch, accumulate, devices) == ([line] if line else [])
