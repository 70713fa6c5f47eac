"""Times ten seeds of a config: as commands one after another, and as one sweep in one process.

    python scripts/bench_seeds.py                                          # softmax, mlp and tutorial_cnn
    python scripts/bench_seeds.py --configs mlp --seeds 32 --epochs 10     # for example on a GPU

Both ways train, evaluate, and write complete run directories, into a temporary folder. The commands are those of a
shell loop over `--config.seed`, so each one imports, compiles and places the data again; the sweep does all of that
once. `--seeds_per_process` makes dense networks one batch; those with convolutions train one after another on one
device, and one on each of several. The data set must be prepared and decoded before. The two ways take turns, and the
medians of the rounds are compared. Nothing else should run on the machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Parses the command line, measures and prints. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["softmax", "mlp", "tutorial_cnn"])
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--epochs", type=float, default=1.0, help="length of a run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write all numbers to")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.configs:
        flags = [
            f"--config={PROJECT / 'configs' / name}.py",
            f"--config.train.epochs={arguments.epochs}",
            "--config.train.steps=0",
        ]
        measured = [both(flags, arguments.seeds) for _ in range(arguments.rounds)]
        commands, sweep = (statistics.median(times) for times in zip(*measured, strict=True))
        results[name] = {"commands": commands, "sweep": sweep, "rounds": measured}
        print(
            f"{name}: {arguments.seeds} seeds of {arguments.epochs:g} epochs: {commands:.1f} s as commands, "
            f"{sweep:.1f} s as one sweep, {commands / sweep:.1f} times as fast",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def both(flags: list[str], seeds: int) -> tuple[float, float]:
    """Returns the seconds of the commands and of the sweep."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for seed in range(seeds):
            run("imgclf_jax.main", *flags, f"--config.seed={seed}", f"--workdir={folder}/alone/{seed}")
        middle = time.perf_counter()
        run("imgclf_jax.sweep", *flags, f"--seeds={seeds}", f"--seeds_per_process={seeds}", f"--workdir={folder}/sweep")
        return middle - began, time.perf_counter() - middle


def run(module: str, *flags: str) -> None:
    """Runs a tool of the package, which must succeed."""
    subprocess.run([sys.executable, "-m", module, *flags], check=True, stdout=subprocess.DEVNULL, cwd=PROJECT)


if __name__ == "__main__":
    sys.exit(main())
