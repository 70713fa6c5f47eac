"""The runs that `torture.py` disturbs: what they train, where, and how they end undisturbed."""

import csv
import dataclasses
import hashlib
import io
import json
import re
import shutil
import socket
import threading
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torture_processes import Processes, Run

MAIN = "imgclf_jax.main"
STEPS = 14
HALF_SAVES = 4  # the number of checkpoints after which the run of `World.half` is killed
# Under a thousand parameters, but with everything that has to survive an interruption. The intervals of
# rows, evaluations and checkpoints (4, 7 and 3 steps) do not divide each other.
COMMON = (
    "--config=configs/cnn.py",
    "--config.model.widths=(4,4,4)",
    "--config.model.hidden=(8,)",
    "--config.model.dropout=0.2",
    "--config.optim.ema_decay=0.9",
    "--config.train.last_batch=wrap",
    "--config.train.epochs=2",
    "--config.train.steps_per_dispatch=2",
    "--config.log.every_steps=4",
    "--config.log.line_seconds=0",
    "--config.checkpoint.every_steps=3",
)
SAMPLE = ("--config.data.source=sample", "--config.data.train_split=train[:5000]", "--config.train.batch_size=64")
PHOTOS = ("--config.data.source=folder", "--config.data.image_size=(32,32)", "--config.train.batch_size=6")
STREAMED = ("--config.data.max_device_bytes=1", "--config.data.workers=2")
RECIPES = {
    "resident": (*COMMON, *SAMPLE),
    "streamed": (*COMMON, *SAMPLE, *STREAMED),
    "photos": (*COMMON, *PHOTOS),
    "photos-streamed": (*COMMON, *PHOTOS, *STREAMED, "--config.data.pixels=standardized"),
    "job": (*COMMON, *SAMPLE),  # two processes
}
TOOLS = ("eval", "predict", "export", "report")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The parts of a complete run that are compared.

    Attributes:
        rows: the rows of metrics.jsonl, without the columns that depend on the clock.
        table: the rows of metrics.csv, without the columns that depend on the clock.
        record: the fields of run.json that must be the same.
        digest: the SHA-256 of all arrays of the last checkpoint.
    """

    rows: list[dict[str, Any]]
    table: list[dict[str, str]]
    record: dict[str, Any]
    digest: str


class World:
    """The folders that all tries share, and the undisturbed runs in them, which are made on first use.

    Args:
        folder: the folder for everything.
        processes: starts the runs.
    """

    def __init__(self, folder: Path, processes: Processes):
        self.folder = folder
        self.processes = processes
        self.cache = folder / "cache"
        self.photos = make_photos(folder / "photos")
        self._made: dict[Any, Any] = {}
        self._locks: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def environment(self, cache: Path | None = None) -> dict[str, str]:
        """Returns the environment variables of a run whose caches are in `cache`."""
        return {"XDG_CACHE_HOME": str(cache or self.cache)}

    def arguments(self, recipe: str, workdir: Path, photos: Path | None = None) -> list[str]:
        """Returns the command line that trains."""
        data = [f"--config.data.dir={photos or self.photos}"] if recipe.startswith("photos") else []
        return [*RECIPES[recipe], *data, f"--workdir={workdir}"]

    def train(self, logs: Path, recipe: str, workdir: Path, cache: Path | None = None, **options: Any) -> list[Run]:
        """Starts a training run: one process, or the two of a job. The undisturbed run is made first."""
        self.reference(recipe)
        return self._train(logs, recipe, workdir, cache, **options)

    def reference(self, recipe: str) -> tuple[Path, Outcome, float]:
        """Returns (workdir, outcome, seconds) of an undisturbed run whose programs had been compiled before."""
        return self._once(("reference", recipe), lambda: self._reference(recipe))

    def half(self, recipe: str) -> Path:
        """Returns the workdir of a run that was killed after `HALF_SAVES` checkpoints. Not for jobs."""
        return self._once(("half", recipe), lambda: self._half(recipe))

    def product(self, recipe: str, tool: str, half: bool) -> Any:
        """Returns the result of a tool on the half-done or the complete run; `None` if the tool refuses it."""
        return self._once(("product", recipe, tool, half), lambda: self._product(recipe, tool, half))

    def start_tool(
        self, logs: Path, tool: str, workdir: Path, output: Path, env: dict[str, str], **options: Any
    ) -> Run:
        """Starts eval, predict, export or report on a workdir, with its result in `output` if it has one."""
        some = [str(path) for path in sorted(self.photos.rglob("test/*/*.png"))]
        module, arguments = {
            "eval": (MAIN, ["--mode=eval"]),
            "predict": ("imgclf_jax.predict", ["--format=csv", f"--output={output}", *some]),
            "export": ("imgclf_jax.export", [f"--output={output}"]),
            "report": ("imgclf_jax.report", [f"--output={output}"]),
        }[tool]
        return self.processes.start(logs, module, [f"--workdir={workdir}", *arguments], env, **options)

    def _train(self, logs, recipe, workdir, cache=None, **options):
        arguments, env = self.arguments(recipe, workdir), self.environment(cache)
        if recipe != "job":
            return [self.processes.start(logs, MAIN, arguments, env, **options)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = [*arguments, f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--connect_seconds=60"]
        return [
            self.processes.start(logs, MAIN, [*job, f"--process_id={process}"], env, **options) for process in range(2)
        ]

    def _once(self, key, make):
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]

    def _reference(self, recipe):
        for name in (f"{recipe}-first", recipe):  # The first run compiles, so the second one takes the usual time.
            workdir, began = self.folder / "references" / name, time.monotonic()
            shutil.rmtree(workdir, ignore_errors=True)
            for run in self._train(self.folder / "logs", recipe, workdir):
                if self.processes.finish(run).code != 0:
                    raise RuntimeError(f"an undisturbed run failed{' to end' * run.hung}: {run.command}\n{run.text()}")
            seconds = time.monotonic() - began
        return workdir, outcome(workdir), seconds

    def _half(self, recipe):
        self.reference(recipe)
        workdir = self.folder / "references" / f"{recipe}-half"
        (run,) = self._train(self.folder / "logs", recipe, workdir, die_at_save=HALF_SAVES)
        self.processes.finish(run)
        if run.code != -9:
            raise RuntimeError(
                f"a run should have been killed, but was not: {run.command}\n{run.text('out')}{run.text()}"
            )
        return workdir

    def _product(self, recipe, tool, half):
        source = self.half(recipe) if half else self.reference(recipe)[0]
        output = self.folder / "references" / f"{recipe}-{tool}-{half}"
        run = self.start_tool(self.folder / "logs", tool, source, output, self.environment())
        self.processes.finish(run)
        return product(tool, run, output) if run.code == 0 else None


def product(tool: str, run: Run, output: Path) -> Any:
    """Returns the part of a tool's result that must be the same every time."""
    if tool == "eval":
        return re.findall(r"^step .* accuracy .*$", run.text("out"), re.MULTILINE)
    if tool == "predict":
        return output.read_text()
    if tool == "report":
        return (output / "predictions.csv").read_text(), (output / "index.html").exists()
    with zipfile.ZipFile(output) as archive:
        about = json.loads(archive.read("model.json"))
        return archive.read("model.stablehlo"), about["class_names"], about["image_shape"], about["step"]


