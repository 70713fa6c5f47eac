"""The tables of scripts/bench_step.py: times, rates, and where the time goes."""

from typing import Any

import numpy as np
from bench_cases import BOTH, FORWARD, INPUT, NETWORK, PRODUCT, UPDATE, WHOLE, Case
from ml_collections import ConfigDict

from imgclf_jax.terminal.console import Console


def summarize(cases: list[Case], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Computes medians, rates and ratios.

    Args:
        cases: what was measured.
        seconds: seconds per step of every case in every round, by the case's name.

    Returns:
        `cases`: by name, in the order of measurement: `seconds` per step in every round, their `median` and
        `quartiles`, `flops`, `moved` (bytes) and `images` per step, and `rate`: FLOP/s as a fraction of the matrix
        product's. `ratios`: by the name of PyTorch's case and then of our step, our throughput divided by PyTorch's:
        `median` (of the medians) and `rounds` (of each round).
    """
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    product = next(case for case in cases if case.name == PRODUCT)
    peak = product.flops / medians[PRODUCT]
    rows = {
        case.name: {
            "seconds": seconds[case.name],
            "median": medians[case.name],
            "quartiles": [float(value) for value in np.quantile(seconds[case.name], (0.25, 0.75))],
            "flops": case.flops,
            "moved": case.moved,
            "images": case.images,
            "rate": case.flops / medians[case.name] / peak,
        }
        for case in cases
    }
    ratios: dict[str, Any] = {}
    for torch in (name for name in rows if name.startswith("PyTorch")):
        ratios[torch] = {}
        for name in (NETWORK, WHOLE):
            rounds = [theirs / ours for ours, theirs in zip(seconds[name], seconds[torch], strict=True)]
            ratios[torch][name] = {"median": medians[torch] / medians[name], "rounds": rounds}
    return {"cases": rows, "ratios": ratios}


def report(console: Console, config: ConfigDict, results: dict[str, Any]) -> None:
    """Prints the results of `summarize`."""
    cases, ratios = results["cases"], results["ratios"]
    size, rounds = config.train.batch_size, len(cases[PRODUCT]["seconds"])
    side = round((cases[PRODUCT]["flops"] / 2) ** (1 / 3))
    console.print(
        f"{config.model.name}, {config.model.dtype}, {config.optim.name}, {size} images per step, "
        f"{cases[NETWORK]['flops'] / 1e9:.3g} GFLOP; medians of {rounds} rounds; "
        f"peak: the product of {side} × {side} matrices\n"
    )
    names = [PRODUCT, WHOLE, NETWORK, *ratios]
    columns = ("", "ms per step", "quartiles", "images/s", "GFLOP/s", "of peak")
    console.table(columns, [_rate_row(name, cases[name]) for name in names])
    console.print()
    columns = ("where the whole step's time goes", "ms", "share", "at peak", "minimum MB", "GB/s")
    console.table(columns, list(_part_rows(cases)))
    console.print()
    console.print(
        f"network step: {cases[NETWORK]['rate']:.0%} of peak, whole step with augmentation: "
        f"{cases[WHOLE]['rate']:.0%} (medians of {rounds} rounds)"
    )
    if not ratios:
        return
    rows = [(torch, _ratio(ratios[torch][NETWORK]), _ratio(ratios[torch][WHOLE])) for torch in ratios]
    console.print()
    console.table(("our throughput, divided by that of", "network step", "whole step"), rows)
    console.print(
        "ratios of medians; in brackets, the lowest and highest of a round; "
        "the PyTorch timing leaves out augmentation and metrics"
    )


def _rate_row(name, case):
    seconds = case["median"]
    low, high = case["quartiles"]
    images = f"{case['images'] / seconds:,.0f}" if case["images"] else ""
    quartiles = f"{_milliseconds(low)} to {_milliseconds(high)}"
    rate = f"{case['flops'] / seconds / 1e9:,.1f}"
    return name, _milliseconds(seconds), quartiles, images, rate, f"{case['rate']:.0%}"


def _milliseconds(seconds):
    return f"{1e3 * seconds:.3g}" if abs(seconds) < 1 else f"{1e3 * seconds:,.0f}"


def _part_rows(cases):
    """Yields a row for each part of the whole step.

    "At peak" is the time that the part's products would take at the matrix product's rate. The parts are measured one
    by one and need not add up to the whole. The last row is the difference.
    """
    whole, peak = cases[WHOLE]["median"], cases[PRODUCT]["flops"] / cases[PRODUCT]["median"]
    backward = {key: cases[BOTH][key] - cases[FORWARD][key] for key in ("median", "flops", "moved")}
    parts = {
        INPUT: cases[INPUT],
        "network, forward": cases[FORWARD],
        "network, backward": backward,
        UPDATE: cases[UPDATE],
    }
    rest = whole - sum(case["median"] for case in parts.values())
    parts["metrics, loop, fusion"] = {"median": rest, "flops": 0, "moved": 0}
    for name, case in parts.items():
        seconds, moved = case["median"], case["moved"]
        yield (
            name,
            _milliseconds(seconds),
            f"{seconds / whole:.0%}",
            _milliseconds(case["flops"] / peak) if case["flops"] else "",
            f"{moved / 1e6:.3g}" if moved else "",
            f"{moved / seconds / 1e9:.3g}" if moved else "",
        )


def _ratio(ratio):
    return f"{ratio['median']:.2f} × ({min(ratio['rounds']):.2f} to {max(ratio['rounds']):.2f})"
