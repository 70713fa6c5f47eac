"""Several processes that train one model together: how they find each other, agree, and end together."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax._src import distributed  # The coordinator's key-value store has no public name.

from imgclf_jax.errors import UserError, told

Result = TypeVar("Result")

HEARTBEAT_SECONDS = 60  # After so long without a sign of life a process is taken for dead, and all others end.
SHUTDOWN_SECONDS = 60
AGREE_SECONDS = 24 * 3600  # The first process may be downloading; that it lives is the heartbeat's business.
# Launcher -> the variables that hold the number of processes and this one's place among them.
LAUNCHERS = {
    "SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPICH": ("PMI_SIZE", "PMI_RANK"),
}
_agreements = 0


@contextlib.contextmanager
def session(coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int) -> Iterator[None]:
    """Connects the processes of a job for as long as the block lasts; one process that is alone passes through.

    In a job of several, an error in the block ends this process at once, after telling it: to wait for others, who may
    be waiting for this one, would be to hang. They notice it by the broken connection, or by the missing heartbeat
    after `HEARTBEAT_SECONDS`.

    Args:
        coordinator: HOST:PORT where process 0 listens; "auto" lets JAX find it (Kubernetes, Cloud TPU); `None`: what
            SLURM or Open MPI say, where they started several processes, and otherwise a single process.
        num_processes: of the job; `None`: the launcher's.
        process_id: this one's, from 0; `None`: the launcher's.
        seconds: how long to wait for the other processes.

    Raises:
        UserError: the arguments make no sense; a process that is missing.
    """
    if not _connect(coordinator, num_processes, process_id, seconds):
        yield
        return
    try:
        yield
    except BaseException as error:
        if _cut_off(error):  # Also where it came while saving, and is told as a checkpoint that could not be written.
            _leave(3, "error: another process of this job has ended; see what it printed. " + _GO_ON)
        if isinstance(error, UserError):
            _leave(2, told(error))
        if isinstance(error, KeyboardInterrupt):
            _leave(130, "stopped")
        _leave(1, traceback.format_exc())
    jax.distributed.shutdown()


_GO_ON = "The same command, started again in all processes, goes on from the last checkpoint"


def _cut_off(error):
    """Whether another process has closed the connection of a collective; other connections are none of our business."""
    while error is not None:
        text = str(error)
        collective = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text
        if collective and ("Connection closed by peer" in text or "Connection reset by peer" in text):
            return True
        error = error.__cause__ or error.__context__
    return False


def several() -> bool:
    """Whether this process is one of several."""
    return distributed.global_state.client is not None and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process prints and writes: the first of several, or the only one."""
    return not several() or jax.process_index() == 0


def gather(text: str) -> list[str]:
    """Every process's text, in their order. All processes must call it, equally often."""
    global _agreements
    if not several():
        return [text]
    _agreements += 1
    client: Any = distributed.global_state.client
    client.key_value_set(f"imgclf_jax/{_agreements}/{jax.process_index()}", text)
    keys = [f"imgclf_jax/{_agreements}/{process}" for process in range(jax.process_count())]
    return [client.blocking_key_value_get(key, AGREE_SECONDS * 1000) for key in keys]


def together(function: Callable[[], Result]) -> Result:
    """Calls a function in every process and returns its result, or raises `UserError` in all if any of them did."""
    result, failure = _attempt(function)
    raise_together(failure)
    return result  # type: ignore[return-value]


def first_alone(function: Callable[[], Result]) -> Result:
    """Like `together`, but the first process has finished before the others begin: they find what it left on disk."""
    result, failure = _attempt(function) if is_first() else (None, "")
    raise_together(failure)
    if not is_first():
        result, failure = _attempt(function)
    if several():
        raise_together(failure)
    return result  # type: ignore[return-value]


def from_first(function: Callable[[], Result]) -> Result:
    """Calls a function in the first process alone and returns its result, which JSON must be able to hold, in all.

    What is decided by looking at a shared disk must be decided once: machines may see it at different moments. Raises
    `UserError` in all processes if it was raised in the first.
    """
    result, failure = _attempt(function) if is_first() else (None, "")
    raise_together(failure)
    return json.loads(gather(json.dumps(result))[0]) if several() else result  # type: ignore[return-value]


