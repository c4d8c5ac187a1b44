"""The results as a bar chart: speed of every entrant, the best peer's being 1."""

from __future__ import annotations

import io
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.suite import stats
from benchmarks.suite.peers import OURS, PEERS
from mlc.report.curve import COLOURS, DPI, INK, quieten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SIZE = (10.5, 4.2)  # inches
_GROUP = 0.84  # of the distance between two models is filled with bars


def speeds(result: Mapping[str, Any]) -> dict[str, float]:
    """Return how many times as fast as the best peer each entrant is; empty when all peers failed."""
    best, blocks = stats.best_peer(result), stats.timed(result)
    if best is None:
        return {}
    limit = statistics.median(blocks[best])
    return {name: limit / statistics.median(found) for name, found in blocks.items()}


def draw(results: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> bytes:
    """Return the chart as a PNG file: a group of bars per model, mlc's first."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = (OURS, *peers)
    found = [speeds(result) for result in results]
    width = _GROUP / len(names)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for position, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            shift = (position + 0.5) * width - _GROUP / 2
            where = [k + shift for k, speed in enumerate(found) if name in speed]
            heights = [speed[name] for speed in found if name in speed]
            axes.bar(where, heights, width * 0.92, color=colour, label=PEERS[name].title)
        axes.axhline(1.0, color=INK, linewidth=0.8, linestyle="--")
        labels = [result["name"] for result in results]
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axes.set_ylabel("speed, best peer = 1 (higher is faster)", color=INK)
        quieten(axes)
        figure.legend(loc="outside upper center", ncols=len(names), frameon=False, labelcolor=INK)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return png.getvalue()
