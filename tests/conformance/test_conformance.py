"""A sample of onnx's backend suite in CI; `make conformance` runs all of it."""

from __future__ import annotations

import zlib
from collections import defaultdict

import pytest

from tests.conformance.cases import BOUND, Case, load
from tests.conformance.execute import run_all
from tests.conformance.run import KNOWN, compare, listing, read_known, summary, table

PER_GROUP = {"node": 40, "simple": 3, "pytorch-converted": 6, "pytorch-operator": 4}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return load(tuple(PER_GROUP))


def sample(cases: list[Case]) -> list[Case]:
    """Return the same few of each family every time: those whose names hash lowest."""
    families: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda c: zlib.crc32(c.name.encode())):
        chosen = families[case.family]
        if not case.uncounted and len(chosen) < PER_GROUP[case.family]:
            chosen.append(case)
    return [case for chosen in families.values() for case in chosen]


def test_the_list_names_tests_that_exist_and_count(cases: list[Case]) -> None:
    counted = {case.name for case in load() if not case.uncounted}
    assert set(read_known()) <= counted
    assert all(read_known().values())


def test_bound_operands_are_such_of_their_operators() -> None:
    import onnx

    for operator, positions in BOUND.items():
        assert max(positions) < max(
            s.max_input for s in onnx.defs.get_all_schemas_with_history() if s.name == operator
        )


def test_a_sample_ends_as_the_list_says(cases: list[Case], tvm: object) -> None:
    chosen = sample(cases)
    assert len(chosen) == sum(PER_GROUP.values())
    outcomes = {o.name: o for o in run_all(chosen, "mlc", jobs=2, limit=120.0, opt_level=1)}
    assert compare(chosen, outcomes, read_known()) == []
    known = read_known()
    # The report is made of the same outcomes.
    assert all(case.operator in table(chosen, outcomes) for case in chosen)
    passed = sum(o.status == "passed" for o in outcomes.values())
    assert f"all                  {passed}/{len(chosen)}" in summary(chosen, outcomes)
    assert all(name in KNOWN.read_text() for name in known)
    assert listing(chosen, outcomes, known).count("test_") == len(chosen) - passed


def test_a_crash_and_a_hang_are_one_failed_test_each(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal
    import time

    from tests.conformance import execute

    def engine(case: Case, folder: object, opt_level: int) -> None:
        if case.name == "test_abs":
            os.kill(os.getpid(), signal.SIGKILL)
        if case.name == "test_acos":
            time.sleep(60)

    monkeypatch.setitem(execute.ENGINES, "fake", engine)
    chosen = [c for c in cases if c.name in ("test_abs", "test_acos", "test_add")]
    outcomes = {o.name: o for o in run_all(chosen, "fake", jobs=2, limit=3.0, opt_level=1)}
    assert [outcomes[n].status for n in ("test_abs", "test_acos", "test_add")] == [
        "crashed", "hung", "passed",
    ]  # fmt: skip
    assert outcomes["test_abs"].reason == "SIGKILL"
    surprises = compare(chosen, outcomes, {"test_add": "why"})
    assert surprises == [
        "test_abs crashed: SIGKILL",
        "test_acos hung: not done within 3 s",
        "test_add passes: take it off the list",
    ]
