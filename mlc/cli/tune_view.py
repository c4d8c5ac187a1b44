"""The live view of a tuning run: a line per task on a terminal, heartbeat lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from mlc import events
from mlc.cli.render import reporter, share_of

if TYPE_CHECKING:
    from rich.table import Table

_HEARTBEAT_S = 10.0
_ROWS = 24  # of tasks on a terminal


class View:
    """Shows `events.Tuning`; hands other events to the usual reporter.

    Use as a context manager: the live table is closed before anything else is printed.
    """

    def __init__(self, *, json_mode: bool, quiet: bool):
        self.other = reporter(json_mode, quiet)
        self.json_mode = json_mode
        self.quiet = quiet
        self.start: events.Baseline | None = None
        self.live: Any = None
        self.last_beat = 0.0
        self.best: dict[str, list[float]] = {}

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the live table."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def __call__(self, event: events.Event) -> None:
        """Show an event."""
        if isinstance(event, events.Baseline):
            self.start = event
        if self.json_mode or not isinstance(event, events.Tuning):
            self.close()
            self.other(event)
            return
        for task in event.tasks:
            if task.best is not None:
                self.best.setdefault(task.id, []).append(task.best)
        if sys.stderr.isatty() and not self.quiet:
            self._draw(event)
        elif time.monotonic() - self.last_beat > _HEARTBEAT_S or event.done >= event.trials:
            self.last_beat = time.monotonic()
            if not self.quiet:
                print(heartbeat(event, self.start), file=sys.stderr, flush=True)

    def _draw(self, event: events.Tuning) -> None:
        if self.live is None:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=False)
            self.live.start()
        self.live.update(self._table(event), refresh=True)

    def _table(self, event: events.Tuning) -> Table:
        from rich.table import Table

        table = Table(title=heartbeat(event, self.start), title_justify="left", box=None)
        for column in ("task", "calls", "trials", "failed", "best", "GFLOP/s", "of peak", "trend"):
            table.add_column(column, justify="left" if column in ("task", "trend") else "right")
        for task in sorted(event.tasks, key=_weight, reverse=True)[:_ROWS]:
            mark = "> " if task.id == event.active else "  "
            speed = task.flops / task.best / 1e9 if task.best else None
            share = share_of(speed, self.start.peak_gflops if self.start else None)
            table.add_row(
                mark + task.id, str(task.calls), str(task.trials), str(task.failed or ""),
                _time(task.best), f"{speed:.1f}" if speed else "", share,
                task.state or _spark(self.best.get(task.id, [])),
            )  # fmt: skip
        return table


def heartbeat(event: events.Tuning, start: events.Baseline | None = None) -> str:
    """Return one line on where the run stands; of the whole model, where its start is known."""
    parts = [f"{event.done}/{event.trials} trials", f"{event.seconds:.0f} s"]
    measured = event.done - (start.known if start else 0)  # earlier runs took none of the seconds
    if measured > 0:
        left = event.seconds / measured * (event.trials - event.done)
        if event.budget is not None:
            left = min(left, event.budget - event.seconds)
        parts.append(f"about {max(left, 0):.0f} s left")
    if event.before:
        what, rest = "tunable part", 0.0
        if start is not None and start.model >= event.before:
            what, rest = "model", start.model - event.before
        before, now = event.before + rest, event.estimate + rest
        parts.append(f"{what} {_time(before)} -> {_time(now)} ({before / now:.2f}x)")
    return ", ".join([*parts, f"at {event.active}"])


def _weight(task: events.TuneTask) -> float:
    return task.calls * (task.best or task.untuned or 0.0)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"


def _spark(values: list[float]) -> str:
    """Return the last best times as a small falling curve."""
    bars = "▁▂▃▄▅▆▇█"
    recent = values[-12:]
    if not recent:
        return ""
    low, high = min(recent), max(recent)
    span = (high - low) or 1.0
    return "".join(bars[round((value - low) / span * (len(bars) - 1))] for value in recent)
