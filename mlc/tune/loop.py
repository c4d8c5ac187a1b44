"""The tuning loop: give the next batch to the task that it helps most, measure, learn, keep.

Every part it drives is handed in (measurer, store, searchers, clock), so that a test can script
them: the loop itself needs neither TVM nor a clock that ticks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mlc.events import OnEvent, TuneTask, Tuning
from mlc.tune.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlc.tune.budget import Scheduler
    from mlc.tune.tasks import Task


class Measured(Protocol):
    """What measuring one config gives: seconds per call, or why there are none."""

    @property
    def costs(self) -> tuple[float, ...]:
        """Seconds per call."""

    @property
    def reason(self) -> str:
        """Why there are none (`record.REASONS`); empty for a success."""

    @property
    def message(self) -> str:
        """The telling line of the failure."""


class Measures(Protocol):
    """Measures configs (workload key, config index) and returns outcomes in the same order."""

    def measure(self, batch: Sequence[tuple[str, int]]) -> Sequence[Measured]:
        """Measure a batch."""


class Searches(Protocol):
    """Proposes configs of one task and learns from their costs."""

    def propose(self, count: int, seen: set[int]) -> list[int]:
        """Return up to `count` new config indices; none when the space is exhausted."""

    def learn(self, indices: list[int], costs: list[float | None]) -> None:
        """Take in what was measured (None: failed)."""

    def transfer(self, records: Sequence[Record]) -> int:
        """Take in records of other tasks of the template; return how many are of use."""


class Keeps(Protocol):
    """Keeps records."""

    def append(self, records: Sequence[Record]) -> None:
        """Write a batch durably."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the records of a run carry: target, device, run id, template hashes, config texts.

    `config(key, index)` returns AutoTVM's JSON of a config. With `transfer`, what one task teaches is
    handed to the searchers of the others of its template.
    """

    target: str
    device: str
    run: str
    template_hash: Callable[[str], str]
    config: Callable[[str, int], dict[str, Any]]
    transfer: bool = True


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a run stood after a batch of `task` (an id; "" at the start).

    `trials` in all and `seconds` of this run were spent; `estimate` is the expected seconds per run
    of the tunable part, `parts` what each task has in it, in the order of the tasks.
    """

    trials: int
    seconds: float
    estimate: float
    task: str
    parts: tuple[float, ...]


@dataclass
class Progress:
    """The state of a run, by task key: trials and failures of this run, what is known already.

    `curve` is how the estimate fell, a point at the start and one per batch.
    """

    seen: dict[str, set[int]]
    curve: list[Point] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Trials of this run."""
        return sum(self.trials.values())


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop drives."""

    tasks: Mapping[str, Task]
    scheduler: Scheduler
    searchers: Mapping[str, Searches]
    measurer: Measures
    store: Keeps
    context: Context


def run(
    parts: Parts,
    progress: Progress,
    *,
    budget: float | None,
    on_event: OnEvent,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure until the scheduler's trials or the budget (seconds) are spent, or none is left.

    Each batch is in the store before the next one is chosen; on KeyboardInterrupt at most the batch
    at work is lost.
    """
    started = clock()
    progress.curve.append(_point(parts, "", 0.0))
    while budget is None or clock() - started < budget:
        choice = parts.scheduler.next()
        if choice is None:
            return
        key, count = choice
        indices = parts.searchers[key].propose(count, progress.seen[key])
        parts.scheduler.withdraw(key, count - len(indices))
        if not indices:
            parts.scheduler.close(key)
            continue
        outcomes = parts.measurer.measure([(key, index) for index in indices])
        records = _keep(parts, progress, key, indices, outcomes)
        costs = [_cost(outcome) for outcome in outcomes]
        parts.searchers[key].learn(indices, costs)
        if parts.context.transfer:
            _hand_on(parts, key, records)
        parts.scheduler.report(key, costs)
        event = _event(parts, progress, key, clock() - started, budget)
        progress.curve.append(_point(parts, event.active, event.seconds))
        on_event(event)


def _keep(
    parts: Parts,
    progress: Progress,
    key: str,
    indices: Sequence[int],
    outcomes: Sequence[Measured],
) -> list[Record]:
    context = parts.context
    records = [
        Record(
            workload=key,
            config=context.config(key, index),
            target=context.target,
            device=context.device,
            template_hash=context.template_hash(parts.tasks[key].template),
            costs=tuple(outcome.costs),
            reason=outcome.reason,
            message=outcome.message,
            timestamp=time.time(),
            run=context.run,
        )
        for index, outcome in zip(indices, outcomes, strict=True)
    ]
    parts.store.append(records)
    progress.seen[key].update(indices)
    progress.trials[key] = progress.trials.get(key, 0) + len(indices)
    for record in records:
        if record.ok:
            progress.best[key] = min(record.cost, progress.best.get(key, record.cost))
        else:
            progress.failures[key] = progress.failures.get(key, 0) + 1
            progress.reasons[record.reason] = progress.reasons.get(record.reason, 0) + 1
    return records


def _hand_on(parts: Parts, key: str, records: Sequence[Record]) -> None:
    template = parts.tasks[key].template
    for other in parts.searchers:  # those that exist; later ones start from the store
        if other != key and parts.tasks[other].template == template:
            parts.searchers[other].transfer(records)


def _cost(outcome: Measured) -> float | None:
    if outcome.reason or not outcome.costs:
        return None
    return sum(outcome.costs) / len(outcome.costs)


def _point(parts: Parts, task: str, seconds: float) -> Point:
    states = [parts.scheduler.states[key] for key in parts.tasks]
    return Point(
        trials=parts.scheduler.spent,
        seconds=seconds,
        estimate=parts.scheduler.estimate(),
        task=task,
        parts=tuple(state.calls * (state.cost or 0.0) for state in states),
    )


def _event(
    parts: Parts, progress: Progress, active: str, seconds: float, budget: float | None
) -> Tuning:
    rows = []
    for key, task in parts.tasks.items():
        state = parts.scheduler.states[key]
        rows.append(
            TuneTask(
                id=task.id,
                calls=task.calls,
                trials=state.trials,
                failed=progress.failures.get(key, 0),
                best=state.best,
                untuned=state.untuned,
                flops=task.flops,
                state="exhausted" if state.exhausted else "flat" if state.flat else "",
            )
        )
    states = parts.scheduler.states.values()
    return Tuning(
        done=parts.scheduler.spent,
        trials=parts.scheduler.trials,
        seconds=seconds,
        budget=budget,
        estimate=parts.scheduler.estimate(),
        before=sum((state.untuned or 0.0) * state.calls for state in states),
        active=parts.tasks[active].id,
        tasks=tuple(rows),
    )
