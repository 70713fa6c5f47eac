"""Checkpoints with Orbax: asynchronous, atomic and verified on reading. No other module imports Orbax."""

import functools
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from imgclf_jax.devices import processes
from imgclf_jax.devices.parallel import alone
from imgclf_jax.errors import UserError
from imgclf_jax.workdir import older
from imgclf_jax.workdir.checkpoint_folder import FOLDER
from imgclf_jax.workdir.checkpoint_tree import checksum, difference
from imgclf_jax.workdir.record import is_number


class OtherModel(UserError):
    """An undamaged checkpoint does not hold the arrays that this config needs."""


class Found(NamedTuple):
    """A checkpoint that could be read, and the newer ones that could not.

    Attributes:
        tree: the saved pytree.
        step: the step it was saved at.
        damaged: step -> what is wrong with that checkpoint, newest first.
    """

    tree: Any
    step: int
    damaged: dict[int, str]


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy"]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, changed so that damaged metrics of one checkpoint do not make all others unreadable."""

    # All reads of metrics go through this method. It has no public equivalent.
    def _get_metrics(self, step: int) -> dict[str, float] | None:
        """The metrics of a checkpoint; `None`, with a warning, if they are damaged."""
        try:
            metrics = super()._get_metrics(step)
            if metrics is None or is_number(_accuracy(metrics)):
                return metrics
            reason = "it is not a number"
        except Exception as error:
            reason = _reason(error)
        warnings.warn(
            f"checkpoint {Path(self.directory) / str(step)}: its validation accuracy cannot be read ({reason[:200]}), "
            "so it is never chosen as the best one",
            stacklevel=2,
        )
        return None


