"""Bisection on paper: the search, the levels, the parts of a graph, what the command says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from mlc import api
from mlc.bisection.graph import Graph, Step
from mlc.bisection.levels import blame, lowest
from mlc.bisection.run import BisectReport
from mlc.bisection.search import BAD, GOOD, UNCLEAR, boundary, smallest
from mlc.cli.bisect import bisect
from mlc.errors import BuildError, MismatchError, UsageError
from mlc.passes.table import FUSED, UNFUSED, pipeline


@given(st.integers(1, 300), st.data())
def test_the_boundary_takes_a_logarithm_of_probes(count: int, data: Any) -> None:
    first = data.draw(st.integers(1, count))
    asked: list[int] = []

    def probe(k: int) -> str:
        asked.append(k)
        return BAD if k >= first else GOOD

    assert boundary(0, count, probe) == (first - 1, first)
    assert len(asked) == len(set(asked)) <= count.bit_length()


@given(st.lists(st.sampled_from([GOOD, BAD, UNCLEAR]), max_size=40))
def test_the_boundary_steps_over_what_is_unclear(verdicts: list[str]) -> None:
    known = [GOOD, *verdicts, BAD]
    good, bad = boundary(0, len(known) - 1, lambda k: known[k])
    assert (known[good], known[bad]) == (GOOD, BAD)
    assert set(known[good + 1 : bad]) <= {UNCLEAR}


@given(st.integers(1, 100), st.integers(1, 120))
def test_the_smallest_size(largest: int, first: int) -> None:
    found = smallest(largest, lambda k: BAD if k >= first else GOOD)
    assert found == (first if first <= largest else None)


def test_levels_are_tried_in_order() -> None:
    verdicts = {0: GOOD, 1: BAD, 2: GOOD, 3: BAD}
    assert lowest(3, verdicts.__getitem__) == 1
    assert lowest(2, {0: UNCLEAR, 1: GOOD}.__getitem__) == 2


def without(level: int, *guilty: str) -> Any:
    """Return a probe to which every run with all of `guilty` in it is bad."""
    names = {row.name for row in pipeline(level)}

    def probe(left_out: Sequence[str]) -> str:
        assert set(left_out) <= names
        return GOOD if set(guilty) & set(left_out) else BAD

    return probe


@pytest.mark.parametrize("level", [1, 2, 3])
def test_every_pass_can_be_blamed(level: int) -> None:
    rows = pipeline(level)
    for row in rows:
        assert blame(rows, without(level, row.name)).rows == (row.name,)


def test_the_later_of_two_passes_is_blamed() -> None:
    rows = pipeline(3)
    found = blame(rows, without(3, "fold-constants", "fast-math"))
    assert found.rows == ("fast-math",)
    assert "right with the passes before 'fast-math'" in found.why


def test_no_pass_is_blamed_where_none_matters() -> None:
    assert "conversion" in blame(pipeline(0), lambda _: BAD).why
    found = blame(pipeline(1), lambda _: BAD)
    assert found.rows == ()
    assert "vectorised" in found.why


def test_passes_that_cannot_be_told_apart() -> None:
    def probe(left_out: Sequence[str]) -> str:
        if "fold-packed-weights" in left_out and "alter-layout" not in left_out:
            return UNCLEAR
        return GOOD if {"alter-layout", "winograd"} & set(left_out) else BAD

    found = blame(pipeline(3), probe).rows
    assert found[0] == "alter-layout"
    assert "fold-packed-weights" in found


def test_rows_are_left_out_by_name() -> None:
    names = [row.name for row in pipeline(3, without=("fast-math", FUSED))]
    assert "fast-math" not in names
    assert names[-1] == UNFUSED
    assert FUSED not in names
    for wrong in ("fast-maths", "tile", UNFUSED):
        with pytest.raises(UsageError, match="no graph pass"):
            pipeline(3, without=(wrong,))


def graph() -> Graph:
    """x -> a -> b; a -> c; (b, c, w) -> y; w is a constant."""

    def step(name: str, inputs: Sequence[str]) -> Step:
        return Step(label=name, operator="Op", inputs=tuple(inputs), outputs=(name,))

    steps = (step("a", "x"), step("b", "a"), step("c", "a"), step("y", "bcw"))
    return Graph(steps=steps, inputs=frozenset("x"), outputs=("y", "b"))


def test_what_flows_on() -> None:
    assert [graph().live(count) for count in range(5)] == [
        (), ("a",), ("a", "b"), ("b", "c"), ("b", "y"),
    ]  # fmt: skip


def test_ancestors_and_what_enters() -> None:
    whole = graph()
    assert whole.ancestors(["b"]) == (0, 1)
    assert whole.ancestors(["y"]) == (0, 1, 2, 3)
    assert whole.entering([3]) == ("b", "c")
    assert whole.entering([2, 3]) == ("a", "b")
    assert whole.entering([0, 1]) == ("x",)


# --- the command ---------------------------------------------------------------------------------


WRONG = BisectReport(
    model="m.onnx", opt_level=3, kind="mismatch", message="y (float32): MISMATCH", level=2,
    operators=("sig\x1b[2J (Sigmoid)",), passes=("fast-math",), why="wrong once it runs",
    culprit="culprit.onnx", nodes=1, reproduce=("mlc compile culprit.onnx -O 2",),
    workaround="mlc compile m.onnx --without-pass fast-math", trials=12, seconds=3.0,
)  # fmt: skip


def call(monkeypatch: pytest.MonkeyPatch, report: BisectReport, *arguments: str) -> Result:
    monkeypatch.setattr(api, "bisect", lambda model, **options: report)
    return CliRunner().invoke(bisect, [report.model, *arguments])


def test_a_mismatch_has_the_code_of_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, WRONG)
    assert isinstance(result.exception, MismatchError)
    assert "mlc compile culprit.onnx -O 2" in str(result.exception.hint)
    for text in ("-O2, the lowest", "fast-math", "culprit.onnx, 1 nodes", "--without-pass"):
        assert text in result.stdout
    assert "\x1b" not in result.stdout


def test_a_crash_has_the_code_of_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = BisectReport(model="m.onnx", opt_level=1, kind="failure", message="ended", level=1)
    result = call(monkeypatch, failed)
    assert isinstance(result.exception, BuildError)
    assert "no part of the graph shows it" in result.stdout


def test_nothing_wrong_is_success(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = BisectReport(model="m.onnx", opt_level=3, kind="ok", trials=1)
    result = call(monkeypatch, fine)
    assert (result.exit_code, result.exception) == (0, None)
    assert "nothing is wrong at -O3" in result.stdout


def test_json_has_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call(monkeypatch, WRONG, "--json").stdout)
    assert found["passes"] == ["fast-math"]
    assert set(found) == set(BisectReport.__dataclass_fields__)
