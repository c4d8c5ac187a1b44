"""The final choice of a tuning run, with scripted timings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from mlc.events import Notice
from mlc.tune import run as tuning
from mlc.tune.final import Choice, choose_winners, is_open, take_back
from mlc.tune.record import FALLBACK, Record

KEY, OTHER = '["conv",1]', '["conv",2]'


@dataclass
class Run:
    """A run that measured `trials` of KEY; `times` are those of the final comparison."""

    times: dict[int | None, Sequence[float]]
    wrong: Sequence[int] = ()
    trials: int = 6
    undecided: set[str] = field(default_factory=set)
    best: Sequence[int] = (3, 5)
    used_now: dict[str, Any] = field(default_factory=dict)
    id: str = "r1"

    def __post_init__(self) -> None:
        self.records: list[Record] = []
        self.notices: list[Notice] = []
        self.asked: list[Any] = []
        self.by_key = {k: SimpleNamespace(id=k, template="conv", seconds=1.0) for k in (KEY, OTHER)}
        self.progress = SimpleNamespace(trials={KEY: self.trials})
        self.hashes = {"conv": "abc"}
        self.subject = SimpleNamespace(
            chosen=SimpleNamespace(tvm="llvm"), device=SimpleNamespace(id="here")
        )
        self.store = SimpleNamespace(append=self.records.extend)
        self.measurer = self
        self.on_event = self.notices.append

    def in_use(self, keys: Any) -> dict[str, Any]:
        return {key: hit for key, hit in self.used_now.items() if key in keys}

    def best_indices(self, key: str) -> list[int]:
        return list(self.best)

    def config(self, key: str, index: int) -> dict[str, Any]:
        return {"index": index, "code_hash": None, "entity": []}

    def interleaved(self, groups: Any, rounds: int) -> list[list[Any]]:
        self.asked += groups
        return [
            [SimpleNamespace(costs=tuple(self.times[i]), reason="crash") for _, i in group]
            for group in groups
        ]

    def check(self, candidates: Any) -> list[Any]:
        return [
            SimpleNamespace(passed=index not in self.wrong, detail="differs")
            for _, index, _ in candidates
        ]


def record(timestamp: float, *, chosen: bool = False, ok: bool = True, index: int = 1) -> Record:
    return Record(
        workload=KEY,
        config={"index": index},
        target="llvm",
        device="here",
        template_hash="abc",
        costs=(1.0,) if ok else (),
        reason="" if ok else "crash",
        timestamp=timestamp,
        chosen=chosen,
    )


def chosen_by(run: Any) -> list[tuple[int, float, float]]:
    choices = choose_winners(run, tuning.Run.candidates(run))
    assert [record.index for record in run.records] == [choice.index for choice in choices]
    assert all(record.chosen and record.ok for record in run.records)
    return [(choice.index, choice.tuned, choice.untuned) for choice in choices]


def test_the_fastest_by_its_median() -> None:
    run = Run({None: [4.0, 4.0, 4.0], 3: [1.0, 3.0, 3.0], 5: [2.0, 2.0, 9.0]})
    assert chosen_by(run) == [(5, 2.0, 4.0)]
    assert run.asked == [[(KEY, None), (KEY, 3), (KEY, 5)]]
    assert run.records[0].costs == (2.0, 2.0, 9.0)
    assert json.loads(run.records[0].workload) == ["conv", 1]


@pytest.mark.parametrize("cost", [4.0, 5.0])
def test_none_is_faster_than_the_default(cost: float) -> None:
    assert chosen_by(Run({None: [4.0], 3: [cost], 5: [cost]})) == [(FALLBACK, 4.0, 4.0)]


def test_a_wrong_one_is_passed_over() -> None:
    run = Run({None: [4.0], 3: [1.0], 5: [2.0]}, wrong=[3])
    assert chosen_by(run) == [(5, 2.0, 4.0)]
    assert [notice.level for notice in run.notices] == ["warning"]


def test_all_are_wrong() -> None:
    run = Run({None: [4.0], 3: [1.0], 5: [2.0]}, wrong=[3, 5])
    assert chosen_by(run) == [(FALLBACK, 4.0, 4.0)]


def test_one_that_failed_is_passed_over() -> None:
    assert chosen_by(Run({None: [4.0], 3: [], 5: [2.0]})) == [(5, 2.0, 4.0)]


def test_the_default_failed() -> None:
    run = Run({None: [], 3: [], 5: []})
    assert chosen_by(run) == []
    assert "timing again failed (crash)" in run.notices[0].text


def test_every_trial_failed() -> None:
    assert chosen_by(Run({}, best=())) == []


def used(index: int, *, level: str = "exact") -> dict[str, Any]:
    found = record(1.0, chosen=True, index=index)
    return {KEY: SimpleNamespace(record=found, level=level)}


def test_what_is_used_now_stays_unless_another_is_faster() -> None:
    run = Run({None: [4.0], 3: [2.0], 5: [3.0], 7: [1.5]}, used_now=used(7))
    assert chosen_by(run) == [(7, 1.5, 4.0)]
    assert run.asked == [[(KEY, None), (KEY, 3), (KEY, 5), (KEY, 7)]]


def test_what_another_machine_brought_is_timed_here() -> None:
    run = Run({None: [4.0], 3: [2.0], 5: [3.0], 7: [1.5]}, used_now=used(7, level="same-isa"))
    (choice,) = choose_winners(run, {KEY: [3, 5]})  # type: ignore[arg-type]
    assert (choice.index, choice.before) == (7, None)


@pytest.mark.parametrize("now", [used(3), used(FALLBACK)])
def test_what_is_timed_already_is_not_timed_again(now: Any) -> None:
    run = Run({None: [4.0], 3: [2.0], 5: [3.0]}, used_now=now)
    assert chosen_by(run) == [(3, 2.0, 4.0)]
    assert run.asked == [[(KEY, None), (KEY, 3), (KEY, 5)]]


def test_nothing_new() -> None:
    run = Run({}, trials=0)
    assert chosen_by(run) == run.asked == []


def test_a_run_that_was_interrupted_left_something_to_choose() -> None:
    run = Run({None: [4.0], 3: [1.0], 5: [2.0]}, trials=0, undecided={KEY})
    assert chosen_by(run) == [(3, 1.0, 4.0)]


@pytest.mark.parametrize(
    ("records", "is_left"),
    [
        ([], False),
        ([record(1.0)], True),
        ([record(1.0, ok=False)], False),
        ([record(1.0), record(2.0, chosen=True)], False),
        ([record(1.0), record(2.0, chosen=True), record(3.0, ok=False)], False),
        ([record(1.0), record(2.0, chosen=True), record(3.0)], True),
        ([record(3.0, chosen=True)], False),
    ],
)
def test_what_is_left_to_choose(records: list[Record], is_left: bool) -> None:
    assert is_open(records) == is_left


def test_taking_back() -> None:
    run: Any = Run({})
    fast = Choice(key=KEY, index=3, tuned=1.0, untuned=4.0, checked="")
    default = Choice(key=OTHER, index=FALLBACK, tuned=4.0, untuned=4.0, checked="")
    assert not take_back(run, [default])
    assert run.records == []
    assert take_back(run, [fast, default])
    (kept,) = run.records
    assert (kept.workload, kept.index, kept.costs) == (KEY, FALLBACK, (4.0,))
    assert kept.chosen


@pytest.mark.parametrize(("before", "changes"), [(7, True), (3, False), (FALLBACK, True)])
def test_taking_back_to_the_choice_before(before: int, changes: bool) -> None:
    run: Any = Run({})
    earlier = record(1.0, chosen=True, index=before)
    choice = Choice(key=KEY, index=3, tuned=2.0, untuned=4.0, checked="", before=earlier)
    assert take_back(run, [choice]) == changes
    assert choice.undone.index == choice.undone.undone.index == before
    assert [(kept.index, kept.costs) for kept in run.records] == [(before, (1.0,))] * changes


def test_taking_back_a_choice_of_the_default() -> None:
    run: Any = Run({})
    earlier = record(1.0, chosen=True, index=7)
    choice = Choice(key=KEY, index=FALLBACK, tuned=4.0, untuned=4.0, checked="", before=earlier)
    assert take_back(run, [choice])
    assert [kept.index for kept in run.records] == [7]
