"""The tuning loop with scripted parts: a table of costs, a store in memory, a clock of one's own."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.events import Tuning
from mlc.tune import loop
from mlc.tune.budget import Scheduler, TaskState
from mlc.tune.record import Record
from mlc.tune.tasks import Task

BATCH = 8


def key(template: str, size: int) -> str:
    return json.dumps([template, size], separators=(",", ":"))


A, B, DENSE = key("conv", 1), key("conv", 2), key("dense", 1)
SPACES = {A: 40, B: 40, DENSE: 40}
TASKS = {
    A: Task(key=A, calls=3, flops=1000, seconds=10e-3, share=0.6),
    B: Task(key=B, calls=1, flops=1000, seconds=10e-3, share=0.2),
    DENSE: Task(key=DENSE, calls=2, flops=1000, seconds=5e-3, share=0.2),
}


@dataclass(frozen=True)
class Outcome:
    costs: tuple[float, ...] = ()
    reason: str = ""
    message: str = ""


Table = Callable[[str, int], Outcome]


def falling(workload: str, index: int) -> Outcome:
    """The higher the index, the faster."""
    return Outcome(costs=((50 - index) * 1e-4,))


@dataclass
class Store:
    """Batches in memory."""

    batches: list[list[Record]] = field(default_factory=list)

    def append(self, records: Sequence[Record]) -> None:
        self.batches.append(list(records))

    @property
    def records(self) -> list[Record]:
        return [record for batch in self.batches for record in batch]

    @property
    def configs(self) -> list[tuple[str, int]]:
        return [(record.workload, record.index) for record in self.records]


class Measurer:
    """Looks costs up; raises in batch `stop` (from 1); tells `before` what it is about to do."""

    def __init__(self, table: Table, stop: int = 0, error: type[BaseException] = KeyboardInterrupt):
        self.table = table
        self.stop = stop
        self.error = error
        self.batches: list[list[tuple[str, int]]] = []
        self.before: Callable[[], None] = lambda: None

    def measure(self, batch: Sequence[tuple[str, int]]) -> list[Outcome]:
        self.before()
        self.batches.append(list(batch))
        if len(self.batches) == self.stop:
            raise self.error
        return [self.table(workload, index) for workload, index in batch]


class Searcher:
    """Goes through the space from its start; notes what it is taught."""

    def __init__(self, space: int):
        self.left = list(range(space))
        self.learned: dict[int, float | None] = {}
        self.transferred: list[Record] = []
        self.before: Callable[[], None] = lambda: None

    def propose(self, count: int, seen: set[int]) -> list[int]:
        self.before()
        return [index for index in self.left if index not in seen][:count]

    def learn(self, indices: Sequence[int], costs: Sequence[float | None]) -> None:
        assert not self.learned.keys() & set(indices)
        self.learned.update(zip(indices, costs, strict=True))

    def transfer(self, records: Sequence[Record]) -> int:
        self.transferred += records
        return len(records)


class Game:
    """A run over `TASKS`; known records of an earlier one count as spent, as in `mlc.tune.run`."""

    def __init__(
        self,
        trials: int,
        table: Table = falling,
        *,
        stop: int = 0,
        error: type[BaseException] = KeyboardInterrupt,
        known: Iterable[Record] = (),
        spaces: Mapping[str, int] | None = None,
        proposable: Mapping[str, int] | None = None,
        transfer: bool = True,
    ):
        spaces = spaces or SPACES
        self.store = Store()
        self.measurer = Measurer(table, stop, error)
        self.searchers = {k: Searcher((proposable or spaces)[k]) for k in spaces}
        self.tasks = {k: TASKS[k] for k in spaces}
        self.scheduler = Scheduler(
            [self._state(k, space) for k, space in spaces.items()], trials=trials, batch=BATCH
        )
        self.progress = loop.Progress(seen={k: set() for k in spaces})
        found = list(known)
        for k in spaces:
            mine = [record for record in found if record.workload == k]
            self.progress.seen[k] = {record.index for record in mine}
            self.scheduler.report(k, [r.cost if r.ok else None for r in mine])
        self.events: list[Tuning] = []
        context = loop.Context(
            target="llvm -mcpu=test",
            device="test.avx2.cpu.1t",
            run="r1",
            template_hash=lambda template: f"hash of {template}",
            config=lambda _key, index: {"index": index, "code_hash": None, "entity": []},
            transfer=transfer,
        )
        self.parts = loop.Parts(
            tasks=self.tasks,
            scheduler=self.scheduler,
            searchers=self.searchers,
            measurer=self.measurer,
            store=self.store,
            context=context,
        )

    def _state(self, k: str, space: int) -> TaskState:
        task = TASKS[k]
        return TaskState(
            key=k,
            calls=task.calls,
            space=space,
            untuned=task.seconds,
            template=task.template,
            flops=task.flops,
        )

    def play(self, budget: float | None = None, clock: Callable[[], float] = lambda: 0.0) -> Game:
        loop.run(self.parts, self.progress, budget=budget, on_event=self.events.append, clock=clock)
        return self


# -- what ends a run --


@pytest.mark.parametrize("trials", [0, 1, 5, BATCH, 37, 64])
def test_no_more_trials_than_asked(trials: int) -> None:
    game = Game(trials).play()
    assert len(game.store.records) == game.progress.done == trials
    assert sum(map(len, game.measurer.batches)) == trials
    assert len(set(game.store.configs)) == trials


def test_known_trials_count() -> None:
    known = Game(20).play().store.records
    game = Game(20, known=known).play()
    assert game.measurer.batches == game.events == []


def test_more_trials_than_configs() -> None:
    game = Game(10_000, lambda k, i: Outcome(costs=(0.9**i * 1e-3,))).play()
    assert len(set(game.store.configs)) == len(game.store.configs) == sum(SPACES.values())
    assert {task.state for task in game.events[-1].tasks} == {"exhausted"}


def test_the_budget_is_looked_at_before_each_batch() -> None:
    now = [100.0]
    game = Game(1000)

    def second_passes() -> None:
        now[0] += 1.0

    game.measurer.before = second_passes
    game.play(budget=3.0, clock=lambda: now[0])
    assert len(game.measurer.batches) == 3
    assert [event.seconds for event in game.events] == [1.0, 2.0, 3.0]
    assert {event.budget for event in game.events} == {3.0}


def test_no_time_at_all() -> None:
    assert Game(1000).play(budget=0.0).measurer.batches == []


def test_an_exhausted_searcher_leaves_the_race() -> None:
    """It proposes less than its space holds: the trials go to others, and the loop ends."""
    game = Game(60, proposable={A: 3, B: 40, DENSE: 40}).play()
    assert Counter(k for k, _ in game.store.configs)[A] == 3
    assert len(game.store.records) == 60
    assert game.scheduler.states[A].exhausted
    assert not game.scheduler.states[B].exhausted


def test_every_searcher_is_exhausted() -> None:
    game = Game(60, proposable={A: 3, B: 0, DENSE: 1}).play()
    assert len(game.store.records) == 4
    assert game.scheduler.next() is None
    assert game.scheduler.spent == 4


# -- each batch is kept before the next is chosen --


def test_a_batch_is_kept_before_the_next_is_proposed() -> None:
    game = Game(60)

    def everything_is_kept() -> None:
        assert len(game.store.batches) == len(game.measurer.batches)

    for searcher in game.searchers.values():
        searcher.before = everything_is_kept
    game.play()
    assert [[(r.workload, r.index) for r in b] for b in game.store.batches] == game.measurer.batches


def test_a_store_that_fails_ends_the_run() -> None:
    game = Game(60)

    def full(_records: object) -> None:
        raise OSError(28, "No space left on device")

    game.store.append = full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space"):
        game.play()
    assert len(game.measurer.batches) == 1
    assert game.progress.done == 0
    assert not any(searcher.learned for searcher in game.searchers.values())


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_interrupted_and_resumed(stop: int) -> None:
    whole = Game(64, some_fail).play()
    killed = Game(64, some_fail, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        killed.play()
    assert len(killed.store.batches) == stop - 1

    again = Game(64, some_fail, known=killed.store.records).play()
    first, second = killed.store.configs, again.store.configs
    assert not set(first) & set(second)
    assert sorted(first + second) == sorted(whole.store.configs)
    assert again.scheduler.estimate() == whole.scheduler.estimate()


@settings(deadline=None, max_examples=50)
@given(stops=st.lists(st.integers(1, 4), max_size=6), trials=st.integers(1, 100))
def test_interrupted_again_and_again(stops: list[int], trials: int) -> None:
    known: list[Record] = []
    for stop in stops:
        game = Game(trials, some_fail, stop=stop, known=known)
        try:
            game.play()
        except KeyboardInterrupt:
            assert len(game.store.batches) == stop - 1
        known += game.store.records
    known += Game(trials, some_fail, known=known).play().store.records
    configs = [(record.workload, record.index) for record in known]
    assert len(set(configs)) == len(configs)
    assert sorted(configs) == sorted(Game(trials, some_fail).play().store.configs)


def test_an_error_of_the_measurer_passes() -> None:
    with pytest.raises(KeyError):
        Game(64, stop=2, error=KeyError).play()


# -- what is written and counted --


def some_fail(workload: str, index: int) -> Outcome:
    if index % 5 == 3:
        return Outcome(reason="crash", message="SIGSEGV")
    if index % 5 == 4:
        return Outcome(reason="run timeout")
    return falling(workload, index)


def test_records_say_where_they_are_from() -> None:
    game = Game(40, some_fail).play()
    for record in game.store.records:
        outcome = some_fail(record.workload, record.index)
        assert (record.costs, record.reason) == (outcome.costs, outcome.reason)
        assert (record.message, record.ok) == (outcome.message, not outcome.reason)
        assert record.template_hash == f"hash of {record.template}"
        assert (record.target, record.device) == ("llvm -mcpu=test", "test.avx2.cpu.1t")
        assert (record.run, record.chosen) == ("r1", False)
        assert record.timestamp > 0


def test_failures_are_counted_by_reason() -> None:
    game = Game(60, some_fail).play()
    expected = Counter(record.reason for record in game.store.records if record.reason)
    assert game.progress.reasons == expected
    assert set(expected) == {"crash", "run timeout"}
    assert sum(game.progress.failures.values()) == sum(expected.values())
    by_id = {task.id: task.failed for task in game.events[-1].tasks}
    assert by_id == {TASKS[k].id: game.progress.failures[k] for k in TASKS}


def test_a_failure_is_learned_as_none() -> None:
    game = Game(40, some_fail).play()
    for workload, searcher in game.searchers.items():
        for index, cost in searcher.learned.items():
            outcome = some_fail(workload, index)
            assert cost == (None if outcome.reason else outcome.costs[0])


def test_the_cost_is_the_mean() -> None:
    game = Game(4, lambda k, i: Outcome(costs=(1e-3, 3e-3))).play()
    assert {c for s in game.searchers.values() for c in s.learned.values()} == {2e-3}
    assert set(game.progress.best.values()) == {2e-3}


def test_all_fail() -> None:
    """The loop goes on: it is for the caller to say so. Known times stand."""
    game = Game(30, lambda k, i: Outcome(reason="instantiation")).play()
    assert game.progress.done == 30
    assert game.progress.best == {}
    assert game.progress.reasons == {"instantiation": 30}
    assert all(state.best is None for state in game.scheduler.states.values())
    assert game.events[-1].estimate == game.events[-1].before


# -- transfer --


def test_transfer_goes_to_the_others_of_the_template() -> None:
    game = Game(60).play()
    for k, searcher in game.searchers.items():
        template = TASKS[k].template
        expected = [r for r in game.store.records if r.template == template and r.workload != k]
        assert searcher.transferred == expected
    assert game.searchers[A].transferred
    assert game.searchers[DENSE].transferred == []


def test_no_transfer() -> None:
    game = Game(60, transfer=False).play()
    assert not any(searcher.transferred for searcher in game.searchers.values())


# -- events --


def test_the_estimate_falls() -> None:
    game = Game(80).play()
    assert len(game.events) == len(game.measurer.batches)
    estimates = [event.estimate for event in game.events]
    assert estimates == sorted(estimates, reverse=True)
    assert estimates[-1] < estimates[0] <= game.events[0].before
    assert {event.before for event in game.events} == {3 * 10e-3 + 10e-3 + 2 * 5e-3}


def test_events_say_what_was_done() -> None:
    game = Game(40, some_fail).play()
    done = 0
    for event, batch in zip(game.events, game.measurer.batches, strict=True):
        done += len(batch)
        assert (event.done, event.trials) == (done, 40)
        assert event.active == TASKS[batch[0][0]].id
        assert {task.id for task in event.tasks} == {task.id for task in TASKS.values()}
    last: Any = {task.id: task for task in game.events[-1].tasks}
    for k, task in TASKS.items():
        row = last[task.id]
        assert row.best == game.progress.best[k]
        assert (row.untuned, row.calls, row.flops) == (task.seconds, task.calls, task.flops)
        assert row.trials == game.progress.trials[k]


def test_a_resumed_run_counts_from_where_it_was() -> None:
    known = Game(20).play().store.records
    game = Game(40, known=known).play()
    assert game.events[0].done == 20 + len(game.measurer.batches[0])
    assert game.events[-1].done == 40
    assert game.progress.done == 20


# -- the curve --


def test_the_curve_has_a_point_at_the_start_and_after_each_batch() -> None:
    now = [100.0]
    game = Game(80)

    def a_second_passes() -> None:
        now[0] += 1.0

    game.measurer.before = a_second_passes
    game.play(clock=lambda: now[0])
    first, *others = game.progress.curve
    assert (first.trials, first.seconds, first.task) == (0, 0.0, "")
    assert first.estimate == game.events[0].before
    assert [(p.trials, p.seconds, p.estimate, p.task) for p in others] == [
        (event.done, event.seconds, event.estimate, event.active) for event in game.events
    ]


def test_the_parts_of_the_curve() -> None:
    """They make up the estimate, and only the task at work changes its own."""
    game = Game(80).play()
    ids = [task.id for task in game.tasks.values()]
    for before, after in itertools.pairwise(game.progress.curve):
        assert sum(after.parts) == pytest.approx(after.estimate)
        changed = {ids[k] for k in range(len(ids)) if before.parts[k] != after.parts[k]}
        assert changed <= {after.task}
    assert game.progress.curve[0].parts == (3 * 10e-3, 10e-3, 2 * 5e-3)


def test_the_curve_of_a_resumed_run_starts_where_it_was() -> None:
    known = Game(20).play().store.records
    game = Game(40, known=known).play()
    first = game.progress.curve[0]
    assert first.trials == 20
    assert first.estimate < game.events[0].before


def test_a_run_with_nothing_to_do_has_one_point() -> None:
    assert len(Game(0).play().progress.curve) == 1
