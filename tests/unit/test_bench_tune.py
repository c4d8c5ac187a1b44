"""The arithmetic of `benchmarks.tune`, on scripted records and times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tune import curves, equal, report
from benchmarks.tune.curves import Weight
from benchmarks.tune.race import Race, take_turns
from benchmarks.tune.setup import Setup, once
from mlc.errors import UsageError
from mlc.runtime.timing import Side
from mlc.tune.record import FALLBACK, Record, workload_key

A, B = (workload_key([name]) for name in ("a", "b"))
WEIGHTS = {A: Weight(calls=2, untuned=10.0), B: Weight(calls=1, untuned=5.0)}


def record(workload: str, cost: float | None, timestamp: float = 0.0, **more: Any) -> Record:
    return Record(
        workload=workload,
        config={"index": int(timestamp), "code_hash": None, "entity": []},
        target="llvm",
        device="",
        template_hash="",
        costs=() if cost is None else (cost,),
        reason="crash" if cost is None else "",
        timestamp=timestamp,
        **more,
    )


def test_trials_are_in_order_and_without_choices_or_other_models():
    late, early = record(A, 1.0, 2.0), record(B, 1.0, 1.0)
    other, choice = record(workload_key(["c"]), 1.0), record(A, 0.5, 3.0, chosen=True)
    assert curves.trials_of([late, other, choice, early], WEIGHTS) == [early, late]


def test_the_curve_weighs_calls_and_starts_untuned():
    trials = [record(A, 8.0, 1), record(B, None, 2), record(A, 9.0, 3), record(B, 1.0, 4)]
    assert curves.curve(trials, [2, 3, 99], WEIGHTS) == [(0, 25.0), (2, 21.0), (3, 21.0), (4, 17.0)]


def test_a_default_that_is_faster_is_kept_when_asked():
    trials = [record(A, 12.0, 1), record(B, 4.0, 2)]
    assert curves.best_of(trials).keys() == {A, B}
    best = curves.best_of(trials, WEIGHTS)
    assert best[A].index == FALLBACK
    assert best[A].costs == (10.0,)
    assert best[B] is trials[1]
    assert curves.best_of([], WEIGHTS) == {}
    assert curves.curve(trials, [], WEIGHTS)[-1] == (2, 28.0)
    assert curves.curve(trials, [], WEIGHTS, WEIGHTS)[-1] == (2, 24.0)


def test_of_two_rivals_the_faster_one_counts():
    """C computes the same as A; its default was never timed."""
    c = workload_key(["c"])
    weights = {
        A: Weight(calls=2, untuned=10.0, rival=c),
        B: WEIGHTS[B],
        c: Weight(calls=2, untuned=0.0, rival=A),
    }
    trials = [record(c, 12.0, 1), record(c, 7.0, 2), record(A, 6.0, 3)]
    assert curves.curve(trials, [1, 2], weights, weights) == [
        (0, 25.0), (1, 25.0), (2, 19.0), (3, 17.0),
    ]  # fmt: skip
    best = curves.best_of(trials, weights)
    assert {key: found.index for key, found in best.items()} == {A: 3, B: FALLBACK, c: 2}


def test_reached_is_never_before_the_first_trial():
    points = [(0, 1.0), (4, 3.0), (8, 2.0), (12, 2.0)]
    assert curves.reached(points, 2.0) == 8
    assert curves.reached(points, 1.0) is None


def test_checkpoints():
    assert curves.checkpoints(500) == [62, 125, 188, 250, 375, 500]
    assert curves.checkpoints(2) == [1, 2]


def test_autotvm_fits_a_model_after_each_plan_of_one_task():
    records = [record(A, 1.0)] * 130 + [record(B, 1.0)] * 63
    assert equal.fits(records, 64) == 2


def test_every_other_round_goes_backwards():
    order: list[str] = []
    sides = [Side(name, lambda name=name: order.append(name)) for name in "abc"]
    take_turns(sides, 2, settle=0.0)
    assert order[::2] == ["a", "b", "c", "c", "b", "a"]
    assert order[::2] == order[1::2]  # the first of each block does not count
    assert [len(side.blocks) for side in sides] == [2, 2, 2]


def test_a_speedup_is_taken_within_rounds():
    found = Race(blocks={"x": [1.0, 2.0, 4.0], "y": [2.0, 4.0, 8.0]}, reliable=True)
    assert found.speedup("x", "y") == {"ratio": 2.0, "low": 2.0, "high": 2.0}
    assert found.seconds("x") == 2.0


def test_a_step_is_taken_once(tmp_path: Path):
    asked: list[int] = []

    def make() -> dict[str, int]:
        asked.append(1)
        return {"n": len(asked)}

    path = tmp_path / "deep" / "step.json"
    assert once(path, make) == once(path, make) == {"n": 1}
    assert [file.name for file in path.parent.iterdir()] == ["step.json"]


def test_a_folder_of_another_setup_is_refused(tmp_path: Path):
    Setup(out=tmp_path, trials=8).claim()
    Setup(out=tmp_path, trials=8, seeds=9).claim()
    with pytest.raises(UsageError, match="trials was 8"):
        Setup(out=tmp_path, trials=9).claim()


def results() -> dict[str, Any]:
    points = [{"trials": n, "ratio": r, "low": r, "high": r} for n, r in ((4, 0.9), (8, 1.1))]
    seed = {
        "seed": 0,
        "search_seconds": 60.0,
        "fits": 0,
        "reliable": True,
        "seconds": {"untuned": 0.009, "equal": 0.004, "ours": 0.002},
        "a": {"ratio": 4.5, "low": 4.0, "high": 5.0},
        "b": {"final": {"ratio": 2.0, "low": 2.0, "high": 2.0}, "checkpoints": points},
        "curve": {"ours": [[0, 9.0], [4, 5.0], [8, 3.0]], "equal": [[0, 9.0], [16, 4.0]]},
    }
    transfer = {
        "reach": {"on": 4, "off": 16},
        "reliable": True,
        "within": {"on@4": {"ratio": 0.96, "low": 0.9, "high": 1.0}},
    }
    warm = {
        "measured": 0, "wall": 4.0, "run": 3.0, "imports": 2.0, "help": 0.1, "limit": 5.0,
        "stages": [["link", 0.5]],
    }  # fmt: skip
    return {
        "setup": {"model": "resnet18", "trials": 16, "cpu": "CPU", "threads": 2},
        "options": {"seeds": 1, "plan": 64, "stock": False, "second": "x/other.onnx"},
        "ab": [seed],
        "c": [transfer],
        "d": warm,
        "e": {"kills": 20, "seconds": 100.0},
    }


def verdict(found: dict[str, Any], start: str) -> tuple[str, str]:
    (row,) = [row for row in report.rows(found) if row.what.startswith(start)]
    return row.found, row.met


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("a: ", ("4.50", "yes")),
        ("b: our trials", ("8", "yes")),
        ("the same by the records", ("8", "")),
        ("c: share", ("0.25", "yes")),
        ("artifact there", ("1.04", "yes")),
        ("d: seconds", ("4.00", "yes")),
        ("e: ", ("20 times, 100 s", "yes")),
    ],
)
def test_the_table(start: str, expected: tuple[str, str]):
    assert verdict(results(), start) == expected


def test_what_was_missed_is_said():
    found = results()
    found["ab"][0]["a"]["ratio"] = 2.9
    found["ab"][0]["b"]["checkpoints"][1]["trials"] = 9
    found["c"][0]["reach"] = {"on": 9, "off": 16}
    found["d"]["wall"] = 7.1
    assert verdict(found, "a: ")[1] == "no"
    assert verdict(found, "b: our trials")[1] == "no"
    assert verdict(found, "c: share")[1] == "no"
    assert verdict(found, "d: seconds")[1] == "no"


def test_seeds_that_disagree_are_counted():
    found = results()
    other = json.loads(json.dumps(found["ab"][0]))
    other["a"]["ratio"] = 2.0
    other["b"]["checkpoints"] = [{"trials": 16, "ratio": 0.5, "low": 0.5, "high": 0.5}]
    found["ab"].append(other)
    assert verdict(found, "a: ") == ("3.25 (2.00 to 4.50)", "1 of 2")
    assert verdict(found, "b: our trials") == ("8, never", "1 of 2")


def test_markdown():
    text = report.markdown(results())
    assert text.startswith("| | measured | aim | met |\n|---|---|---|---|\n| latency, untuned |")
    assert "NOT TO BE QUOTED" not in text
    found = results()
    found["c"][0]["reliable"] = False
    assert "NOT TO BE QUOTED" in report.markdown(found)
