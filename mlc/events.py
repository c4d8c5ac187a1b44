"""Progress that leaves the library: small dataclasses through a callback.

The library never prints. `cli/` turns events into a live display, plain lines or JSON lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


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


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What tuning starts from, said once before the first batch.

    `model` is the seconds of a run of the untuned model, all kernels together; `known` trials were
    measured by earlier runs; `peak_gflops` is what fp32 code reaches here at most (None: unknown).
    """

    model: float
    known: int
    peak_gflops: float | None


@dataclass(frozen=True, kw_only=True)
class TuneTask:
    """How far one task is: calls per run, trials so far, best seconds per call, untuned seconds."""

    id: str
    calls: int
    trials: int
    failed: int
    best: float | None
    untuned: float | None
    flops: int
    state: str = ""  # "", "flat" or "exhausted"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A batch was measured: all tasks, trials done of how many, seconds spent of the budget.

    `estimate` is the expected seconds per run of the tunable part, `before` the same untuned.
    """

    done: int
    trials: int
    seconds: float
    budget: float | None
    estimate: float
    before: float
    active: str
    tasks: tuple[TuneTask, ...]


Event = Stage | Progress | Notice | Baseline | Tuning
OnEvent = Callable[[Event], None]

_KINDS: dict[str, type[Stage | Progress | Notice | Baseline | Tuning]] = {
    "stage": Stage,
    "progress": Progress,
    "notice": Notice,
    "baseline": Baseline,
    "tuning": Tuning,
}


def ignore(_event: Event) -> None:
    """Drop the event: the default callback."""


def timed(name: str, on_event: OnEvent, work: Callable[[], _T]) -> _T:
    """Return what `work` returns, and report the stage with its wall time."""
    started = time.perf_counter()
    result = work()
    on_event(Stage(name=name, seconds=time.perf_counter() - started))
    return result


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as a JSON object with its kind under `event`."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    return {"event": kind, **asdict(event)}


def from_json(data: dict[str, Any]) -> Event:
    """Return the event that `to_json` wrote."""
    fields = dict(data)
    kind = fields.pop("event")
    if kind == "tuning":
        fields["tasks"] = tuple(TuneTask(**task) for task in fields["tasks"])
    return _KINDS[kind](**fields)
