"""exact_evaluation.py: every example once, for any batch size."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import IDENTITY, make_config, make_data

from imgclf_jax.data.types import Split
from imgclf_jax.devices import parallel
from imgclf_jax.models import Softmax
from imgclf_jax.training import exact_evaluation, summary
from imgclf_jax.training.batches import Examples
from imgclf_jax.training.placed import placement
from imgclf_jax.training.steps import make_eval_step

COUNT = 23
IMAGES, LABELS = make_data(COUNT, (4, 4, 1), classes=3)
MODEL = Softmax(3)
DRAWS = np.random.default_rng(0)
VARIABLES = {
    "params": {
        "output": {
            "kernel": DRAWS.standard_normal((16, 3)).astype(np.float32),
            "bias": DRAWS.standard_normal(3).astype(np.float32),
        }
    }
}


def compiled(eval_step, batch_size):
    """(variables, images, labels, total) -> sums, on one device."""
    run = jax.jit(exact_evaluation.make_evaluate(eval_step, batch_size, parallel.alone()))
    return lambda variables, images, labels, total: run(
        variables, IDENTITY, Examples(images, labels), total, exact_evaluation.nothing()
    )


def to_floats(images):
    return images.astype(jnp.float32) / 255


@cache
def by_numpy():
    """(sum of losses, hits): one example after the other."""
    layer = VARIABLES["params"]["output"]
    loss, correct = 0.0, 0
    for image, label in zip(IMAGES, LABELS, strict=True):
        logits = (image / 255).ravel() @ layer["kernel"].astype(np.float64) + layer["bias"]
        loss += np.log(np.exp(logits).sum()) - logits[label]
        correct += int(logits.argmax() == label)
    return loss, correct


@pytest.mark.parametrize("batch_size", [1, 4, 22, COUNT, 24, 64])
def test_sums_do_not_depend_on_the_batch_size(batch_size):
    run = compiled(make_eval_step(MODEL, to_floats), batch_size)
    sums = run(VARIABLES, IMAGES, LABELS, COUNT)
    loss, correct = by_numpy()
    assert 0 < correct < COUNT
    assert int(sums["count"]) == COUNT
    assert int(sums["accuracy"]) == correct
    assert float(sums["loss"]) == pytest.approx(loss, rel=1e-5)
    result = exact_evaluation.result(sums, COUNT)
    assert result == {
        "accuracy": correct / COUNT,
        "loss": pytest.approx(loss / COUNT, rel=1e-5),
        "correct": correct,
        "count": COUNT,
        "not_finite": 0,
    }


@pytest.mark.parametrize("batch_size", [4, 64])
def test_every_example_comes_once_with_its_label(batch_size):
    # The sum of 10^i over what is seen: a number whose digits count how often each example came.
    def digits(variables, normalization, batch):
        value = jnp.where(batch["mask"], 10 ** batch["image"][:, 0, 0, 0].astype(jnp.int32), 0)
        same = batch["label"] == batch["image"][:, 0, 0, 0]
        count = jnp.sum(same & batch["mask"], dtype=jnp.int32)
        return {"loss": jnp.float32(0), "accuracy": value.sum(), "count": count, "not_finite": jnp.int32(0)}

    images = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1)
    run = compiled(digits, batch_size)
    sums = run({}, images, np.arange(9, dtype=np.int32), 9)
    assert int(sums["accuracy"]) == 111_111_111
    assert int(sums["count"]) == 9
    # What a split is filled up with is never seen.
    filled = np.concatenate([images, np.zeros((3, 1, 1, 1), np.uint8)])
    sums = run({}, filled, np.arange(12, dtype=np.int32), 9)
    assert (int(sums["accuracy"]), int(sums["count"])) == (111_111_111, 9)


def test_an_infinite_loss_of_the_last_example_does_not_multiply():
    # Padding repeats the last example; an example whose loss is infinite must still count, but once.
    variables = jax.tree.map(np.copy, VARIABLES)
    variables["params"]["output"]["bias"][LABELS[-1]] = -np.inf
    run = compiled(make_eval_step(MODEL, to_floats), 16)
    others = ~np.equal(LABELS, LABELS[-1])
    sums = run(variables, IMAGES, LABELS, COUNT)
    assert np.isinf(float(sums["loss"]))
    assert int(sums["count"]) == COUNT
    finite = run(variables, IMAGES[others], LABELS[others], others.sum())
    assert np.isfinite(float(finite["loss"]))


@pytest.mark.parametrize("seen", [COUNT - 1, COUNT + 1, 0])
def test_a_wrong_count_is_an_error(seen):
    sums = exact_evaluation.nothing() | {"count": np.int32(seen)}
    with pytest.raises(AssertionError, match=f"{seen} of {COUNT}"):
        exact_evaluation.result(sums, COUNT)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_examples_without_finite_logits_are_wrong_and_counted(bad):
    # White images get the bad weight's product; of all others every class is as likely, so that class 0 is predicted.
    images = np.zeros((7, 4, 4, 1), np.uint8)
    images[[1, 4, 5], 0, 0] = 255
    kernel = np.zeros((16, 3), np.float32)
    kernel[0, 1] = 1
    variables = {"params": {"output": {"kernel": kernel, "bias": np.zeros(3, np.float32)}}}

    def prepare(images):
        floats = to_floats(images)
        return jnp.where(floats == 1, bad, floats)

    run = compiled(make_eval_step(MODEL, prepare), 4)
    for label in range(3):
        result = exact_evaluation.result(run(variables, images, np.full(7, label, np.int32), 7), 7)
        assert (result["correct"], result["not_finite"], result["count"]) == (4 if label == 0 else 0, 3, 7)
    assert "3 with logits that are not finite" in summary.accuracy(result)
    assert summary.not_finite(result | {"not_finite": 0}) == ""


@pytest.mark.parametrize("devices", [3, 5, 6, 7])
@pytest.mark.parametrize("strategy", ["jit", "pmap", "shard_map"])
@pytest.mark.parametrize("streamed", [False, True])
def test_any_batch_size_is_exact_on_any_number_of_devices(devices, strategy, streamed):
    if jax.device_count() < devices:
        pytest.skip("needs more devices")
    where = {"parallel.devices": devices, "parallel.strategy": strategy}
    layout = parallel.create(make_config(where))._replace(streamed=streamed)
    shardings = {"data": placement(layout).evaluation_shardings(layout)}
    evaluate = exact_evaluation.make_evaluate(make_eval_step(MODEL, to_floats), 8, layout)
    split = placement(layout).place(Split(IMAGES, LABELS, np.arange(COUNT)), layout)
    result = exact_evaluation.evaluate_split(
        layout.compile(evaluate, shardings=shardings), split, VARIABLES, IDENTITY, 8, lambda done, total: None
    )
    loss, correct = by_numpy()
    assert (result["count"], result["correct"]) == (COUNT, correct)
    assert result["loss"] == pytest.approx(loss / COUNT, rel=1e-5)
