"""Calls of Python functions from compiled programs, on arrays where they are, on XLA's threads.

XLA calls C functions that are registered by name (https://docs.jax.dev/en/latest/ffi.html). Here such a function is a
Python function with the structures of XLA's header `xla/ffi/api/c_api.h`, version 0.3. No compiler is needed, and
unlike in `jax.pure_callback`, nothing is copied.
"""

import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_int, c_int64, c_size_t, c_uint32, c_void_p

import jax

VERSION = 0, 3
METADATA, INTERNAL = 1, 13  # the extension that asks for the version; the code of an error


class _Version(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int))


class _Metadata(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("version", _Version), ("traits", c_uint32))


class _Extension(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("kind", c_int), ("next", c_void_p), ("metadata", POINTER(_Metadata)))


class _Error(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("message", ctypes.c_char_p), ("code", c_int))


class _Destroy(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("error", c_void_p))


_Task = ctypes.CFUNCTYPE(None, c_void_p)


class _Schedule(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("context", c_void_p), ("task", _Task), ("data", c_void_p))


class _Api(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("extension", c_void_p),
        ("version", _Version),
        ("internal", c_void_p),
        ("create_error", ctypes.CFUNCTYPE(c_void_p, POINTER(_Error))),
        ("get_message", c_void_p),
        ("destroy_error", ctypes.CFUNCTYPE(None, POINTER(_Destroy))),
        ("others", c_void_p * 8),
        # The threads that it wakes wait for Python's lock, which this call does not give up.
        ("schedule", ctypes.PYFUNCTYPE(c_void_p, POINTER(_Schedule))),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("dtype", c_int), ("data", c_void_p))


class _Buffers(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("extension", c_void_p),
        ("count", c_int64),
        ("kinds", c_void_p),
        ("buffers", POINTER(POINTER(_Buffer))),
    )


class _Frame(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("extension", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
    )


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))
_registered: dict[str, object] = {}  # the functions live as long as the process
_numbers, _jobs = itertools.count(1), dict[int, "_Job"]()
SPIN_SECONDS = 2e-4  # Waking a thread takes longer than that.


class _Job:
    """The parts of one call. Each thread takes the next until none is left, so nobody waits for a part not begun."""

    def __init__(self, parts, addresses):
        self._parts, self._addresses, self._left = iter(parts), addresses, len(parts)
        self._lock, self._done = threading.Lock(), threading.Event()
        self.error: Exception | None = None

    def work(self) -> None:
        for part in self._parts:
            try:
                part(self._addresses)
            except Exception as error:
                self.error = error
            with self._lock:
                self._left -= 1
            if not self._left:
                self._done.set()

    def wait(self) -> None:
        end = time.perf_counter() + SPIN_SECONDS
        while self._left and time.perf_counter() < end:
            time.sleep(0)
        self._done.wait()


@_Task
def _help(number):
    if job := _jobs.get(number):
        job.work()


def is_registered(name: str) -> bool:
    """Whether a call of this name can be made."""
    return name in _registered


def register(name: str, parts: Sequence[Callable[[list[int]], None]]) -> None:
    """Registers what `jax.ffi.ffi_call(name, ...)` computes on CPUs.

    Args:
        name: of the call.
        parts: functions of the addresses of its operands and results; XLA's threads share them. An exception in one of
            them ends the program that makes the call.
    """

    def handle(frame):
        frame = frame.contents
        if frame.extension and frame.extension.contents.kind == METADATA:
            version = frame.extension.contents.metadata.contents.version
            version.major, version.minor = VERSION
            return None
        api = frame.api.contents
        try:
            _share(api, frame.context, parts, _addresses(frame.arguments) + _addresses(frame.results))
        except Exception as error:  # It must not get into XLA's code.
            return api.create_error(_Error(ctypes.sizeof(_Error), None, f"{error}".encode(), INTERNAL))
        return None

    _registered[name] = handler = _Handler(handle)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")


def _addresses(buffers):
    return [buffers.buffers[index].contents.data for index in range(buffers.count)]


def _share(api, context, parts, addresses):
    """Computes the parts on this thread and on others of XLA's. Raises what one of them has raised."""
    job, number = _Job(parts, addresses), next(_numbers)
    _jobs[number] = job
    for _ in parts[1:]:
        if refused := api.schedule(_Schedule(ctypes.sizeof(_Schedule), None, context, _help, number)):
            api.destroy_error(_Destroy(ctypes.sizeof(_Destroy), None, refused))  # There are no others.
    job.work()
    job.wait()
    del _jobs[number]
    if job.error:
        raise job.error
