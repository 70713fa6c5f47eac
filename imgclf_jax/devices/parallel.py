"""Where arrays live and how functions are compiled: the only file that speaks of devices, meshes and sharding.

Three strategies with one meaning. With "jit" a function sees global arrays, and the compiler places the collectives.
With "shard_map" and "pmap" it sees its own device's part and calls for the collectives itself, through `all_sum`,
`fetch` and, in batch normalisation, `axis_name`. The functions of this package call all of these, whatever the
strategy: where there is nothing to do they do nothing.
"""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

STRATEGIES = ("auto", "jit", "pmap", "shard_map")
EXPLICIT = ("pmap", "shard_map")  # those whose functions see one device's part
PLACEMENTS = ("auto", "replicated", "sharded")
AXES = ("data", "model")
LARGE = 2**14  # values from which a parameter is worth sharding over the model axis
DATA_SHARE = 0.25  # of a device's memory, which a whole copy of the data set may take
STREAM_SHARE = 0.5  # of a device's memory; of a data set that would take more none is kept there


class Parallel(NamedTuple):
    """A strategy on a set of devices.

    Attributes:
        strategy: "jit", "pmap" or "shard_map".
        mesh: the devices, with the axes `AXES`. Batches are split over both of them, large parameters over "model".
        sharded_data: whether every device holds a part of the data set, rather than all of it.
        streamed: whether the devices are handed batches one after the other, rather than a data set.
    """

    strategy: str
    mesh: Mesh
    sharded_data: bool = False
    streamed: bool = False

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.mesh.size

    @property
    def axis_name(self) -> str | None:
        """The axis that a function's collectives run over, or `None` where the compiler places them."""
        return AXES[0] if self._explicit else None

    @property
    def _explicit(self):
        """Whether functions see one of several parts; on one device there is nothing to sum."""
        return self.strategy in EXPLICIT and self.devices > 1

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole: metrics, orders, and most of the state."""
        return NamedSharding(self.mesh, PartitionSpec())

    # What lies on the devices

    def put(self, tree: Any) -> Any:
        """Host arrays, the same in every process, to all devices."""
        return jax.tree.map(lambda array: self._place(np.asarray(array), self.replicated), tree)

    def put_examples(self, tree: Any) -> Any:
        """Arrays [N, ...] of a split to the devices, for `fetch`: whole on each of them, or cut along N.

        Of a cut array each process reads only what its devices get. N is filled up with zeros to a multiple of the
        devices; no index points there.
        """
        if not self.sharded_data:
            return jax.tree.map(lambda array: self._place(array, self.replicated), tree)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXES))
        return jax.tree.map(lambda array: self._place(array, sharding, -len(array) % self.devices), tree)

    @property
    def batches(self) -> NamedSharding:
        """The sharding of batches [K, A, B, ...]: every device holds its part of each, or, with "pmap", all of them."""
        spec = PartitionSpec() if self.strategy == "pmap" else PartitionSpec(None, None, AXES)
        return NamedSharding(self.mesh, spec)

    def columns(self, size: int) -> np.ndarray:
        """Which of the `size` examples of a batch, or of each of its parts, this process's devices need; ascending."""
        parts: Any = self.batches.addressable_devices_indices_map((1, 1, size)).values()
        return np.unique(np.concatenate([np.arange(size)[part[2]] for part in parts]))

    def put_batches(self, tree: Any, size: int) -> Any:
        """Arrays [K, A, n, ...] to the devices, for `take`: K batches of A parts of `size` examples each.

        The n that are given are those of this process's `columns`.
        """
        columns = self.columns(size)

        def place(array):
            def part(index):
                first, last, _ = index[2].indices(size)
                here = int(np.searchsorted(columns, first))
                return array[:, :, here : here + last - first]

            return jax.make_array_from_callback((*array.shape[:2], size, *array.shape[3:]), self.batches, part)

        return jax.tree.map(place, tree)

    def _place(self, array, sharding, padding=0):
        def part(index):
            rows = array[index]
            missing = _length(index, shape) - len(rows) if padding else 0
            return np.concatenate([rows, np.zeros((missing, *array.shape[1:]), array.dtype)]) if missing else rows

        shape = (len(array) + padding, *array.shape[1:]) if padding else array.shape
        return jax.make_array_from_callback(shape, sharding, part)

    def state_sharding(self, state: Any) -> Any:
        """Where the leaves of a state live: large ones cut along their longest axis over "model", the rest whole.

        What is cut is gathered where a layer needs it, and updated where it lies, as in ZeRO and FSDP
        (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054).

        Args:
            state: a pytree of arrays or of their shapes.
        """
        parts = self.mesh.shape[AXES[1]]

        def one(leaf):
            axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
            if parts == 1 or math.prod(leaf.shape) < LARGE or not axes:
                return self.replicated
            longest = max(axes, key=leaf.shape.__getitem__)
            return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, AXES[1]))

        return jax.tree.map(one, state)

    def describe(self, state: Any) -> Any:
        """Shapes, dtypes and places of a state's leaves, for compiling or restoring without allocating any."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            self.state_sharding(state),
        )

    # Inside compiled functions

    def share(self, values: jax.Array) -> jax.Array:
        """This device's part of a global array [..., B] along its last axis; with "jit" the same array, split there."""
        if self.devices == 1:
            return values
        if self.strategy in EXPLICIT:
            part = values.shape[-1] // self.devices
            return lax.dynamic_slice_in_dim(values, lax.axis_index(AXES[0]) * part, part, axis=-1)
        spec = PartitionSpec(*[None] * (values.ndim - 1), AXES)
        return lax.with_sharding_constraint(values, NamedSharding(self.mesh, spec))

    def fetch(self, examples: jax.Array, indices: jax.Array) -> jax.Array:
        """Examples by their global index, those of this device's share of the batch.

        Args:
            examples: [N, ...] from `put_examples`; with a strategy that sees parts, [N / devices, ...].
            indices: int32 [..., B], of the global batch.

        Returns:
            [..., B / devices, ...], or with "jit" [..., B, ...] split over the devices.
        """
        if not (self.sharded_data and self._explicit):
            return examples[self.share(indices)]
        rows = len(examples)
        local = indices - lax.axis_index(AXES[0]) * rows
        here = (local >= 0) & (local < rows)
        found = examples[jnp.where(here, local, 0)]
        found = jnp.where(here.reshape(*here.shape, *[1] * (found.ndim - here.ndim)), found, 0)
        # Every example comes from one device: the sum over all is the example, and each gets its share of the batch.
        return lax.psum_scatter(found, AXES[0], scatter_dimension=indices.ndim - 1, tiled=True)

    def take(self, batches: jax.Array, which: jax.Array) -> jax.Array:
        """One of the batches from `put_batches`.

        Args:
            batches: [K, A, B, ...]; with "shard_map" [K, A, B / devices, ...].
            which: int32 scalar.

        Returns:
            As `fetch`: [A, B / devices, ...], or with "jit" [A, B, ...] split over the devices.
        """
        batch = lax.dynamic_index_in_dim(batches, which, keepdims=False)
        if not (self.strategy == "pmap" and self._explicit):
            return batch
        part = batch.shape[1] // self.devices
        return lax.dynamic_slice_in_dim(batch, lax.axis_index(AXES[0]) * part, part, axis=1)

    def part_of_sum(self, tree: Any) -> Any:
        """Sums that are known already, as what one device adds to an `all_sum`, and the others nothing."""
        if not self._explicit:
            return tree
        return jax.tree.map(lambda total: jnp.where(lax.axis_index(AXES[0]) == 0, total, 0), tree)

    def all_sum(self, tree: Any) -> Any:
        """The sums over the devices of what each has computed on its share; with "jit" they are that already."""
        return lax.psum(tree, AXES[0]) if self._explicit else tree

    # Between processes

    def highest(self, values: np.ndarray) -> jax.Array:
        """The highest values [K] that any process brings; int32, computed behind what the devices already have to do.

        All processes must call it in the same order as everything else that runs on the devices.
        """
        rows = NamedSharding(self.mesh, PartitionSpec(AXES))
        votes = jax.make_array_from_callback((self.devices, *values.shape), rows, lambda _: values[None])
        return self.jit(_highest)(votes)

    # Compiling

    def jit(self, function: Callable, out_shardings: Any = None) -> Any:
        """`jax.jit` of a function that no strategy changes, with replicated results unless said otherwise."""
        return jax.jit(function, out_shardings=self.replicated if out_shardings is None else out_shardings)

    def compile(
        self,
        function: Callable,
        donate: tuple[int, ...] = (),
        examples: tuple[int, ...] = (),
        out_shardings: Any = None,
    ) -> Any:
        """Compiles a function that calls `share`, `fetch` and `all_sum` to run on all devices.

        Args:
            function: of positional arguments; what it returns is the same on all devices.
            donate: the arguments whose buffers are reused for results.
            examples: the arguments that come from `put_examples` or `put_batches`.
            out_shardings: of the results, a prefix of their tree; replicated by default. For "jit" alone.

        Returns:
            A function with `lower`, as `jax.jit` returns.
        """
        if self.strategy == "jit":
            return jax.jit(function, out_shardings=out_shardings or self.replicated, donate_argnums=donate)

        def run_pmap(*arguments):
            # Nothing has an axis of replicas but the device's number, for `pmap` insists on one such argument.
            mapped = jax.pmap(
                lambda _, *rest: function(*rest),
                AXES[0],
                in_axes=(0, *[None] * len(arguments)),
                out_axes=None,
                devices=list(self.mesh.devices.flat),
            )
            return mapped(jnp.arange(self.devices), *arguments)

        def run_shard_map(*arguments):
            cut = PartitionSpec(AXES[0]) if self.sharded_data else PartitionSpec()
            cut = self.batches.spec if self.streamed else cut
            specs = tuple(cut if index in examples else PartitionSpec() for index in range(len(arguments)))
            # check_vma: the check of what is replicated does not see through custom derivatives.
            mapped = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
            return mapped(*arguments)

        return jax.jit(run_pmap if self.strategy == "pmap" else run_shard_map, donate_argnums=donate)


