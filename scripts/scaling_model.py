"""A model of the step time on several devices: computation, which is split, and all-reduces, which are not.

    python scripts/scaling_model.py

Prints the tables of docs/scaling.md, which gives the source of each figure. None of the machines in the tables has been
measured.

    t(D, B) = B / D · FLOPs / (peak · utilization) + kernels · start + Σ all-reduce(D, bytes)
    all-reduce(D, n) = base + hops(D) · hop + 2 (D - 1) / D · n / bandwidth

The second line is the usual cost of an all-reduce in rings (Thakur, Rabenseifner and Gropp 2005, "Optimization of
collective communication operations in MPICH"). Nothing overlaps, which overstates the cost of the
collectives.
"""

import math
import runpy
from pathlib import Path
from typing import NamedTuple

import jax
from scaling_peaks import PEAKS

from imgclf_jax import augment, models
from imgclf_jax.models import cost
from imgclf_jax.terminal.console import Console

PROJECT = Path(__file__).resolve().parent.parent
IMAGE_SHAPE, CLASSES = (32, 32, 3), 10  # CIFAR-10's
HALF = 0.5
BATCH = 4096  # of the tables over the number of devices


class Protocol(NamedTuple):
    """One way to do an all-reduce.

    Attributes:
        base: seconds per all-reduce.
        hop: seconds for each hop of a message to a neighbor.
        share: the fraction of the links' bandwidth that it reaches.
    """

    base: float
    hop: float
    share: float = 1.0


class Machine(NamedTuple):
    """Devices and their links.

    Attributes:
        name: the name in tables.
        devices: the number of devices.
        peak: FLOP/s of each device in the arithmetic that float32 layers run in.
        bandwidth: bytes/s that each device can send while it receives as many.
        protocols: the all-reduces to choose from; the fastest one for a message's size counts.
        axes: the number of dimensions of the torus; 1 for a ring.
        start: seconds to start a kernel.
    """

    name: str
    devices: int
    peak: float
    bandwidth: float
    protocols: tuple[Protocol, ...]
    axes: int
    start: float


class Workload(NamedTuple):
    """A config's training step.

    Attributes:
        name: the name of the config.
        batch: images per step in the config.
        flops: FLOPs of convolutions and matrix products for one image.
        messages: the bytes of each all-reduce.
        kernels: the number of kernels that a device starts, one after the other.
        utilization: the step's FLOP/s as a fraction of the rate of large matrix products.
    """

    name: str
    batch: int
    flops: float
    messages: tuple[int, ...]
    kernels: int
    utilization: float


# Rings over NVLink, microseconds: the constants with which NCCL chooses among its protocols LL, LL128 and Simple
# (https://github.com/NVIDIA/nccl, src/graph/tuning.cc, commit 01afd20).
NVLINK = (Protocol(3.6e-6, 0.47e-6, 1 / 4), Protocol(10.0e-6, 1.9e-6, 0.92), Protocol(8.4e-6, 3.4e-6))
MACHINES = (
    # 235 GB/s: NCCL's figure (source as above) for A100. The data sheet says 300 (600 in both directions).
    Machine("8 × A100, NVLink", 8, PEAKS["NVIDIA A100"].tf32 or 0, 235e9, NVLINK, 1, 3e-6),
    # Data sheet: 900 GB/s in both directions. The same fraction of it as with A100 is assumed.
    Machine("8 × H200, NVLink", 8, PEAKS["NVIDIA H200"].tf32 or 0, 450e9 * 235 / 300, NVLINK, 1, 3e-6),
    # https://cloud.google.com/tpu/docs/v5e: 400 GB/s per chip in both directions. Half of 200 is assumed, because 8 × 8
    # chips are a part of the torus whose ends are not joined. 1 µs per hop and per all-reduce is assumed as well.
    Machine("64 × TPU v5e, 8 × 8", 64, PEAKS["TPU v5e"].bfloat16 or 0, 100e9, (Protocol(1e-6, 1e-6),), 2, 1e-6),
)
# (kernels, utilization): counted in the program that XLA's CPU compiler makes, and the whole step's rate as a fraction
# of the matrix product's rate on two CPU cores, 2026-11-22; see docs/scaling.md.
MEASURED = {"cnn": (229, 0.68), "tutorial_cnn": (120, 0.41), "mlp": (76, 0.44)}


