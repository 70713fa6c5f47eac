"""The objects that the parts of a run share."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgclf_jax.devices import parallel
from imgclf_jax.terminal.console import Console
from imgclf_jax.training.experiment import Experiment, build
from imgclf_jax.workdir import resume
from imgclf_jax.workdir.writer import Writer


class Calls(NamedTuple):
    """Functions that `imgclf_jax.train.train` calls, by default without effect.

    Attributes:
        resume_command: workdir -> the command line that continues this run, printed when a signal interrupts it.
        build: what builds the experiment; several runs in one process can share their programs.
        on_data: called in the first process with the facts of the data set (`Dataset.facts`), before training.
        prune: (step, length of the run, validation accuracy) -> whether to save and stop there. It can be resumed.
        conclude: called in the first process with the workdir when the run is complete or has diverged. `run.json`
            gets the fields that it returns.
        watch: (session, console) -> a context around the training loop, whose value takes the steps in place of
            `Session.run_steps` and computes the same.
    """

    resume_command: Callable[[Path], str] = lambda folder: ""
    build: Callable[..., Experiment] = build
    on_data: Callable[[dict[str, Any]], None] = lambda facts: None
    prune: Callable[[int, int, float], bool] = lambda step, steps, accuracy: False
    conclude: Callable[[Path], dict[str, Any]] = lambda folder: {}
    watch: Callable[..., AbstractContextManager[Callable[..., Any]]] = lambda session, console: contextlib.nullcontext(
        session.run_steps
    )


class Run(NamedTuple):
    """The objects that the functions below share.

    Attributes:
        config: the config.
        folder: the workdir.
        strategy: the placement of arrays on devices.
        before: the earlier content of the workdir; see `imgclf_jax.workdir.resume`.
        allow_change: whether the config and the data may differ from those at the start of the run.
        console: where to print.
        writer: writes the files of the run.
        signal: the signal that asked to stop, if any; see `imgclf_jax.terminal.interrupt`.
        prune: (step, length of the run, validation accuracy) -> whether to stop the run.
    """

    config: ConfigDict
    folder: Path
    strategy: parallel.Parallel
    before: resume.Before
    allow_change: bool
    console: Console
    writer: Writer
    signal: Any
    calls: Calls
