"""What training changes: one pytree that goes round in the step and into the checkpoints."""

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
        batch_stats: running means and variances of batch normalisation; empty without it.
        opt_state: the optimiser's.
        ema: moving average of `params`; empty without one.
        ema_stats: moving average of `batch_stats`, with the same decay as `ema`; empty if one of the two is.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    ema_stats: Any

    def eval_variables(self) -> dict[str, Any]:
        """Returns what evaluation applies the network with: averaged parameters and their statistics, if there are any.

        Averaged parameters need averaged statistics. The running ones follow the raw parameters of the last few
        steps, whose activations have another mean and variance.
        """
        if self.ema:
            return {"params": self.ema, "batch_stats": self.ema_stats}
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, key: jax.Array, image_shape: tuple[int, ...], ema: bool
) -> TrainState:
    """The state before the first step; a pure function of its arguments.

    Args:
        model: a network of `imgclf_jax.models`.
        optimizer: see `imgclf_jax.training.optim`.
        key: the experiment's key; the "init" stream is taken from it.
        image_shape: (H, W, C) of what the network sees, after cropping.
        ema: whether to keep a moving average of the parameters and of the statistics.
    """
    variables = model.init(stream(key, "init"), jnp.zeros((1, *image_shape)), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # Copies: all of these are donated to the step, and one buffer cannot be donated twice.
    average, average_stats = jax.tree.map(jnp.copy, (params, batch_stats)) if ema else ({}, {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=average,
        ema_stats=average_stats,
    )
