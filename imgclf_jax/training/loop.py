"""The training loop. It dispatches ahead of the results and writes rows, evaluates and saves when they are due."""

import collections
import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from imgclf_jax.training import multistep
from imgclf_jax.training.plan import Plan
from imgclf_jax.training.state import TrainState

# Long enough to make the cost of a dispatch negligible, short enough for the progress bar and Ctrl-C to respond.
SECONDS_PER_DISPATCH = 0.5


class Progress(NamedTuple):
    """The results of a dispatch.

    Attributes:
        step: the number of steps taken.
        means: the means, since the last row, of the metrics on augmented images and of `grad_norm`.
        images_per_second: the rate since the last row, excluding evaluation and saving. The time spent waiting for a
            chunk of streamed data is spread evenly over the steps of that chunk. `None` if not known yet.
        row: whether a row of the metrics files is due.
    """

    step: int
    means: Any
    images_per_second: float | None
    row: bool


class Hooks(NamedTuple):
    """The functions that the loop calls.

    Attributes:
        progress: called in order with the results of every dispatch, one dispatch late.
        evaluate: (state, step) -> validation accuracy or `None`; called at evaluation steps and at the end.
        save: (state, meter, step, validation accuracy or `None`) after evaluations, at checkpoint steps, at the end
            and when asked to stop.
        stop: returns the number of the signal that asked to stop, or 0; called between dispatches and after saving.
        agree: if several processes train together, [signal, -steps] int32 [2] -> the elementwise maximum over all of
            them, on the device; `None` for one process.
        over: returns a reason to stop that all processes find at the same step, as a negative number, or 0; called
            before the first step and after saving.
    """

    progress: Callable[[Progress], None]
    evaluate: Callable[[TrainState, int], float | None]
    save: Callable[[TrainState, multistep.Meter, int, float | None], None]
    stop: Callable[[], int]
    agree: Callable[[np.ndarray], jax.Array] | None = None
    over: Callable[[], int] = lambda: 0


class Work(NamedTuple):
    """The work that the loop repeats.

    Attributes:
        run_steps: (state, meter, data, count, step) -> (state, meter), compiled; the buffers of `state` are reused.
            `step` is that of the state, and known on the host.
        feed: (step, wanted) -> the data from that step on, and the number of steps it covers, at most `wanted`.
        empty_meter: returns a meter with all sums at zero, on the devices.
        batch_size: examples per step.
        steps_per_dispatch: the most steps in one dispatch; 0 adapts it to `SECONDS_PER_DISPATCH`.
        rates_from: the step from which rates are measured. The data of earlier steps was read before training began,
            so their rate would leave out the reading.
        means: meter on the host -> what `Progress.means` holds; see `imgclf_jax.training.multistep.means`.
    """

    run_steps: Callable[[TrainState, multistep.Meter, Any, int, int], tuple[TrainState, multistep.Meter]]
    feed: Callable[[int, int], tuple[Any, int]]
    empty_meter: Callable[[], multistep.Meter]
    batch_size: int
    steps_per_dispatch: int = 0
    rates_from: int = 0
    means: Callable[[multistep.Meter], Any] = multistep.means


def run(plan: Plan, hooks: Hooks, work: Work, state: TrainState, meter: multistep.Meter) -> tuple[TrainState, int, int]:
    """Trains from the step of `state` to the end of the plan, or until a signal or a hook asks to stop.

    Args:
        plan: durations in steps.
        hooks: the functions to call along the way.
        work: the work to repeat.
        state: the state to start from. Its buffers are reused.
        meter: the sums since the last row.

    Returns:
        The state, the number of steps it has taken, and what stopped it: a signal, a negative number of a hook, or 0.

    Raises:
        Diverged: see `imgclf_jax.training.multistep.Diverged`. Checkpoints saved before are complete and finite.
        UserError: `work.feed` cannot read the data.
    """
    # It is the same for all, if several runs train together. On the host: `np.max` of a device array is a program.
    step = int(np.asarray(state.step).max())
    flight = _Flight(plan, hooks, work)
    flight.stopping = hooks.over()
    while step < plan.steps and not flight.stopping:
        if step % plan.log_every == 0:
            meter = work.empty_meter()
        # Implicit copies between host and devices would make the devices wait, so they are errors here.
        with jax.transfer_guard("disallow"):
            with flight.watch.waiting():
                data, served = work.feed(step, plan.steps - step)
            count = min(flight.longest, served, _until_due(step, plan))
            state, meter = work.run_steps(state, meter, data, count, step)
        step += count
        flight.send(step, count, served, meter)
        evaluating = _due(step, plan.eval_every, plan.steps)
        saving = evaluating or flight.stopping or _due(step, plan.checkpoint_every, plan.steps)
        if saving:
            flight.settle_all()  # All results must be known before saving.
            accuracy = hooks.evaluate(state, step) if evaluating else None
            hooks.save(state, meter, step, accuracy)
            flight.watch.resume()
            if not hooks.agree:
                flight.stopping = hooks.stop()  # The evaluation may have decided it.
            flight.stopping = flight.stopping or hooks.over()
    return state, step, flight.stopping


