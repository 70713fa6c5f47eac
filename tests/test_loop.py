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

    def run_steps(state, meter, data, count):
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
