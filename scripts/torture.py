"""Disturbs runs at random for several minutes and compares their results, bit for bit, with those of undisturbed runs.

    python scripts/torture.py --minutes=30 [--seed=0] [--workers=2] [--only=kill,freeze] [--keep=DIR] [--output=FILE]
    python scripts/torture.py --replay=SEED:NUMBER [--keep=DIR]     # repeats one try and shows every step of it

Kinds of harm:

KINDS

Runs that were interrupted must end with the rows, results and checkpoint arrays of the undisturbed run. Damage must
be repaired, or the command must be refused: with a message, an exit status other than 0, and nothing changed on disk.
The script prints a table with one row per kind and one column per outcome: identical; refused; wrong (other
numbers, something changed or lost, a signal ignored); traceback; silent (an end or a loss without a message); hang.
`--output` writes every try to a JSON file.

A try is a function of the seed and its number, except for the moments at which signals arrive. The folders of
failed tries are kept, at most three per kind and outcome; everything else is deleted at the end. The runs have about a
thousand parameters and 14 steps. Most are forked from a process that has imported everything; some are new processes.
The exit status is 0; 1 if anything is not as expected; or 130 after Ctrl-C or SIGTERM.
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torture_damage
import torture_kinds
import torture_places
from torture_judge import BAD
from torture_processes import Processes, Stopped, inherit_default_signals
from torture_runs import World
from torture_try import Try

# Kind -> how often it is tried, relative to the others.
KINDS: dict[Callable[[Try], None], int] = {
    torture_kinds.control: 1,
    torture_kinds.kill: 8,
    torture_kinds.start: 2,
    torture_kinds.freeze: 3,
    torture_kinds.worker: 1,
    torture_kinds.job: 3,
    torture_places.full: 5,
    torture_places.output: 4,
    torture_damage.damage: 16,
    torture_damage.lost: 2,
    torture_damage.launcher: 3,
    torture_damage.cache: 8,
}
BY_NAME = {kind.__name__: kind for kind in KINDS}
COLUMNS = ("identical", "refused", *BAD)
KEPT = 3  # the number of folders of each kind and outcome
PROGRESS_SECONDS = 60


def main(arguments: list[str] | None = None) -> int:
    """Runs the stress test and returns the exit status."""
    options = parse(arguments)
    inherit_default_signals()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it like Ctrl-C: cleanly and with a table.
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="torture-", dir=options.keep))
    processes = Processes(options.timeout)
    world = World(folder, processes)
    tries: list[dict[str, Any]] = []
    status = 0
    try:
        if options.replay:
            seed, number = options.replay
            tries.append(one_try(world, seed, number, lambda text: print(f"  {text}", flush=True)))
        else:
            run_tries(world, options, tries)
    except KeyboardInterrupt:
        status = 130
    finally:
        processes.stop()
        print(table(tries))
        failed = [one for one in tries if one["outcome"] in BAD]
        clean(folder, keep_all=bool(options.replay and options.keep), keep=[one for one in failed if one["folder"]])
        if options.output:
            options.output.write_text(json.dumps({"seed": options.seed, "tries": tries}, indent=2) + "\n")
    return status or int(bool(failed))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line; exits with status 2 if it has a mistake."""
    kinds = "\n".join(f"    {name:<9} {first_line(kind)}" for name, kind in BY_NAME.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("KINDS", kinds), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--tries", type=int, help="stop after this many tries, even if there is time left")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="number of simultaneous tries")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(BY_NAME), help="comma-separated")
    parser.add_argument("--timeout", type=float, default=240, help="seconds after which a process counts as hung")
    parser.add_argument("--keep", type=Path, help="folder for failed tries; default: the system's temporary folder")
    parser.add_argument("--output", type=Path, help="file for a report as JSON")
    parser.add_argument("--replay", type=seed_and_number, help="SEED:NUMBER of a try to repeat")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only) - set(BY_NAME)):
        parser.error(f"--only={','.join(options.only)}: {unknown[0]!r} is not a kind; choose from {','.join(BY_NAME)}")
    return options


def seed_and_number(text: str) -> tuple[int, int]:
    """Parses "SEED:NUMBER"."""
    seed, _, number = text.partition(":")
    return int(seed), int(number)


def first_line(kind: Callable[..., None]) -> str:
    """Returns the first line of the docstring of a kind, which says what it does."""
    return (kind.__doc__ or "").splitlines()[0]


