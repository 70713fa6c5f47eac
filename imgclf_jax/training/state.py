"""The training state: one pytree that each step updates and that checkpoints store."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from imgclf_jax.rng import stream


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step reads and writes.

    Attributes:
        step: int32 scalar, the number of steps taken.
        params: the network's parameters, float32.
        batch_stats: running means and variances of batch normalization; empty without it.
        opt_state: the state of the optimizer.
        ema: moving average of `params`, or the slow weights of lookahead; empty if there is neither.
        ema_stats: moving average of `batch_stats`, with the same decay as `ema`; empty if either of them is.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    ema_stats: Any

    def eval_variables(self) -> dict[str, Any]:
        """Returns the variables for evaluation: the averaged parameters and statistics, if an average is kept.

        Averaged parameters need averaged statistics. The running ones follow the raw parameters of the last few
        steps, whose activations have another mean and variance.
        """
        if self.ema:
            return {"params": self.ema, "batch_stats": self.ema_stats}
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, ...],
    ema: bool,
    known: Mapping[str, jax.Array] | None = None,
) -> TrainState:
    """Returns the state before the first step; a pure function of its arguments.

    Args:
        model: a network of `imgclf_jax.models`.
        optimizer: see `imgclf_jax.training.optim`.
        key: the experiment's key, from which the "init" stream is derived.
        image_shape: (H, W, C) of the network's input, after cropping.
        ema: whether to keep an average of the parameters and of the statistics.
        known: the values of variables that are not to be random, by path, such as "params/conv1/kernel".
    """
    variables = model.init(stream(key, "init"), jnp.zeros((1, *image_shape)), train=False)
    if known:
        variables = jax.tree_util.tree_map_with_path(
            lambda path, leaf: known.get(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), variables
        )
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # Copies, because all of these are donated to the step and a buffer cannot be donated twice.
    average, average_stats = jax.tree.map(jnp.copy, (params, batch_stats)) if ema else ({}, {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=average,
        ema_stats=average_stats,
    )