class _Flight:
    """The dispatches in flight, whose results are not known yet, and the decisions that follow from their results.

    Attributes:
        watch: measures images per second.
        longest: the largest number of steps in the next dispatch.
        stopping: the signal that asked to stop, or 0.
    """

    def __init__(self, plan, hooks, work):
        self._plan, self._hooks, self._work = plan, hooks, work
        self._pending: collections.deque = collections.deque()
        self.watch = _Watch(work.batch_size)
        self.longest = self._proposed = work.steps_per_dispatch or 1
        self.stopping = 0

    def send(self, end, count, served, meter):
        """Records that a dispatch of `count` steps up to `end` was sent, and settles all earlier ones.

        One dispatch stays in flight, so that the device never waits for the host.
        """
        hooks = self._hooks
        votes = hooks.agree(np.array([hooks.stop(), -self._proposed], np.int32)) if hooks.agree else None
        self._pending.append((end, count, meter, votes, self.watch.share(count, served)))
        while len(self._pending) > 1:
            self._settle()
        if not hooks.agree:
            self.stopping = hooks.stop()

    def settle_all(self):
        """Waits for all dispatches in flight and reports them."""
        while self._pending:
            self._settle()

    def _settle(self):
        """Waits for the oldest dispatch in flight and reports it."""
        end, count, meter, votes, waiting = self._pending.popleft()
        means = self._work.means(jax.device_get(meter))
        seconds = self.watch.tick(count if end - count >= self._work.rates_from else 0, waiting)
        if seconds and not self._work.steps_per_dispatch:
            # At most doubled, because the first measurements cover a single step and are noisy.
            self._proposed = max(1, min(2 * self.longest, round(SECONDS_PER_DISPATCH * count / seconds)))
        if votes is None:
            self.longest = self._proposed
        else:
            # The votes were cast when that dispatch was sent. They are out of date, but equal in all processes, which
            # must all end their dispatches at the same steps.
            number, steps = (int(value) for value in jax.device_get(votes))
            self.stopping, self.longest = max(self.stopping, number), -steps
        row = _due(end, self._plan.log_every, self._plan.steps)
        self._hooks.progress(Progress(end, means, self.watch.rate(), row))
        if row:
            self.watch.restart()


def _until_due(step, plan):
    """Returns the number of steps until a row, an evaluation or a checkpoint is due, or until the stage or run ends."""
    every = (plan.log_every, plan.eval_every, plan.checkpoint_every)
    ends = [stage.first for stage in plan.stages if stage.first > step] + [plan.steps]
    return min(min(ends) - step, *(steps - step % steps for steps in every if steps))


def _due(step, every, steps):
    return step == steps or (every > 0 and step % every == 0)


class _Watch:
    """Measures images per second since the last row, counting only the time spent on training.

    The loop waits for a whole chunk of streamed data and then consumes it quickly. To time all steps alike, the wait
    for a chunk is spread evenly over the steps that it covers.
    """

    def __init__(self, batch_size):
        self._batch_size = batch_size
        self._unshared = 0.0  # seconds of waiting for data that are not yet assigned to a dispatch
        self.restart()
        self.resume()

    def restart(self):
        """Begins a new row."""
        self._seconds, self._steps = 0.0, 0

    def resume(self):
        """Leaves out the time since the last call of `tick`, which was not spent on training."""
        self._last, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self):
        """Measures the time of its block, which may wait for data."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._waited += seconds
        self._unshared += seconds

    def share(self, steps, rest):
        """Returns the share of the waiting time for `steps` of the `rest` steps that the current data still covers."""
        seconds = self._unshared * steps / rest
        self._unshared -= seconds
        return seconds

    def tick(self, steps, waiting):
        """Records that a dispatch has ended.

        Args:
            steps: the number of its steps that count towards the rate.
            waiting: their share of the waiting time in seconds; see `share`.

        Returns:
            The seconds that the dispatch took; 0 if unknown, because most of the time was spent waiting for data.
        """
        now = time.perf_counter()
        passed, waited = now - self._last, self._waited
        self._last, self._waited = now, 0.0
        if steps:
            self._seconds += max(passed - waited, 0.0) + waiting
            self._steps += steps
        return passed - waited if waited < passed / 2 else 0.0

    def rate(self):
        """Returns the images per second since the last row, or `None` before the first counted step."""
        return self._steps * self._batch_size / max(self._seconds, 1e-9) if self._steps else None
