"""Where arrays live and how functions are compiled: the only file that deals with devices, meshes and sharding.

Three strategies with one meaning. With "jit" a function sees global arrays, and the compiler places the collectives.
With "shard_map" and "pmap" it sees the part of its own device and calls the collectives itself, through `all_sum`,
`select` and, in batch normalization, `axis_name`. The functions of this package call all of these with every strategy;
those that a strategy does not need do nothing.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from imgclf_jax.devices import processes

STRATEGIES = ("auto", "jit", "pmap", "shard_map")
EXPLICIT = ("pmap", "shard_map")  # those whose functions see only one device's part
PLACEMENTS = ("auto", "replicated", "sharded")
AXES = ("data", "model")
LARGE = 2**14  # the number of values from which a parameter is worth sharding over the model axis
DATA_SHARE = 0.25  # the fraction of a device's memory that a whole copy of the data set may take
STREAM_SHARE = 0.5  # the fraction of a device's memory beyond which the data set is streamed


class Parallel(NamedTuple):
    """A strategy on a set of devices.

    Attributes:
        name: "jit", "pmap" or "shard_map".
        mesh: the devices, with the axes `AXES`. Batches are split over both of them, large parameters over "model".
        sharded_data: whether every device holds a part of the data set, rather than all of it.
        streamed: whether the data set stays on disk, and its batches are sent to the devices one at a time.
    """

    name: str
    mesh: Mesh
    sharded_data: bool = False
    streamed: bool = False

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.mesh.size

    @property
    def axis_name(self) -> str | None:
        """The axis that the collectives of a function run over, or `None` if the compiler places them."""
        return AXES[0] if self._explicit else None

    @property
    def _explicit(self):
        """Whether functions see one of several parts. On one device there is nothing to sum."""
        return self.name in EXPLICIT and self.devices > 1

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of arrays that every device holds whole: metrics, orders, and most of the state."""
        return NamedSharding(self.mesh, PartitionSpec())

    # Placing arrays

    def put(self, tree: Any) -> Any:
        """Copies host arrays, which must be the same in every process, to all devices."""
        return jax.tree.map(lambda array: self._place(np.asarray(array), self.replicated), tree)

    def put_examples(self, tree: Any) -> Any:
        """Copies the arrays [N, ...] of a split to the devices, for `select`: whole to each device, or cut along N.

        If the arrays are cut, each process reads only the part for its own devices, and N is padded with zeros to a
        multiple of the number of devices. No index refers to the padding.
        """
        padding = self.devices if self.sharded_data else 1
        return jax.tree.map(lambda array: self._place(array, self.examples, -len(array) % padding), tree)

    @property
    def examples(self) -> NamedSharding:
        """The sharding of the arrays [N, ...] of a split: cut along N, or whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec(AXES) if self.sharded_data else PartitionSpec())

    @property
    def batches(self) -> NamedSharding:
        """The sharding of batches [K, A, B, ...]: cut along B, or, with "pmap", whole on every device."""
        spec = PartitionSpec() if self.name == "pmap" else PartitionSpec(None, None, AXES)
        return NamedSharding(self.mesh, spec)

    def columns(self, size: int) -> np.ndarray:
        """Returns which of the `size` examples of a batch the devices of this process need, in ascending order."""
        parts: Any = self.batches.addressable_devices_indices_map((1, 1, size)).values()
        return np.unique(np.concatenate([np.arange(size)[part[2]] for part in parts]))

    def put_batches(self, tree: Any, size: int) -> Any:
        """Copies arrays [K, A, n, ...] to the devices, for `take`: K batches of A parts of `size` examples each.

        The n examples are those of the `columns` of this process.
        """
        columns = self.columns(size)

        def place(array):
            def part(index):
                first, last, _ = index[2].indices(size)
                here = int(np.searchsorted(columns, first))
                return array[:, :, here : here + last - first]

            with jax.transfer_guard("allow"):
                return jax.make_array_from_callback((*array.shape[:2], size, *array.shape[3:]), self.batches, part)

        return jax.tree.map(place, tree)

    def _place(self, array, sharding, padding=0):
        def part(index):
            rows = array[index]
            missing = _length(index, shape) - len(rows) if padding else 0
            return np.concatenate([rows, np.zeros((missing, *array.shape[1:]), array.dtype)]) if missing else rows

        shape = (len(array) + padding, *array.shape[1:]) if padding else array.shape
        with jax.transfer_guard("allow"):  # This copy is intended.
            return jax.make_array_from_callback(shape, sharding, part)

    def state_sharding(self, state: Any) -> Any:
        """Returns the sharding of each leaf of a state: large leaves are cut along their longest axis over "model".

        A leaf that is cut is gathered for the layer that needs it, and updated in place, as in ZeRO and FSDP
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

    def stand_ins(self, state: Any) -> Any:
        """Returns shapes, dtypes and shardings of the leaves of a state, to compile against or to restore into."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            self.state_sharding(state),
        )

    # Inside compiled functions

    def share(self, values: jax.Array) -> jax.Array:
        """Returns this device's part of an array [..., B] along its last axis; with "jit" the array, split there."""
        if self.devices == 1:
            return values
        if self.name in EXPLICIT:
            part = values.shape[-1] // self.devices
            return lax.dynamic_slice_in_dim(values, lax.axis_index(AXES[0]) * part, part, axis=-1)
        spec = PartitionSpec(*[None] * (values.ndim - 1), AXES)
        return lax.with_sharding_constraint(values, NamedSharding(self.mesh, spec))

    def select(self, examples: jax.Array, indices: jax.Array) -> jax.Array:
        """Returns the examples of this device's share of a batch, by their global index.

        Args:
            examples: [N, ...] from `put_examples`; [N / devices, ...] with a strategy in `EXPLICIT`.
            indices: int32 [..., B], the indices of the global batch.

        Returns:
            [..., B / devices, ...]; with "jit" [..., B, ...], split over the devices.
        """
        if not (self.sharded_data and self._explicit):
            return examples[self.share(indices)]
        rows = len(examples)
        local = indices - lax.axis_index(AXES[0]) * rows
        here = (local >= 0) & (local < rows)
        rows_here = examples[jnp.where(here, local, 0)]
        rows_here = jnp.where(here.reshape(*here.shape, *[1] * (rows_here.ndim - here.ndim)), rows_here, 0)
        # Each example is on one device, so the sum over all devices is the example. Each device gets its share.
        return lax.psum_scatter(rows_here, AXES[0], scatter_dimension=indices.ndim - 1, tiled=True)

    def take(self, batches: jax.Array, which: jax.Array) -> jax.Array:
        """Returns one of the batches from `put_batches`.

        Args:
            batches: [K, A, B, ...]; with "shard_map" [K, A, B / devices, ...].
            which: int32 scalar.

        Returns:
            [A, B / devices, ...]; with "jit" [A, B, ...], split over the devices.
        """
        batch = lax.dynamic_index_in_dim(batches, which, keepdims=False)
        if not (self.name == "pmap" and self._explicit):
            return batch
        part = batch.shape[1] // self.devices
        return lax.dynamic_slice_in_dim(batch, lax.axis_index(AXES[0]) * part, part, axis=1)

    def part_of_sum(self, tree: Any) -> Any:
        """Returns known sums as one device's contribution to an `all_sum`; those of the others are zero."""
        if not self._explicit:
            return tree
        return jax.tree.map(lambda total: jnp.where(lax.axis_index(AXES[0]) == 0, total, 0), tree)

    def all_sum(self, tree: Any) -> Any:
        """Returns the sums over the devices of partial sums, one per device; with "jit" they are complete already."""
        return lax.psum(tree, AXES[0]) if self._explicit else tree

    # Between processes

    def highest(self, values: np.ndarray) -> jax.Array:
        """Returns the elementwise maximum of int32 [K] over the processes, computed on the devices, asynchronously.

        All processes must call it in the same order as everything else that runs on the devices.
        """
        rows = NamedSharding(self.mesh, PartitionSpec(AXES))
        votes = jax.make_array_from_callback((self.devices, *values.shape), rows, lambda _: values[None])
        return self.jit(_highest)(votes)

    # Compiling

    def jit(self, function: Callable, out_shardings: Any = None) -> Any:
        """Returns `jax.jit` of a function that is the same in every strategy; its results are replicated by default."""
        return jax.jit(function, out_shardings=self.replicated if out_shardings is None else out_shardings)

    def compile(
        self,
        function: Callable,
        donate: tuple[str, ...] = (),
        shardings: Mapping[str, Any] | None = None,
        out_shardings: Any = None,
    ) -> Any:
        """Compiles a function that calls `share`, `select` and `all_sum` to run on all devices.

        Args:
            function: takes keyword arguments. Its results are the same on all devices.
            donate: the names of the arguments whose buffers are reused for results.
            shardings: the shardings of arguments, by name, as prefixes of their trees; replicated by default. Needed by
                "shard_map"; "jit" reads them off the arrays, and with "pmap" all arguments are whole on every device.
            out_shardings: the shardings of the results, a prefix of their tree; replicated by default. Only for "jit".

        Returns:
            A function of the same keyword arguments with a method `lower`, as `jax.jit` returns.
        """
        if self.name == "jit":
            return jax.jit(function, out_shardings=out_shardings or self.replicated, donate_argnames=donate)

        def call(arguments):
            return function(**arguments)

        def run_pmap(**arguments):
            # Only the device number has an axis of replicas, because `pmap` requires one such argument.
            mapped = jax.pmap(
                lambda _, arguments: call(arguments),
                AXES[0],
                in_axes=(0, None),
                out_axes=None,
                devices=list(self.mesh.devices.flat),
            )
            return mapped(jnp.arange(self.devices), arguments)

        def run_shard_map(**arguments):
            specs: dict[str, Any] = dict.fromkeys(arguments, PartitionSpec())
            specs |= jax.tree.map(lambda sharding: sharding.spec, dict(shardings or {}))
            # check_vma: the check of what is replicated does not see through custom derivatives.
            mapped = jax.shard_map(call, mesh=self.mesh, in_specs=(specs,), out_specs=PartitionSpec(), check_vma=False)
            return mapped(arguments)

        return jax.jit(run_pmap if self.name == "pmap" else run_shard_map, donate_argnames=donate)


