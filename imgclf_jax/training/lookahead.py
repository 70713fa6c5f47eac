"""Lookahead: slow weights that follow those that are trained, and to which training returns at intervals.

Zhang et al. 2019 (https://arxiv.org/abs/1907.08610), with a decay that may rise during the run and with the statistics
of batch normalization, as in Jordan 2024 (https://arxiv.org/abs/2404.00498).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


class Lookahead(NamedTuple):
    """When the slow and the fast weights are joined, and how; in steps taken.

    Attributes:
        every: steps from one time to the next.
        start: steps until the slow weights part from the fast ones.
        steps: length of the run.
        decay: the part of the slow weights that is kept, at the end of the run.
        power: the decay after s steps is decay · (s / steps)^power.
    """

    every: int
    start: int
    steps: int
    decay: Any
    power: float

    def __call__(self, slow: Any, fast: Any, taken: jax.Array) -> tuple[Any, Any]:
        """Returns the slow and the fast weights after a step.

        Args:
            slow: a pytree of arrays, those after the step before.
            fast: those that the step led to, of the same structure.
            taken: int32 scalar, steps taken so far, with this one.
        """
        begun, due = taken > self.start, (taken - self.start) % self.every == 0
        decay = self.decay * (taken / self.steps) ** self.power

        def slower(slow, fast):
            return jnp.where(begun, jnp.where(due, fast + decay * (slow - fast), slow), fast)

        new = jax.tree.map(slower, slow, fast)
        return new, jax.tree.map(lambda new, fast: jnp.where(due, new, fast), new, fast)


def create(config: ConfigDict, steps: int) -> Lookahead | None:
    """Returns the lookahead of the `optim` section for a run of so many steps; `None` if it is off."""
    if not config.lookahead_every:
        return None
    start = round(config.lookahead_from * steps)
    return Lookahead(config.lookahead_every, start, steps, config.lookahead_decay, config.lookahead_power)


def problems(config: ConfigDict, steps: int) -> list[str]:
    """Returns one line if the slow weights would never be updated in a run of so many steps."""
    found = create(config, steps)
    if found is None or found.start + found.every <= steps:
        return []
    return [
        f"optim.lookahead_every={found.every}: the first time would be step {found.start + found.every}, but the last "
        f"step is {steps}, so the network of step {found.start} would be evaluated; for example "
        "--config.optim.lookahead_every=1 or --config.optim.lookahead_from=0.0"
    ]
