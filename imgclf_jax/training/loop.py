"""The training loop: dispatches ahead of the results, and at the right steps writes rows, evaluates and saves."""

import collections
import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from imgclf_jax.training import multistep
from imgclf_jax.training.state import TrainState
from imgclf_jax.training.validate import Plan

# Long enough that the cost of a dispatch vanishes, short enough that the progress bar moves and Ctrl-C is heard.
SECONDS_A_DISPATCH = 0.5


class Diverged(Exception):
    """The loss, a gradient or a parameter is not finite. `step`: the step that made it so, counted from 1."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


class Progress(NamedTuple):
    """What is known after a dispatch.

    Attributes:
        step: steps taken.
        loss: mean over the examples since the last row.
        accuracy: likewise, on augmented images.
        images_per_second: likewise, not counting evaluation and saving. The time that was spent waiting for a chunk of
            streamed data is spread evenly over the steps of that chunk. `None` if it is not known yet.
        row: whether a row of the metrics files is due.
    """

    step: int
    loss: float
    accuracy: float
    images_per_second: float | None
    row: bool


class Hooks(NamedTuple):
    """What the loop calls.

    Attributes:
        progress: called in order with the results of every dispatch, one dispatch late.
        evaluate: (state, step) -> validation accuracy or `None`; called at evaluation steps and at the end.
        save: (state, meter, step, validation accuracy or `None`) after evaluations, at checkpoint steps, at the end
            and when asked to stop.
        stop: the number of the signal that asked to stop, or 0; asked between dispatches.
        agree: where several processes train together, [signal, -steps] int32 [2] -> the highest that any of them
            brings, on the device; `None` for one process.
    """

    progress: Callable[[Progress], None]
    evaluate: Callable[[TrainState, int], float | None]
    save: Callable[[TrainState, multistep.Meter, int, float | None], None]
    stop: Callable[[], int]
    agree: Callable[[np.ndarray], jax.Array] | None = None


def run(
    plan: Plan,
    hooks: Hooks,
    run_steps: Callable[..., Any],
    feed: Callable[[int, int], tuple[tuple[Any, ...], int]],
    state: TrainState,
    meter: multistep.Meter,
    *,
    batch_size: int,
    steps_per_dispatch: int = 0,
    rates_from: int = 0,
) -> tuple[TrainState, int, int]:
    """Trains from where `state` is to the end of the plan, or until asked to stop.

    Args:
        plan: durations in steps.
        hooks: what to do on the way.
        run_steps: the compiled function of `imgclf_jax.training.multistep`; `state` is donated to it.
        feed: (step, wanted) -> what `run_steps` works on from there, and how many steps it serves, at most `wanted`;
            see `imgclf_jax.training.feed`.
        state: the state to start from.
        meter: sums since the last row.
        batch_size: examples a step.
        steps_per_dispatch: most steps in one dispatch; 0 adapts it to `SECONDS_A_DISPATCH`.
        rates_from: the step from which rates are measured. The data of earlier steps was read before training began,
            so that no time was spent waiting for it here.

    Returns:
        The state, the number of steps it has taken, and the signal that stopped it, or 0.

    Raises:
        Diverged: see there. What was saved before is whole and finite.
        UserError: from `feed`: data that cannot be read.
    """
    step = int(state.step)
    pending: collections.deque = collections.deque()
    watch = _Watch(batch_size)
    longest = proposed = steps_per_dispatch or 1
    stopping = 0

    def settle():
        """Waits for the oldest dispatch in flight and reports it."""
        nonlocal longest, proposed, stopping
        end, count, sums, votes, waiting = pending.popleft()
        sums = jax.device_get(sums)
        if sums["bad_step"] >= 0:
            raise Diverged(int(sums["bad_step"]))
        seconds = watch.tick(count if end - count >= rates_from else 0, waiting)
        if seconds and not steps_per_dispatch:
            # At most doubled: the first measurements are of a single step, and noisy.
            proposed = max(1, min(2 * longest, round(SECONDS_A_DISPATCH * count / seconds)))
        if votes is None:
            longest = proposed
        else:
            # As known when that dispatch was sent off: old news, but the same in all processes, who must all cut the
            # run at the same steps.
            number, steps = (int(value) for value in jax.device_get(votes))
            stopping, longest = max(stopping, number), -steps
        row = _due(end, plan.log_every, plan.steps)
        examples = max(int(sums["count"]), 1)
        hooks.progress(
            Progress(end, float(sums["loss"]) / examples, int(sums["correct"]) / examples, watch.rate(), row)
        )
        if row:
            watch.restart()

    while step < plan.steps:
        if step % plan.log_every == 0:
            meter = multistep.empty_meter()
        count = min(longest, plan.steps - step)
        for every in (plan.log_every, plan.eval_every, plan.checkpoint_every):
            count = min(count, every - step % every) if every else count
        with watch.waiting():
            arguments, rest = feed(step, plan.steps - step)
        count = min(count, rest)
        state, meter = run_steps(state, meter, *arguments, np.int32(count))
        step += count
        votes = hooks.agree(np.array([hooks.stop(), -proposed], np.int32)) if hooks.agree else None
        pending.append((step, count, meter, votes, watch.share(count, rest)))
        # One dispatch stays in flight, so that the device never waits for the host.
        while len(pending) > 1:
            settle()
        if not hooks.agree:
            stopping = hooks.stop()
        evaluating = _due(step, plan.eval_every, plan.steps)
        saving = evaluating or stopping or _due(step, plan.checkpoint_every, plan.steps)
        while saving and pending:  # Before saving, all must be known.
            settle()
        if saving:
            accuracy = hooks.evaluate(state, step) if evaluating else None
            hooks.save(state, meter, step, accuracy)
            watch.resume()
        if stopping:
            break
    return state, step, stopping


def _due(step, every, steps):
    return step == steps or (every > 0 and step % every == 0)


class _Watch:
    """Measures images a second since the last row, leaving out what is not training.

    The loop waits for a whole chunk of streamed data and then uses it up quickly. To give every step the same time, the
    wait for a chunk is spread over the steps that it serves.
    """

    def __init__(self, batch_size):
        self._batch_size = batch_size
        self._unshared = 0.0  # seconds that were spent waiting for the data of steps not yet dispatched
        self.restart()
        self.resume()

    def restart(self):
        self._seconds, self._steps = 0.0, 0

    def resume(self):
        self._last, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self):
        """A context around the call that may wait for data."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._waited += seconds
        self._unshared += seconds

    def share(self, steps, rest):
        """Returns the seconds of waiting that fall to `steps` of the `rest` steps that the data at hand serves."""
        seconds = self._unshared * steps / rest
        self._unshared -= seconds
        return seconds

    def tick(self, steps, waiting):
        """Notes that a dispatch has ended.

        Args:
            steps: how many of its steps are counted.
            waiting: their share of the seconds of waiting, see `share`.

        Returns:
            The seconds that it took; 0 if that is not known, because most of the time was spent waiting for data.
        """
        now = time.perf_counter()
        passed, waited = now - self._last, self._waited
        self._last, self._waited = now, 0.0
        if steps:
            self._seconds += max(passed - waited, 0.0) + waiting
            self._steps += steps
        return passed - waited if waited < passed / 2 else 0.0

    def rate(self):
        return self._steps * self._batch_size / max(self._seconds, 1e-9) if self._steps else None
