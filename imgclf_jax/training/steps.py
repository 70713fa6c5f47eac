"""One training step and one evaluation step: pure functions that know nothing of devices or data sets."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from imgclf_jax.rng import image_keys, stream
from imgclf_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    *,
    label_smoothing: float = 0.0,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    all_sum: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Builds `train_step(state, batch, key) -> (state, metrics)`.

    Args:
        model: images float32 [B, H, W, C] -> logits [B, classes].
        optimizer: the transformation that `state.opt_state` belongs to.
        prepare: (key, images uint8 [B, H, W, C], positions int32 [B]) -> what the network sees, float32. Augmentation
            and normalisation; an image's draw depends on the key and on its position alone.
        label_smoothing: probability mass spread evenly over all classes.
        ema_decay: decay of the moving average of the parameters and of the running statistics; less at first, see
            `_average`. 0: none.
        accumulate: number of equal parts that the batch is split into, one forward and backward pass each. The step is
            the same, except that batch normalisation sees each part alone.
        all_sum: sums a pytree over all who take this step together, each with a share of the batch.

    Returns:
        The step. `batch` holds `image` uint8 [B, H, W, C], `label` int32 [B] and, where it is a share of a larger
        batch, `position` int32 [B]: the examples' places in that; `key` is this step's own. Metrics: `loss` and
        `correct` are sums over the whole batch (float32, int32), `count` is its size (int32), `grad_norm` and
        `update_norm` are global L2 norms (float32).
    """

    def loss(params, batch_stats, images, labels, keys):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = model.apply(variables, images, train=True, keys=keys, mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        total = _cross_entropy(logits, labels, label_smoothing).sum()
        correct = jnp.sum(_hits(logits, labels), dtype=jnp.int32)
        return total, (changed.get("batch_stats", {}), correct)

    differentiate = jax.value_and_grad(loss, has_aux=True)

    def one_pass(params, batch_stats, batch, key):
        images = prepare(stream(key, "augment"), batch["image"], batch["position"])
        keys = image_keys(stream(key, "dropout"), batch["position"])
        (total, (batch_stats, correct)), grads = differentiate(params, batch_stats, images, batch["label"], keys)
        return grads, batch_stats, total, correct

    def in_parts(params, batch_stats, batch, key):
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)

        def add(sums, part):
            grads, stats, total, correct = one_pass(params, batch_stats, part, key)
            # One update a step, whatever the number of parts: each starts from the same running statistics, and the
            # mean of the results is kept.
            stats = jax.tree.map(lambda x: x / accumulate, stats)
            return jax.tree.map(jnp.add, sums, (grads, stats, total, correct)), None

        zeros = jax.tree.map(jnp.zeros_like, (params, batch_stats))
        return jax.lax.scan(add, (*zeros, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)), parts)[0]

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        share = batch["label"].shape[0]
        batch = {"position": jnp.arange(share, dtype=jnp.int32)} | batch
        passes = one_pass if accumulate == 1 else in_parts
        grads, batch_stats, total, correct = passes(state.params, state.batch_stats, batch, key)
        grads, total, correct = all_sum((grads, total, correct))
        count = all_sum(share)
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = state.ema, state.ema_stats
        if ema_decay:
            averages = _average(averages, (params, batch_stats), ema_decay, state.step)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=averages[0],
            ema_stats=averages[1],
        )
        metrics = {
            "loss": total,
            "correct": correct,
            "count": jnp.full((), count, jnp.int32),
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
        }
        return new_state, metrics

    return train_step


def make_eval_step(
    model: nn.Module, prepare: Callable[[jax.Array], jax.Array]
) -> Callable[[dict[str, Any], Batch], Metrics]:
    """Builds `eval_step(variables, batch) -> metrics`, sums over the examples whose `mask` is set.

    Args:
        model: images float32 [B, H, W, C] -> logits [B, classes].
        prepare: images uint8 [B, H, W, C] -> what the network sees, float32.

    Returns:
        The step. `batch` holds `image`, `label` and `mask` bool [B]; metrics: `loss` (float32), `correct`, `count` and
        `not_finite` (int32), the examples with a logit that is not finite, which are never counted as correct.
    """

    def eval_step(variables: dict[str, Any], batch: Batch) -> Metrics:
        logits: Any = model.apply(variables, prepare(batch["image"]), train=False)
        logits, mask = logits.astype(jnp.float32), batch["mask"]
        losses = _cross_entropy(logits, batch["label"], 0.0)
        return {
            # `where`, not a product: what stands in the padding may be infinite.
            "loss": jnp.where(mask, losses, 0.0).sum(),
            "correct": jnp.sum(_hits(logits, batch["label"]) & mask, dtype=jnp.int32),
            "count": jnp.sum(mask, dtype=jnp.int32),
            "not_finite": jnp.sum(~_finite(logits) & mask, dtype=jnp.int32),
        }

    return eval_step


def _finite(logits):
    """bool [B]: whether all logits of an example are finite."""
    return jnp.isfinite(logits).all(-1)


def _hits(logits, labels):
    """bool [B]: whether the largest logit is the label's. `argmax` alone would take NaN for class 0."""
    return (logits.argmax(-1) == labels) & _finite(logits)


def _cross_entropy(logits, labels, smoothing):
    """float32 [B]; with smoothing as in Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567)."""
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def _average(ema, params, decay, step):
    """Exponential moving average whose decay starts low, so that the initial parameters are soon forgotten."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
