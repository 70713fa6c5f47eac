"""Writes the files of a run. Nothing is written before the first new step, so a refused run changes nothing."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgclf_jax.config import to_json
from imgclf_jax.devices import processes
from imgclf_jax.workdir import checkpoint_folder, provenance, saved_config
from imgclf_jax.workdir.checkpoint import Checkpoints
from imgclf_jax.workdir.metrics import MetricsFiles, NoFiles
from imgclf_jax.workdir.own_writers import OwnWriters
from imgclf_jax.workdir.record import RunRecord


class Writer:
    """The files of a run, which are opened once the first new step has been taken.

    Attributes:
        record: `run.json`.
        begun: whether anything has been written.
        resume_step: the step of the checkpoint that the run continues from; 0 if there is none.
        files: the metrics files.
        checkpoints: the checkpoints; `None` before `begin`.
    """

    def __init__(
        self,
        folder: Path,
        config: ConfigDict,
        claim: Any,
        record: RunRecord,
        config_file: dict[str, str] | None = None,
        *,
        columns: Sequence[str],
        parts: dict[str, dict[str, Any]] | None = None,
    ):
        """Prepares the writer; writes nothing yet.

        Args:
            folder: the workdir.
            config: the config.
            claim: the result of `imgclf_jax.workdir.claim.claim`; only the first process uses it.
            record: `run.json`.
            config_file: the result of `imgclf_jax.workdir.provenance.describe_file`.
            columns: the columns of the metrics; see `imgclf_jax.workdir.metrics.MetricsFiles`.
            parts: see `imgclf_jax.components.sources`.
        """
        self.record = record
        self.begun = False
        self.files: MetricsFiles | OwnWriters | NoFiles = NoFiles()
        self.checkpoints: Checkpoints | None = None
        self._folder, self._config, self._claim = folder, config, claim
        self._config_file = config_file
        self._columns = columns
        self._parts = parts or {}
        self._facts: dict[str, Any] = {}
        self._head = ""
        self._ancestor: dict[str, Any] = {}
        self.resume_step = 0
        self._damaged: dict[int, str] = {}

    def know(
        self,
        facts: dict[str, Any],
        head: str,
        resume_step: int,
        damaged: dict[int, str],
        ancestor: dict[str, Any] | None = None,
    ) -> None:
        """Supplies the rest of what `begin` needs.

        Args:
            facts: the recorded facts of the data set; see `imgclf_jax.data.types.Dataset.facts`.
            head: the head of the network; see `imgclf_jax.models.head_of`.
            resume_step: the step of the checkpoint that the run continues from; 0 if there is none.
            damaged: the newer checkpoints, all damaged; see `imgclf_jax.workdir.checkpoint.Found`.
            ancestor: the facts about the network that the run started from; see `imgclf_jax.training.ancestor`.
        """
        self._facts, self._head, self.resume_step, self._damaged = facts, head, resume_step, damaged
        self._ancestor = {"ancestor": ancestor} if ancestor else {}

    def write_down(self) -> None:
        """Writes only the record and the config. If there are several processes, not all of them need to call it."""
        if self.begun:
            return
        step = {"step": self.resume_step} if self.resume_step else {}
        origin = provenance.of_run(self._config_file, self._config.parallel.devices, self._parts)
        origin = provenance.of_sessions(self.record.content, origin)
        self.record.begin(seed=self._config.seed, data=self._facts, head=self._head, **self._ancestor, **origin, **step)
        self.begun = True
        if processes.is_first():
            self._claim.keep()
            saved_config.save_config(self._folder, self._config, (self._config_file or {}).get("text"))

    def begin(self) -> None:
        """Starts writing, unless it has already started. All processes must call it."""
        if self.checkpoints is not None:
            return
        self.write_down()
        checkpoint_folder.set_aside(self._folder, self._damaged)
        self.open_files()
        notes = {"class_names": self._facts["class_names"], "data": self._facts, **self._ancestor}
        keep, keep_every = self._config.checkpoint.keep, self._config.checkpoint.keep_every
        self.checkpoints = Checkpoints(self._folder, keep, notes=notes, keep_every=keep_every)

    def end(self, **content: Any) -> None:
        """Records how the session ended. A complete run stays complete if no new step was taken."""
        if self.begun or self.record.content.get("status") != "complete":
            self.write_down()
            self.record.update(**content)

    def fail(self, reason: str) -> None:
        """Records why a run has failed, if anything has been written. May be called from any thread."""
        if self.begun and self.record.content["status"] == "running":
            self.record.update(status="failed", error=reason)

    def open_files(self) -> None:
        """Opens the metrics files."""
        if processes.is_first():
            tensorboard = self._config.log.tensorboard
            self.files = MetricsFiles(self._folder, self._columns, self.resume_step, tensorboard)
            if self._config.log.writers:
                self.files = OwnWriters(self.files, self._config.log.writers, self._folder, to_json(self._config))

    def save(self, step: int, tree: Any, valid_accuracy: float | None) -> None:
        """Starts saving a checkpoint. Raises `UserError` if this one or an earlier one cannot be saved."""
        assert self.checkpoints is not None
        # The rows up to this step must be on disk first: a run that resumes from here does not write them again.
        self.files.flush()
        self.checkpoints.save(step, tree, valid_accuracy)
        self._note(self.checkpoints.durable)

    def poll(self) -> None:
        """Records the step of a checkpoint that is on disk by now. Raises `UserError` if it could not be saved."""
        if self.checkpoints is not None:
            self._note(self.checkpoints.poll())

    def wait(self) -> None:
        """Waits until all checkpoints are on disk. Raises `UserError` if one could not be saved."""
        if self.checkpoints is not None:
            self.checkpoints.wait()
            self._note(self.checkpoints.durable)

    def close(self) -> None:
        """Closes everything. Raises `UserError` for a failed save that has not been reported yet."""
        with contextlib.suppress(OSError):
            self.files.close()
        if self.checkpoints is not None:
            self.checkpoints.close()

    def _note(self, step):
        if step is not None and step != self.record.content.get("step"):
            self.record.update(step=step)
