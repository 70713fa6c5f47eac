"""One training step and one evaluation step: pure functions that do not know about devices or data sets."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from imgclf_jax.augment import Normalization, tta
from imgclf_jax.augment.mixing import Mix
from imgclf_jax.config import is_on
from imgclf_jax.rng import StepKeys, image_keys
from imgclf_jax.training import metrics
from imgclf_jax.training.losses import Loss
from imgclf_jax.training.state import TrainState

Batch = dict[str, jax.Array]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    augment: Callable[..., jax.Array],
    *,
    mix: Mix | None = None,
    classes: int = 0,
    loss: Loss | None = None,
    measures: metrics.Metrics = metrics.METRICS,
    label_smoothing: float = 0.0,
    sam_rho: float = 0.0,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    all_sum: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[[TrainState, Batch, Normalization, StepKeys], tuple[TrainState, metrics.Sums]]:
    """Builds `train_step(state, batch, normalization, keys) -> (state, sums)`.

    Args:
        model: images float32 [B, H, W, C] -> logits [B, classes].
        optimizer: the transformation that `state.opt_state` belongs to.
        augment: (key, images uint8 [B, H, W, C], positions int32 [B], mirrored bool [B] or `None`) -> images float32 in
            [0, 1]. The draw of an image depends only on the key and on its position.
        mix: (key, images float32 [B, H, W, C], targets float32 [B, classes], positions int32 [B]) -> (images, targets),
            for the augmented images; the key is that of `augment`. It gets a whole part of the batch, or a device's
            share of one. `None`: the targets are the labels.
        classes: the number of classes; only `mix` and `loss` need it.
        loss: (logits float32 [B, classes], targets float32 [B, classes]) -> float32 [B]; `None`: the cross-entropy.
        measures: the metrics to sum; the value of "loss" is that of the loss.
        label_smoothing: probability mass that is spread evenly over all classes.
        sam_rho: the distance, in the direction of the gradient of the whole batch, at which the gradient for the update
            is computed: sharpness-aware minimization (Foret et al. 2020, https://arxiv.org/abs/2010.01412). The sums
            and the running statistics are those of the first gradient. 0: off.
        ema_decay: decay of the moving average of the parameters and of the running statistics. It is lower in the first
            steps, see `_average`. 0: no average.
        accumulate: the number of equal parts that the batch is split into, with one forward and backward pass each. The
            step is the same, except that batch normalization sees each part alone.
        all_sum: sums a pytree over all devices that take this step together, each with a share of the batch.

    Returns:
        The step. `batch` holds `image` uint8 [B, H, W, C], `label` int32 [B] and, if it is a share of a larger batch,
        `position` int32 [B], the places of the examples in the larger batch; and `mirrored` bool [B] if the flips
        alternate. `sums` holds the sums over the whole batch of the `metrics`, in which `loss` is the objective, with
        label smoothing, and mixed images count for the class with the largest target (the lowest of them, if there are
        several); the size of the batch as `count` (int32); and the global L2 norms `grad_norm` and `update_norm`
        (float32).
    """

    def examples(batch, keys):
        """(augmented images, labels for the metrics, targets of the loss; `None`: they are the labels)."""
        images = augment(keys.augment, batch["image"], batch["position"], batch.get("mirrored"))
        if mix is None and loss is None:
            return images, batch["label"], None
        targets = metrics.targets(batch["label"], classes, label_smoothing)
        if mix is None:
            return images, batch["label"], targets
        images, targets = mix(keys.augment, images, targets, batch["position"])
        return images, targets.argmax(-1), targets

    def losses(logits, labels, targets):
        if targets is None:
            return metrics.cross_entropy(logits, labels, label_smoothing)
        return (loss or optax.softmax_cross_entropy)(logits, targets)

    def objective(params, batch_stats, images, labels, targets, keys):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = model.apply(variables, images, train=True, keys=keys, mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        values = metrics.per_example(logits, labels, measures)
        values["loss"] = losses(logits, labels, targets)
        sums = metrics.add_up(values)
        return sums["loss"], (changed.get("batch_stats", {}), sums)

    differentiate = jax.grad(objective, has_aux=True)

    def one_pass(params, batch_stats, batch, normalization, keys):
        images, labels, targets = examples(batch, keys)
        images, dropout = normalization(images), image_keys(keys.dropout, batch["position"])
        grads, (batch_stats, sums) = differentiate(params, batch_stats, images, labels, targets, dropout)
        return grads, batch_stats, sums

    def in_parts(params, batch_stats, batch, normalization, keys):
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)

        def add(total, part):
            grads, stats, sums = one_pass(params, batch_stats, part, normalization, keys)
            # One update per step, with any number of parts: each starts from the same running statistics, and the mean
            # of the results is kept.
            stats = jax.tree.map(lambda x: x / accumulate, stats)
            return jax.tree.map(jnp.add, total, (grads, stats, sums)), None

        zeros = jax.tree.map(jnp.zeros_like, (params, batch_stats, metrics.zeros(measures)))
        return jax.lax.scan(add, zeros, parts)[0]

    def train_step(state, batch, normalization, keys):
        share = batch["label"].shape[0]
        batch = {"position": jnp.arange(share, dtype=jnp.int32)} | batch
        passes = one_pass if accumulate == 1 else in_parts
        count = all_sum(share)

        def gradient(params):
            grads, batch_stats, sums = passes(params, state.batch_stats, batch, normalization, keys)
            grads, sums = all_sum((grads, sums))
            return jax.tree.map(lambda g: g / count, grads), batch_stats, sums

        grads, batch_stats, sums = gradient(state.params)
        if is_on(sam_rho):
            distance = sam_rho / (optax.tree.norm(grads) + 1e-12)
            grads, *_ = gradient(jax.tree.map(lambda x, g: x + distance * g, state.params, grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = state.ema, state.ema_stats
        if is_on(ema_decay):
            averages = _average(averages, (params, batch_stats), ema_decay, state.step)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=averages[0],
            ema_stats=averages[1],
        )
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        return new_state, {**sums, "count": jnp.full((), count, jnp.int32), **norms}

    return train_step


def make_eval_step(
    model: nn.Module,
    crop: Callable[[jax.Array], jax.Array],
    measures: metrics.Metrics = metrics.METRICS,
    views: str = "none",
) -> Callable[[dict[str, Any], Normalization, Batch], metrics.Sums]:
    """Builds `eval_step(variables, normalization, batch) -> sums`, over the examples whose `mask` is set.

    Args:
        model: images float32 [B, H, W, C] -> logits [B, classes].
        crop: images uint8 [B, H, W, C] -> the images to evaluate, float32 in [0, 1].
        measures: the metrics to sum.
        views: a value of `eval.tta`: the views whose logits are averaged for `metrics.TTA`.

    Returns:
        The step. `batch` holds `image`, `label` and `mask` bool [B]. `sums` holds the sums of the `metrics`, for the
        images themselves; if there are views, the sums of `metrics.TTA`; and, as int32, the number of examples as
        `count`, and that of the examples with a logit that is not finite, which are never counted as correct, as
        `not_finite`.
    """

    def eval_step(variables, normalization, batch):
        def network(images):
            logits: Any = model.apply(variables, normalization(images), train=False)
            return logits.astype(jnp.float32)

        images, labels, mask, averaged = crop(batch["image"]), batch["label"], batch["mask"], {}
        if tta.is_on(views):
            seen, weights = tta.views(images, views)
            # One after the other, because all at once would need the memory of a larger batch.
            each = jax.lax.map(network, seen)
            mean = (weights[:, None, None] * each).sum(0)
            logits, averaged = each[0], metrics.per_example(mean, labels, metrics.TTA)
        else:
            logits = network(images)
        counts = {"count": mask, "not_finite": ~metrics.is_finite(logits)}
        return metrics.add_up(metrics.per_example(logits, labels, measures) | averaged | counts, mask)

    return eval_step


def _average(ema, params, decay, step):
    """Exponential moving average whose decay starts low, so that the initial parameters are soon forgotten."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
