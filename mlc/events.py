"""Progress that leaves the library: small dataclasses through a callback.

The library never prints. `cli/` turns events into a live display, plain lines or JSON lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage has finished; `seconds` is wall time, `note` one line of what it did."""

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Within a stage, `done` of `total` units are finished."""

    name: str
    done: int
    total: int
    item: str = ""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that the user should know: a choice made on their behalf, a risk."""

    text: str
    level: str = "info"  # or "warning"


Event = Stage | Progress | Notice
OnEvent = Callable[[Event], None]

_KINDS: dict[str, type[Stage | Progress | Notice]] = {
    "stage": Stage,
    "progress": Progress,
    "notice": Notice,
}


def ignore(_event: Event) -> None:
    """Drop the event: the default callback."""


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as a JSON object with its kind under `event`."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    return {"event": kind, **asdict(event)}


def from_json(data: dict[str, Any]) -> Event:
    """Return the event that `to_json` wrote."""
    fields = dict(data)
    return _KINDS[fields.pop("event")](**fields)
