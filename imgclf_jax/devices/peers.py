"""Watches whether the other processes of a job still respond, and ends this one if it cannot continue without them."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from imgclf_jax.devices import job

BEATS = 10  # the number of signs of life within the time after which a process counts as dead
_KEY = "imgclf_jax/alive/"
_DONE = "done"
_LOST = "lost "


class Watch:
    """Sends signs of life through the coordinator's store, and looks for those of the others.

    JAX does the same in native code, but ends this process without a message that a user can act on. The first process
    watches all others, and they watch the first.

    Args:
        client: JAX's client, connected to the coordinator.
        process: the rank of this process in the job, from 0.
        processes: the number of processes in the job.
        seconds: the time without a sign of life after which a process counts as dead.
        lost: called with the rank of that process, in a thread of the watch.
    """

    def __init__(self, client: Any, process: int, processes: int, seconds: float, lost: Callable[[int], None]):
        self._client = client
        self._process = process
        self._lost = lost
        watched = range(1, processes) if process == 0 else (0,)
        self._silent = dict.fromkeys(watched, 0)  # beats since the last sign of life
        self._last: dict[int, str | None] = {}
        self._seconds = seconds
        self._stopped = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        threading.Thread(target=self._count, daemon=True).start()

    def stop(self) -> None:
        """Lets the others know not to expect more signs of life. Afterwards, the client may be shut down."""
        self._stopped.set()
        self._beating.join(self._seconds)
        with contextlib.suppress(Exception):
            self._give(_DONE)

    def _beat(self):
        beats = 0
        while not self._stopped.wait(self._seconds / BEATS):
            beats += 1
            with contextlib.suppress(Exception):  # If no answer comes, `_count` notices.
                self._give(str(beats))
                self._look()

    def _give(self, sign):
        self._client.key_value_set(f"{_KEY}{self._process}", sign, allow_overwrite=True)

    def _look(self):
        if self._process == 0:
            signs = {int(key.rpartition("/")[2]): sign for key, sign in self._client.key_value_dir_get(_KEY)}
        else:
            signs = {0: self._client.key_value_try_get(f"{_KEY}0")}
            if signs[0].startswith(_LOST):  # The first process is about to end, and the store ends with it.
                self._lost(int(signs[0].removeprefix(_LOST)))
        for process in self._silent:
            sign = signs.get(process)
            if sign != self._last.get(process) or sign == _DONE:
                self._silent[process] = 0
            self._last[process] = sign

    def _announce(self, process):
        self._stopped.set()
        with contextlib.suppress(Exception):
            self._give(f"{_LOST}{process}")
            time.sleep(1.5 * self._seconds / BEATS)  # The others look at every beat.

    def _count(self):
        # Counts beats, not seconds of a clock: the time during which this process itself was stopped must not count.
        while not self._stopped.wait(self._seconds / BEATS):
            for process, silent in self._silent.items():
                self._silent[process] = silent + 1
                if silent >= BEATS and not self._stopped.is_set():
                    if self._process == 0:
                        self._announce(process)
                    self._lost(process)
                    return


def leave(code: int, message: str) -> None:
    """Prints a message and ends this process now: an orderly end would wait for all others.

    Args:
        code: the exit status.
        message: one or more lines for standard error. Each is prefixed with the host and the process.
    """
    process = job.place().process
    name = f"{socket.gethostname()}, process {process}: "
    with contextlib.suppress(Exception):  # Standard output may be lost.
        print("\n".join(name + line for line in message.splitlines()), file=sys.stderr, flush=True)
        sys.stdout.flush()
    if process == 0:
        time.sleep(2)  # The others lose their coordinator: give them time to print their own messages.
    os._exit(code)
