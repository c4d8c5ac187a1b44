"""The comparison of the whole model at the end of a tuning run: what follows from it, and over RPC."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlc.errors import TuningError
from mlc.events import Notice
from mlc.rpc import artifacts, facts
from mlc.rpc.tracker import Grant
from mlc.tune import afar, baseline, whole
from mlc.tune.baseline import Versus
from mlc.tune.farm import Farm
from mlc.tune.final import Choice
from mlc.tune.place import SessionEnded
from mlc.tune.record import FALLBACK
from mlc.tune.whole import comparison, decide
from tests.unit.test_rpc_parts import framed, scripted
from tests.unit.test_tune_final import KEY, OTHER, Run

FASTER = Versus(before=2.0, after=1.0, ratio=2.0, low=1.9, high=2.1)
SLOWER = Versus(before=1.0, after=2.0, ratio=0.5, low=0.4, high=0.6)
CHOICE = Choice(key=KEY, index=3, tuned=1.0, untuned=4.0, checked="")
PAIR = (Path("untuned.mlc"), Path("tuned.mlc"))


def decided(*answers: Versus) -> tuple[dict[str, Any], Any]:
    run: Any = Run({})
    left = list(answers)

    def compare(before: Path, after: Path) -> Versus:
        assert (before, after) == PAIR
        if not left:
            raise TuningError("the device is gone")
        return left.pop(0)

    return decide(run, [CHOICE], [PAIR] * max(len(answers), 1), compare), run


def test_a_slower_model_is_not_used() -> None:
    found, run = decided(SLOWER)
    assert found == {"model": pytest.approx(asdict(SLOWER)), "not_compared": ""}
    assert [(record.workload, record.index) for record in run.records] == [(KEY, FALLBACK)]
    (notice,) = run.notices
    assert "2.00 times as long" in notice.text


def test_a_faster_model_is_used() -> None:
    found, run = decided(FASTER)
    assert found == {"model": pytest.approx(asdict(FASTER)), "not_compared": ""}
    assert run.records == run.notices == []


class Inside:
    """Untuned and tuned artifacts of two sizes; `times` are (untuned, tuned) ms by kernel and turn."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, times: dict[str, list[tuple[float, float]]]
    ):
        self.run: Any = Run({})
        self.run.subject.symbols = ({KEY: ("k",), OTHER: ("o", "p")}, {KEY: ("k",)})
        self.run.subject.farm = None
        self.run.subject.device.threads = 1
        self.made = 0
        self.times = times
        monkeypatch.setattr(whole, "tuned_pairs", self.pairs)
        monkeypatch.setattr(whole.baseline, "kernels_in_turn", self.turns)

    def pairs(self, run: Any, folder: Path) -> list[whole.Tuned]:
        assert run is self.run
        self.made += 1
        tuned = {KEY: ("k2",), OTHER: ("o2",)}
        return [
            whole.Tuned(untuned=Path("a"), tuned=Path("b"), symbols=symbols)
            for symbols in (tuned, {KEY: ("k2",)})
        ]

    def turns(self, before: Path, after: Path, *, threads: int) -> list[Any]:
        assert (before, after, threads) == (Path("a"), Path("b"), 1)
        rows = [
            dict(zip(self.times, row, strict=True))
            for row in zip(*self.times.values(), strict=True)
        ]
        return [
            ({name: pair[0] for name, pair in row.items()},
             {f"{name}2": pair[1] for name, pair in row.items()})
            for row in rows
        ]  # fmt: skip

    def settled(self, *choices: Choice) -> list[Choice]:
        found, made = whole.settle(self.run, list(choices), Path())
        assert len(made) == (2 if choices else 0)
        return found


SECOND = Choice(key=OTHER, index=5, tuned=1.0, untuned=4.0, checked="agrees")


