"""What the samples mean: medians, ratios within rounds, geometric means. Times in seconds."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.suite.peers import OURS, UNTUNED
from mlc.runtime.timing import CROWDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A peer's time over mlc's (above 1: mlc is faster): median over rounds, 5th and 95th percentile."""

    median: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether one of the two is faster throughout."""
        return self.low > 1 or self.high < 1


def timed(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the median seconds of each block by entrant, of those that ran."""
    return {
        name: [statistics.median(block["runs"]) for block in entrant["blocks"]]
        for name, entrant in result["entrants"].items()
        if "blocks" in entrant
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return how two entrants compare, round by round; positive times."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    low, median, high = map(float, np.percentile(ratios, [5, 50, 95]))
    return Ratio(median=median, low=low, high=high)


def ratios(result: Mapping[str, Any]) -> dict[str, Ratio]:
    """Return how each peer that ran compares with mlc."""
    blocks = timed(result)
    return {name: ratio(blocks[OURS], found) for name, found in blocks.items() if name != OURS}


def best_peer(result: Mapping[str, Any]) -> str | None:
    """Return the peer with the lowest median over its blocks; None when all failed.

    mlc without its records is none.
    """
    blocks = timed(result)
    others = [name for name in blocks if name not in (OURS, UNTUNED)]
    return min(others, key=lambda name: statistics.median(blocks[name]), default=None)


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean of positive numbers; None of none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def limit(results: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the machine's fp32 limit in GFLOP/s, the highest that was seen; None where not known."""
    return max((result["peak_gflops"] or 0.0 for result in results), default=0.0) or None


def share_of_limit(result: Mapping[str, Any], limit: float) -> float:
    """Return the FLOPs of a run over what the machine could do in mlc's time."""
    return float(result["flops"] / statistics.median(timed(result)[OURS]) / 1e9 / limit)


def disturbed(result: Mapping[str, Any]) -> list[str]:
    """Return the entrants whose figures are not to be quoted, and why.

    Either their threads had to wait for a core, or they burnt CPU time in others' turns.
    """
    blocks = {name: entrant.get("blocks", []) for name, entrant in result["entrants"].items()}
    spent = {name: sum(sum(b["runs"]) for b in found) for name, found in blocks.items()}
    total = sum(spent.values())
    said = []
    for name, found in blocks.items():
        waited, idle = (sum(block[key] for block in found) for key in ("waited", "idle"))
        if waited > CROWDED * spent[name]:
            said.append(f"{name} waited for a core {waited / spent[name]:.2f} s per second")
        if idle > CROWDED * (total - spent[name]):
            said.append(f"{name} used {idle:.2f} s of CPU time while others had the turn")
    return said
