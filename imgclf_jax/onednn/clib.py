"""The C library oneDNN (https://github.com/uxlfoundation/oneDNN), if `pip install 'imgclf_jax[cpu]'` has brought it."""

import contextlib
import ctypes
import functools
import importlib.metadata
from collections.abc import Iterator, Sequence
from ctypes import c_void_p

PACKAGE, FILE = "onednn-cpu-gomp", "libdnnl.so.3"
BFLOAT16 = 0x80  # in the number of an instruction set: it has products of bfloat16


class Error(RuntimeError):
    """The library refused what was asked."""


@functools.cache
def find() -> ctypes.CDLL | None:
    """Returns the library, or `None` if it is missing or does not load."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
        library = ctypes.CDLL(str(next(file for file in files if file.name == FILE).locate()))
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError):
        return None
    library.dnnl_primitive_desc_query_md.restype = c_void_p
    library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
    library.dnnl_primitive_execute.argtypes = c_void_p, c_void_p, ctypes.c_int, c_void_p
    return library


def load() -> ctypes.CDLL:
    """Returns the library. Raises `Error` if it is missing."""
    library = find()
    if library is None:
        raise Error(f"oneDNN is missing: pip install {PACKAGE}")
    return library


@functools.cache
def quick() -> ctypes.PyDLL:
    """The library for calls so short that to give other Python threads a turn meanwhile would take longer."""
    library = ctypes.PyDLL(load()._name)
    library.dnnl_memory_set_data_handle.argtypes = c_void_p, c_void_p
    return library


@functools.cache
def dtypes() -> frozenset[str]:
    """The names of the dtypes that the processor multiplies; others would be emulated. Empty without the library."""
    library = find()
    if library is None:
        return frozenset()
    native = library.dnnl_get_effective_cpu_isa() & BFLOAT16
    return frozenset({"float32", "bfloat16"} if native else {"float32"})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within this block, what is made for the current thread takes no others: XLA's threads share the work instead."""
    before = quick().omp_get_max_threads()
    quick().omp_set_num_threads(1)
    try:
        yield
    finally:
        quick().omp_set_num_threads(before)


def call(name: str, *arguments: object) -> None:
    """Calls a function of the library. Raises `Error` if it fails."""
    if status := getattr(load(), name)(*arguments):
        raise Error(f"oneDNN: {name} returned {status}")


def create(name: str, *arguments: object) -> c_void_p:
    """Calls a function of the library that writes a handle to its first argument; returns the handle."""
    handle = c_void_p()
    call(name, ctypes.byref(handle), *arguments)
    return handle


def sizes(values: Sequence[int]) -> ctypes.Array:
    """An array of 64-bit integers."""
    return (ctypes.c_int64 * len(values))(*values)