def test_choices_that_are_faster_in_the_model_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTHER has two kernels untuned, one of them slower than the one that it has tuned."""
    times = {"k": [(3, 2), (9, 6), (3, 4)], "o": [(1, 3)] * 3, "p": [(3, 0)] * 3}
    inside = Inside(monkeypatch, times)
    assert inside.settled(CHOICE, SECOND) == [CHOICE, SECOND]
    assert (inside.made, inside.run.records, inside.run.notices) == (1, [], [])


def test_choices_that_are_slower_in_the_model_are_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = {"k": [(2, 3), (6, 9), (4, 3)], "o": [(1, 3)] * 3, "p": [(3, 0)] * 3}
    inside = Inside(monkeypatch, times)
    first, second = inside.settled(CHOICE, SECOND)
    assert (first.index, first.tuned, first.checked) == (FALLBACK, 4.0, "taken back")
    assert second == SECOND
    assert [(record.workload, record.index) for record in inside.run.records] == [(KEY, FALLBACK)]
    (notice,) = inside.run.notices
    assert KEY in notice.text
    assert OTHER not in notice.text
    assert inside.made == 2, "compiled again without it"


def test_what_cannot_be_found_in_the_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Inside(monkeypatch, {"other": [(1, 2)] * 3})
    assert inside.settled(CHOICE) == [CHOICE]
    default = Choice(key=KEY, index=FALLBACK, tuned=4.0, untuned=4.0, checked="default")
    inside = Inside(monkeypatch, {})
    monkeypatch.setattr(whole.baseline, "kernels_in_turn", None)  # nothing to judge, so not asked
    assert inside.settled(default) == [default]
    assert inside.run.notices == []
    assert inside.settled() == []


def test_other_devices_are_not_asked_for_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Inside(monkeypatch, {"k": [(1, 2)] * 3})
    inside.run.subject.farm = object()
    assert inside.settled(CHOICE) == [CHOICE]


def test_several_shapes_are_judged_together() -> None:
    found, run = decided(FASTER, SLOWER, SLOWER)
    assert found["model"]["before"] == 4.0
    assert found["model"]["ratio"] < 1
    assert len(run.records) == 1


def test_what_cannot_be_compared_is_used_and_said() -> None:
    found, run = decided()
    assert found == {"model": None, "not_compared": "the device is gone"}
    assert run.records == []
    (notice,) = run.notices
    assert notice.level == "warning"
    assert "not compared with the untuned model end to end: the device is gone" in notice.text


def test_it_is_compared_where_it_was_measured() -> None:
    run: Any = Run({})
    run.subject.device.threads = 2
    run.scheduler = SimpleNamespace(
        states={
            "a": SimpleNamespace(calls=3, untuned=0.5),
            "b": SimpleNamespace(calls=1, untuned=None),
        }
    )
    run.subject.farm = None
    here: Any = comparison(run)
    assert (here.func, here.keywords) == (baseline.versus, {"threads": 2})
    run.subject.farm = farm = object()
    there: Any = comparison(run)
    assert there.func is afar.versus
    assert there.keywords["farm"] is farm
    assert (there.keywords["threads"], there.keywords["model_seconds"]) == (2, 1.5)


@pytest.mark.parametrize(
    ("found", "asked"), [([FASTER], [2.0]), ([Versus(**{**asdict(FASTER), "low": 0.9})] * 2, [2.0, 6.0])]
)  # fmt: skip
def test_what_is_unclear_is_timed_for_longer(
    monkeypatch: pytest.MonkeyPatch, found: list[Versus], asked: list[float]
) -> None:
    seconds: list[float] = []
    left = list(found)

    class Opened:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def versus(before: Any, after: Any, for_seconds: float) -> Versus:
        seconds.append(for_seconds)
        return left.pop(0)

    monkeypatch.setattr(baseline, "_opened", lambda path, threads: Opened())
    monkeypatch.setattr(baseline, "_fill", lambda session: None)
    monkeypatch.setattr(baseline, "_versus", versus)
    fields = {"before": "a", "after": "b", "threads": 1}
    assert baseline.compare_artifacts(fields, print) == asdict(found[-1])
    assert seconds == asked


# --- on a device ---------------------------------------------------------------------------------


class Device:
    """Stands for `There`: a session whose functions run in this process, in a folder of their own."""

    folder = Path()
    compare: Callable[..., str] = staticmethod(lambda *_: json.dumps(asdict(FASTER)))

    def __init__(self, expected: Any):
        self.session = self

    def open(self, grant: Any, seconds: float, limits: Any) -> None:
        os.chdir(self.folder)

    def get_function(self, name: str) -> Any:
        return {artifacts.APPEND: artifacts.append, artifacts.FUNCTION: type(self).compare}[name]

    def judge(self, error: Exception) -> None:
        if isinstance(error, ConnectionError):
            raise SessionEnded("", "connection reset") from error


class Bench:
    """A pair of files, a device to compare them on, and what was said meanwhile."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.pair = folder / "a.mlc", folder / "b.mlc"
        for number, path in enumerate(self.pair):
            path.write_bytes(bytes([number]) * 1001)
        self.device: Any = type("Mine", (Device,), {"folder": folder / "device"})
        self.device.folder.mkdir()
        self.notices: list[Notice] = []
        monkeypatch.setattr(afar, "There", self.device)
        monkeypatch.setattr(afar, "_PART_BYTES", 100)
        monkeypatch.setattr(afar, "_granted", lambda *_: Grant(host="pi", port=1, match_key="k"))

    def versus(self) -> Versus:
        farm: Any = SimpleNamespace(facts=None)
        return afar.versus(
            *self.pair, farm=farm, threads=2, model_seconds=0.0, on_event=self.notices.append  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    if sys.platform != "linux":
        pytest.skip("forks")
    return Bench(tmp_path, monkeypatch)


def test_both_artifacts_are_sent_in_parts(bench: Bench) -> None:
    def compare(before: str, after: str, threads: int) -> str:
        sent = [Path(name).read_bytes() for name in (before, after)]
        assert sent == [bytes([number]) * 1001 for number in (0, 1)]
        return json.dumps({**asdict(FASTER), "before": float(threads)})

    bench.device.compare = staticmethod(compare)
    assert bench.versus() == FASTER
    assert bench.notices == []


def test_much_to_send_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afar, "LARGE_BYTES", 2001)
    bench.versus()
    (notice,) = bench.notices
    assert "0 MB, the untuned and the tuned model, go to pi:1" in notice.text