def raise_together(failure: str) -> None:
    """Raises `UserError` in all processes if any of them has something to say."""
    failures = gather(failure)
    if failure:
        raise UserError(failure)
    if told := next(((process, text) for process, text in enumerate(failures) if text), None):
        raise UserError(f"process {told[0]} stopped: {told[1]}")


def same(what: str, text: str, explain: Callable[[str, str], str]) -> None:
    """Raises `UserError` in all processes unless all of them bring the same text.

    Args:
        what: what it is, for the message.
        text: this process's.
        explain: (text of another process, text of the first) -> how they differ.
    """
    texts = gather(text)
    for process, other in enumerate(texts):
        if other != texts[0]:
            raise UserError(f"process {process} has another {what} than process 0: {explain(other, texts[0])}")


def _attempt(function):
    try:
        return function(), ""
    except UserError as error:
        return None, str(error) or "error"


def _connect(coordinator, num_processes, process_id, seconds):
    """Whether this process is now one of several."""
    launcher = next((name for name in LAUNCHERS if (_launched(name)[0] or 1) > 1), None)
    if coordinator is None:
        for name, value in (("num_processes", num_processes), ("process_id", process_id)):
            if value is not None:
                raise UserError(f"--{name} needs --coordinator, the HOST:PORT where process 0 listens")
        if launcher is None:
            return False
    explicit = coordinator not in (None, "auto")
    if launcher and explicit:
        size, rank = _launched(launcher)
        num_processes = size if num_processes is None else num_processes
        process_id = rank if process_id is None else process_id
    if explicit:
        _check(coordinator, num_processes, process_id)
        if num_processes == 1:
            return False
    who = f"process {process_id} of {num_processes}" if explicit else f"a process started by {launcher or 'a cluster'}"
    with _deadline(seconds, f"{who} waited {seconds} s in vain for the others: {_reason(coordinator, process_id)}"):
        try:
            jax.distributed.initialize(
                coordinator if explicit else None,
                num_processes,
                process_id,
                cluster_detection_method="deactivate" if explicit else None,
                # Longer than the deadline: when this one passes, JAX aborts with a stack trace.
                initialization_timeout=seconds + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{who} cannot join the others: {reason}; say --coordinator=HOST:PORT") from error
    # JAX has taken SIGTERM for a service of its own, which does not end the process. Python's idea of it is put back.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return True


def _launched(launcher):
    """(number of processes, this one's place), as far as the launcher's variables say them in numbers."""
    values = (os.environ.get(name, "") for name in LAUNCHERS[launcher])
    return tuple(int(value) if value.isdecimal() else None for value in values)


def _check(coordinator, num_processes, process_id):
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"--coordinator={coordinator} must be HOST:PORT, or auto")
    if num_processes is None or process_id is None:
        raise UserError("--coordinator needs --num_processes and --process_id, unless SLURM or MPI say them")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} must be from 0 to --num_processes={num_processes} minus 1")


def _reason(coordinator, process_id):
    if coordinator in (None, "auto") or process_id == 0:
        return "one has not been started, or cannot reach the coordinator"
    return f"nothing answers at --coordinator={coordinator}, or another process is missing"


@contextlib.contextmanager
def _deadline(seconds, message):
    """Ends the process with a message if the block takes longer."""
    timer = threading.Timer(seconds, _leave, (2, f"error: {message}"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _leave(code, message):
    """Ends this process now: an orderly end would wait for all others."""
    name = f"{socket.gethostname()}, process {distributed.global_state.process_id}: "
    print("\n".join(name + line for line in message.splitlines()), file=sys.stderr, flush=True)
    sys.stdout.flush()
    if distributed.global_state.process_id == 0:
        time.sleep(2)  # The others lose their coordinator: they shall have time to say what they have to say.
    os._exit(code)
