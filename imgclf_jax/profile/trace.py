"""When the operations of a program ran, from a trace of `jax.profiler`."""

import collections
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData

# Where an operation ends that runs on in other threads: the CPU's runtime writes an event of this name, which bears the
# number of the event of its start.
_END, _STARTED, _ENDED = "end: ", "_p", "_c"


class Ran(NamedTuple):
    """How an operation ran during a trace, on average over the devices.

    Attributes:
        seconds: how long in all. Operations that run at the same time share it evenly, so that the seconds of all
            operations add up to those in which any of them ran.
        times: how often.
    """

    seconds: float
    times: float


class _Event(NamedTuple):
    device: Any
    operation: str
    name: str  # of the kernel; an operation may run several
    start: float  # nanoseconds
    end: float


def read(path: Path, module: str, counts: Callable[[str], bool] = lambda operation: True) -> dict[str, Ran]:
    """Reads how the operations of a program ran, by name.

    Args:
        path: a trace, `*.xplane.pb`.
        module: the name of the program.
        counts: whether an operation counts, by name; those that run others must not.
    """
    data = ProfileData.from_file(str(path))
    events = [event for event in _events(data, module) if counts(event.operation)]
    devices: dict[Any, list[_Event]] = {}
    for event in events:
        devices.setdefault(event.device, []).append(event)
    seconds: dict[str, float] = collections.defaultdict(float)
    kernels: dict[str, collections.Counter[tuple[Any, str]]] = {}
    for found in devices.values():
        shares = share([(event.start, event.end) for event in found])
        for event, nanoseconds in zip(found, shares, strict=True):
            seconds[event.operation] += nanoseconds / 1e9
            kernels.setdefault(event.operation, collections.Counter())[event.device, event.name] += 1
    return {name: Ran(total / len(devices), _times(kernels[name]) / len(devices)) for name, total in seconds.items()}


def _times(kernels):
    """How often an operation ran on all devices: as often as the kernel of it that ran least often, on each."""
    least: dict[Any, int] = {}
    for (device, _), count in kernels.items():
        least[device] = min(count, least.get(device, count))
    return sum(least.values())


def _events(data: Any, module: str) -> Iterable[_Event]:
    for plane in data.planes:
        lines = list(plane.lines)
        # A GPU's plane may repeat the events of its streams in other lines.
        streams = [line for line in lines if line.name.startswith("Stream")]
        starts: list[tuple[Any, dict[str, Any]]] = []
        ends: dict[Any, float] = {}
        for line in streams or lines:
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module") == module and "hlo_op" in stats:
                    starts.append((event, stats))
                elif event.name.startswith(_END):
                    ends[stats.get(_ENDED)] = event.start_ns
        for event, stats in starts:
            end = max(event.start_ns + event.duration_ns, ends.get(stats.get(_STARTED), 0))
            device = plane.name, stats.get("device_ordinal")
            yield _Event(device, str(stats["hlo_op"]), event.name, event.start_ns, end)


def share(spans: list[tuple[float, float]]) -> list[float]:
    """Divides the time evenly among the spans that hold it. Returns the share of each span.

    Args:
        spans: (start, end) of each.
    """
    shares = [0.0] * len(spans)
    moments = sorted(
        (time, starts, index) for index, span in enumerate(spans) for starts, time in enumerate((span[1], span[0]))
    )
    active: set[int] = set()
    before = 0.0
    for time, starts, index in moments:
        for one in active:
            shares[one] += (time - before) / len(active)
        before = time
        if starts and spans[index][1] > spans[index][0]:
            active.add(index)
        else:
            active.discard(index)
    return shares
