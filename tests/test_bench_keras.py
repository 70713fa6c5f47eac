"""scripts/bench_keras.py talks to its workers as it should, and counts correctly; Keras itself is not needed."""

import io
import sys

import bench_keras
import pytest
from bench_keras import Keras, check, measure, summarize, worker

from imgclf_jax.errors import UserError
from imgclf_jax.terminal.console import Console

# In the place of a Python that has Keras: an epoch of N images takes N seconds. It notes its commands.
FAKE = """#!{python}
import json, sys
print(json.dumps({{"versions": "Keras 0", "images": 1000, "parameters": 1}}), flush=True)
for line in sys.stdin:
    command = json.loads(line)
    print(line, file=open({notes!r}, "a"), end="")
    print(json.dumps({{"seconds": command["images"], "images": command["images"]}}), flush=True)
"""


@pytest.fixture
def fake(tmp_path):
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(FAKE.format(python=sys.executable, notes=str(notes)))
    python.chmod(0o755)
    with worker(str(python), "jax", tmp_path) as process:
        yield Keras(process, "jax"), notes


def test_warm_up_has_whole_batches_and_the_last_partial_one(fake):
    side, notes = fake
    assert side.versions == "Keras 0"
    side.warm_up(32)
    assert side.epoch(32) == (1000, 1000)
    first, second = notes.read_text().splitlines()
    assert f'"images": {4 * 32 + 1000 % 32}' in first and '"batch_size": 32' in first
    assert '"images": 1000' in second


def test_a_worker_without_keras_is_reported(tmp_path):
    with worker(sys.executable, "jax", tmp_path) as process, pytest.raises(UserError, match="has ended with status 1"):
        Keras(process, "jax")


def test_sides_take_turns(monkeypatch):
    monkeypatch.setattr(bench_keras, "PAUSE_SECONDS", 0)
    order = io.StringIO()

    class Side:
        def __init__(self, name, rates):
            self.name, self.rates = name, iter(rates)

        def epoch(self, batch_size):
            order.write(self.name)
            return 100, 100 / next(self.rates)

    sides = {"ours": Side("o", [20, 40, 60]), "Keras on jax": Side("k", [8, 2, 10])}
    results = summarize(measure(sides, 32, 3, Console("silent")))["sides"]
    assert order.getvalue() == "okkook"
    assert results["Keras on jax"]["images_per_second"] == pytest.approx([8, 2, 10])
    assert (results["Keras on jax"]["median"], results["Keras on jax"]["ours"]) == pytest.approx((8, 5))
    assert (results["ours"]["median"], results["ours"]["ours"]) == pytest.approx((40, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, ["jax"], None), "--keras_python is missing"),
        (("/nowhere/python", ["jax"], None), "there is no such program"),
        ((sys.executable, ["torch"], None), "'torch' is not one of tensorflow, jax"),
        ((sys.executable, ["jax"], "/nowhere/x.json"), "the folder does not exist"),
    ],
)
def test_mistakes_are_reported(arguments, message):
    with pytest.raises(UserError, match=message):
        check(*arguments)
