"""Process-wide settings of XLA, and a filter for its false alarms."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import jax

from imgclf_jax.devices import native_errors, programs

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def configure_xla() -> None:
    """Configures the compiler for the whole process. Must be called before JAX looks for its devices.

    Compiled programs are kept in $JAX_COMPILATION_CACHE_DIR, or in `~/.cache/imgclf_jax/xla` ($XDG_CACHE_HOME is
    honored), so a second start compiles nothing. Our folder has a limit, see `imgclf_jax.devices.programs`.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        programs.trim(programs.folder())
        jax.config.update("jax_compilation_cache_dir", str(programs.folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # XLA's CPU compiler sends convolutions to a library that takes 1.3 to 3 times as long as its own kernels. This
    # matters without imgclf_jax.onednn. A version that does not know a flag refuses to start; 0.10.1 to 0.12 know it.
    if jax.version.__version_info__ < (0, 13):
        _set("--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution")
    _keep_freed_memory()


def _set(flag, value):
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()


def _keep_freed_memory():
    """Keeps the memory of a dispatch for the next one, instead of returning it to the system.

    The system clears new pages, in each dispatch as many as its activations take. XLA's threads have to share one
    arena: in all others, what is large comes from the system and returns to it.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
                library.mallopt(parameter, value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps a false alarm of jaxlib 0.10 off the terminal, within a block that compiles.

    Programs from the compilation cache come with two tuning hints that the loader mistakes for instruction sets that
    the processor lacks. It reports that at length from C++, below Python's logging. Everything else that is written to
    standard error in the block appears at once, even if native code ends the process.
    """
    if jax.version.__version_info__ >= (0, 11) or jax.default_backend() != "cpu":
        yield
        return
    with native_errors.without("cpu_aot_loader.cc"):
        yield