def _highest(votes):
    return votes.max(axis=0)


def _length(index, shape):
    start, stop, _ = index[0].indices(shape[0])
    return stop - start


def create(config: ConfigDict, data_bytes: int = 0, streamed: bool = False) -> Parallel:
    """The strategy of `config.parallel`.

    Args:
        config: the `parallel` section, one that `imgclf_jax.devices.problems` accepts.
        data_bytes: size of the data set, by which `parallel.data="auto"` decides.
        streamed: whether the data set stays on disk, see `streams`.
    """
    shape = _mesh_shape(config)
    devices = np.asarray(jax.devices()[: math.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    strategy = "jit" if config.strategy == "auto" else config.strategy
    sharded = config.data == "sharded"
    if config.data == "auto" and strategy != "pmap" and mesh.size > 1:
        sharded = data_bytes > DATA_SHARE * _memory(mesh)
    return Parallel(strategy, mesh, sharded and mesh.size > 1 and not streamed, streamed)


def streams(config: ConfigDict, data_bytes: int) -> bool:
    """Whether a data set is too large for the devices, so that it stays on disk and is streamed to them.

    Args:
        config: a whole, valid config.
        data_bytes: size of the images of all splits, decoded.
    """
    resident = create(config.parallel, data_bytes)
    held = data_bytes / (resident.devices if resident.sharded_data else 1)
    return held > (config.data.max_device_bytes or STREAM_SHARE * _memory(resident.mesh))


def alone() -> Parallel:
    """Plain `jax.jit` on one device."""
    return Parallel("jit", Mesh(np.asarray(jax.local_devices()[:1]).reshape(1, 1), AXES))


def _mesh_shape(config):
    return tuple(config.mesh) or (config.devices or jax.device_count(), 1)


def _memory(mesh):
    """Bytes of a device's memory; of a host's, which its devices share, their part; infinite where it is not known."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else _host_memory()
    return (limit or math.inf) / (len(mesh.local_devices) if device.platform == "cpu" else 1)


def _host_memory():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
