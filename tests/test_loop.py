"""loop.py: what a run's rates say, by a clock that only computing, reading and evaluating move."""

import numpy as np
import pytest

from imgclf_jax.training import loop, multistep
from imgclf_jax.training.plan import Plan

BATCH = 10
COMPUTE, READ, EVALUATE = 0.25, 6.0, 1000.0  # seconds a step, a chunk, an evaluation


class State:
    def __init__(self, step):
        self.step = step


class Clock:
    """Time, and a device that works one dispatch after the other while the host goes on."""

    def __init__(self):
        self.now = self.free = 0.0

    def perf_counter(self):
        return self.now

    def compute(self, seconds):
        self.free = max(self.free, self.now) + seconds
        return self.free


class Sums(dict):
    """The meter of a dispatch, which is there when the device is done."""

    def __init__(self, clock, ready, count):
        super().__init__(multistep.empty_meter() | {"count": np.int32(count)})
        self.clock, self.ready = clock, ready


def run(monkeypatch, steps, chunk, *, start=0, rates_from=0, every=10, eval_every=0):
    """The rates of the rows, by step; chunks of `chunk` steps are read when they are asked for (0: data is there)."""
    clock, rates = Clock(), {}
    monkeypatch.setattr(loop, "time", clock)

    def device_get(sums):
        clock.now = max(clock.now, sums.ready)
        return dict(sums)

    monkeypatch.setattr(loop.jax, "device_get", device_get)
    held = [start // chunk if chunk else 0]

    def feed(step, wanted):
        if not chunk:
            return (), wanted
        number, within = divmod(step, chunk)
        if number != held[0]:
            held[0] = number
            clock.now += READ
        return (), min(wanted, chunk - within)

    def run_steps(state, meter, data, count, step):
        ready = clock.compute(COMPUTE * int(count))
        return State(state.step + int(count)), Sums(clock, ready, count)

    def progress(now):
        if now.row:
            rates[now.step] = now.images_per_second

    def evaluate(state, step):
        clock.now += EVALUATE

    hooks = loop.Hooks(progress, evaluate, lambda *_: None, lambda: 0)
    plan = Plan(steps, steps, 0, eval_every, 0, every, BATCH * steps, 0)
    loop.run(plan, hooks, loop.Work(run_steps, feed, dict, BATCH, 0, rates_from), State(start), {})
    return rates


@pytest.mark.parametrize("eval_every", [0, 7, 30])
def test_rates_of_data_on_the_device_are_those_of_computing(monkeypatch, eval_every):
    rates = run(monkeypatch, 90, 0, eval_every=eval_every)
    assert list(rates) == list(range(10, 91, 10))
    assert list(rates.values()) == pytest.approx([BATCH / COMPUTE] * 9)


@pytest.mark.parametrize("eval_every", [0, 7, 30])
@pytest.mark.parametrize("chunk", [30, 64])
def test_waiting_for_a_chunk_is_spread_over_its_steps(monkeypatch, chunk, eval_every):
    # What was read before training began is no measure of anything: these rows have no rate.
    rates = run(monkeypatch, 4 * chunk, chunk, rates_from=chunk, eval_every=eval_every)
    assert all(rate is None for step, rate in rates.items() if step <= chunk)
    known = [rate for step, rate in rates.items() if step >= chunk + 10]
    true = BATCH / (COMPUTE + READ / chunk)
    # A chunk is asked for while the steps before it are still being computed: at most that much is saved.
    assert all(0.9 * true < rate < 1.7 * true for rate in known), known
    assert np.mean(known) == pytest.approx(true, rel=0.25)


def test_a_run_that_goes_on_in_the_middle_of_a_chunk_has_rates_from_the_next(monkeypatch):
    rates = run(monkeypatch, 90, 30, start=20, rates_from=30)
    assert rates[30] is None and rates[40] is not None


# What the loop calls, and when


class Recorder:
    """Fake work and hooks that write down what the loop does."""

    def __init__(self, stop_at=None, bad_step=None, chunk=None):
        self.events, self.stop_at, self.bad_step, self.chunk = [], stop_at, bad_step, chunk
        self.step = 0

    def run_steps(self, state, meter, data, count, step):
        assert step == state.step
        self.step = step + count
        self.events.append(("run", self.step))
        bad = -1 if self.bad_step is None or self.step < self.bad_step else self.bad_step
        sums = {"count": np.int32(count * BATCH), "steps": np.int32(count), "bad_step": np.int32(bad)}
        return State(self.step), multistep.empty_meter() | meter | sums

    def feed(self, step, wanted):
        return step, min(wanted, self.chunk - step % self.chunk) if self.chunk else wanted

    def hooks(self):
        return loop.Hooks(
            lambda now: self.events.append(("row" if now.row else "progress", now.step)),
            lambda state, step: self.events.append(("evaluate", step)) or 0.5,
            lambda state, meter, step, accuracy: self.events.append(("save", step, accuracy)),
            lambda: 15 if self.stop_at is not None and self.step >= self.stop_at else 0,
        )

    def train(self, steps=12, start=0, *, log=4, evaluate=0, checkpoint=0, per_dispatch=100):
        plan = Plan(steps, steps, 0, evaluate, checkpoint, log, BATCH * steps, 0)
        work = loop.Work(self.run_steps, self.feed, dict, BATCH, per_dispatch)
        _, step, stopped = loop.run(plan, self.hooks(), work, State(start), {})
        return step, stopped

    def of(self, *kinds):
        return [event for event in self.events if event[0] in kinds]


def test_rows_evaluations_and_checkpoints_come_at_their_steps():
    recorder = Recorder()
    assert recorder.train(evaluate=6, checkpoint=5) == (12, 0)
    assert recorder.of("run") == [("run", step) for step in (4, 5, 6, 8, 10, 12)]
    assert recorder.of("row") == [("row", 4), ("row", 8), ("row", 12)]
    assert recorder.of("evaluate") == [("evaluate", 6), ("evaluate", 12)]
    assert recorder.of("save") == [("save", 5, None), ("save", 6, 0.5), ("save", 10, None), ("save", 12, 0.5)]


def test_all_results_are_known_before_anything_is_saved():
    recorder = Recorder()
    recorder.train(checkpoint=3, per_dispatch=1)
    for index, event in enumerate(recorder.events):
        if event[0] == "save":
            assert recorder.events[index - 1] in [("evaluate", event[1]), ("progress", event[1]), ("row", event[1])]


def test_one_dispatch_stays_in_flight():
    recorder = Recorder()
    recorder.train(8, log=100, per_dispatch=1)
    reported = [event[1] for event in recorder.of("progress", "row")]
    assert reported == list(range(1, 9))
    assert recorder.events[:3] == [("run", 1), ("run", 2), ("progress", 1)]


def test_a_signal_stops_after_the_dispatch_and_saves():
    recorder = Recorder(stop_at=3)
    assert recorder.train(per_dispatch=1) == (3, 15)
    assert recorder.of("save") == [("save", 3, None)]
    assert recorder.of("evaluate") == []


def test_a_step_that_is_not_finite_is_never_saved():
    recorder = Recorder(bad_step=5)
    with pytest.raises(multistep.Diverged) as raised:
        recorder.train(checkpoint=6, per_dispatch=1)
    assert raised.value.step == 5
    assert recorder.of("save") == []


def test_no_dispatch_goes_past_the_data_at_hand():
    recorder = Recorder(chunk=5)
    recorder.train(13, log=100)
    assert recorder.of("run") == [("run", 5), ("run", 10), ("run", 13)]


def test_a_run_without_steps_left_does_nothing():
    recorder = Recorder()
    assert recorder.train(start=12) == (12, 0)
    assert recorder.events == []