class Checkpoints:
    """The checkpoints of a run: the newest `keep`, the best by validation accuracy, and one every `keep_every` steps.

    A checkpoint is a pytree of arrays. A checksum of all its bits is saved with it and verified on reading, so a
    damaged file is noticed even if its format does not reveal the damage.
    """

    def __init__(
        self,
        workdir: Path,
        keep: int = 2,
        read_only: bool = False,
        notes: dict[str, Any] | None = None,
        keep_every: int = 0,
    ):
        """Opens `workdir/checkpoints`, and creates it unless `read_only`.

        Args:
            workdir: the folder of the run.
            keep: the number of newest checkpoints to keep.
            read_only: whether to write nothing.
            notes: a JSON object that is written into every checkpoint; see `Checkpoints.notes`.
            keep_every: also keep the checkpoints whose step is a multiple of this; 0 for none.
        """
        self._notes = notes
        self._saving: int | None = None
        self._reported = False
        self.durable: int | None = None
        self.folder = Path(workdir).resolve() / FOLDER  # Orbax wants absolute paths.
        policies = ocp.checkpoint_managers
        kept = [
            policies.LatestN(keep),
            policies.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False),
            *([policies.EveryNSteps(keep_every)] if keep_every else []),
        ]
        self._manager = _quietly(_Manager)(
            self.folder,
            # Otherwise Orbax inspects the newest checkpoint, and if that is incomplete, it rejects all others too.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=_quietly(ocp.CheckpointManagerOptions)(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=_accuracy,  # Without it Orbax writes no metrics, and a restarted run forgets the best step.
                create=not read_only,
                read_only=read_only,
                enable_async_checkpointing=not read_only,
            ),
        )

    def save(self, step: int, tree: Any, valid_accuracy: float | None = None) -> None:
        """Starts writing; returns as soon as `tree` may be donated. Does nothing if the step is already saved.

        Raises:
            UserError: this or an earlier save failed, for instance because the disk is full.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        metrics = None if valid_accuracy is None else {"accuracy": valid_accuracy}
        try:
            # If Orbax cannot create a folder, its threads wait minutes for it, and the process waits for the threads.
            with tempfile.TemporaryDirectory(dir=self.folder, suffix=".orbax-checkpoint-tmp"):
                pass
            # A copy, because the next step reuses the state's buffers while the writer is still reading.
            arguments = ocp.args.StandardSave(_snapshot(tree))
            if not self._manager.save(step, args=arguments, metrics=metrics, custom_metadata=self._notes):
                raise RuntimeError(f"there is already a checkpoint of a step after {step}")
            self._saving = step
        except Exception as error:
            raise self._failure(error) from error

    def poll(self) -> int | None:
        """The step of the newest checkpoint that this object has saved and that is completely on disk. Does not wait.

        Raises:
            UserError: a save failed.
        """
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()
        return self.durable

    def wait(self) -> None:
        """Returns when everything is on disk. Raises `UserError` if it could not be written."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error
        if self._saving is not None:
            self.durable, self._saving = self._saving, None

    def restore_newest(self, template: Any, newest: int | None = None, partial: bool = False) -> Found | None:
        """The newest undamaged checkpoint; `None` if there are no checkpoints. Changes nothing.

        Args:
            template: a pytree of `jax.ShapeDtypeStruct`s with shardings.
            newest: a step; checkpoints of later steps are skipped.
            partial: see `restore`.

        Raises:
            OtherModel: none fits, and at least one belongs to another model.
            UserError: there are checkpoints but none of them can be read.
        """
        # All processes must try the same checkpoints, even if one of them sees an older state of the disk.
        steps = json.loads(processes.gather(json.dumps(self.steps()))[0])
        failures: dict[int, UserError] = {}
        for step in reversed([step for step in steps if newest is None or step <= newest]):
            try:
                return Found(
                    self.restore(step, template, partial), step, {key: str(error) for key, error in failures.items()}
                )
            except UserError as error:
                failures[step] = error
        if others := [failure for failure in failures.values() if isinstance(failure, OtherModel)]:
            raise others[0]
        if failures:
            reasons = "; ".join(_reason(failure) for failure in failures.values())
            raise UserError(
                f"none of the checkpoints in {self.folder} can be read ({reasons[:400]}). Nothing was changed; "
                "training can start over in another --workdir, or in this one after you have deleted it"
            )
        return None

    def restore(self, step: int, template: Any = None, partial: bool = False) -> Any:
        """Reads the checkpoint of `step`. Without a template, returns nested dicts on this process's first device.

        Args:
            step: the step.
            template: see `restore_newest`.
            partial: whether the template describes only some entries of the checkpoint and of its state, as a dict of
                dicts. The others are read, to verify the checksum, but neither compared nor returned.

        Raises:
            OtherModel: its arrays are not the ones that `template` describes.
            UserError: it is damaged.
        """

        def as_saved():
            """The template, adapted to the version that wrote the checkpoint."""
            return older.template(template, self._saved(step).get("tree"))

        def different():
            saved = self._saved(step)
            return difference({"tree": _part(saved.get("tree"), as_saved())} if partial else saved, as_saved())

        if template is not None and (problem := processes.from_first(different)):
            raise OtherModel(
                f"the checkpoints in {self.folder} belong to another model: {problem}; choose another --workdir"
            )

        def read():
            if template is None:
                like = jax.tree.map(functools.partial(_like, sharding=alone().replicated), self._saved(step))
            elif partial:
                known = {_path(path): leaf.sharding for path, leaf in jax.tree.leaves_with_path({"tree": as_saved()})}
                other = jax.tree.leaves(template["inputs"])[0].sharding
                like = jax.tree_util.tree_map_with_path(
                    lambda path, leaf: _like(leaf, known.get(_path(path), other)), self._saved(step)
                )
            else:
                sharding = jax.tree.leaves(template)[0].sharding
                like = {"tree": as_saved(), "checksum": _like(jnp.uint32(0), sharding)}
            try:
                return _quietly(self._manager.restore)(step, args=ocp.args.StandardRestore(like))
            except Exception as error:
                raise self._unreadable(step, error) from error

        saved = processes.together(read)
        if "checksum" not in saved or not _verify(saved):
            raise UserError(f"checkpoint {self.folder / str(step)} is damaged (its checksum does not match)")
        if partial:
            return _part(saved["tree"], as_saved())
        return saved["tree"] if template is None else older.complete(saved["tree"], template)

    def _saved(self, step):
        """The shapes and dtypes of the saved arrays."""
        try:
            saved = _quietly(self._manager.item_metadata)(step)
            if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in jax.tree.leaves(saved)):
                raise ValueError("it does not describe its content")
            if not jax.tree.leaves(saved) or not hasattr(saved, "get"):
                raise ValueError("it is empty")
        except Exception as error:
            raise self._unreadable(step, error) from error
        return saved

    def _unreadable(self, step, error):
        return UserError(f"checkpoint {self.folder / str(step)} cannot be read ({_reason(error)[:200]})")

    def notes(self, step: int) -> dict[str, Any]:
        """The notes in the checkpoint of `step`; empty if there are none or if they cannot be read."""
        try:
            notes = self._manager.metadata(step).custom_metadata
        except Exception:  # The checkpoint is damaged, and `restore` says more about it.
            return {}
        return notes if isinstance(notes, dict) else {}

    def steps(self) -> list[int]:
        """The steps of all checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the highest validation accuracy."""
        return self._manager.best_step()

    def close(self) -> None:
        """Waits for pending writes and releases the threads.

        Raises:
            UserError: a save failed, and that has not been reported yet. If another exception is being handled, a
                warning is given instead.
        """
        underway = sys.exc_info()[1]
        reported = self._reported
        try:
            self._manager.close()
        except Exception as error:
            failure = self._failure(error)
            if reported or isinstance(underway, OSError):  # Probably the same disk failure, already reported.
                return
            if underway is None:
                raise failure from error
            warnings.warn(str(failure), stacklevel=2)

    def _failure(self, error):
        self._reported, self._saving = True, None
        reason = _reason(error)
        if code := re.search(r"os_error_code='(\d+)'|^\[Errno (\d+)\]", str(error)):  # at the end of a very long line
            reason = os.strerror(int(code[1] or code[2]))
        kept = ", ".join(str(step) for step in self.steps()) or "none"
        return UserError(
            f"could not save a checkpoint in {self.folder}: {reason[:300]}; checkpoints kept: {kept}. Make room there "
            "and run the same command again with this --workdir"
        )


@jax.jit
def _snapshot(tree):
    return {"tree": jax.tree.map(jnp.copy, tree), "checksum": checksum(tree)}


@jax.jit
def _verify(saved):
    return saved["checksum"] == checksum(saved["tree"])


def _part(tree, template):
    """The entries of nested dicts that a template has; see `Checkpoints.restore`."""
    tree = tree if hasattr(tree, "get") else {}
    state = tree.get("state") or {}
    return {
        name: {key: state.get(key, {}) for key in template["state"]} if name == "state" else tree.get(name, {})
        for name in template
    }


def _path(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _like(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _quietly(function):
    """Wraps `function` to hide Orbax's log messages, even in a user's own program. Errors are still raised."""

    def quiet(*arguments, **options):
        logger = logging.getLogger("absl")
        logger.addFilter(_is_not_from_orbax)
        try:
            return function(*arguments, **options)
        finally:
            logger.removeFilter(_is_not_from_orbax)

    return quiet


def _is_not_from_orbax(record):
    return "orbax" not in Path(record.pathname).parts


def _reason(error):
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
