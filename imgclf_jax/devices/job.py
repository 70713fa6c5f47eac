"""This process's place in a job and its connection to the coordinator: the only use of private parts of JAX.

`jax.distributed` has no public name for either. `jax.process_index()` starts the devices, which a process must not do
while it waits for the others or ends without them. The functions of `jax.experimental.multihost_utils` exchange arrays
through the devices and wait without a limit; the coordinator's store exchanges text and answers in time.
"""

from typing import Any, NamedTuple

from jax._src import distributed


class Place(NamedTuple):
    """A process in a job.

    Attributes:
        client: JAX's client of the coordinator, whose store of keys and texts all processes share; `None` before the
            process is connected.
        process: the rank of the process, from 0; `None` if it is not known.
        processes: the number of processes in the job; `None` if it is not known.
    """

    client: Any
    process: int | None
    processes: int | None


def place() -> Place:
    """The place of this process. Does not start the devices and does not wait."""
    state = distributed.global_state
    return Place(state.client, state.process_id, state.num_processes)
