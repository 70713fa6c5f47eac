"""The results of scripts/scaling.py: efficiencies, parts of a step, tables, and a plot."""

from pathlib import Path
from typing import Any

import hlo_collectives
import numpy as np
from bench_cases import Case
from ml_collections import ConfigDict
from scaling_cases import Point, Prepared
from scaling_peaks import of_this_process

from imgclf_jax.terminal.console import Console


def summarize(
    prepared: dict[Point, Prepared],
    extra: dict[str, Case],
    seconds: dict[str, list[float]],
    layer: dict[str, list[float]],
    mode: str,
    forced: bool,
) -> dict[str, Any]:
    """Computes everything that the tables and the plot show.

    Args:
        prepared: what was measured.
        extra: the cases `product` and possibly `plain`.
        seconds: seconds per step of every case in every round, by the case's name.
        layer: the same for the plain loop and the steps on one device, which are measured separately.
        mode: "weak" or "strong".
        forced: whether the devices are parts of one CPU.

    Returns:
        `mode`, `forced_host_devices`; `peak` of a device: `flops` per second (`None` if unknown) in `arithmetic`;
        `product_rate`, FLOP/s of the matrix product; `rows`, see `_row`; `layer`, see `_layer`.
    """
    dtype = next(iter(prepared.values())).setup.experiment.config.model.dtype
    peak, arithmetic = of_this_process(dtype)
    product_rate = extra["product"].flops / _median(seconds[extra["product"].name])
    rows = [_row(point, one, seconds, prepared, forced) for point, one in prepared.items()]
    for row in rows:
        rate = row["flops"] / row["median"]
        row["mfu"] = rate / (peak * row["devices"]) if peak else None
        # The product already uses all cores of the CPU, which its parts share.
        row["of_product"] = rate / (product_rate * (1 if forced else row["devices"]))
    return {
        "mode": mode,
        "forced_host_devices": forced,
        "peak": {"flops": peak, "arithmetic": arithmetic},
        "product_rate": product_rate,
        "rows": rows,
        "layer": _layer(prepared, extra, layer),
    }


def _row(point, one, seconds, prepared, forced):
    """Returns the results of one strategy on one number of devices.

    The fields are: `seconds` per step in every round and their `median`; `images_per_second` and `per_device`;
    `efficiency`, images/s per device relative to the same strategy's smallest number of devices (`base`); `speedup`,
    images/s relative to that; `parts`, the seconds of input and collectives alone, and the rest; `beyond_perfect`, the
    seconds by which the step is longer than with perfect scaling from the base; `kernels` and `collectives` of a step.
    """
    base = min((other for other in prepared if other.strategy == point.strategy), key=lambda other: other.devices)
    size, base_size = (prepared[key].setup.experiment.config.train.batch_size for key in (point, base))
    median, base_median = (_median(seconds[prepared[key].cases["whole"].name]) for key in (point, base))
    parts = {name: _median(seconds[one.cases[name].name]) for name in ("input", "collectives") if name in one.cases}
    parts = {"collectives": 0.0, **parts}
    speedup = (size / median) / (base_size / base_median)
    perfect = base_median * size / base_size / (1 if forced else point.devices / base.devices)
    return {
        **point._asdict(),
        "base": base.devices,
        "batch_size": size,
        "seconds": seconds[one.cases["whole"].name],
        "median": median,
        "flops": one.setup.experiment.network_flops()[1],
        "images_per_second": size / median,
        "per_device": size / median / point.devices,
        "efficiency": speedup * base.devices / point.devices,
        "speedup": speedup,
        "parts": {**parts, "compute": median - sum(parts.values())},
        "beyond_perfect": median - perfect,
        "kernels": one.kernels,
        "collectives": {
            "count": hlo_collectives.count(one.collectives),
            "bytes": hlo_collectives.total_bytes(one.collectives),
            "each": [
                {"kind": each.kind, "repeats": each.repeats, "bytes": each.bytes, "arrays": len(each.buffers)}
                for each in one.collectives
            ],
        },
    }


def _layer(prepared, extra, seconds):
    """Returns the cost of the strategies on one device, from separate `seconds`; empty if it was not measured.

    `plain` has the `seconds` per step of the plain loop and their `median`. `strategies` has, by name, `cost`, the
    ratio of the step's median to the plain loop's, minus one; `fastest`, the same for the fastest rounds, which is more
    reliable if others compute too; and `rounds`, the same for each round.
    """
    if "plain" not in extra:
        return {}
    plain = seconds[extra["plain"].name]
    strategies = {}
    for point, one in prepared.items():
        if point.devices == 1:
            ours = seconds[one.cases["whole"].name]
            rounds = [a / b - 1 for a, b in zip(ours, plain, strict=True)]
            costs = {"cost": _median(ours) / _median(plain) - 1, "fastest": min(ours) / min(plain) - 1}
            strategies[point.strategy] = {**costs, "rounds": rounds}
    return {"plain": {"seconds": plain, "median": _median(plain)}, "strategies": strategies}


