"""The compiler and the folders that all tests share; set before JAX is first imported."""

import os
import signal

import pytest
from tiers import FAST, LONGEST, SLOW

DEVICES = 8


def take_signals():
    """Signals that are ignored, as under `nohup` or in the background of a script, would be ignored by all runs too."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def pytest_configure(config):
    """On the CPU unless $JAX_PLATFORMS says otherwise, split into several devices, so that sharding can be tested.

    Compiled programs are kept in pytest's own cache folder: a second run compiles little.
    """
    take_signals()
    flags = os.environ.get("XLA_FLAGS", "")
    for flag in (
        f"--xla_force_host_platform_device_count={DEVICES}",
        # Most of the tests' time is the compiler's, which takes a quarter of it if it need not optimise.
        "--xla_backend_optimization_level=0",
    ):
        if flag.partition("=")[0] not in flags:
            flags = f"{flags} {flag}".strip()
    os.environ["XLA_FLAGS"] = flags
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Shapes of different ranks are broadcast only where the code says so; in the processes that tests start as well.
    os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
    if hasattr(config, "cache"):  # not with `-p no:cacheprovider`
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("xla")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

    from imgclf_jax.devices.xla import configure_xla  # imports JAX

    configure_xla()


def pytest_ignore_collect(collection_path, config):
    """With `-m fast` the other files are not even imported."""
    slow = collection_path.name.startswith("test_") and collection_path.name not in FAST
    return True if slow and config.option.markexpr == "fast" else None


def pytest_collection_modifyitems(items):
    """Marks the fast and the slow tests, and sorts the files that take longest to the front."""
    for item in items:
        if f"{item.path.name}::{item.name}".startswith(SLOW):
            item.add_marker("slow")
        if item.path.name in FAST:
            item.add_marker("fast")
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Decoded data sets and all other caches go to a folder of this run, never to the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
