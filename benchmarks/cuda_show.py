"""A table and a plot of what a machine with a GPU found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cuda_goals
from benchmarks.output import console, table


def show(path: Path) -> None:
    """Prints the tables of a results file, and draws the plot beside it."""
    found = json.loads(path.read_text())
    console.print(cuda_goals.text(found), highlight=False, markup=False, soft_wrap=True)
    timed = [one for one in found["rows"] if "seconds" in one]
    if timed:
        _tables(timed, found["machine"])
    if any(one["ratios"] for one in timed):
        _plot([one for one in timed if one["ratios"]], path.with_suffix(".png"))


def _tables(timed: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    peers = list(dict.fromkeys(peer for one in timed for peer in one["ratios"]))
    cells = [
        {
            "layer": one["row"],
            "kernel": one.get("kernel", "") + ("*" if one.get("default") else ""),
            **{f"× {peer}": _number(one["ratios"].get(peer)) for peer in peers},
            "us": f"{1e6 * one['seconds']:.1f}",
            "± %": f"{100 * one['spread'] / 2:.1f}",
            "TMAC/s": f"{one['macs'] / one['seconds'] / 1e12:.1f}" if one["macs"] else "",
            "GB/s": f"{one['bytes'] / one['seconds'] / 1e9:.0f}" if "bytes" in one else "",
            "% of the peak": _percent(cuda_goals.share(one, machine)),
        }
        for one in timed
    ]
    table("How many times as fast as the peers, medians (*: what a compilation takes)", cells)


def _number(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}"


def _plot(timed: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415  (of the group bench)

    peers = list(dict.fromkeys(peer for one in timed for peer in one["ratios"]))
    figure, axes = plt.subplots(figsize=(9, 1 + 0.3 * len(timed)), layout="constrained")
    places = np.arange(len(timed))
    for i, peer in enumerate(peers):
        ratios = [one["ratios"].get(peer, 0) for one in timed]
        axes.barh(places + 0.8 * i / len(peers), ratios, 0.8 / len(peers), label=f"against {peer}")
    axes.axvline(1, color="black", linewidth=0.8)
    labels = [f"{one['row']}, {one.get('kernel', '')}" for one in timed]
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_xlabel("times as fast")
    axes.legend()
    figure.savefig(path, dpi=150)
    console.print(f"The plot: {path}", highlight=False)