def _highest(votes):
    return votes.max(axis=0)


def _length(index, shape):
    start, stop, _ = index[0].indices(shape[0])
    return stop - start


def create(config: ConfigDict, image_bytes: int = 0) -> Parallel:
    """Returns the strategy of a config, and decides where its data set is placed. All processes make the same choice.

    Args:
        config: a complete, valid config.
        image_bytes: the size of the images of all splits, decoded to uint8. A data set that is too large for the
            devices is streamed.
    """
    settings = config.parallel
    shape = _mesh_shape(settings)
    devices = np.asarray(jax.devices()[: math.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    name = "jit" if settings.strategy == "auto" else settings.strategy
    memory = _memory(mesh)
    sharded = settings.data == "sharded"
    if settings.data == "auto" and name != "pmap":
        sharded = image_bytes > DATA_SHARE * memory
    sharded = sharded and mesh.size > 1
    held = image_bytes / (mesh.size if sharded else 1)
    streamed = held > (config.data.max_device_bytes or STREAM_SHARE * memory)
    # The memory of the machines may differ.
    sharded, streamed = ("True" in processes.gather(str(choice)) for choice in (sharded, streamed))
    return Parallel(name, mesh, sharded and not streamed, streamed)


def alone() -> Parallel:
    """Returns plain `jax.jit` on one device."""
    return Parallel("jit", Mesh(np.asarray(jax.local_devices()[:1]).reshape(1, 1), AXES))


def _mesh_shape(config):
    return tuple(config.mesh) or (config.devices or jax.device_count(), 1)


def _memory(mesh):
    """Returns the memory of a device in bytes. CPU devices share that of the host. Infinite if unknown."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else _host_memory()
    return (limit or math.inf) / (len(mesh.local_devices) if device.platform == "cpu" else 1)


def _host_memory():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
