"""Several processes that train one model together: how they find each other, agree, and end together."""

import contextlib
import faulthandler
import json
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax._src import distributed  # The coordinator's key-value store has no public name.

from imgclf_jax.devices import joining, peers
from imgclf_jax.errors import UserError, format_error
from imgclf_jax.terminal import interrupt

Result = TypeVar("Result")

HEARTBEAT_SECONDS = 60  # After so long without a sign of life a process is taken for dead, and all others end.
AGREE_SECONDS = 24 * 3600  # The first process may be downloading; that it lives is the heartbeat's business.
_GO_ON = "The same command, started again in all processes, goes on from the last checkpoint"
_agreements = 0
_last_words: list[Callable[[str], None]] = []


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
    # JAX's own heartbeat ends the process without a message. It has a longer timeout, so it acts only if ours fails.
    with joining.join(coordinator, num_processes, process_id, seconds, 2 * HEARTBEAT_SECONDS + 30) as joined:
        if not joined:
            yield
            return
        # When a process dies, native code ends the others too. The stacks of all their threads would say nothing.
        faulthandler.enable(file=2, all_threads=False)
        state = distributed.global_state
        assert state.process_id is not None and state.num_processes is not None
        watch = peers.Watch(state.client, state.process_id, state.num_processes, HEARTBEAT_SECONDS, _lost)
        try:
            yield
        except BaseException as error:
            if reason := _cut_off(error):  # Perhaps while saving: then it looks like a failed save.
                peers.leave(3, f"error: another process of this job {reason}. {_GO_ON}")
            if isinstance(error, UserError):
                peers.leave(2, format_error(error))
            if isinstance(error, KeyboardInterrupt):
                peers.leave(*interrupt.ending(error))
            peers.leave(1, traceback.format_exc())
        watch.stop()
        jax.distributed.shutdown()


def when_lost(function: Callable[[str], None]) -> None:
    """Registers a function, to be called with a reason before this process ends because another one does not answer.

    The function is called in another thread, and its exceptions are ignored.
    """
    _last_words.append(function)


def _lost(process):
    reason = (
        f"process {process} of this job has not answered for {HEARTBEAT_SECONDS} s: it, its machine or the network "
        "is down or stands still"
    )
    for function in _last_words:
        with contextlib.suppress(Exception):
            function(reason)
    peers.leave(3, f"error: {reason}. {_GO_ON}")


def _cut_off(error):
    """What another process has done to a collective; empty if nothing. Other connections are none of our business."""
    while error is not None:
        text = str(error)
        collective = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text
        if collective and ("Connection closed by peer" in text or "Connection reset by peer" in text):
            return "has ended; see what it printed"
        if "Gloo" in text and "DEADLINE_EXCEEDED" in text:
            return "does not answer in time: it stands still, its machine is overloaded, or the network fails"
        error = error.__cause__ or error.__context__
    return ""


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
    """Calls a function in the first process only and returns its result, which must fit into JSON, in all processes.

    A decision that depends on a shared disk must be made once, because machines may see different states of it. Raises
    `UserError` in all processes if the first one raised it.
    """
    result, failure = _attempt(function) if is_first() else (None, "")
    raise_together(failure)
    return json.loads(gather(json.dumps(result))[0]) if several() else result  # type: ignore[return-value]


def raise_together(failure: str) -> None:
    """Raises `UserError` in all processes if any of them has something to say."""
    failures = gather(failure)
    if failure:
        raise UserError(failure)
    for process, text in enumerate(failures):
        if text:
            raise UserError(f"process {process} stopped: {text}")


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
