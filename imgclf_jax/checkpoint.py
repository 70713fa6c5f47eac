"""Checkpoints with Orbax: asynchronous, atomic, checked when they are read. The only import of Orbax."""

import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from imgclf_jax import hosts
from imgclf_jax.errors import UserError
from imgclf_jax.parallel import alone

FOLDER = "checkpoints"


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy"]


class Checkpoints:
    """The checkpoints of a run: the newest `keep` and the best by validation accuracy.

    What is saved is a pytree of arrays. A checksum of all its bits goes with it and is compared when it is read, so
    that a damaged file is noticed even where its format would not tell.
    """

    def __init__(self, workdir: Path, keep: int = 2, read_only: bool = False, class_names: Sequence[str] | None = None):
        """Opens `workdir/checkpoints`, making it unless `read_only`.

        Args:
            workdir: the folder of the run.
            keep: how many of the newest to keep.
            read_only: whether nothing is written.
            class_names: by label; written into every checkpoint.
        """
        self._notes = None if class_names is None else {"class_names": list(class_names)}
        self.folder = Path(workdir).resolve() / FOLDER  # Orbax wants absolute paths.
        policies = ocp.checkpoint_managers
        newest = policies.LatestN(keep)
        best = policies.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False)
        self._manager = _quietly(ocp.CheckpointManager)(
            self.folder,
            # Said here: otherwise Orbax goes by the newest folder, and where that is torn it refuses all others too.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=_quietly(ocp.CheckpointManagerOptions)(
                preservation_policy=policies.AnyPreservationPolicy([newest, best]),
                best_fn=_accuracy,  # Without it Orbax writes no metrics, and a restarted run forgets which is best.
                create=not read_only,
                read_only=read_only,
                enable_async_checkpointing=not read_only,
            ),
        )
        self._snapshot = jax.jit(lambda tree: {"tree": jax.tree.map(jnp.copy, tree), "checksum": _checksum(tree)})
        self._verify = jax.jit(lambda saved: saved["checksum"] == _checksum(saved["tree"]))

    def save(self, step: int, tree: Any, valid_accuracy: float | None = None) -> None:
        """Starts writing; returns as soon as `tree` may be donated. A step that is there already is left alone.

        Raises:
            UserError: this or an earlier save failed, for instance because the disk is full.
        """
        if step in self._manager.all_steps():
            return
        metrics = None if valid_accuracy is None else {"accuracy": valid_accuracy}
        try:
            self._manager.check_for_errors()
            # Where Orbax cannot make a folder, its threads wait for it for minutes, and the process for them.
            with tempfile.TemporaryDirectory(dir=self.folder, suffix=".orbax-checkpoint-tmp"):
                pass
            # A copy: the next step reuses the buffers of the state while the writer still reads.
            arguments = ocp.args.StandardSave(self._snapshot(tree))
            self._manager.save(step, args=arguments, metrics=metrics, custom_metadata=self._notes)
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Returns when everything is on disk. Raises `UserError` where it could not be written."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error

    def restore_newest(self, template: Any) -> tuple[Any, int] | None:
        """The newest checkpoint that is whole, and its step; `None` where there is none.

        Damaged ones are moved to `damaged_checkpoints` beside the folder, with a warning.

        Args:
            template: a pytree of `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            UserError: there are checkpoints but none of them can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self.restore(step, template), step
            except UserError as error:
                aside = self.folder.with_name("damaged_checkpoints") / str(step)
                if hosts.is_first():
                    aside.parent.mkdir(exist_ok=True)
                    shutil.rmtree(aside, ignore_errors=True)
                    shutil.move(self.folder / str(step), aside)
                hosts.gather("moved")
                warnings.warn(f"{error}; moved to {aside}, trying the one before", stacklevel=2)
                self._manager.reload()
        if steps:
            raise UserError(f"none of the checkpoints in {self.folder} can be read; start again in another --workdir")
        return None

    def restore(self, step: int, template: Any = None) -> Any:
        """The checkpoint of `step`; without a template as nested dicts, on this process's first device.

        Raises:
            UserError: it is damaged or does not fit `template`.
        """

        def described():
            if template is None:
                here = alone().replicated
                saved = self._manager.item_metadata(step)
                return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved)
            sharding = jax.tree.leaves(template)[0].sharding
            return {"tree": template, "checksum": jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding)}

        def read():
            try:
                return _quietly(self._manager.restore)(step, args=ocp.args.StandardRestore(described()))
            except Exception as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise UserError(f"checkpoint {self.folder / str(step)} cannot be read ({reason[:200]})") from error

        saved = hosts.together(read)
        if "checksum" not in saved or not self._verify(saved):
            raise UserError(f"checkpoint {self.folder / str(step)} is damaged (its checksum does not match)")
        return saved["tree"]

    def class_names(self, step: int) -> tuple[str, ...] | None:
        """Those that the checkpoint was saved with; `None` where it has none or they cannot be read."""
        try:
            names = (self._manager.metadata(step).custom_metadata or {}).get("class_names")
        except Exception:  # A damaged checkpoint, of which `restore` then says more.
            return None
        return None if names is None else tuple(names)

    def steps(self) -> list[int]:
        """The steps that checkpoints were taken at."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the highest validation accuracy."""
        return self._manager.best_step()

    def close(self) -> None:
        """Releases the writer's threads; does not raise for a save that failed."""
        self._manager.close()

    def _failure(self, error):
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if code := re.search(r"os_error_code='(\d+)'", str(error)):  # at the end of a very long line
            reason = os.strerror(int(code[1]))
        kept = ", ".join(str(step) for step in self.steps()) or "none"
        return UserError(
            f"could not save a checkpoint in {self.folder}: {reason[:300]}; checkpoints kept: {kept}. Make room there "
            "and run the same command again with this --workdir"
        )


def _quietly(function):
    """`function` without Orbax's log, also in a user's own program: all that matters in it is raised, or said by us."""

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


def exists(workdir: Path) -> bool:
    """Whether a finished checkpoint lies in `workdir`; cheap, and without side effects."""
    folder = Path(workdir) / FOLDER
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


def _checksum(tree: Any) -> jax.Array:
    """uint32 scalar: a position-weighted sum, modulo 2**32, of the bits of every leaf."""
    total = jnp.zeros((), jnp.uint32)
    # By name, not in the order of the tree: without a template it is read back as dicts, which are sorted.
    leaves = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    for index, (_, leaf) in enumerate(sorted(named.items())):
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32).ravel()
        # Odd weights are invertible modulo 2**32: no change of a single element goes unseen.
        weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        total = total * jnp.uint32(0x9E3779B1) + jnp.sum(bits * weights, dtype=jnp.uint32) + jnp.uint32(index)
    return total
