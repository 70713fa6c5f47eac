"""models/conv.py against the operations of JAX that it stands in for, and their automatic gradients."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from imgclf_jax.models import conv
from imgclf_jax.models.conv import conv2d


def reference(images, kernel, padding):
    return lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def value_and_gradients(convolve, padding, images, kernel, cotangent):
    """(value, image gradient, kernel gradient)."""
    value, pull = jax.vjp(lambda images, kernel: convolve(images, kernel, padding), images, kernel)
    return value, *pull(cotangent)


@cache
def both(padding):
    """(images, kernel, cotangent) -> (ours, JAX's in float32), compiled in one go, which saves time."""

    def run(*operands):
        ours = value_and_gradients(conv2d, padding, *operands)
        return ours, value_and_gradients(reference, padding, *(x.astype(jnp.float32) for x in operands))

    return jax.jit(run)


def operands(image_shape, kernel_shape, padding, seed=0):
    draws = np.random.default_rng(seed)
    height, width = image_shape[1:3]
    if padding == "VALID":
        height, width = height - kernel_shape[0] + 1, width - kernel_shape[1] + 1
    shapes = image_shape, kernel_shape, (image_shape[0], height, width, kernel_shape[-1])
    return [draws.standard_normal(shape, np.float32) for shape in shapes]


def assert_equals_reference(image_shape, kernel_shape, padding, seed=0):
    actual, expected = both(padding)(*operands(image_shape, kernel_shape, padding, seed))
    for name, ours, theirs in zip(("value", "image gradient", "kernel gradient"), actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_value_and_gradients_equal_those_of_jax(padding, side):
    assert_equals_reference((3, 7, 8, 4), (side, side, 4, 6), padding)


@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    sides=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", "VALID"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_shape(batch, size, sides, channels, padding, seed):
    assert_equals_reference((batch, *size, channels[0]), (*sides, *channels), padding, seed)


@pytest.mark.parametrize("sides", [(2, 2), (4, 2)])
def test_even_kernels_without_padding(sides):
    assert_equals_reference((2, 6, 7, 3), (*sides, 3, 2), "VALID")


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_the_network_of_the_tutorial(padding):
    # Shapes as in use: three channels into many, and many into many.
    assert_equals_reference((2, 32, 32, 3), (3, 3, 3, 32), padding)
    assert_equals_reference((2, 13, 13, 32), (3, 3, 32, 64), padding)


@pytest.mark.parametrize("loop", ["while_loop", "fori_loop", "scan"])
def test_gradient_descent_inside_a_compiled_loop(loop):
    # Training runs in a loop on the device, where the compiler treats convolutions differently.
    images, first, _ = operands((2, 7, 8, 3), (3, 3, 3, 4), "SAME", seed=1)
    _, second, target = operands((2, 7, 8, 4), (3, 3, 4, 2), "VALID", seed=2)

    def train(convolve):
        def loss(kernels):
            # The gradient passes through the second convolution to reach the first kernel.
            hidden = jnp.tanh(convolve(images, kernels[0], "SAME"))
            return jnp.mean((convolve(hidden, kernels[1], "VALID") - target) ** 2)

        def step(kernels):
            return jax.tree.map(lambda kernel, gradient: kernel - 0.1 * gradient, kernels, jax.grad(loss)(kernels))

        if loop == "fori_loop":
            return lax.fori_loop(0, 4, lambda _, kernels: step(kernels), (first, second))
        if loop == "scan":
            return lax.scan(lambda kernels, _: (step(kernels), None), (first, second), length=4)[0]
        start = 0, (first, second)
        return lax.while_loop(lambda carry: carry[0] < 4, lambda carry: (carry[0] + 1, step(carry[1])), start)[1]

    actual, expected = jax.jit(lambda: (train(conv2d), train(reference)))()
    for ours, theirs, start in zip(actual, expected, (first, second), strict=True):
        assert np.abs(theirs - start).max() > 0.01  # it did move
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_bfloat16_is_the_float32_result_rounded(padding):
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in operands((2, 8, 7, 3), (3, 3, 3, 5), padding)]
    actual, exact = both(padding)(*arguments)
    for ours, theirs in zip(actual, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        # Eight bits of mantissa, and sums whose parts may have been rounded before they were added.
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=2e-2, atol=2e-2 * np.abs(theirs).max())


# Strides, dilation, groups


def general(convolve, options, images, kernel):
    strides, padding, dilation, groups = options
    return convolve(
        images,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def assert_general(image_shape, kernel_shape, options, dtype="float32", seed=0):
    """Value and gradients equal JAX's in float32; in bfloat16 they are its results rounded."""
    draws = np.random.default_rng(seed)
    images, kernel = (jnp.asarray(draws.standard_normal(shape), dtype) for shape in (image_shape, kernel_shape))
    output = jax.eval_shape(lambda *x: general(lax.conv_general_dilated, options, *x), images, kernel)
    cotangent = jnp.asarray(draws.standard_normal(output.shape), dtype)

    @jax.jit
    def run(*operands):
        images, kernel, cotangent = operands
        value, pull = jax.vjp(lambda *x: general(conv.conv_general_dilated, options, *x), images, kernel)
        exact = [x.astype(jnp.float32) for x in operands]
        expected, pull_exact = jax.vjp(lambda *x: general(lax.conv_general_dilated, options, *x), *exact[:2])
        return (value, *pull(cotangent)), (expected, *pull_exact(exact[2]))

    actual, expected = run(images, kernel, cotangent)
    for name, ours, theirs in zip(("value", "image gradient", "kernel gradient"), actual, expected, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape, name
        tolerance = 1e-4 if dtype == "float32" else 2e-2
        scale = max(1.0, float(np.abs(theirs).max(initial=0)))
        np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs, rtol=tolerance, atol=tolerance * scale, err_msg=f"{name} {options}"
        )


@given(
    size=st.tuples(st.integers(7, 12), st.integers(7, 12)),
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([(1, 2, 3), (1, 9, 4), (2, 2, 3), (4, 1, 1), (3, 1, 2)]),
    padding=st.sampled_from(["SAME", "VALID", ((1, 2), (0, 3)), ((-1, 2), (3, -2))]),
    dtype=st.sampled_from(["float32", "float32", "bfloat16"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_stride_dilation_and_groups(size, sides, strides, dilation, groups, padding, dtype, seed):
    count, inside, outside = groups  # channels in and out of each group
    kernel_shape = (*sides, inside, count * outside)
    assert_general((2, *size, count * inside), kernel_shape, (strides, padding, dilation, count), dtype, seed)


@pytest.mark.parametrize(
    ("image_shape", "kernel_shape", "options"),
    [
        ((2, 8, 8, 16), (3, 3, 16, 8), ((2, 2), "SAME", (1, 1), 1)),  # a ResNet's first convolution of a stage
        ((2, 8, 8, 16), (1, 1, 16, 8), ((2, 2), "SAME", (1, 1), 1)),  # and its shortcut
        ((2, 15, 14, 3), (7, 7, 3, 4), ((2, 2), ((3, 3), (3, 3)), (1, 1), 1)),  # its stem for ImageNet
        ((2, 8, 8, 3), (4, 4, 3, 8), ((4, 4), "VALID", (1, 1), 1)),  # a ViT's patches
        ((2, 9, 8, 6), (3, 3, 1, 6), ((2, 2), "SAME", (1, 1), 6)),  # a MobileNet's depthwise convolution
        ((2, 9, 8, 16), (3, 3, 4, 16), ((1, 1), "SAME", (1, 1), 4)),  # a ResNeXt's groups
        ((2, 9, 9, 9), (3, 3, 9, 4), ((2, 3), "SAME", (2, 3), 1)),  # strides and dilation with a common divisor
    ],
)
def test_the_convolutions_of_well_known_networks(image_shape, kernel_shape, options):
    assert_general(image_shape, kernel_shape, options)


def test_conv2d_takes_strides_dilation_and_groups():
    images, kernel, _ = operands((2, 9, 8, 4), (3, 3, 2, 6), "VALID")
    expected = general(lax.conv_general_dilated, ((2, 2), "SAME", (2, 2), 2), images, kernel)
    np.testing.assert_allclose(conv2d(images, kernel, "SAME", 2, 2, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, k, f: f(x, k, (1, 1), "SAME"),  # NCHW
        lambda x, k, f: f(x[0, :, :3], k[0], (1,), [(1, 1)]),  # one dimension
        lambda x, k, f: f(x, k, (1, 1), [(0, 0), (0, 0)], lhs_dilation=(2, 2)),
        lambda x, k, f: f(x, k, (1, 1), "SAME", batch_group_count=3),
        lambda x, k, f: f(x.astype(jnp.float16), k.astype(jnp.float16), (2, 2), "SAME"),
    ],
)
def test_what_is_not_served_is_passed_on(call):
    draws = np.random.default_rng(0)
    images, kernel = (jnp.asarray(draws.standard_normal(shape), jnp.float32) for shape in ((3, 3, 6, 6), (3, 3, 3, 3)))
    np.testing.assert_array_equal(
        call(images, kernel, conv.conv_general_dilated), call(images, kernel, lax.conv_general_dilated)
    )


def compiled_loop(convolve, options, image_shape, kernel_shape):
    """The optimized program of gradient descent on a kernel, and on the images, in a loop."""
    images, kernel = jnp.ones(image_shape), jnp.ones(kernel_shape)

    def step(carry):
        gradients = jax.grad(lambda carry: jnp.sum(general(convolve, options, *carry) ** 2), argnums=0)(carry)
        return jax.tree.map(lambda x, gradient: x - 1e-3 * gradient, carry, gradients)

    return jax.jit(lambda carry: lax.fori_loop(0, 3, lambda _, x: step(x), carry)).lower((images, kernel))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends use JAX's gradients")
@pytest.mark.parametrize(
    ("image_shape", "kernel_shape", "options"),
    [
        ((2, 8, 8, 16), (3, 3, 16, 8), ((1, 1), "SAME", (1, 1), 1)),
        ((2, 8, 8, 16), (3, 3, 16, 8), ((2, 2), "SAME", (1, 1), 1)),
        ((2, 8, 8, 3), (3, 3, 3, 8), ((2, 2), "SAME", (1, 1), 1)),
        ((2, 8, 8, 8), (3, 3, 2, 8), ((2, 2), "SAME", (2, 2), 4)),
        ((2, 8, 8, 8), (3, 3, 1, 8), ((2, 2), "SAME", (1, 1), 8)),
    ],
)
def test_a_loop_holds_plain_convolutions_only(image_shape, kernel_shape, options):
    program = compiled_loop(conv.conv_general_dilated, options, image_shape, kernel_shape).as_text()
    convolutions = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert (not convolutions) == (options[3] == image_shape[3])  # depthwise: none at all
    for line in convolutions:
        axes = "0, 1, 2" if "[b, 0, 1, 2, f]x" in line else "0, 1"  # three for oneDNN's kernel gradients
        assert f"[b, {axes}, f]x[{axes}, i, o]->[b, {axes}, f]" in line
        assert "batch_group_count = 1" in line
        assert "lhs_dilate = [1, 1" in line and "reverse = [false, false" in line
    # JAX's own gradients are not.
    theirs = compiled_loop(lax.conv_general_dilated, options, image_shape, kernel_shape).as_text()
    assert "[f, 0, 1, b]" in theirs or "batch_group_count = 8" in theirs