def outcome(workdir: Path) -> Outcome:
    """Reads the parts of a complete run that are compared.

    Raises:
        ValueError, KeyError, OSError: anything is damaged.
    """
    record = json.loads((workdir / "run.json").read_text())
    kept = {name: record.get(name) for name in ("status", "step", "reported_step", "results")}
    kept["fingerprint"] = record["data"]["fingerprint"]
    return Outcome(rows(workdir), table(workdir), kept, digest(workdir, STEPS))


def rows(workdir: Path) -> list[dict[str, Any]]:
    """Reads the rows of metrics.jsonl, without the columns that depend on the clock."""
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in logged]


def table(workdir: Path) -> list[dict[str, str]]:
    """Reads the rows of metrics.csv, without the columns that depend on the clock."""
    logged = csv.DictReader(io.StringIO((workdir / "metrics.csv").read_text()))
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in logged]


_restoring = threading.Lock()


def digest(workdir: Path, step: int) -> str:
    """Returns the SHA-256 of all arrays of a checkpoint and their paths in the tree."""
    import jax
    from absl import logging

    from imgclf_jax.workdir.checkpoint import Checkpoints

    with _restoring, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.FATAL)
        checkpoints = Checkpoints(workdir, read_only=True)
        try:
            tree = checkpoints.restore(step)
        except Exception as error:
            raise ValueError(f"checkpoint {step}: {error}") from error
        finally:
            checkpoints.close()
        total = hashlib.sha256()
        for path, leaf in jax.tree.leaves_with_path(tree):
            total.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return total.hexdigest()


def make_photos(root: Path) -> Path:
    """Writes SPLIT/CLASS/n.png for three classes: 42, 9 and 9 photos, all different."""
    seed = 0
    for split, count in (("train", 14), ("validation", 3), ("test", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for number in range(count):
                seed += 1
                pixels = np.random.RandomState(seed).randint(0, 200, (40, 36, 3)) + np.eye(3, dtype=int)[label] * 55
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root