def workload(name: str) -> Workload:
    """Returns the step of `configs/NAME.py` on CIFAR-10, for strategies with explicit collectives.

    They sum the gradients together with the loss, the number of correct predictions, and, for every batch
    normalization, two means forward and a pair of means backward. Tests hold compiled programs to that.
    """
    config = runpy.run_path(str(PROJECT / "configs" / f"{name}.py"))["get_config"]()
    shape = augment.input_shape(config, IMAGE_SHAPE)
    model = models.create(config.model, CLASSES)
    images = jax.ShapeDtypeStruct((1, *shape), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    table = cost.parameter_table(variables["params"])
    size = 4 * sum(count for _, _, count in table)
    means = [4 * count for path, _, count in table if path.endswith("/scale")]
    messages = [size + 4, 4, *means, *means, *(2 * mean for mean in means)]
    flops = cost.network_flops(model, variables, shape, 1)[1]
    return Workload(name, config.train.batch_size, flops, tuple(messages), *MEASURED[name])


def hops(devices: int, axes: int) -> int:
    """Returns the hops of an all-reduce: there and back along each axis of the squarest possible arrangement."""
    sides = [devices]
    if axes == 2:
        short = max(side for side in range(1, math.isqrt(devices) + 1) if devices % side == 0)
        sides = [short, devices // short]
    return 2 * sum(side - 1 for side in sides)


def all_reduce_seconds(machine: Machine, devices: int, size: float) -> float:
    """Returns the time to sum `size` bytes over a number of the machine's devices; 0 for one device."""
    if devices == 1:
        return 0.0
    travelled = 2 * (devices - 1) / devices * size / machine.bandwidth
    steps = hops(devices, machine.axes)
    return min(way.base + steps * way.hop + travelled / way.share for way in machine.protocols)


def collective_seconds(machine: Machine, load: Workload, devices: int) -> float:
    """Returns the seconds of all collectives of a step."""
    return sum(all_reduce_seconds(machine, devices, size) for size in load.messages)


def step_seconds(machine: Machine, load: Workload, devices: int, batch: float) -> float:
    """Returns the seconds of a step with `batch` images in total."""
    return batch / devices * seconds_per_image(machine, load) + fixed_seconds(machine, load, devices)


def seconds_per_image(machine: Machine, load: Workload) -> float:
    """Returns the seconds that one device computes on one image."""
    return load.flops / (machine.peak * load.utilization)


def fixed_seconds(machine: Machine, load: Workload, devices: int) -> float:
    """Returns the seconds that a step takes even with the smallest batch."""
    return load.kernels * machine.start + collective_seconds(machine, load, devices)


def efficiency(machine: Machine, load: Workload, devices: int, batch: float) -> float:
    """Returns the speed-up over one device with the same batch, as a fraction of the number of devices."""
    alone = step_seconds(machine, load, 1, batch)
    return alone / (devices * step_seconds(machine, load, devices, batch))


def least_batch(machine: Machine, load: Workload, devices: int, goal: float = HALF) -> int:
    """Returns the smallest batch, a multiple of the devices, whose efficiency reaches `goal` (below 1)."""
    alone, shared = (fixed_seconds(machine, load, count) for count in (1, devices))
    images = (goal * devices * shared - alone) / ((1 - goal) * seconds_per_image(machine, load))
    return devices * max(1, math.ceil(images / devices))


def without_starts(machine: Machine) -> Machine:
    """Returns the machine with kernels that start in no time, to see what the links alone allow."""
    return machine._replace(start=0.0)


def main() -> None:
    """Prints the workloads, the modeled step on each machine, and the batch from which on devices pay off."""
    console = Console()
    loads = [workload(name) for name in MEASURED]
    titles = ("config", "batch", "MFLOP per image", "all-reduces", "kB", "kernels", "of product")
    console.table(titles, [_load_row(load) for load in loads])
    for machine in MACHINES:
        figures = f"{machine.peak / 1e12:.4g} TFLOP/s, {machine.bandwidth / 1e9:.3g} GB/s"
        console.print(f"\n{machine.name} ({figures}), all {machine.devices} devices, µs:")
        columns = ("config", "images", "kernels", "links", "strong", "weak", "50 %", "links only")
        console.table(columns, [_machine_row(machine, load) for load in loads])
    console.print(
        "\nimages: computing on the config's batch, shared by all devices; strong: efficiency with\nthat batch; weak: "
        "efficiency with that batch on each device; 50 %: global batch from which on\nthe efficiency is above 50 %; "
        "links only: the same, if kernels started in no time"
    )
    for machine in MACHINES:
        console.print(f"\n{machine.name}, ms per step and efficiency, {BATCH:,} images per step in total:")
        counts = [2**power for power in range(machine.devices.bit_length())]
        console.table(("devices", *(load.name for load in loads)), [_time_row(machine, loads, one) for one in counts])


def _load_row(load):
    sent = f"{sum(load.messages) / 1e3:,.1f}"
    return (
        load.name,
        load.batch,
        f"{load.flops / 1e6:.3g}",
        len(load.messages),
        sent,
        load.kernels,
        f"{load.utilization:.0%}",
    )


def _machine_row(machine, load):
    devices = machine.devices
    times = (
        load.batch / devices * seconds_per_image(machine, load),
        load.kernels * machine.start,
        collective_seconds(machine, load, devices),
    )
    weak = step_seconds(machine, load, 1, load.batch) / step_seconds(machine, load, devices, load.batch * devices)
    batches = (least_batch(one, load, devices) for one in (machine, without_starts(machine)))
    return (
        load.name,
        *(f"{1e6 * seconds:,.3g}" for seconds in times),
        f"{efficiency(machine, load, devices, load.batch):.0%}",
        f"{weak:.0%}",
        *(f"{batch:,}" for batch in batches),
    )


def _time_row(machine, loads, devices):
    cells = (
        f"{1e3 * step_seconds(machine, load, devices, BATCH):.3g} ({efficiency(machine, load, devices, BATCH):.0%})"
        for load in loads
    )
    return devices, *cells


if __name__ == "__main__":
    main()
