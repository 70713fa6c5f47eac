"""Checks the expectations of `torture.py` about processes that have ended and the folders that they leave."""

import dataclasses
import hashlib
import json
import re
import signal
from pathlib import Path
from typing import Any

from torture_processes import ROOT, Run
from torture_runs import Outcome, outcome

# Findings, worst first; each is a column of the table.
BAD = ("wrong", "traceback", "silent", "hang")
MOST_LINES = 12  # of a refusal: all mistakes are reported at once, one per line
STACKS = re.compile(
    r"^(Traceback \(most recent call last\)|Fatal Python error|Exception ignored in|\*\*\* Check failure)"
)
PACKAGE = str(ROOT / "imgclf_jax")
STOPPED = re.compile(r"interrupted|stopped", re.IGNORECASE)
RESUMED = re.compile(r"resuming at step (\d+)|complete: all (\d+) steps")
FIRST_STEP = re.compile(r"^step +\d+/", re.MULTILINE)


@dataclasses.dataclass
class Findings:
    """The problems and refusals of a try.

    Attributes:
        bad: (one of `BAD`, description) of each problem.
        refusals: the number of commands that were refused.
    """

    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    refusals: int = 0

    def add(self, kind: str, what: str) -> None:
        """Adds a problem. The same problem counts only once."""
        if (kind, what) not in self.bad:
            self.bad.append((kind, what))

    def outcome(self) -> str:
        """Returns the worst kind of problem; without any, "refused" or "identical"."""
        kinds = {kind for kind, _ in self.bad}
        return next((kind for kind in BAD if kind in kinds), "refused" if self.refusals else "identical")


def ending(run: Run, findings: Findings, native: bool = False, mute: bool = False) -> None:
    """Judges how a process has ended.

    Args:
        run: the process.
        findings: problems are added here.
        native: whether native code may print more than `MOST_LINES`, as it does in a job when a peer vanishes.
        mute: whether the process may end without a message.
    """
    said, out = run.text(), run.text("out")
    where = f"{run.err.name}: {run.command.split(' --')[0]}"
    signals = {number for number, _ in run.sent}
    if run.hung:
        findings.add("hang", f"{where} did not end")
    if run.left:
        findings.add("hang", f"{where} left processes behind")
    stacks = False
    for line in (said + "\n" + out).splitlines():
        if STACKS.match(line):
            last = [text for text in said.splitlines() if re.match(r"^[\w.]+(Error|Exit|Exception|Interrupt)\b", text)]
            if last and last[-1] == "KeyboardInterrupt" and PACKAGE not in said:
                continue  # Python itself had not started yet.
            stacks = True
            findings.add("traceback", f"{where}: {line[:40]} ... {last[-1][:160] if last else ''}")
            break
    if run.hung or run.code is None or run.code == 0:
        return
    if run.code < 0 and -run.code not in signals:
        findings.add("silent", f"{where} died of {signal.Signals(-run.code).name}: {_tail(said)}")
    # In a job, the first process prints the messages for all.
    elif run.code > 0 and not (mute or (native and run.code > 128)) and not said.strip() and not STOPPED.search(out):
        findings.add("silent", f"{where} ended with {run.code} and no message")
    elif run.code > 0 and not native and not stacks and len(said.splitlines()) > MOST_LINES:
        findings.add("wrong", f"{where} prints {len(said.splitlines())} lines: {_tail(said)}")


def stopping(run: Run, findings: Findings) -> None:
    """Judges how a process reacted to the one signal that asked it to stop."""
    if len(run.sent) != 1 or run.hung:
        return
    number, moment = run.sent[0]
    name = signal.Signals(number).name
    trained = bool(FIRST_STEP.search(run.text("out")))
    if number != signal.SIGKILL and run.code == -number and trained and "total time" not in run.text("out"):
        findings.add("wrong", f"{name} after {moment} s ended a training run that had not saved")


def compare(workdir: Path, expected: Outcome, findings: Findings, said: str = "") -> bool:
    """Compares a complete run with the undisturbed one; returns whether they are the same.

    Args:
        workdir: the workdir of the run.
        expected: the outcome of the undisturbed run.
        findings: differences are added here.
        said: what the run printed on standard error. Rows may be missing if it mentions that.
    """
    try:
        actual = outcome(workdir)
    except Exception as error:
        findings.add("wrong", f"exit status 0, but the run cannot be read: {type(error).__name__}: {str(error)[:200]}")
        return False
    different = []
    if actual.record != expected.record:
        different += [f"{k}: {expected.record[k]} -> {v}" for k, v in actual.record.items() if v != expected.record[k]]
    if actual.digest != expected.digest:
        different.append("the arrays of the last checkpoint")
    for name, ours, theirs in (
        ("metrics.jsonl", actual.rows, expected.rows),
        ("metrics.csv", actual.table, expected.table),
    ):
        lost: list[Any] = [row for row in theirs if row not in ours]
        fewer = len(ours) < len(theirs) and all(row in theirs for row in ours)
        if ours != theirs and not (fewer and re.search("metrics|row", said)):
            different.append(f"{name} has {len(ours)} rows of {len(theirs)}, {len(lost)} lost or changed")
    if different:
        findings.add("wrong", "not identical: " + "; ".join(different)[:400])
    return not different


def snapshot(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file, by its path in the folder. Folders are not listed."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digests[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Returns the changes that a refusal must not make. Moving damaged files aside is allowed."""
    aside = {value for path, value in after.items() if "damaged" in path}
    forbidden = []
    for path, value in before.items():
        if path not in after and value not in aside:
            forbidden.append(f"{path} is gone")
        elif path in after and after[path] != value and value not in aside:
            forbidden.append(f"{path} has changed")
    return forbidden + [
        f"{path} is new" for path in after if path not in before and "damaged" not in path and path != ".lock"
    ]


def resumed_at(run: Run) -> int:
    """Returns the step at which a training run began."""
    match = RESUMED.search(run.text("out"))
    return int(match[1] or match[2]) if match else 0


def recorded_error(workdir: Path) -> str:
    """Returns the reason in `run.json` why the last session failed."""
    try:
        return str(json.loads((workdir / "run.json").read_text()).get("error", "no reason is recorded"))[:300]
    except (OSError, ValueError) as error:
        return f"no record: {error}"


def _tail(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
