"""External events that hit a run at an exact moment. Each function is called in its process before the run starts."""

import builtins
import contextlib
import dataclasses
import errno
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path


def signal_after(target: str, call: int, number: int) -> None:
    """The process sends itself a signal after the `call`th call (from 1) of "module:Class.method" of imgclf_jax."""
    _after(target, call, lambda *_: os.kill(os.getpid(), number))


def signal_before(target: str, call: int, number: int) -> None:
    """The process sends itself a signal before the `call`th call."""
    _wrap(target, call, before=lambda *_: os.kill(os.getpid(), number))


def signal_soon_after(target: str, seconds: float, number: int) -> None:
    """The signal comes some seconds after the first call."""

    def begin(*_):
        subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -{number:d} {os.getpid()}"])

    _after(target, 1, begin)


def freeze_after(target: str, call: int, seconds: float) -> None:
    """The process is stopped for some seconds after the `call`th call."""

    def freeze(*_):
        subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)

    _after(target, call, freeze)


def kill_when_on_disk(call: int, number: int) -> None:
    """The signal comes as soon as the `call`th checkpoint has its final name."""

    def die(checkpoints, *_):
        checkpoints.wait()
        os.kill(os.getpid(), number)

    _after("workdir.checkpoint:Checkpoints.save", call, die)


def kill_all_when_there(folder: str, pattern: str) -> None:
    """As if the power failed once a path of the folder of a sweep matches: the workers die, then this process."""

    def die():
        for lock in Path(folder).glob("locks/*.lock"):
            os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    _when_there(folder, pattern, die)


def signal_when_there(folder: str, pattern: str, number: int) -> None:
    """The process gets a signal once a path in a folder matches."""
    _when_there(folder, pattern, lambda: os.kill(os.getpid(), number))


def _when_there(folder, pattern, act):
    def watch():
        while not any(Path(folder).glob(pattern)):
            time.sleep(0.02)
        act()

    threading.Thread(target=watch, daemon=True).start()


def limit_file_size(target: str, call: int, size: int) -> None:
    """From the `call`th call on, no file can grow past `size` bytes, like a full disk, but for large files only."""
    _wrap(target, call, before=lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


def disk_full_before(target: str, call: int) -> None:
    """The `call`th call fails like a write to a full disk."""

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _wrap(target, call, before=fail)


def add_argument(argument: str) -> None:
    """The command line has one more argument."""
    sys.argv.append(argument)


def other_fingerprint() -> None:
    """The data set has another fingerprint."""
    module = importlib.import_module("imgclf_jax.data")
    load = module.load
    module.load = lambda *args, **kwargs: dataclasses.replace(load(*args, **kwargs), fingerprint="another")


def assign(target: str, value: object) -> None:
    """Sets "module:NAME" of imgclf_jax."""
    module, _, name = target.partition(":")
    setattr(importlib.import_module(f"imgclf_jax.{module}"), name, value)


def set_config(name: str, value: str) -> None:
    """Sets a field of JAX's configuration, as its environment variable would before JAX is imported."""
    import jax

    jax.config.update(name, type(jax.config.values[name] or value)(value))


def own_group() -> None:
    """The process leads a process group, like one started by a shell or a cluster."""
    os.setsid()


def signal_group_after(target: str, call: int, number: int) -> None:
    """Like `signal_after`, but for the whole process group, as with Ctrl-C or when a cluster ends a job."""
    _after(target, call, lambda *_: os.killpg(0, number))


def tell_workers(target: str, call: int, path: str) -> None:
    """Writes the IDs of all child processes to a file, after the `call`th call."""

    def tell(*_):
        Path(path).write_text(json.dumps([process.pid for process in multiprocessing.active_children()]))

    _after(target, call, tell)


def kill_worker_after(target: str, call: int, number: int) -> None:
    """Sends a signal to a child process, after the `call`th call."""
    _after(target, call, lambda *_: os.kill(multiprocessing.active_children()[0].pid, number))


def damage_after(target: str, call: int, folder: str) -> None:
    """After the `call`th call, all record files in a folder are overwritten with bytes of value 1."""

    def damage(*_):
        for path in Path(folder).glob("*array_record*"):
            with path.open("r+b") as file:
                file.write(b"\1" * path.stat().st_size)

    _after(target, call, damage)


def forbid(target: str) -> None:
    """Calling "module:function" is an error."""

    def refuse(*_):
        raise AssertionError(f"{target} must not be called")

    _wrap(target, 1, before=refuse)


def signal_swallowed(target: str, number: int) -> None:
    """Before the first call of "module:function", a signal arrives in code that catches every exception."""

    def swallow(*_):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(1)

    _wrap(target, 1, before=swallow)


def signal_while_importing(target: str, folder: str, number: int) -> None:
    """Before the first call of "module:function", a signal arrives during the import of a module that swallows it."""

    def import_it(*_):
        lines = ["try:", f" os.kill(os.getpid(), {number})", " time.sleep(0.2)", "except BaseException:", " pass"]
        Path(folder, "swallowing.py").write_text("\n".join(["import os, time", *lines]))
        sys.path.insert(0, folder)
        importlib.import_module("swallowing")
        sys.path.remove(folder)
        time.sleep(5)

    _wrap(target, 1, before=import_it)


def signal_while_collecting(target: str, number: int) -> None:
    """Before the first call of "module:function", a signal arrives while Python collects garbage."""

    def callback(*_):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), number)
        time.sleep(0)  # Python code, in which the handler is called

    def collect(*_):
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(5)

    _wrap(target, 1, before=collect)


