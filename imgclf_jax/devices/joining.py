"""How the processes of a job find each other: through flags, or through the environment variables of a launcher."""

import contextlib
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from imgclf_jax.devices import peers
from imgclf_jax.errors import UserError
from imgclf_jax.terminal import interrupt

SHUTDOWN_SECONDS = 60
# Launcher -> the variables that hold the number of processes and the rank of this one.
LAUNCHERS = {
    "SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPICH": ("PMI_SIZE", "PMI_RANK"),
}
_POLL_SECONDS = 0.1


@contextlib.contextmanager
def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int, heartbeat: int
) -> Iterator[bool]:
    """Connects this process with the others; takes the arguments of `imgclf_jax.devices.processes.session`.

    Args:
        coordinator: HOST:PORT, "auto" or `None`; as in `session`.
        num_processes: the number of processes in the job; `None`: the launcher's value.
        process_id: the rank of this process, from 0; `None`: the launcher's value.
        seconds: how long to wait for the others.
        heartbeat: the number of seconds after which JAX ends this process because another one is silent.

    Yields:
        Whether this process is now one of several.

    Raises:
        UserError: the arguments are inconsistent, another process has the same rank, or the processes cannot connect.
            If others are missing after `seconds`, the process prints a line and ends with status 2.
    """
    launcher = next((name for name in LAUNCHERS if (_launched(name)[0] or 1) > 1), None)
    if coordinator is None:
        for name, value in (("num_processes", num_processes), ("process_id", process_id)):
            if value is not None:
                raise UserError(f"--{name} needs --coordinator, the HOST:PORT where process 0 listens")
    explicit = coordinator not in (None, "auto")
    if launcher and explicit:
        size, rank = _launched(launcher)
        num_processes = size if num_processes is None else num_processes
        process_id = rank if process_id is None else process_id
    if explicit:
        _check(coordinator, num_processes, process_id)
    if num_processes == 1 if explicit else coordinator is None and launcher is None:
        yield False
        return
    this_process = (
        f"process {process_id} of {num_processes}" if explicit else f"a process started by {launcher or 'a cluster'}"
    )

    def initialize():
        jax.distributed.initialize(
            coordinator if explicit else None,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if explicit else None,
            # Longer than our deadline: when this one passes, JAX aborts with a stack trace.
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )

    with _claimed(coordinator, process_id) if explicit else contextlib.nullcontext(lambda: None) as check:
        try:
            waited = _in_time(initialize, seconds, check)
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{this_process} cannot join the others: {reason}; give --coordinator=HOST:PORT") from error
        if not waited:
            reason = _reason(coordinator, process_id)
            peers.leave(2, f"error: {this_process} timed out after waiting {seconds} s for the others: {reason}")
        # JAX has replaced the handler of SIGTERM with one that does not end the process. Restore Python's.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        yield True


def _in_time(function: Callable[[], None], seconds: float, check: Callable[[], None]) -> bool:
    """Whether a function that waits in native code ends in time. Meanwhile, handles signals and calls `check`."""
    errors: list[BaseException] = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    try:
        while thread.is_alive() and time.monotonic() < end:
            thread.join(_POLL_SECONDS)
            check()
    except KeyboardInterrupt as error:  # There is no other way to end the thread.
        peers.leave(*interrupt.ending(error))
    except UserError as error:
        peers.leave(2, f"error: {error}")
    if errors:
        raise errors[0]
    return not thread.is_alive()


@contextlib.contextmanager
def _claimed(coordinator, process_id):
    """Claims a rank in a job while the block lasts, as a name that exists only once on this machine.

    Yields:
        A function that raises `UserError` if another process has claimed the same rank.
    """
    if sys.platform != "linux":  # Other systems do not have such names.
        yield lambda: None
        return
    name = "\0imgclf_jax-" + hashlib.sha256(f"{coordinator} {process_id}".encode()).hexdigest()
    problem = UserError(
        f"two processes of the job at {coordinator} have --process_id={process_id}; each of them needs its own, from 0 "
        "to --num_processes minus 1"
    )
    with socket.socket(socket.AF_UNIX) as place:
        try:
            place.bind(name)
        except OSError:
            with contextlib.suppress(OSError):
                place.connect(name)  # The other process notices this.
            raise problem from None
        place.listen()
        place.setblocking(False)

        def check():
            with contextlib.suppress(BlockingIOError):
                place.accept()[0].close()
                raise problem

        yield check


def _launched(launcher):
    """(number of processes, rank of this one) from the variables of a launcher; `None` if not a number."""
    values = (os.environ.get(name, "") for name in LAUNCHERS[launcher])
    return tuple(int(value) if value.isdecimal() else None for value in values)


def _check(coordinator, num_processes, process_id):
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"--coordinator={coordinator} must be HOST:PORT, or auto")
    if num_processes is None or process_id is None:
        raise UserError("--coordinator needs --num_processes and --process_id, unless SLURM or MPI provides them")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} must be from 0 to --num_processes={num_processes} minus 1")


def _reason(coordinator, process_id):
    if coordinator in (None, "auto") or process_id == 0:
        return "another process has not been started, or cannot reach the coordinator"
    return f"nothing answers at --coordinator={coordinator}, or another process is missing"
