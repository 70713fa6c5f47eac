"""The processes of `torture.py`, new or forked. Each has its own process group, and files for its output."""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.02
LEFT_SECONDS = 20  # How long the children of a process may take to notice that it has ended.


class Stopped(Exception):
    """The whole stress test is ending."""


@dataclasses.dataclass
class Run:
    """A process that was started.

    Attributes:
        command: the command line, as typed.
        pid: the process id, which is also the id of its process group.
        out: the file of its standard output, which may be missing if the output went elsewhere.
        err: the file of its standard error, which may be missing too.
        stuck: the file for the stacks of a forked process that hangs.
        began: `time.monotonic()` at its start.
        popen: the `Popen` object of a new process; `None` for a forked one.
        sent: (signal, seconds since the start) for each signal that was sent to it.
        code: its exit status, negative for a signal; `None` while it runs.
        hung: whether it was killed because it did not end.
        left: whether its children outlived it.
    """

    command: str
    pid: int
    out: Path
    err: Path
    stuck: Path
    began: float
    popen: subprocess.Popen[bytes] | None = None
    sent: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    code: int | None = None
    hung: bool = False
    left: bool = False

    def text(self, which: str = "err") -> str:
        """Returns the content of the file `out` or `err`; empty if it is missing."""
        path: Path = getattr(self, which)
        return path.read_text(errors="replace") if path.is_file() else ""


def environment() -> dict[str, str]:
    """Returns the environment of the runs: this package, one device, and the CPU unless $JAX_PLATFORMS is set."""
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    base = {"JAX_PLATFORMS": "cpu", **os.environ}
    return {**base, "XLA_FLAGS": " ".join(kept), "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def inherit_default_signals() -> None:
    """Stops ignoring signals that `nohup` or a shell made this process ignore: its children would ignore them too."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # Unlike SIG_IGN, a handler does not survive exec.


class Processes:
    """Starts, signals and ends processes. Several threads may use it.

    Args:
        timeout: the number of seconds after which a process counts as hung.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._lock = threading.Lock()
        self._server: subprocess.Popen[str] | None = None
        self._alive: dict[int, Run] = {}
        self._stopped = False

    def start(
        self,
        logs: Path,
        module: str,
        arguments: list[str],
        env: dict[str, str],
        *,
        real: bool = False,
        out: str | None = None,
        redirect: str = "",
        limit: int | None = None,
        die_at_save: int | None = None,
    ) -> Run:
        """Starts `python -m MODULE ARGUMENTS` in the root of the repository.

        Args:
            logs: the folder for what it prints.
            module: the module of the tool.
            arguments: its command line.
            env: environment variables to set.
            real: whether to start a new process instead of a fork of one that has imported everything.
            out: a file or FIFO for standard output instead of a file in `logs`.
            redirect: how a shell redirects the output, for instance ">&-"; only for new processes.
            limit: see `torture_server.run`.
            die_at_save: see `torture_server.run`; only for forked processes.

        Raises:
            Stopped: the stress test is ending.
        """
        logs.mkdir(parents=True, exist_ok=True)
        name = f"{len(list(logs.glob('*.command'))) + 1:02}"
        files = {kind: logs / f"{name}.{kind}" for kind in ("out", "err", "stuck")}
        typed = shlex.join(["python", "-m", module, *arguments]) + f" {redirect}".rstrip()
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items())
        (logs / f"{name}.command").write_text(f"{settings} {typed}\n")
        out = out or str(files["out"])
        with self._lock:
            if self._stopped:
                raise Stopped
            if real:
                command = [sys.executable, "-m", module, *arguments]
                if redirect or limit is not None:
                    ulimit = f"ulimit -f {max(limit // 1024, 1)}; " if limit is not None else ""
                    command = ["bash", "-c", f'{ulimit}exec "$0" "$@" {redirect}', *command]
                with Path(out).open("wb") as stdout, files["err"].open("wb") as stderr:
                    popen = subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env={**environment(), **env},
                        stdin=subprocess.DEVNULL,
                        stdout=stdout,
                        stderr=stderr,
                        start_new_session=True,
                    )
                run = Run(typed, popen.pid, Path(out), files["err"], files["stuck"], time.monotonic(), popen)
            else:
                request = {
                    "module": module,
                    "arguments": arguments,
                    "cwd": str(ROOT),
                    "env": env,
                    "out": out,
                    "err": str(files["err"]),
                    "stuck": str(files["stuck"]),
                    "limit": limit,
                    "die_at_save": die_at_save,
                }
                pid = self._ask(start=request)["pid"]
                run = Run(typed, pid, Path(out), files["err"], files["stuck"], time.monotonic())
            self._alive[run.pid] = run
        return run

    def ended(self, run: Run) -> bool:
        """Whether a process has ended by now."""
        if run.code is None:
            with self._lock:
                if self._stopped:
                    raise Stopped
                run.code = run.popen.poll() if run.popen else self._ask(poll=run.pid)["code"]
                if run.code is not None:
                    del self._alive[run.pid]
        return run.code is not None

    def wait(self, run: Run, seconds: float) -> bool:
        """Waits for at most `seconds`; returns whether the process has ended."""
        until = time.monotonic() + seconds
        while not self.ended(run):
            if time.monotonic() >= until:
                return False
            time.sleep(min(POLL_SECONDS, max(until - time.monotonic(), 0)))
        return True

    def signal(self, run: Run, number: int, group: bool = False) -> bool:
        """Sends a signal to a process or its group, unless it has ended; returns whether it was sent."""
        if self.ended(run):
            return False
        _send(run.pid, number, group)
        run.sent.append((number, round(time.monotonic() - run.began, 3)))
        return True

    def finish(self, run: Run) -> Run:
        """Waits until a process has ended. Kills a process that hangs, and children that are left behind."""
        if not self.wait(run, self._timeout - (time.monotonic() - run.began)):
            run.hung = True
            if run.popen is None:
                _send(run.pid, signal.SIGUSR1, False)
                time.sleep(1)
            _send(run.pid, signal.SIGKILL, True)
            self.wait(run, 30)
        until = time.monotonic() + LEFT_SECONDS
        while members(run.pid):
            if self._stopped or time.monotonic() > until:
                run.left = True
                _send(run.pid, signal.SIGKILL, True)
                break
            time.sleep(POLL_SECONDS)
        return run

    def stop(self) -> None:
        """Kills everything that runs. After that, waiting for a process or starting one raises `Stopped`."""
        with self._lock:
            self._stopped = True
            for pid in self._alive:
                _send(pid, signal.SIGKILL, True)
            if self._server:
                self._server.kill()
                self._server.wait()

    def _ask(self, **request: Any) -> Any:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("torture_server.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(),
                start_new_session=True,  # Ctrl-C is for `torture.py` to handle.
            )
        assert self._server.stdin and self._server.stdout
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


def members(group: int) -> list[int]:
    """Returns the ids of the other living processes of a group: its workers. Needs /proc."""
    ids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX" and int(folder.name) != group:
                ids.append(int(folder.name))
    return sorted(ids)


def _send(pid, number, group):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