def ignore(number: int) -> None:
    """The process was started with a signal ignored, as by `nohup`."""
    signal.signal(number, signal.SIG_IGN)


def lose_terminal_after(target: str, call: int) -> None:
    """The process has a terminal, which is closed after the `call`th call; SIGHUP comes with that."""
    ours, theirs = pty.openpty()
    os.setsid()
    fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(theirs, number)
    os.close(theirs)
    threading.Thread(target=_drain, args=(ours,), daemon=True).start()
    _after(target, call, lambda *_: os.close(ours))


def _drain(terminal):
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


def break_stream(number: int, loss: str) -> None:
    """Standard output (1) or standard error (2) is a full device, closed, or a pipe without a reader."""
    if loss == "closed":
        os.close(number)
        setattr(sys, {1: "stdout", 2: "stderr"}[number], None)  # as Python does when it starts
        return
    if loss == "full":
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, target = os.pipe()
        os.close(reading)
    os.dup2(target, number)
    os.close(target)


def encode(encoding: str) -> None:
    """Standard output can encode only the characters of `encoding`."""
    sys.stdout.reconfigure(encoding=encoding, errors="strict")


def raise_before(target: str, error: str, *arguments: object) -> None:
    """The first call of "module:function" raises a built-in exception."""

    def fail(*_):
        raise getattr(builtins, error)(*arguments)

    _wrap(target, 1, before=fail)


def _after(target: str, call: int, action: Callable[..., None]) -> None:
    _wrap(target, call, after=action)


def _wrap(target, call, before=None, after=None):
    module, _, path = target.partition(":")
    owner = importlib.import_module(f"imgclf_jax.{module}")
    *classes, name = path.split(".")
    for attribute in classes:
        owner = getattr(owner, attribute)
    original = getattr(owner, name)
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if before and calls == call:
            before(*args)
        result = original(*args, **kwargs)
        if after and calls == call:
            after(*args)
        return result

    setattr(owner, name, wrapped)


def note_compilations(path: str) -> None:
    """Appends the name of every function that JAX compiles, or reads from its compilation cache, to a file."""
    import jax

    def note(event: str, seconds: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            with Path(path).open("a") as file:
                file.write(f"{details['fun_name']}\n")

    jax.monitoring.register_event_duration_secs_listener(note)
