"""The folder in which JAX keeps compiled programs, and a limit of its size. Imports no JAX.

JAX's own limit (`jax_compilation_cache_max_size`) needs the package filelock, makes processes wait for a lock at each
program and, in 0.10, fails on programs that were kept before the limit was set. So old programs are removed here, when
a process starts.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

LIMIT = 2_000_000_000  # bytes; some thousand programs for a CPU take a tenth of it
VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_PROGRAM = re.compile(r"[\w.<>-]+-[0-9a-f]{64}-cache")  # as JAX names them; "-atime" belongs to its own limit


class Program(NamedTuple):
    """A compiled program in the folder.

    Attributes:
        path: its file.
        size: in bytes.
        used: when it was last read or written, in seconds since the epoch. Many file systems update this once a day.
    """

    path: Path
    size: int
    used: float


def folder() -> Path:
    """Returns our own folder, which is used unless $JAX_COMPILATION_CACHE_DIR is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgclf_jax" / "xla"


def programs(folder: Path) -> list[Program]:
    """Returns the programs in a folder, the least recently used first. A folder that cannot be read has none."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _PROGRAM.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # Another process removed it.
                    stat = entry.stat(follow_symlinks=False)
                    used = max(stat.st_atime, stat.st_mtime)
                    found.append(Program(Path(entry.path), stat.st_size, used))
    return sorted(found, key=lambda program: program.used)


def remove(program: Program) -> bool:
    """Removes a program; returns whether it is gone. A process that needs it compiles it."""
    with contextlib.suppress(OSError):
        program.path.with_name(program.path.name.removesuffix("-cache") + "-atime").unlink(missing_ok=True)
        program.path.unlink(missing_ok=True)
        return True
    return False


def trim(folder: Path, limit: int = LIMIT) -> int:
    """If programs take more than `limit` bytes, removes the least recently used until they take 3/4 of it.

    Returns:
        The number of programs that were removed.
    """
    found = programs(folder)
    size = sum(program.size for program in found)
    removed = 0
    if size > limit:
        for program in found:
            if size <= limit * 3 // 4:
                break
            if remove(program):
                size -= program.size
                removed += 1
    return removed
