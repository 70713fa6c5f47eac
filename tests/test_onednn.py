"""The room onednn: what the library computes equals what JAX does, however the images are divided among threads."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ROOT, environment

from imgclf_jax import onednn
from imgclf_jax.models import conv, passes, pool
from imgclf_jax.onednn import calls, clib

DTYPES = sorted(clib.dtypes())
needs_library = pytest.mark.skipif(not DTYPES, reason="oneDNN is not installed: pip install 'imgclf_jax[cpu]'")


@pytest.fixture
def alone(monkeypatch):
    """A single device, although the tests have several."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    return monkeypatch


def draw(*shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32)).astype(dtype)


def assert_close(found, expected, dtype):
    """Within the precision of the dtype, of the largest value."""
    expected = np.asarray(expected, np.float32)
    scale = max(float(np.abs(expected).max(initial=0)), 1e-3)
    np.testing.assert_allclose(
        np.asarray(found, np.float32), expected, rtol=0, atol=scale * (2e-5 if dtype == "float32" else 1e-2)
    )


def assert_equals_jax(images, kernel, windows):
    """The value and both gradients."""
    assert onednn.serves(images)
    dtype = str(images.dtype)
    value, pull = jax.vjp(lambda *both: conv._conv_onednn(*both, windows), images, kernel)
    wide = [x.astype(jnp.float32) for x in (images, kernel)]
    expected, plain = jax.vjp(lambda *both: conv._conv(*both, windows), *wide)
    assert value.dtype == images.dtype
    assert_close(value, expected, dtype)
    gradient = draw(*value.shape, dtype=dtype, seed=1)
    for found, other in zip(pull(gradient), plain(gradient.astype(jnp.float32)), strict=True):
        assert found.dtype == images.dtype
        assert_close(found, other, dtype)


@needs_library
@given(
    dtype=st.sampled_from(DTYPES or ["float32"]),
    threads=st.integers(1, 4),
    batch=st.integers(4, 9),
    sides=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    groups=st.integers(1, 3),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
)
@settings(max_examples=15, deadline=None)
def test_convolutions_equal_those_of_jax(
    dtype, threads, batch, sides, kernel, channels, groups, strides, dilation, pads
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        patch.setattr(onednn, "threads", lambda: threads)
        images = draw(batch, *sides, channels[0] * groups, dtype=dtype)
        weights = draw(*kernel, channels[0], channels[1] * groups, dtype=dtype, seed=2)
        windows = conv.Windows(pads, strides, dilation, groups)
        shape = jax.eval_shape(lambda *both: conv._conv(*both, windows), images, weights).shape
        if min(shape) > 0:
            assert_equals_jax(images, weights, windows)


@needs_library
@pytest.mark.parametrize("batch", [4, 11, 13])
@pytest.mark.parametrize(("side", "kernel", "pads"), [(7, 3, (1, 1)), (3, 3, (1, 1)), (8, 3, (0, 0)), (6, 5, (2, 2))])
def test_small_images_lie_side_by_side(alone, batch, side, kernel, pads):
    """Any number of them: the last group need not be full."""
    if "bfloat16" not in DTYPES:
        pytest.skip("the processor does not multiply bfloat16")
    images = draw(batch, side, side, 4, dtype="bfloat16")
    weights = draw(kernel, kernel, 4, 6, dtype="bfloat16", seed=2)
    assert_equals_jax(images, weights, conv.Windows((pads, pads)))


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "side", "window"), [(4, 8, 2), (5, 9, 2), (7, 11, 3)])
def test_pooling_equals_ours_in_jax(alone, dtype, batch, side, window):
    """Exactly, with several equal pixels in a window, too."""
    images = jnp.round(draw(batch, side, side, 6, dtype=dtype))
    found, pull = jax.vjp(lambda x: pool.max_pool(x, window), images)
    gradient = draw(*found.shape, dtype=dtype, seed=1)
    alone.setattr(onednn, "serves", lambda images: False)
    expected, plain = jax.vjp(lambda x: pool.max_pool(x, window), images)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pull(gradient)[0], plain(gradient)[0])


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gelu", "silu"])
@pytest.mark.parametrize("library", [True, False])
def test_activations_equal_those_of_jax(alone, dtype, name, library):
    if not library:
        alone.setattr(onednn, "serves", lambda x: False)
    x = jnp.linspace(-6, 6, 4 * 5 * 7).reshape(4, 5, 7).astype(dtype)
    theirs = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "silu": jax.nn.silu}[name]
    found, pull = jax.vjp(getattr(passes, name), x)
    expected, plain = jax.vjp(theirs, x.astype(jnp.float32))
    gradient = draw(*x.shape, dtype=dtype)
    assert_close(found, expected, dtype)
    assert_close(pull(gradient)[0], plain(gradient.astype(jnp.float32))[0], dtype)


