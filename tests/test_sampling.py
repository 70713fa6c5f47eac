"""sampling.py: which examples a step sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from imgclf_jax.training.sampling import batch_from_order, batch_with_replacement, epoch_order, steps_per_epoch

KEY = jax.random.key(0)
order = jax.jit(epoch_order, static_argnums=2)
replaced = jax.jit(batch_with_replacement, static_argnums=(2, 3))


@pytest.mark.parametrize("count", [1, 2, 37, 1000])
def test_an_order_is_a_permutation(count):
    drawn = order(KEY, 0, count)
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(drawn), np.arange(count))


def test_orders_differ_by_epoch_and_seed_and_can_be_had_again():
    first = np.asarray(order(KEY, 0, 100))
    np.testing.assert_array_equal(order(jax.random.key(0), 0, 100), first)
    for other in (order(KEY, 1, 100), order(jax.random.key(1), 0, 100)):
        # Two random permutations agree in one place, on average.
        assert np.sum(np.asarray(other) == first) < 10
    assert np.sum(first == np.arange(100)) < 10


def test_every_example_comes_everywhere():
    places = np.stack([order(KEY, epoch, 10) for epoch in range(500)])
    for place in range(10):
        counts = np.bincount(places[:, place], minlength=10)
        assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    ("count", "batch_size", "last_batch", "expected"),
    [
        (10, 5, "drop", 2),
        (10, 5, "wrap", 2),
        (11, 5, "drop", 2),
        (11, 5, "wrap", 3),
        (3, 5, "drop", 0),
        (3, 5, "wrap", 1),
    ],
)
def test_steps_per_epoch(count, batch_size, last_batch, expected):
    assert steps_per_epoch(count, batch_size, last_batch) == expected


sizes = given(count=st.integers(1, 40), batch_size=st.integers(1, 12), epoch=st.integers(0, 3))
few = settings(max_examples=15, deadline=None, derandomize=True)


def epoch_of_batches(count, batch_size, epoch, last_batch):
    """(order, the batches of that epoch): [steps, batch_size]."""
    steps = steps_per_epoch(count, batch_size, last_batch)
    drawn = np.random.default_rng(epoch).permutation(count).astype(np.int32)
    every_step = jax.jit(jax.vmap(lambda step: batch_from_order(jnp.asarray(drawn), step, batch_size, steps)))
    return drawn, np.asarray(every_step(epoch * steps + np.arange(steps, dtype=np.int32)))


@sizes
@few
def test_wrap_shows_every_example_and_then_the_first_ones_again(count, batch_size, epoch):
    drawn, batches = epoch_of_batches(count, batch_size, epoch, "wrap")
    seen = batches.ravel()
    np.testing.assert_array_equal(seen[:count], drawn)
    np.testing.assert_array_equal(np.sort(seen[:count]), np.arange(count))
    # A batch larger than the split goes round more than once.
    np.testing.assert_array_equal(seen[count:], np.resize(drawn, seen.size)[count:])
    assert seen.size - count < batch_size


@sizes
@few
def test_drop_shows_no_example_twice_and_leaves_out_less_than_a_batch(count, batch_size, epoch):
    if count < batch_size:  # refused by `validate`
        assert steps_per_epoch(count, batch_size, "drop") == 0
        return
    drawn, batches = epoch_of_batches(count, batch_size, epoch, "drop")
    seen = batches.ravel()
    np.testing.assert_array_equal(seen, drawn[: seen.size])
    assert np.unique(seen).size == seen.size
    assert 0 <= count - seen.size < batch_size


def test_what_drop_leaves_out_changes_with_the_epoch():
    drawn = [order(KEY, epoch, 11) for epoch in range(10)]
    left_out = [set(range(11)) - {int(i) for step in (0, 1) for i in batch_from_order(d, step, 5, 2)} for d in drawn]
    assert all(len(indices) == 1 for indices in left_out)
    assert len(set().union(*left_out)) > 3


def test_replacement_draws_uniformly_and_independently():
    batches = np.stack([replaced(KEY, step, 40, 50) for step in range(100)])
    assert batches.dtype == np.int32
    assert batches.min() >= 0 and batches.max() < 50
    assert stats.chisquare(np.bincount(batches.ravel(), minlength=50)).pvalue > 1e-4
    # 40 draws from 50 without a repetition: one chance in 10^10.
    assert all(np.unique(row).size < 40 for row in batches)
    assert np.unique(batches, axis=0).shape[0] == 100


def test_replacement_depends_on_seed_and_step_alone():
    first = np.asarray(replaced(KEY, 5, 40, 50))
    replaced(KEY, 6, 40, 50)
    np.testing.assert_array_equal(replaced(jax.random.key(0), 5, 40, 50), first)
    assert np.any(np.asarray(replaced(jax.random.key(1), 5, 40, 50)) != first)