def _median(values):
    return float(np.median(values))


def report(console: Console, config: ConfigDict, results: dict[str, Any]) -> None:
    """Prints the results of `summarize`."""
    rows, mode, peak = results["rows"], results["mode"], results["peak"]["flops"]
    sizes = "per device" if mode == "weak" else "in total"
    console.print(
        f"{config.model.name}, {config.model.dtype}, {mode} scaling, {config.train.batch_size} images per step "
        f"{sizes}; medians of {len(rows[0]['seconds'])} rounds; "
        f"matrix product {results['product_rate'] / 1e9:,.0f} GFLOP/s"
        + (f", peak {peak / 1e12:,.0f} TFLOP/s in {results['peak']['arithmetic']}" if peak else ", used as the peak")
    )
    console.print()
    share = "MFU" if peak else "of peak"
    rates = ("devices", "batch", "ms per step", "images/s", "per device", "speed-up", "efficiency", share)
    console.table(rates, [_rate_cells(row) for row in rows])
    console.print()
    parts = ("ms per step", "compute", "input", "collectives", "count", "kB", "beyond perfect")
    console.table(parts, [_part_cells(row) for row in rows])
    if layer := results["layer"]:
        console.print()
        costs = ("cost on one device, relative to a plain loop", "medians", "fastest", "lowest", "highest")
        console.table(costs, [_layer_cells(name, one) for name, one in layer["strategies"].items()])


def _rate_cells(row):
    return (
        _name(row),
        row["batch_size"],
        _milliseconds(row["median"]),
        f"{row['images_per_second']:,.0f}",
        f"{row['per_device']:,.0f}",
        f"{row['speedup']:.2f}",
        f"{row['efficiency']:.0%}",
        f"{row['of_product'] if row['mfu'] is None else row['mfu']:.1%}",
    )


def _part_cells(row):
    times = [row["parts"][name] for name in ("compute", "input", "collectives")]
    sent = row["collectives"]
    sizes = sent["count"], f"{sent['bytes'] / 1e3:,.1f}"
    beyond = _milliseconds(row["beyond_perfect"])
    return _name(row), *map(_milliseconds, times), *sizes, beyond


def _name(row):
    return f"{row['strategy']} {row['devices']}"


def _layer_cells(name, one):
    low, high = min(one["rounds"]), max(one["rounds"])
    return name, *(f"{value:+.1%}" for value in (one["cost"], one["fastest"], low, high))


def _milliseconds(seconds):
    return f"{1e3 * seconds:.3g}" if abs(seconds) < 1 else f"{1e3 * seconds:,.0f}"


def plot(results: dict[str, Any], title: str, path: Path) -> None:
    """Draws images/s and efficiency over the number of devices, one line per strategy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (rates, shares) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name in dict.fromkeys(row["strategy"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["strategy"] == name]
        counts = [row["devices"] for row in rows]
        rates.plot(counts, [row["images_per_second"] for row in rows], marker="o", label=name)
        shares.plot(counts, [row["efficiency"] for row in rows], marker="o", label=name)
    base = results["rows"][0]
    ideal = [base["images_per_second"], base["images_per_second"] * counts[-1] / counts[0]]
    ends = [counts[0], counts[-1]]
    if results["forced_host_devices"]:
        # Parts of one CPU share its cores: at best, nothing is lost.
        rates.plot(ends, [ideal[0]] * 2, "k:", label="no overhead (the cores are shared)")
        shares.plot(counts, [counts[0] / count for count in counts], "k:", label="no overhead (the cores are shared)")
    else:
        rates.plot(ends, ideal, "k:", label="perfect")
        shares.plot(ends, [1, 1], "k:", label="perfect")
    rates.set(ylabel="images/s", title="Throughput")
    shares.set(ylabel="images/s per device, relative to the first", title="Efficiency")
    for axes in (rates, shares):
        axes.set(xlabel="devices", xscale="log", ylim=(0, None))
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"{title}, {results['mode']} scaling" + ", forced host devices" * results["forced_host_devices"])
    figure.savefig(path, dpi=110)
    plt.close(figure)
