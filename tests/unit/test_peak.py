"""What is remembered of the machine's limit, with a scripted measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlc import isolate
from mlc.cache import Cache
from mlc.errors import BuildError
from mlc.target import Target, resolve
from mlc.tune.peak import Asked, peak_gflops

QUIET, BUSY = 0.0, 1.0


class Child:
    """Stands for the process that measures: answers in turn, notes what it was asked."""

    def __init__(self, *answers: tuple[float, float] | None):
        self.answers = list(answers)
        self.asked: list[Asked] = []

    def __call__(self, function: str, options: Asked) -> Any:
        assert function == "mlc.tune.peak:measure"
        self.asked.append(options)
        answer = self.answers.pop(0)
        if answer is None:
            raise BuildError("crashed")
        return {"gflops": answer[0], "waited": answer[1]}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


@pytest.fixture
def chosen() -> Target:
    return resolve("x86-64-v3")


def script(monkeypatch: pytest.MonkeyPatch, *answers: tuple[float, float] | None) -> Child:
    child = Child(*answers)
    monkeypatch.setattr(isolate, "call", child)
    return child


def test_the_highest_is_kept(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, cache: Cache, chosen: Target
) -> None:
    script(monkeypatch, (100.0, QUIET), (80.0, QUIET))
    assert peak_gflops(chosen, 2, cache) == 100.0
    assert peak_gflops(chosen, 2, cache) == 100.0


def test_two_quiet_measurements_are_enough(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, cache: Cache, chosen: Target
) -> None:
    child = script(monkeypatch, (100.0, QUIET), (90.0, BUSY), (110.0, QUIET))
    found = [peak_gflops(chosen, 2, cache) for _ in range(5)]
    assert found == [100.0, 100.0, 110.0, 110.0, 110.0]
    assert len(child.asked) == 3


def test_threads_and_targets_are_apart(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, cache: Cache, chosen: Target
) -> None:
    child = script(monkeypatch, (100.0, QUIET), (50.0, QUIET), (25.0, QUIET))
    assert peak_gflops(chosen, 2, cache) == 100.0
    assert peak_gflops(chosen, 1, cache) == 50.0
    assert peak_gflops(resolve("x86-64-v2"), 2, cache) == 25.0
    assert [(one.threads, one.lanes) for one in child.asked] == [(2, 8), (1, 8), (2, 4)]


def test_without_a_measurement_nothing_is_known(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, cache: Cache, chosen: Target
) -> None:
    script(monkeypatch, None, (70.0, QUIET), None)
    assert peak_gflops(chosen, 2, cache) is None
    assert peak_gflops(chosen, 2, cache) == 70.0
    assert peak_gflops(chosen, 2, cache) == 70.0


def test_a_damaged_entry_is_measured_again(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, cache: Cache, chosen: Target
) -> None:
    script(monkeypatch, (100.0, QUIET), (60.0, QUIET))
    peak_gflops(chosen, 2, cache)
    (entry,) = [path for path in (cache.directory or Path()).rglob("*") if path.is_file()]
    entry.write_bytes(b"?" * 40)
    assert peak_gflops(chosen, 2, cache) == 60.0


def test_without_a_cache_each_counts(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, chosen: Target
) -> None:
    script(monkeypatch, (100.0, QUIET), (60.0, QUIET))
    assert [peak_gflops(chosen, 2, Cache(None)) for _ in range(2)] == [100.0, 60.0]
