"""cost.py against operations counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from synthetic import IDENTITY, SMALL_CNN, make_config, make_data, make_experiment

from imgclf_jax.models.conv import conv2d
from imgclf_jax.models.cost import matmul_flops, network_flops, parameter_table
from imgclf_jax.rng import step_keys


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def flops(function, *arguments):
    return matmul_flops(jax.make_jaxpr(function)(*arguments))


MATRICES = array(5, 7), array(7, 11)
PRODUCT = 2 * 5 * 7 * 11


def product(x, w):
    return x @ w


def test_matrix_products():
    assert flops(product, *MATRICES) == PRODUCT
    assert flops(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), array(3, 5, 7), array(3, 7, 11)) == 3 * PRODUCT
    assert flops(lambda x, w: jnp.einsum("ij,ij->", x, w), array(5, 7), array(5, 7)) == 2 * 5 * 7


def test_the_gradient_of_a_matrix_product_costs_two_more():
    assert flops(jax.grad(lambda x, w: jnp.sum((x @ w) ** 2), (0, 1)), *MATRICES) == 3 * PRODUCT


@pytest.mark.parametrize(
    ("padding", "side", "height", "width"),
    [("SAME", 3, 8, 9), ("VALID", 3, 6, 7), ("SAME", 1, 8, 9), ("VALID", 5, 4, 5)],
)
def test_convolutions(padding, side, height, width):
    images, kernel = array(2, 8, 9, 4), array(side, side, 4, 6)
    # For every output pixel and feature, a product and a sum over the window.
    expected = 2 * (2 * height * width * 6) * (side * side * 4)
    assert flops(lambda x, k: conv2d(x, k, padding), images, kernel) == expected


def test_the_gradient_of_a_convolution_costs_two_more():
    def loss(convolve):
        return lambda x, k: jnp.sum(convolve(x, k) ** 2)

    images, kernel = array(2, 8, 9, 4), array(3, 3, 4, 6)
    forward = 2 * (2 * 8 * 9 * 6) * (3 * 3 * 4)
    assert flops(jax.grad(loss(conv2d), (0, 1)), images, kernel) == 3 * forward


def test_strided_and_grouped_convolutions():
    def convolve(x, k, stride=1, groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, k, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    strided = flops(lambda x, k: convolve(x, k, stride=2), array(2, 8, 8, 4), array(3, 3, 4, 6))
    assert strided == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)
    # Each group sees its own two of the four channels.
    grouped = flops(lambda x, k: convolve(x, k, groups=2), array(2, 8, 8, 4), array(3, 3, 2, 6))
    assert grouped == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)


def test_loops_of_known_length_count_every_turn():
    def scanned(x, w):
        return lax.scan(lambda carry, _: (jnp.tanh(carry + jnp.sum(x @ w)), None), 0.0, length=4)[0]

    def nested(x, w):
        return lax.scan(lambda carry, _: (carry + scanned(x, w), None), 0.0, length=3)[0]

    assert flops(scanned, *MATRICES) == 4 * PRODUCT
    assert flops(nested, *MATRICES) == 12 * PRODUCT
    assert flops(lambda x, w: lax.fori_loop(0, 4, lambda _, y: y + jnp.sum(x @ w), 0.0), *MATRICES) == 4 * PRODUCT


def test_a_while_loop_counts_one_turn():
    def run(x, w, steps):
        return lax.fori_loop(0, steps, lambda _, y: y + jnp.sum(x @ w), 0.0)

    assert flops(run, *MATRICES, jax.ShapeDtypeStruct((), jnp.int32)) == PRODUCT


def test_the_costliest_branch_counts():
    def run(index, x, w):
        branches = [lambda x, w: 0.0, lambda x, w: jnp.sum(x @ w @ w.T), lambda x, w: jnp.sum(x @ w)]
        return lax.switch(index, branches, x, w)

    assert flops(run, jax.ShapeDtypeStruct((), jnp.int32), *MATRICES) == 2 * PRODUCT


def test_functions_within_functions_count():
    assert flops(jax.jit(lambda x, w: jax.jit(product)(x, w) + jax.checkpoint(product)(x, w)), *MATRICES) == 2 * PRODUCT


def test_what_is_not_a_product_is_free():
    assert flops(lambda x, w: jnp.tanh(x) + jnp.sum(w) + lax.sort(x), *MATRICES) == 0


def test_a_training_step_of_an_mlp():
    images, labels = make_data(8, (4, 4, 3))
    experiment = make_experiment(make_config({"model.name": "mlp", "model.hidden": (20,)}), images)
    batch, keys = {"image": images, "label": labels}, step_keys(experiment.key, 0)
    # Forward and the weights' gradient everywhere; the images need none.
    first, second = 2 * 8 * 48 * 20, 2 * 8 * 20 * 10
    step = flops(experiment.train_step, experiment.state_shapes(), batch, IDENTITY, keys)
    assert step == 2 * first + 3 * second


def test_accumulating_changes_no_cost():
    images, labels = make_data(8)
    costs = []
    for parts in (1, 4):
        experiment = make_experiment(make_config(SMALL_CNN, {"train.accumulate": parts}), images)
        batch, keys = {"image": images, "label": labels}, step_keys(experiment.key, 0)
        costs.append(flops(experiment.train_step, experiment.state_shapes(), batch, IDENTITY, keys))
    assert costs[0] == costs[1] > 0


def test_table_of_parameters():
    params = {"output": {"kernel": array(7, 10), "bias": array(10)}, "conv1": {"kernel": array(3, 3, 1, 2)}}
    assert parameter_table(params) == [
        ("conv1/kernel", (3, 3, 1, 2), 18),
        ("output/bias", (10,), 10),
        ("output/kernel", (7, 10), 70),
    ]


def test_a_training_step_is_three_forward_passes_without_the_gradient_of_the_images():
    experiment = make_experiment(make_config({"model.name": "mlp", "model.hidden": (16,)}), make_data(8)[0])
    variables = jax.eval_shape(experiment.init, experiment.key).eval_variables()
    first, last = 2 * 5 * 8 * 8 * 3 * 16, 2 * 5 * 16 * 10
    assert network_flops(experiment.model, variables, (8, 8, 3), 5) == (first + last, 2 * first + 3 * last)