def lose(*_: object) -> str:
    raise ConnectionResetError


def crash(*_: object) -> str:
    os._exit(3)


def fail(*_: object) -> str:
    raise RuntimeError("RPC call failed:\nas scripted")


@pytest.mark.parametrize(
    ("compare", "why"),
    [
        (lose, r"pi:1 did not compare them \(connection reset\)"),
        (crash, "the process that spoke with it crashed"),
        (fail, r"\(as scripted\)"),
        (lambda *_: time.sleep(60), "no answer in time"),
        (lambda *_: '{"error": "no memory\\u001b"}', r"the device says: no memory\\x1b"),
        (lambda *_: "gibberish", "answers otherwise"),
    ],
    ids=["lost", "crash", "fail", "silent", "error", "gibberish"],
)
def test_a_device_that_does_not_compare(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, compare: Any, why: str
) -> None:
    for name in ("TRANSFER_S", "_TIMING_S", "GRACE_S"):
        monkeypatch.setattr(afar, name, 0.5)
    bench.device.compare = staticmethod(compare)
    with pytest.raises(TuningError, match=why):
        bench.versus()


def test_a_server_that_does_not_know_the_function(bench: Bench) -> None:
    def nothing(self: Any, name: str) -> Any:
        raise AttributeError(name)

    bench.device.get_function = nothing
    with pytest.raises(TuningError, match="its mlc is older"):
        bench.versus()


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "1", '"error"', "{}", "null", "[" * 100_000, '{"before": 1.0}',
        json.dumps({**asdict(FASTER), "low": "1"}), json.dumps({**asdict(FASTER), "after": 0.0}),
        json.dumps({**asdict(FASTER), "high": float("inf")}),
        json.dumps({**asdict(FASTER), "ratio": float("nan")}),
        json.dumps({**asdict(FASTER), "ratio": True}),
        " " * (1 << 20) + json.dumps(asdict(FASTER)),
    ],
)  # fmt: skip
def test_answers_that_are_none(text: str) -> None:
    with pytest.raises(TuningError):
        afar.read(text)


def test_no_device_is_free_for_the_comparison(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(afar, "FREE_S", 0.1)
    servers: list[Any] = []

    def answer(message: Any) -> bytes:
        if message == [6]:
            return framed([0, {"queue_info": {}, "server_info": servers}])
        time.sleep(0.5)  # longer than anybody waits
        return b""

    def compared() -> str:
        with scripted(answer) as at:
            farm = Farm(tracker=at, key="pi", facts=facts.read(facts.here()))
            with pytest.raises(TuningError) as error:
                afar.versus(*bench.pair, farm=farm, threads=1, model_seconds=0.0, on_event=print)
        return error.value.message

    assert compared() == "no device 'pi' is left"
    servers.append({"key": "server:pi", "addr": ["127.0.0.1", 1]})
    assert compared() == "no device 'pi' was free for 0 s"


# --- the device's side ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../a", "/a", "b/a", "", ".."])
def test_files_lie_in_the_sessions_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)):
        artifacts.append(name, b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_device_says_what_is_wrong_with_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        artifacts.append("a.mlc", b"none")
    assert (tmp_path / "a.mlc").read_bytes() == b"nonenone"
    assert "a.mlc" in json.loads(artifacts.answer("a.mlc", "a.mlc", 1))["error"]
