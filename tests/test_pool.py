"""models/pool.py against JAX's pooling and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from imgclf_jax.models.pool import max_pool, overlapping_max_pool


def reference_pool(images, window):
    sides = (1, window, window, 1)
    return lax.reduce_window(images, -jnp.inf, lax.max, sides, sides, "VALID")


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (3, 4)])
def test_max_pool_equals_reduce_window(size, window):
    draws = np.random.default_rng(0)
    # A permutation: no two pixels are equal, so that the gradient is defined.
    images = draws.permutation(2 * size[0] * size[1] * 3).reshape(2, *size, 3).astype(np.float32)
    cotangent = draws.standard_normal((2, size[0] // window, size[1] // window, 3), np.float32)

    def run(pool):
        value, pull = jax.vjp(lambda x: pool(x, window), images)
        return value, pull(cotangent)[0]

    actual, expected = jax.jit(lambda: (run(max_pool), run(reference_pool)))()
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6)


@jax.jit
def pool_and_gradient(images, cotangent):
    pooled, pull = jax.vjp(max_pool, images)
    return pooled, pull(cotangent)[0]


@given(values=st.lists(st.integers(0, 2), min_size=16, max_size=16), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_gradient_of_max_pool_adds_up_where_pixels_are_equal(values, seed):
    # After a ReLU whole windows are zero.
    images = np.array(values, np.float32).reshape(1, 4, 4, 1)
    cotangent = np.random.default_rng(seed).uniform(1, 2, (1, 2, 2, 1)).astype(np.float32)
    pooled, gradient = (np.asarray(x) for x in pool_and_gradient(images, cotangent))
    windows = gradient.reshape(2, 2, 2, 2).sum(axis=(1, 3))
    np.testing.assert_allclose(windows, cotangent[0, :, :, 0], rtol=1e-6)
    is_largest = images == np.repeat(np.repeat(pooled, 2, 1), 2, 2)
    assert np.all(gradient[~is_largest] == 0)


def test_max_pool_keeps_bfloat16():
    assert max_pool(jnp.ones((1, 4, 4, 2), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (3, 4), (1, 1)])
@pytest.mark.parametrize(("window", "stride", "pad"), [(3, 2, 1), (3, 2, 0), (2, 1, 0), (3, 3, 1)])
def test_overlapping_max_pool_equals_reduce_window(size, window, stride, pad):
    if min(size) + 2 * pad < window:
        return
    draws = np.random.default_rng(0)
    images = draws.permutation(2 * size[0] * size[1] * 3).reshape(2, *size, 3).astype(np.float32) - 20

    def theirs(images):
        sides, steps, pads = (1, window, window, 1), (1, stride, stride, 1), ((0, 0), (pad, pad), (pad, pad), (0, 0))
        return lax.reduce_window(images, -jnp.inf, lax.max, sides, steps, pads)

    def run(pool):
        value, pull = jax.vjp(pool, images)
        return value, pull(jnp.asarray(np.random.default_rng(1).standard_normal(value.shape), jnp.float32))[0]

    def ours(images):
        return overlapping_max_pool(images, window, stride, pad)

    actual, expected = jax.jit(lambda: (run(ours), run(theirs)))()
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5, atol=1e-6)


def test_the_first_of_equal_pixels_gets_the_gradient_of_an_overlapping_window():
    gradient = jax.grad(lambda images: overlapping_max_pool(images).sum())(jnp.zeros((1, 4, 4, 1)))
    expected = np.zeros((4, 4))
    expected[np.ix_([0, 1], [0, 1])] = 1  # of windows that begin at -1, -1 (padding), and at 1
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_overlapping_max_pool_keeps_bfloat16():
    images = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    pooled, pull = jax.vjp(overlapping_max_pool, images)
    assert pooled.dtype == pull(pooled)[0].dtype == jnp.bfloat16
