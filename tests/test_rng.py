"""rng.py: streams that know nothing of each other."""

import zlib
from itertools import product

import jax
import numpy as np

from imgclf_jax.rng import image_keys, image_uniform, operation_keys, stream

KEY = jax.random.key(3)
NAMES = ("init", "order", "replacement", "step", "augment", "dropout", "another")


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_names_and_steps_never_share_a_key():
    keys = {bits(stream(KEY, name, step)) for name, step in product(NAMES, (None, 0, 1, 2, 1000))}
    assert len(keys) == len(NAMES) * 5
    assert bits(KEY) not in keys


def test_a_stream_is_a_function_of_seed_name_and_step():
    before = bits(stream(KEY, "augment", 5))
    stream(KEY, "order", 7)
    jax.random.normal(stream(KEY, "augment", 4))
    assert bits(stream(jax.random.key(3), "augment", 5)) == before
    assert bits(stream(jax.random.key(4), "augment", 5)) != before


def test_the_definition_that_checkpoints_rely_on():
    # A resumed run must draw what the interrupted one would have drawn, also after an upgrade.
    expected = jax.random.fold_in(jax.random.fold_in(KEY, zlib.crc32(b"order")), 9)
    assert bits(stream(KEY, "order", 9)) == bits(expected)


def test_steps_may_be_traced():
    traced = jax.jit(lambda step: stream(KEY, "step", step))(np.int32(11))
    assert bits(traced) == bits(stream(KEY, "step", 11))


def test_streams_are_uncorrelated():
    draw = jax.jit(lambda key: jax.random.normal(key, (2000,)))
    draws = np.stack([draw(stream(KEY, name, step)) for name, step in product(NAMES[:3], (0, 1))])
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    # Five standard deviations of the correlation of independent draws.
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


def test_what_images_draw_is_a_function_of_position_and_operation():
    keys = image_keys(KEY, np.array([4, 9]))
    for operation in ("flip", "hue"):
        for i, position in enumerate((4, 9)):
            key = jax.random.fold_in(jax.random.fold_in(KEY, position), zlib.crc32(operation.encode()))
            assert bits(operation_keys(keys, operation)[i]) == bits(key)
            assert image_uniform(keys, operation, -2.0, 3.0)[i] == jax.random.uniform(key, (), minval=-2.0, maxval=3.0)
