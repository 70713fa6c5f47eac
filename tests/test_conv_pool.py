"""models/conv_pool.py against JAX's convolution followed by its pooling, and their automatic gradients."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_conv import operands, reference, value_and_gradients
from test_pool import reference_pool

from imgclf_jax.models.conv import conv2d
from imgclf_jax.models.conv_pool import conv2d_max_pool


@cache
def both_pooled(padding, window):
    """Like `both`, for a convolution and its pooling in one."""

    def ours(images, kernel, padding):
        return conv2d_max_pool(images, kernel, padding, window)

    def theirs(images, kernel, padding):
        return reference_pool(reference(images, kernel, padding), window)

    def run(*operands):
        actual = value_and_gradients(ours, padding, *operands)
        return actual, value_and_gradients(theirs, padding, *(x.astype(jnp.float32) for x in operands))

    return jax.jit(run)


def pooled_operands(image_shape, kernel_shape, padding, window):
    images, kernel, cotangent = operands(image_shape, kernel_shape, padding)
    height, width = (side // window for side in cotangent.shape[1:3])
    return images, kernel, cotangent[:, :height, :width]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("channels", [1, 3, 5])  # few take another path on the CPU than many
@pytest.mark.parametrize("size", [(8, 8), (9, 12), (10, 7)])
@pytest.mark.parametrize("sides", [(1, 1), (3, 3), (5, 3)])
def test_convolution_with_pooling(padding, channels, size, sides):
    arguments = pooled_operands((2, *size, channels), (*sides, channels, 4), padding, 2)
    actual, expected = both_pooled(padding, 2)(*arguments)
    for name, ours, theirs in zip(("value", "image gradient", "kernel gradient"), actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolution_with_pooling_in_threes(padding):
    actual, expected = both_pooled(padding, 3)(*pooled_operands((2, 11, 13, 3), (3, 3, 3, 4), padding, 3))
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_even_kernels_with_pooling():
    actual, expected = both_pooled("VALID", 2)(*pooled_operands((2, 8, 9, 3), (2, 2, 3, 4), "VALID", 2))
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_first_of_equal_outputs_gets_the_gradient():
    # A kernel of zeros makes all outputs equal; each window's gradient goes to its first pixel, once.
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 6, 3)), jnp.float32)

    def total(pooled):
        return lambda kernel: pooled(images, kernel).sum()

    kernel = jnp.zeros((3, 3, 3, 2))
    gradient = jax.grad(total(conv2d_max_pool))(kernel)
    expected = jax.grad(lambda kernel: conv2d(images, kernel)[:, ::2, ::2].sum())(kernel)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_pooled_convolution_in_bfloat16():
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in pooled_operands((2, 8, 8, 3), (3, 3, 3, 5), "SAME", 2)]
    for result, like in zip(both_pooled("SAME", 2)(*arguments)[0], (arguments[2], *arguments[:2]), strict=True):
        assert result.dtype == jnp.bfloat16 and result.shape == like.shape
