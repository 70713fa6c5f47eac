"""models/stock.py: stock Flax layers compute the same with our convolutions, through which they go."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from imgclf_jax.models.stock import fast_convolutions

IMAGES = np.random.default_rng(0).standard_normal((2, 9, 9, 4), np.float32)
cpu_only = pytest.mark.skipif(jax.default_backend() != "cpu", reason="has no effect elsewhere")


class Stock(nn.Module):
    """Strides, a depthwise convolution, dilation, circular padding, one dimension; and a lifted layer."""

    own: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), 2)(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.remat(nn.Conv)(8, (2, 2), kernel_dilation=2, padding="VALID")(x))
        x = nn.relu(nn.Conv(4, (3, 3), padding="CIRCULAR")(x))
        x = nn.Conv(3, (3,))(x.reshape(x.shape[0], -1, x.shape[-1]))
        options = {"conv_general_dilated": lax.conv_general_dilated} if self.own else {}
        return nn.Conv(2, (1, 1), **options)(x[:, :, None]).sum()


@pytest.fixture(scope="module")
def params():
    return jax.jit(Stock().init)(jax.random.key(0), IMAGES)


def test_value_and_gradients_are_those_of_the_network(params):
    def run(params):
        return jax.value_and_grad(Stock().apply)(params, IMAGES)

    def run_fast(params):
        with fast_convolutions():
            return run(params)

    actual, expected = jax.jit(lambda params: (run_fast(params), run(params)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


def test_initialization_is_the_same(params):
    with fast_convolutions():
        again = jax.jit(Stock().init)(jax.random.key(0), IMAGES)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def program(params, own=False):
    return str(jax.make_jaxpr(lambda params: Stock(own).apply(params, jnp.asarray(IMAGES)))(params))


@cpu_only
def test_layers_use_ours_inside_the_block_only(params):
    before = program(params)
    with fast_convolutions():
        inside = program(params)
        kept = program(params, own=True)
    assert "custom_vjp" not in before
    # All but the one in one dimension; and the layer that has its own keeps it.
    assert inside.count("custom_vjp_call") == 5
    assert kept.count("custom_vjp_call") == 4
    assert program(params) == before
