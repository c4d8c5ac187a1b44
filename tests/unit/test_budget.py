"""The scheduler spends trials where they pay, on scripted tasks whose curves are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from mlc.tune import budget
from mlc.tune.budget import Scheduler, TaskState

Curve = Callable[[int], float | None]


@dataclass(frozen=True)
class Fake:
    """A task whose n-th trial (from 0) costs `curve(n)` seconds, None for a failure."""

    key: str
    curve: Curve
    calls: int = 1
    untuned: float | None = 10e-3
    space: int = 1000
    template: str = "conv"
    flops: float | None = None

    def state(self) -> TaskState:
        return TaskState(
            key=self.key,
            calls=self.calls,
            space=self.space,
            untuned=self.untuned,
            template=self.template,
            flops=self.flops,
        )


def falling(start: float, floor: float, half: float) -> Curve:
    """Costs fall from `start` towards `floor`, half of the way every `half` trials."""
    return lambda n: floor + (start - floor) * 0.5 ** (n / half)


def scheduler(fakes: list[Fake], trials: int, batch: int = 8, seed: int = 0) -> Scheduler:
    return Scheduler([fake.state() for fake in fakes], trials, batch, seed)


def measure(fakes: list[Fake], made: Scheduler, limit: int = 10_000) -> list[tuple[str, int]]:
    """Play the loop: what it measured, in order."""
    curves = {fake.key: fake.curve for fake in fakes}
    done = []
    for _ in range(limit):
        finished, choice = made.finished, made.next()
        assert finished == (choice is None)
        if choice is None:
            break
        key, count = choice
        first = made.states[key].trials
        made.report(key, [curves[key](n) for n in range(first, first + count)])
        done.append(choice)
    return done


def trials_of(done: list[tuple[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for key, count in done:
        total[key] += count
    return total


@pytest.fixture
def two() -> list[Fake]:
    """A heavy task that improves for long, and a light one that is done at once."""
    return [
        Fake("light", falling(2e-3, 1.9e-3, 4), untuned=2e-3),
        Fake("heavy", falling(20e-3, 5e-3, 40), calls=4, untuned=20e-3),
    ]


def test_the_heavy_improving_task_gets_most(two: list[Fake]) -> None:
    total = trials_of(measure(two, scheduler(two, 160)))
    assert sum(total.values()) == 160
    assert total["heavy"] >= 4 * total["light"]


def test_the_model_is_faster_than_after_an_equal_split(two: list[Fake]) -> None:
    ours = scheduler(two, 160)
    measure(two, ours)
    equal = scheduler(two, 160)
    for fake in two:
        equal.report(fake.key, [fake.curve(n) for n in range(80)])
    assert ours.estimate() < 0.9 * equal.estimate()
    half = scheduler(two, 90)
    measure(two, half)
    assert half.estimate() < equal.estimate()


def test_weights_decide_between_equal_curves() -> None:
    fakes = [Fake(str(calls), falling(10e-3, 1e-3, 30), calls=calls) for calls in (1, 2, 8)]
    total = trials_of(measure(fakes, scheduler(fakes, 240)))
    assert total["8"] > total["2"] > total["1"] > 0


def test_the_seed_round_comes_first_and_by_weight() -> None:
    fakes = [Fake(str(n), falling(1e-3, 1e-4, 9), untuned=n * 1e-3) for n in (2, 5, 1, 4)]
    done = measure(fakes, scheduler(fakes, 64))
    assert [key for key, _ in done[:4]] == ["5", "4", "2", "1"]
    assert {count for _, count in done[:4]} == {4}
    assert done[4][1] == 8


def test_a_task_of_unknown_weight_is_tried_first() -> None:
    fakes = [Fake("a", falling(1e-3, 1e-4, 9)), Fake("b", falling(1e-3, 1e-4, 9), untuned=None)]
    assert measure(fakes, scheduler(fakes, 40))[0][0] == "b"


def test_fewer_trials_than_tasks_go_to_the_heaviest() -> None:
    fakes = [Fake(str(n), falling(1e-3, 1e-4, 9), untuned=n * 1e-3) for n in range(1, 8)]
    assert measure(fakes, scheduler(fakes, 3)) == [("7", 1), ("6", 1), ("5", 1)]


@pytest.mark.parametrize("trials", [0, -5])
def test_no_trials(two: list[Fake], trials: int) -> None:
    made = scheduler(two, trials)
    assert made.next() is None
    assert made.estimate() == pytest.approx(4 * 20e-3 + 2e-3)


def test_no_tasks() -> None:
    made = Scheduler([], 100)
    assert made.next() is None
    assert made.estimate() == 0.0


def test_no_trial_is_lost_or_added(two: list[Fake]) -> None:
    for trials in (1, 7, 8, 9, 41):
        made = scheduler(two, trials)
        assert sum(count for _, count in measure(two, made)) == trials == made.spent


def test_an_exhausted_task_stops_at_its_last_config(two: list[Fake]) -> None:
    fakes = [replace(two[1], space=13), two[0]]
    made = scheduler(fakes, 100)
    assert trials_of(measure(fakes, made))["heavy"] == 13
    assert made.states["heavy"].exhausted
    assert not made.states["light"].exhausted


def test_when_all_spaces_are_exhausted_it_ends() -> None:
    fakes = [Fake("a", falling(1e-3, 1e-4, 9), space=5), Fake("b", lambda n: None, space=3)]
    made = scheduler(fakes, 100)
    assert trials_of(measure(fakes, made)) == {"a": 5, "b": 3}
    assert made.next() is None


def test_a_flat_task_stops_and_leaves_its_trials_to_others(two: list[Fake]) -> None:
    heavy_but_flat = Fake("flat", lambda n: 50e-3, calls=10, untuned=60e-3)
    fakes = [heavy_but_flat, *two]
    made = scheduler(fakes, 400)
    total = trials_of(measure(fakes, made))
    assert made.states["flat"].flat
    assert total["flat"] < 60
    assert total["heavy"] > total["flat"]


def test_when_all_tasks_are_flat_it_ends_early() -> None:
    fakes = [Fake("a", lambda n: 5e-3), Fake("b", lambda n: 4e-3)]
    made = scheduler(fakes, 10_000)
    assert sum(count for _, count in measure(fakes, made)) < 200


def test_patience_grows_with_what_was_spent() -> None:
    """A task that improved for 200 trials is not given up after PATIENCE batches without news."""
    long = Fake("long", lambda n: max(20e-3 - 0.05e-3 * n, 10e-3), untuned=20e-3)
    made = scheduler([long], 10_000)
    measure([long], made)
    assert made.states["long"].trials >= 350


def test_improvements_below_a_percent_do_not_count() -> None:
    crawling = Fake("crawl", lambda n: 10e-3 * 0.9999**n)
    made = scheduler([crawling], 10_000)
    assert sum(count for _, count in measure([crawling], made)) < 100


def test_a_task_that_always_fails_is_given_up(two: list[Fake]) -> None:
    for untuned in (None, 30e-3):
        fakes = [Fake("broken", lambda n: None, calls=9, untuned=untuned), *two]
        made = scheduler(fakes, 400)
        assert trials_of(measure(fakes, made))["broken"] < 60
        assert made.states["broken"].best is None


def test_first_success_after_many_failures(two: list[Fake]) -> None:
    late = Fake("late", lambda n: None if n < 20 else 1e-3, untuned=None)
    made = scheduler([late, *two], 200)
    measure([late, *two], made)
    assert made.states["late"].best == 1e-3


def test_a_task_far_slower_than_its_like_gets_more() -> None:
    def run(slow_template: str) -> int:
        fakes = [
            Fake("fast", falling(2e-3, 1e-3, 60), calls=6, flops=1e9, untuned=3e-3),
            Fake(
                "slow", falling(12e-3, 4e-3, 90), untuned=15e-3, flops=1e9, template=slow_template
            ),
        ]
        return trials_of(measure(fakes, scheduler(fakes, 200)))["slow"]

    assert run("conv") > run("other")


def test_estimate_never_exceeds_the_untuned_model() -> None:
    worse = Fake("worse", lambda n: 15e-3, calls=3)
    made = scheduler([worse], 16)
    before = made.estimate()
    measure([worse], made)
    assert made.states["worse"].best == 15e-3
    assert made.estimate() == before == pytest.approx(30e-3)


def test_estimate_counts_calls() -> None:
    made = scheduler([Fake("a", lambda n: 1e-3, calls=3), Fake("b", lambda n: 1e-3)], 100)
    made.report("a", [2e-3, None, 1e-3])
    assert made.estimate() == pytest.approx(3 * 1e-3 + 10e-3)
    assert made.states["a"].history == [2e-3, 2e-3, 1e-3]


def test_same_seed_same_decisions(two: list[Fake]) -> None:
    many = [replace(two[1], key=str(n), untuned=(20 + n) * 1e-3) for n in range(6)]
    runs = [measure(many, scheduler(many, 600, seed=seed)) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_now_and_then_any_task_gets_a_batch(
    two: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "EPSILON", 1.0)
    total = trials_of(measure(two, scheduler(two, 80)))
    assert total["light"] > 16


@pytest.mark.parametrize("killed_after", [0, 1, 5, 20])
def test_a_resumed_run_decides_as_the_killed_one(two: list[Fake], killed_after: int) -> None:
    fakes = [*two, replace(two[1], key="third", calls=2)]
    killed = scheduler(fakes, 300)
    measure(fakes, killed, limit=killed_after)
    resumed = scheduler(fakes, 300)
    for fake in fakes:  # costs come from the store task by task, not batch by batch
        known = killed.states[fake.key].trials
        resumed.report(fake.key, [fake.curve(n) for n in range(known)])
    assert measure(fakes, resumed) == measure(fakes, killed)
    assert resumed.estimate() == killed.estimate()


def test_known_costs_count_as_spent(two: list[Fake]) -> None:
    made = scheduler(two, 50)
    made.report("heavy", [5e-3] * 50)
    assert made.next() is None


def test_batches_may_be_out_for_several_devices(two: list[Fake]) -> None:
    made = scheduler([replace(fake, space=20) for fake in two], 100)
    out = []
    while (choice := made.next()) is not None:
        out.append(choice)
    assert trials_of(out) == {"heavy": 20, "light": 20}
    assert made.spent == 40
    for key, count in out:
        made.report(key, [1e-3] * count)
    assert made.spent == 40


def test_withdrawn_trials_are_given_again(two: list[Fake]) -> None:
    made = scheduler(two, 10)
    first = made.next()
    assert first is not None
    made.withdraw(*first)
    assert made.spent == 0
    assert made.next() == first


def test_a_closed_task_leaves_the_race(two: list[Fake]) -> None:
    made = scheduler(two, 100)
    choice = made.next()
    assert choice is not None
    assert choice[0] == "heavy"
    made.withdraw(*choice)
    made.close("heavy")
    assert made.states["heavy"].exhausted
    assert set(trials_of(measure(two, made))) == {"light"}


def test_gain_of_an_unknown_task_is_unbounded() -> None:
    made = scheduler([Fake("a", lambda n: None, untuned=None)], 10)
    assert made.gain(made.states["a"]) == math.inf


def test_gain_is_the_sum_of_its_terms() -> None:
    made = scheduler([Fake("a", lambda n: None, calls=3, flops=4e6)], 100)
    state = made.states["a"]
    made.report("a", [9e-3] * 10 + [8e-3] * 14 + [4e-3] * 16)
    backward = (8e-3 - 4e-3) / 3  # over the last three of five batches
    assert made.gain(state) == pytest.approx(3 * (0.2 * backward + 0.8 * 4e-3 / 5))
    state.template = "conv"
    rival = TaskState(key="b", calls=1, space=9, template="conv", flops=1e6)
    made.states["b"] = rival
    rival.add([0.2e-3])  # 5 GFLOP/s: the task would take 0.8 ms, and is expected to come to 1.6
    assert made.gain(state) == pytest.approx(3 * (0.2 * backward + 0.8 * (4e-3 - 1.6e-3)))


def rivals(mine: float, other: float) -> tuple[Scheduler, TaskState]:
    """Two tasks that compute the same, 3 calls each, with these costs after one batch of 8."""
    made = Scheduler(
        [
            TaskState(key="mine", calls=3, space=1000, rival="other"),
            TaskState(key="other", calls=3, space=1000, rival="mine"),
        ],
        trials=100,
        batch=8,
    )
    made.report("mine", [mine] * 8)
    made.report("other", [other] * 8)
    return made, made.states["mine"]


def test_of_rivals_the_faster_counts() -> None:
    assert rivals(2e-3, 5e-3)[0].estimate() == pytest.approx(3 * 2e-3)
    assert rivals(5e-3, 2e-3)[0].estimate() == pytest.approx(3 * 2e-3)
    made, _ = rivals(2e-3, 2e-3)
    assert made.estimate() == pytest.approx(3 * 2e-3)


def test_the_slower_rival_gains_only_what_gets_it_ahead() -> None:
    alone, state = rivals(5e-3, 9e-3)
    full = alone.gain(state)  # ahead already: all of it counts
    behind, state = rivals(5e-3, 4e-3)
    assert behind.gain(state) == pytest.approx(full - 3 * 1e-3)
    hopeless, state = rivals(5e-3, 0.1e-3)
    assert hopeless.gain(state) == 0.0
    assert hopeless.gain(hopeless.states["other"]) > 0.0


def test_a_rival_that_is_not_tuned_does_not_matter() -> None:
    made = Scheduler([TaskState(key="mine", calls=1, space=9, rival="absent")], trials=9)
    made.report("mine", [1e-3])
    assert made.estimate() == pytest.approx(1e-3)
    assert made.gain(made.states["mine"]) > 0.0
