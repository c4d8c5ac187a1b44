"""The curve of a tuning run: expected latency of the tunable part, by trials and by time.

Stacked by task, so that one sees which task's share went. matplotlib's object interface only: no
global state, and the same bytes for the same report.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc.errors import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NAMED = 6  # tasks with a colour of their own; the others share one
# Okabe and Ito's palette, told apart by colour-blind readers as well, and a grey for the others.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#9A9A9A")
INK = "#1b1c1d"  # lines and text; in the SVG they take the colour of the page's text
_SIZE = (10.5, 4.6)  # inches
DPI = 144


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The curve as a PNG file and as an SVG element without a background."""

    png: bytes
    svg: str


def draw(points: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> Drawing:
    """Return the drawn curve.

    Args:
        points: `loop.Point` as JSON data, in the order of the run, at least one.
        tasks: ids, in the order of a point's `parts`.
    """
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "mlc", "svg.fonttype": "path", "font.size": 9}):
        figure = _figure(points, tasks)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(svg, format="svg", transparent=True, metadata=metadata)
    text = svg.getvalue()
    inline = text[text.index("<svg") :].replace(INK, "currentColor")
    return Drawing(png=png.getvalue(), svg=inline)


def _figure(points: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    names, layers = _layers(points, tasks)
    filled = []
    still = len(points) == 1  # nothing was measured: level lines
    heights = [row * 2 for row in layers] if still else layers
    for axes, unit, label in (
        (left, "trials", "trials, those of earlier runs included"),
        (right, "seconds", "seconds of this run"),
    ):
        where = [0.0, 1.0] if still else [float(point[unit]) for point in points]
        colours = [*COLOURS[: min(len(names), _NAMED)], COLOURS[-1]][: len(names)]
        filled = axes.stackplot(where, heights, colors=colours, alpha=0.85, linewidth=0)
        total = [sum(column) for column in zip(*heights, strict=True)]
        axes.plot(where, total, color=INK, linewidth=1.5, marker="o", markersize=2.5)
        axes.set_xlim(where[0], where[-1])
        axes.set_xlabel("nothing was measured in this run" if still else label, color=INK)
        if still:
            axes.set_xticks([])
        quieten(axes)
    before, after = points[0]["estimate"] * 1e3, points[-1]["estimate"] * 1e3
    gain = f", {before / after:.2f}x" if after else ""
    figure.suptitle(
        f"expected for the tunable part: {before:.2f} ms to {after:.2f} ms{gain}", color=INK
    )
    left.set_ylim(bottom=0)
    left.set_ylabel("expected ms per run of the model", color=INK)
    legend = figure.legend(
        filled[::-1], names[::-1], loc="outside right center", frameon=False, labelcolor=INK,
        title="task",
    )  # fmt: skip
    legend.get_title().set_color(INK)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ is a $
    return figure


def _layers(
    points: Sequence[Mapping[str, Any]], tasks: Sequence[str]
) -> tuple[list[str], list[list[float]]]:
    """Return names and heights in ms by point: the tasks with the most at the start, then the rest."""
    order = sorted(range(len(tasks)), key=lambda k: -points[0]["parts"][k])
    rows = [[point["parts"][k] * 1e3 for point in points] for k in order]
    # The font has no glyphs for more than that.
    names = [printable(tasks[k]).encode("ascii", "replace").decode() for k in order]
    rest = rows[_NAMED:]
    if len(rest) > 1:
        together = [sum(column) for column in zip(*rest, strict=True)]
        return [*names[:_NAMED], f"{len(rest)} others"], [*rows[:_NAMED], together]
    return names, rows


def quieten(axes: Any) -> None:
    """Leave two of four borders, and a faint grid behind what is drawn."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
