"""Times epochs of the Keras CIFAR-10 tutorial, on TensorFlow and on JAX, and of the same network here, in turns.

    python3.11 -m venv keras && keras/bin/pip install tensorflow keras jax
    python scripts/bench_keras.py --keras_python=keras/bin/python
    python scripts/bench_keras.py --keras_python=keras/bin/python --backends=jax --rounds=1 --images=6400

The network is that of https://www.tensorflow.org/tutorials/images/cnn: convolutions of 32, 64 and 64 channels, a dense
layer of 64, Adam, float32, batches of 32. Keras trains it as readers of the tutorial do, with `model.fit` on arrays,
but for the progress bar and the validation after each epoch, which are left out. Ours is `configs/tutorial_cnn.py` as
training runs it. Every side shuffles, trains on every image of an epoch and computes the loss and the accuracy; ours
leaves out the last, partial batch, and the images that are counted are those trained on.

Keras and TensorFlow are in an environment of their own, whose Python --keras_python names: this package never imports
TensorFlow. Each backend is a process, `keras_worker.py`, that waits while another side is measured. The first epochs,
which compile, are not timed. Nothing else should run on the machine.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import unrecorded
from absl import flags
from bench_step import describe_machine, limit_cores

from imgclf_jax.config import to_json
from imgclf_jax.data.types import Split
from imgclf_jax.devices import xla
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.cli import begin_work, parse, run_tool
from imgclf_jax.terminal.console import Console

FLAGS = flags.FLAGS
BACKENDS = ("tensorflow", "jax")
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "tutorial_cnn.py"
PAUSE_SECONDS = 1.0  # before a measurement: the threads of the side before spin for a while before they sleep
WARMUP_BATCHES = 4


def define_flags() -> None:
    """Defines the flags of this tool. `imgclf_jax.terminal.cli` adds `--config` and its overrides."""
    flags.DEFINE_string("keras_python", None, "Python of an environment that has Keras and its backends.")
    flags.DEFINE_list("backends", list(BACKENDS), f"Backends of Keras to measure, out of {', '.join(BACKENDS)}.")
    flags.DEFINE_integer("rounds", 3, "How many epochs of each side, in turns.", lower_bound=1)
    flags.DEFINE_integer("images", 0, "Training images of an epoch; 0: all.", lower_bound=0)
    flags.DEFINE_string("json", None, "File to write all numbers to.")


def main(argv: list[str]) -> int:
    """Parses the command line, measures and prints. Returns the exit status."""
    define_flags()
    if not any(argument.startswith(("--config=", "-config=")) for argument in argv):
        argv = [argv[0], f"--config={CONFIG}", *argv[1:]]
    config = parse(argv)
    assert config is not None
    python = check(FLAGS.keras_python, FLAGS.backends, FLAGS.json)
    cores = limit_cores(0)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves GPU memory for Keras
    xla.configure_xla()
    begin_work()
    console = Console()
    if FLAGS.images:
        config.data.train_split = f"train[:{FLAGS.images}]"
    loaded = unrecorded.load(config, console)
    machine = describe_machine(cores, None)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save(loaded.dataset.splits["train"], folder)
        sides: dict[str, Side] = {"ours": Ours(loaded, console)}
        for backend in FLAGS.backends:
            console.print(f"starting Keras on {backend}")
            sides[f"Keras on {backend}"] = Keras(stack.enter_context(worker(python, backend, folder)), backend)
        size = config.train.batch_size
        for side in sides.values():
            side.warm_up(size)
        machine |= {name: side.versions for name, side in sides.items() if side.versions}
        console.print(", ".join(machine.values()))
        if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > cores + 1:
            console.warn(f"load average {load:.1f} on {cores} cores: others compute too; do not trust the times")
        rates = measure(sides, size, FLAGS.rounds, console)
    results = summarize(rates)
    report(console, results)
    if FLAGS.json:
        record = {"machine": machine, "config": to_json(loaded.config), **results}
        Path(FLAGS.json).write_text(json.dumps(record, indent=2) + "\n")
    return 0


def check(python: str | None, backends: list[str], record: str | None) -> str:
    """Checks the flags, and returns the path of Keras' Python. Raises `UserError` if one of them is wrong."""
    if not python:
        raise UserError("--keras_python is missing; for example --keras_python=keras/bin/python")
    found = shutil.which(python)
    if found is None:
        raise UserError(f"--keras_python={python}: there is no such program")
    if unknown := [backend for backend in backends if backend not in BACKENDS]:
        raise UserError(f"--backends={','.join(backends)}: {unknown[0]!r} is not one of {', '.join(BACKENDS)}")
    if record and not Path(record).absolute().parent.is_dir():
        raise UserError(f"--json={record}: the folder does not exist")
    return found


