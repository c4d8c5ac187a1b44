"""Broken and hostile models end with a message: no crash, no hang, no memory beyond the limit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlc import tvm_env
from tests.hostile.attempt import Ending, attempt, checked, compiled, imported
from tests.hostile.corpus import CORPUS
from tests.hostile.mutate import mutated, seeds

SEEDS = seeds()
EXIT_CODES = {3, 5, 7, 9}  # 7, 9: seen while verifying; never 1
# Where TVM ends the process; the message says so, and `mlc check` knows better.
CRASHES = {"slice of step 0"}


@pytest.fixture(scope="module", autouse=True)
def tvm() -> Any:
    """Import TVM before the forks."""
    return tvm_env.tvm()


def accept(ending: Ending) -> None:
    """Fail unless an attempt ended well, with the exit code that belongs to it."""
    assert ending.good, ending.message
    assert ending.status == "done" or (ending.exit_code in EXIT_CODES and ending.message)


def test_the_corpus_is_large_and_broken() -> None:
    assert len(CORPUS) > 150
    assert len({make() for make in CORPUS.values()}) > 150


def accepted(data: bytes, work: Callable[[Path], None], folder: Path) -> Ending:
    """Return how some work on a file with these bytes ends; fail unless it ends well."""
    path = folder / "model.onnx"
    path.write_bytes(data)
    ending = attempt(path, work)
    accept(ending)
    return ending


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_is_imported_or_refused(name: str, tmp_path: Path) -> None:
    ending = accepted(CORPUS[name](), imported, tmp_path)
    assert (ending.status == "crashed") == (name in CRASHES)
    assert "\x1b" not in ending.message
    assert sorted(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_is_compiled_or_refused(name: str, tmp_path: Path) -> None:
    ending = accepted(CORPUS[name](), compiled, tmp_path)
    made = {"model.onnx", *(["model.mlc"] if ending.status == "done" else [])}
    assert {entry.name for entry in tmp_path.iterdir()} == made


@pytest.mark.parametrize("position", range(len(SEEDS)))
def test_what_is_mutated_is_good_before(position: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(SEEDS[position].SerializeToString())
    assert attempt(path, imported) == Ending("done")


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
@example(seed=0)
def test_mutated_models_are_imported_or_refused(seed: int, tmp_path: Path) -> None:
    """See `tests.hostile.fuzz`, which goes on for as long as it is told."""
    rng = random.Random(seed)
    accepted(mutated(rng.choice(SEEDS), rng).SerializeToString(), imported, tmp_path)


def test_hangs_and_bugs_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_: Path) -> None:
        while True:
            pass

    def bug(_: Path) -> None:
        raise KeyError("x")

    def eat(_: Path) -> None:
        bytearray(8 << 30)

    monkeypatch.setattr("tests.hostile.attempt.LIMIT_S", 1)
    assert attempt(tmp_path, hang).status == "hung"
    assert attempt(tmp_path, bug).status == "bug"
    assert "out of memory" in attempt(tmp_path, eat).message
    assert attempt(tmp_path, checked).status == "refused"