def draw(seed: int, number: int) -> tuple[Callable[[Try], None], random.Random]:
    """Returns the kind of a try, and the generator for everything else that it draws."""
    draws = random.Random(f"{seed}:{number}")
    return draws.choices(list(KINDS), list(KINDS.values()))[0], draws


def one_try(world: World, seed: int, number: int, log: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Runs one try and returns its entry in the report. Raises `Stopped` if the stress test is ending."""
    kind, draws = draw(seed, number)
    folder, began = world.folder / f"{seed}-{number}-{kind.__name__}", time.monotonic()
    current = Try(world, folder, draws, log)
    folder.mkdir(parents=True)
    current.note(f"{kind.__name__}: {first_line(kind)}")
    try:
        kind(current)
    except Stopped:
        raise
    except Exception:  # A fault of the stress test itself must neither end it nor go unnoticed.
        current.findings.add("wrong", "torture.py itself failed: " + traceback.format_exc())
    for bad, what in current.findings.bad:
        log(f"{bad}: {what}")
    return {
        "kind": kind.__name__,
        "number": number,
        "outcome": current.findings.outcome(),
        "findings": current.findings.bad,
        "plan": current.plan,
        "seconds": round(time.monotonic() - began, 1),
        "replay": f"python scripts/torture.py --replay={seed}:{number}",
        "folder": str(folder),
    }


def run_tries(world: World, options: argparse.Namespace, tries: list[dict[str, Any]]) -> None:
    """Runs tries until the time is up, several at a time, and adds their entries to `tries`."""
    began = shown = time.monotonic()
    ends = began + 60 * options.minutes
    numbers = (number for number in itertools.count() if wanted(options, number))
    left = options.tries if options.tries is not None else 10**9
    kept: collections.Counter[tuple[str, str]] = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        running: set[concurrent.futures.Future[dict[str, Any]]] = set()
        try:
            while True:
                while len(running) < options.workers and left > 0 and time.monotonic() < ends:
                    running.add(pool.submit(one_try, world, options.seed, next(numbers)))
                    left -= 1
                if not running:
                    return
                done, running = concurrent.futures.wait(running, 1, concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    take(future.result(), tries, kept)
                if time.monotonic() - shown > PROGRESS_SECONDS:
                    shown = time.monotonic()
                    bad = sum(one["outcome"] in BAD for one in tries)
                    minutes = max(ends - shown, 0) / 60
                    print(f"{len(tries)} tries, {bad} not as expected, ETA {minutes:.1f} min", flush=True)
        except BaseException:
            world.processes.stop()  # The pool's threads end with `Stopped`.
            raise


def wanted(options: argparse.Namespace, number: int) -> bool:
    """Whether the kind of a try was requested."""
    return draw(options.seed, number)[0].__name__ in options.only


def take(one: dict[str, Any], tries: list[dict[str, Any]], kept: collections.Counter[tuple[str, str]]) -> None:
    """Adds a try to the others, prints it if it failed, and deletes its folder unless it is kept."""
    tries.append(one)
    case = one["kind"], one["outcome"]
    kept[case] += 1
    if one["outcome"] not in BAD or kept[case] > KEPT:
        shutil.rmtree(one["folder"], ignore_errors=True)
        one["folder"] = None
    if one["outcome"] in BAD:
        print(f"{one['replay']}  # {one['kind']}", flush=True)
        for bad, what in one["findings"]:
            print(f"    {bad}: {what}", flush=True)
        if one["folder"]:
            print(f"    {one['folder']}", flush=True)


def table(tries: list[dict[str, Any]]) -> str:
    """Makes the table: one row per kind that was tried, and one for all of them."""
    lines = [f"{'kind':<9}" + "".join(f"{name:>11}" for name in ("tries", *COLUMNS))]
    names = [name for name in BY_NAME if any(one["kind"] == name for one in tries)]
    for name in [*names, "all"]:
        outcomes = collections.Counter(one["outcome"] for one in tries if name in (one["kind"], "all"))
        counts = [outcomes.total(), *(outcomes[column] for column in COLUMNS)]
        lines.append(f"{name:<9}" + "".join(f"{count:>11}" for count in counts))
    return "\n".join(lines)


def clean(folder: Path, keep_all: bool, keep: list[dict[str, Any]]) -> None:
    """Deletes everything except the folders of tries that failed."""
    if keep_all:
        return
    names = {Path(one["folder"]).name for one in keep}
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)
    if not names:
        folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
