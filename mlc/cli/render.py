"""Events to a terminal, to plain lines, or to JSON lines; always on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

from mlc import events
from mlc.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

_HEARTBEAT_S = 5.0
_PIPED = 160  # characters in a line of a table that goes to a file or another program


def reporter(json_mode: bool, quiet: bool = False) -> events.OnEvent:
    """Return the callback that shows progress in the form that fits stderr.

    JSON lines with `json_mode`; a live line on a terminal; elsewhere a plain line per stage, and
    one every few seconds while a stage is at work.
    """
    if json_mode:
        return _json_line
    return _Lines(quiet=quiet, live=sys.stderr.isatty())


def _json_line(event: events.Event) -> None:
    print(json.dumps(events.to_json(event)), file=sys.stderr, flush=True)


class _Lines:
    """Plain lines; on a terminal, progress within a stage is redrawn in place."""

    def __init__(self, *, quiet: bool, live: bool):
        self.quiet = quiet
        self.live = live
        self.last_beat = time.monotonic()
        self.drawn = False

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Notice):
            if event.level == "warning" or not self.quiet:
                self._line(f"{'warning' if event.level == 'warning' else 'note'}: {event.text}")
        elif self.quiet:
            return
        elif isinstance(event, events.Stage):
            note = f"  {event.note}" if event.note else ""
            self._line(f"  {event.name:<10} {event.seconds:6.2f} s{note}")
        elif isinstance(event, events.Progress):
            self._progress(event)

    def _progress(self, event: events.Progress) -> None:
        text = f"  {event.name}: {event.done}/{event.total}"
        if self.live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self.drawn = True
        elif time.monotonic() - self.last_beat > _HEARTBEAT_S:
            self._line(text)

    def _line(self, text: str) -> None:
        self.last_beat = time.monotonic()
        clear = "\r\x1b[K" if self.drawn else ""
        self.drawn = False
        print(clear + printable(text), file=sys.stderr, flush=True)


def console() -> Console:
    """Return the console for results, on stdout; what is piped gets lines that are long enough."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _PIPED
    return Console(file=sys.stdout, highlight=False, soft_wrap=False, width=width)


def size(count: float) -> str:
    """Return bytes in a form for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def share_of(gflops: float | None, peak: float | None) -> str:
    """Return the share of the machine's limit as text; nothing where either is unknown."""
    return f"{gflops / peak:.0%}" if gflops and peak else ""
