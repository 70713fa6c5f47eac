"""Several processes that train one model together: how they connect, agree and end."""

import contextlib
import faulthandler
import json
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax

from imgclf_jax.devices import job, joining, peers
from imgclf_jax.errors import UserError, format_error
from imgclf_jax.terminal import interrupt

Result = TypeVar("Result")

HEARTBEAT_SECONDS = 60  # After this time without a sign of life, a process counts as dead and all others end.
AGREE_SECONDS = 24 * 3600  # The first process may be downloading; the heartbeat notices if it dies.
_RESTART = "Start the same command again in all processes to continue from the last checkpoint"
_agreements = 0
_last_words: list[Callable[[str], None]] = []


@contextlib.contextmanager
def session(coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int) -> Iterator[None]:
    """Connects the processes of a job while the block lasts; does nothing if this process is the only one.

    In a job of several processes, an error in the block is printed and ends this process at once. It must not wait for
    the others, which may be waiting for it. They notice its end by the broken connection, or by the missing heartbeat
    after `HEARTBEAT_SECONDS`.

    Args:
        coordinator: HOST:PORT where process 0 listens; "auto" lets JAX find it (Kubernetes, Cloud TPU); `None`: the
            address that SLURM or Open MPI gives if it has started several processes, otherwise a single process.
        num_processes: the number of processes in the job; `None`: the launcher's value.
        process_id: the rank of this process, from 0; `None`: the launcher's value.
        seconds: how long to wait for the other processes.

    Raises:
        UserError: the arguments are inconsistent, or a process is missing.
    """
    # JAX's own heartbeat ends the process without a message. It has a longer timeout, so it acts only if ours fails.
    with joining.join(coordinator, num_processes, process_id, seconds, 2 * HEARTBEAT_SECONDS + 30) as joined:
        if not joined:
            yield
            return
        # When a process dies, native code ends the others too. The stacks of all their threads would not help.
        faulthandler.enable(file=2, all_threads=False)
        client, process, count = job.place()
        assert process is not None and count is not None
        watch = peers.Watch(client, process, count, HEARTBEAT_SECONDS, _lost)
        try:
            yield
        except BaseException as error:
            if reason := _cut_off(error):  # During a save, this looks like a failed save.
                peers.leave(3, f"error: another process of this job {reason}. {_RESTART}")
            if isinstance(error, UserError):
                peers.leave(2, format_error(error))
            if isinstance(error, KeyboardInterrupt):
                peers.leave(*interrupt.ending(error))
            peers.leave(1, traceback.format_exc())
        watch.stop()
        jax.distributed.shutdown()


def when_lost(function: Callable[[str], None]) -> None:
    """Registers a function to call, with a reason, before this process ends because another one does not answer.

    The function is called in another thread, and its exceptions are ignored.
    """
    _last_words.append(function)


def _lost(process):
    reason = (
        f"process {process} of this job has not answered for {HEARTBEAT_SECONDS} s: it, its machine or the network "
        "is down or stopped"
    )
    for function in _last_words:
        with contextlib.suppress(Exception):
            function(reason)
    peers.leave(3, f"error: {reason}. {_RESTART}")


def _cut_off(error):
    """Returns how another process broke a collective operation; empty if none did. Ignores other connections."""
    while error is not None:
        text = str(error)
        collective = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text
        if collective and ("Connection closed by peer" in text or "Connection reset by peer" in text):
            return "has ended; see what it printed"
        if "Gloo" in text and "DEADLINE_EXCEEDED" in text:
            return "does not answer in time: it is stopped, its machine is overloaded, or the network fails"
        error = error.__cause__ or error.__context__
    return ""


def several() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process prints and writes: it is the first of several, or the only one."""
    return not several() or jax.process_index() == 0


def gather(text: str) -> list[str]:
    """The texts of all processes, in order. All processes must call it, the same number of times."""
    global _agreements
    if not several():
        return [text]
    _agreements += 1
    client = job.place().client
    client.key_value_set(f"imgclf_jax/{_agreements}/{jax.process_index()}", text)
    keys = [f"imgclf_jax/{_agreements}/{process}" for process in range(jax.process_count())]
    return [_get(client, key) for key in keys]


def _get(client, key):
    """The text of another process. Waits for a second at a time, because native code does not react to signals."""
    end = time.monotonic() + AGREE_SECONDS
    while True:
        try:
            return client.blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error) or time.monotonic() > end:
                raise


def together(function: Callable[[], Result]) -> Result:
    """Calls a function in every process and returns its result; raises `UserError` in all if any of them raised it."""
    result, failure = _attempt(function)
    raise_together(failure)
    return result  # type: ignore[return-value]


def first_alone(function: Callable[[], Result]) -> Result:
    """Like `together`, but the others begin after the first process has finished, and can use what it left on disk."""
    result, failure = _attempt(function) if is_first() else (None, "")
    raise_together(failure)
    if not is_first():
        result, failure = _attempt(function)
    if several():
        raise_together(failure)
    return result  # type: ignore[return-value]


def from_first(function: Callable[[], Result]) -> Result:
    """Calls a function in the first process only and returns its result, which must fit into JSON, in all processes.

    A decision that depends on a shared disk must be made once, because machines may see different states of it. Raises
    `UserError` in all processes if the first one raised it.
    """
    result, failure = _attempt(function) if is_first() else (None, "")
    raise_together(failure)
    return json.loads(gather(json.dumps(result))[0]) if several() else result  # type: ignore[return-value]


def raise_together(failure: str) -> None:
    """Raises `UserError` in all processes if `failure` is not empty in any of them."""
    failures = gather(failure)
    if failure:
        raise UserError(failure)
    for process, text in enumerate(failures):
        if text:
            raise UserError(f"process {process} stopped: {text}")


def same(what: str, text: str, explain: Callable[[str, str], str]) -> None:
    """Raises `UserError` in all processes unless all of them pass the same text.

    Args:
        what: the name of the compared thing, for the message.
        text: the text of this process.
        explain: (text of another process, text of the first) -> how they differ.
    """
    texts = gather(text)
    for process, other in enumerate(texts):
        if other != texts[0]:
            raise UserError(f"process {process} has a different {what} from process 0: {explain(other, texts[0])}")


def _attempt(function):
    try:
        return function(), ""
    except UserError as error:
        return None, str(error) or "error"