def save(split: Split, folder: Path) -> None:
    """Writes the training images for the workers."""
    np.save(folder / "images.npy", np.asarray(split.images[:]))
    np.save(folder / "labels.npy", split.labels)


class Ours:
    """Training here."""

    versions = ""

    def __init__(self, loaded: unrecorded.Loaded, console: Console):
        """Compiles everything."""
        self._ready = unrecorded.ready(loaded, console)

    def warm_up(self, batch_size: int) -> None:
        """Takes the first steps, and throws their result away."""
        with xla.quiet():
            unrecorded.take(self._ready, unrecorded.begin(self._ready, 0), WARMUP_BATCHES)

    def epoch(self, batch_size: int) -> tuple[int, float]:
        """Trains an epoch. Returns the number of images and the seconds."""
        steps = self._ready.plan.steps_per_epoch
        training = unrecorded.begin(self._ready, 0)
        return steps * batch_size, unrecorded.seconds_of(lambda: unrecorded.take(self._ready, training, steps))


class Keras:
    """Training in a process of `keras_worker.py`."""

    def __init__(self, process: subprocess.Popen[str], backend: str):
        """Waits until it has started."""
        self._process, self._backend = process, backend
        hello = self._answer()
        self.versions = hello["versions"]
        self._images = hello["images"]

    def warm_up(self, batch_size: int) -> None:
        """Compiles the step for whole batches and for the last one, which may be smaller."""
        rest = self._images % batch_size
        self._fit(min(WARMUP_BATCHES * batch_size + rest, self._images), batch_size)

    def epoch(self, batch_size: int) -> tuple[int, float]:
        """Trains an epoch. Returns the number of images and the seconds."""
        answer = self._fit(self._images, batch_size)
        return answer["images"], answer["seconds"]

    def _fit(self, images, batch_size):
        assert self._process.stdin
        print(json.dumps({"images": images, "batch_size": batch_size}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"Keras on {self._backend} has ended with status {self._process.wait()}; see above")
        return json.loads(line)


Side = Ours | Keras


@contextlib.contextmanager
def worker(python: str, backend: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs `keras_worker.py` with a backend for the time of the block."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    environment |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    command = [python, str(Path(__file__).with_name("keras_worker.py")), str(folder)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def measure(sides: dict[str, Any], batch_size: int, rounds: int, console: Console) -> dict[str, list[float]]:
    """Returns the images per second of an epoch of each side in each round; every other round runs backwards."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides) if index % 2 == 0 else reversed(sides):
            time.sleep(PAUSE_SECONDS)
            images, seconds = sides[name].epoch(batch_size)
            rates[name].append(images / seconds)
            console.print(f"round {index + 1}/{rounds}: {name}: {images:,} images in {seconds:.1f} s")
    return rates


def summarize(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Returns, by the name of a side, `images_per_second` of every round, their `median`, and `ours` divided by it."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "sides": {
            name: {"images_per_second": values, "median": medians[name], "ours": medians["ours"] / medians[name]}
            for name, values in rates.items()
        }
    }


def report(console: Console, results: dict[str, Any]) -> None:
    """Prints the results of `summarize`."""
    rows = []
    for name, side in results["sides"].items():
        values = side["images_per_second"]
        rows.append((name, *(f"{value:,.0f}" for value in (side["median"], min(values), max(values)))))
        rows[-1] = (*rows[-1], "" if name == "ours" else f"{side['ours']:.2f} ×")
    console.print()
    console.table(("images/s in whole epochs", "median", "lowest", "highest", "ours is"), rows)


if __name__ == "__main__":
    sys.exit(run_tool(main))
