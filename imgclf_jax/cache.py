"""List what was kept to start faster, or remove it: `python -m imgclf_jax.cache [FOLDER...] [--clear[=KIND]]`.

The kinds are data (decoded data sets and facts about them), photos (decoded photos) and programs (compiled programs).
Everything is made again when it is needed. Caches are in the user's cache folder and in hidden folders next to data;
the latter are listed if this user has used them, or if the folder with the data is given. What a running process uses
is kept, and so is everything that is not a cache of this package.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import os
import sys
import time
from pathlib import Path

from absl import flags

from imgclf_jax.data import kept
from imgclf_jax.devices import programs
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import reason_of
from imgclf_jax.terminal import cli

FLAGS = flags.FLAGS
ALL = "all"


def define_flags() -> None:
    """Defines the flags of this tool."""
    kinds = [ALL, *kept.KINDS, "programs"]
    flags.DEFINE_enum("clear", None, kinds, "Remove the caches of this kind; --clear alone removes all.")


def main(argv: list[str]) -> int:
    """Parses the command line; lists or removes the caches. Returns the exit status."""
    define_flags()
    roots = [Path(name).expanduser() for name in cli.parse_flags(_with_value(argv), positional=True)]
    if missing := [str(root) for root in roots if not root.is_dir()]:
        raise UserError(f"{', '.join(missing)}: no such folder; give the folder that holds the data")
    cli.begin_work()
    failed = False
    for place in kept.places(roots):
        failed |= _data(place, FLAGS.clear)
    failed |= _programs(FLAGS.clear)
    return 1 if failed else 0


def _with_value(argv: list[str]) -> list[str]:
    return [f"--clear={ALL}" if argument in ("--clear", "-clear") else argument for argument in argv]


def _data(place: Path, clear: str | None) -> bool:
    """Lists a folder of decoded data, and removes what is to be removed. Returns whether anything could not be."""
    found, others = kept.entries(place)
    failed = False
    print(f"{place}  {_size(sum(entry.size for entry in found))}")
    facts: dict[tuple[str, str], list[kept.Entry]] = {}
    for entry in found:
        state = ""
        if clear in (ALL, entry.kind):
            try:
                state = "removed" if kept.remove(entry) else "kept: a running process uses it"
            except OSError as error:
                failed, state = True, f"cannot be removed: {reason_of(error)}"
        if entry.path.suffix == ".json":
            facts.setdefault((entry.kind, state), []).append(entry)
        else:
            print(_line(entry.kind, entry.size, entry.used, entry.path.name, state))
    for (kind, state), files in facts.items():
        size, used = sum(file.size for file in files), max(file.used for file in files)
        print(_line(kind, size, used, f"{len(files)} file{'s' * (len(files) > 1)} of facts", state))
    if left := [path.name for path in others if not path.name.startswith(".tmp-")]:
        print(f"  not ours, never removed: {', '.join(left)}")
    if clear:
        kept.tidy(place)
    return failed


def _programs(clear: str | None) -> bool:
    folder = Path(os.environ.get(programs.VARIABLE) or programs.folder())
    found = programs.programs(folder)
    if not found:
        return False
    size = sum(program.size for program in found)
    if os.environ.get(programs.VARIABLE):
        print(f"{folder}  {_size(size)}")
        line = _line("programs", size, found[-1].used, f"{len(found)} programs", "")
        print(f"{line}; of all programs that set {programs.VARIABLE}, so not limited or removed by this one")
        return False
    print(f"{folder}  {_size(size)}, at most {_size(programs.LIMIT)}")
    state = ""
    if clear in (ALL, "programs"):
        removed = sum(map(programs.remove, found))
        state = "removed" if removed == len(found) else f"{removed} removed; the others cannot be removed"
    print(_line("programs", size, found[-1].used, f"{len(found)} programs", state))
    return bool(state) and state != "removed"


def _line(kind: str, size: int, used: float, name: str, state: str) -> str:
    return f"  {kind:8}  {_size(size):>9}  used {_ago(time.time() - used):>14}  {name}" + (
        f": {state}" if state else ""
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' * (number > 1)} ago"
    return "just now"


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