@needs_library
def test_the_same_bits_each_time_in_a_loop_and_mapped(alone):
    images, kernel = draw(8, 9, 9, 5), draw(3, 3, 5, 7, seed=2)

    def gradient(kernel):
        return jax.grad(lambda k: jnp.sum(jnp.square(conv.conv2d(images, k))))(kernel)

    once = jax.jit(gradient)(kernel)
    looped = jax.jit(lambda k: jax.lax.fori_loop(0, 5, lambda _, total: gradient(k + 0 * total), k))(kernel)
    mapped = jax.jit(jax.vmap(gradient))(jnp.stack([kernel, 2 * kernel]))
    np.testing.assert_array_equal(once, looped)
    np.testing.assert_array_equal(once, mapped[0])


@pytest.mark.parametrize(
    ("shape", "dtype", "devices", "threads", "served"),
    [
        ((4, 8, 8, 3), "float32", 1, 2, True),
        ((4, 8, 8, 3), "float16", 1, 2, False),
        ((4, 8, 8, 3), "float32", 8, 2, False),
        ((4, 8, 8, 3), "float32", 1, 5, False),
        ((4, 0, 8, 3), "float32", 1, 2, False),
    ],
)
def test_what_is_served(monkeypatch, shape, dtype, devices, threads, served):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(onednn, "threads", lambda: threads)
    assert onednn.serves(jnp.zeros(shape, dtype)) == (served and bool(DTYPES))


def test_without_the_library_nothing_is_served(alone):
    alone.setattr(clib, "FILE", "missing.so")
    clib.find.cache_clear()
    clib.dtypes.cache_clear()
    try:
        assert not onednn.serves(jnp.zeros((8, 8, 8, 3)))
    finally:
        alone.undo()
        clib.find.cache_clear()
        clib.dtypes.cache_clear()


@pytest.mark.parametrize(
    ("machine", "devices", "installed", "advised"),
    [("x86_64", 1, False, True), ("x86_64", 1, True, False), ("arm64", 1, False, False), ("x86_64", 8, False, False)],
)
def test_who_could_use_the_library_is_advised_to_install_it(monkeypatch, machine, devices, installed, advised):
    monkeypatch.setattr(onednn.platform, "system", lambda: "Linux")
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(clib, "find", lambda: object() if installed else None)
    assert (onednn.advice() is not None) == advised
    assert not advised or f"pip install {clib.PACKAGE}" in onednn.advice()


def test_a_failure_ends_the_program_with_its_message():
    def fail(addresses):
        raise clib.Error("no such convolution")

    calls.register("oneDNN_test_failure", [fail, fail])
    call = jax.ffi.ffi_call("oneDNN_test_failure", jax.ShapeDtypeStruct((2,), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such convolution"):
        jax.block_until_ready(jax.jit(call)(jnp.zeros(2)))


PROGRAM = """
import jax, jax.numpy as jnp
from imgclf_jax.devices import xla
xla.configure_xla()
from imgclf_jax.models import conv, pool
def loss(kernel, images):
    return jnp.sum(pool.max_pool(conv.conv2d(images, kernel)) ** 2)
with xla.quiet():
    print(float(jnp.sum(jax.jit(jax.grad(loss))(jnp.ones((3, 3, 3, 4)), jnp.ones((8, 8, 8, 3))))))
"""


@needs_library
def test_another_process_finds_the_program_in_the_compilation_cache(tmp_path):
    env = environment() | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    results = [
        subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert results[0].stdout == results[1].stdout and results[0].stdout.strip()
    assert not results[0].stderr and not results[1].stderr
    kept = [path.name for path in tmp_path.iterdir() if path.name.startswith("jit_loss")]
    assert len(kept) == 1 or (len(kept) == 2 and any(name.endswith("-atime") for name in kept))
