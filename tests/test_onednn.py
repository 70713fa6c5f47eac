"""models/onednn.py: the kernel gradient in three dimensions, with and without the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from imgclf_jax.models import conv, onednn


def reference(images, kernel_shape, gradient, windows):
    """JAX's own kernel gradient, float32 [kh, kw, C, O]."""
    images, gradient = (x.astype(jnp.float32) for x in (images, gradient))
    _, pull = jax.vjp(lambda kernel: conv._conv(images, kernel, windows), jnp.zeros(kernel_shape))
    return pull(gradient)[0]


@given(
    st.tuples(st.integers(1, 6), st.integers(3, 7), st.integers(3, 7), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.integers(0, 2),
    st.sampled_from([1, 60, 10**9]),
)
@settings(max_examples=8, deadline=None)
def test_it_is_the_gradient_of_the_kernel(shape, kernel, strides, pad, most):
    """For any shape, stride and padding, and for any division of the batch."""
    random = np.random.default_rng(0)
    kernel_shape = (*kernel[:2], shape[3], kernel[2])
    windows = conv.Windows(((pad, pad), (pad, 0)), strides)
    images = jnp.asarray(random.standard_normal(shape, np.float32))
    out = jax.eval_shape(lambda x, k: conv._conv(x, k, windows), images, jnp.zeros(kernel_shape))
    if 0 in out.shape:
        return
    gradient = jnp.asarray(random.standard_normal(out.shape, np.float32))
    before, onednn.MOST_BYTES = onednn.MOST_BYTES, most
    try:
        pads = conv.depthwise.full_pads(shape, kernel_shape, out.shape, *windows[:3])
        ours = onednn.kernel_gradient(images, gradient, pads, strides, (1, 1))
    finally:
        onednn.MOST_BYTES = before
    np.testing.assert_allclose(ours, reference(images, kernel_shape, gradient, windows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 2, 3, 3), (1, 4, 5, 5), (1, 4, 3, 3), (2, 3, 5, 3), (2, 60, 3, 3)])
def test_images_smaller_than_the_kernel_are_one_product(shape):
    height, width, *sides = shape
    pads = tuple(((side - 1) // 2, side // 2) for side in sides)
    random = np.random.default_rng(0)
    images = jnp.asarray(random.standard_normal((4, height, width, 3), np.float32))
    kernel = jnp.asarray(random.standard_normal((*sides, 3, 5), np.float32))

    def plain(images, kernel):
        return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=conv.NHWC)

    ours, pull = jax.vjp(lambda images, kernel: conv.convolve(images, kernel, pads), images, kernel)
    theirs, pull_plain = jax.vjp(plain, images, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(pull(ours), pull_plain(ours), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_library_is_asked_for_where_there_is_one(monkeypatch):
    """The tests' own set-up has configured XLA, and what the user sets counts."""
    assert onednn.used() == (jax.version.__version_info__ >= (0, 12))
    monkeypatch.setenv("XLA_FLAGS", f"{onednn.FLAG}=false")
    assert not onednn.used()


@pytest.mark.skipif(not onednn.used(), reason="XLA has no oneDNN in this version, or it is switched off")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(64, 16, 16, 24), (64, 7, 7, 128)])
def test_the_library_computes_what_is_asked(shape, dtype):
    """Values and both gradients, within the precision of the dtype; and the library is really used."""
    random = np.random.default_rng(0)
    images = jnp.asarray(random.standard_normal(shape, np.float32)).astype(dtype)
    kernel = jnp.asarray(random.standard_normal((3, 3, shape[3], 64), np.float32) / 30).astype(dtype)

    def both(images, kernel):
        value, pull = jax.vjp(lambda x, k: conv.conv2d(x, k), images, kernel)
        return value, *pull(value)

    program = jax.jit(both).lower(images, kernel).compile()
    assert program.as_text().count("__onednn$convolution") >= 3
    found = program(images, kernel)
    wide = [x.astype(jnp.float32) for x in (images, kernel)]
    value, pull = jax.vjp(lambda x, k: conv._conv(x, k, conv.Windows(((1, 1), (1, 1)))), *wide)
    expected = value, *pull(found[0].astype(jnp.float32))
    for one, other in zip(found, expected, strict=True):
        tolerance = float(jnp.abs(other).max()) * (1e-5 if dtype == jnp.float32 else 8e-3)
        np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=0, atol=tolerance)
