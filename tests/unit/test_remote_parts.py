"""Which devices get which candidates, and what becomes of those whose device is lost: scripted."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlc import tvm_env
from mlc.errors import TuningError
from mlc.events import Notice
from mlc.options import TuneOptions
from mlc.rpc import facts
from mlc.rpc.address import Address
from mlc.tune import farm as farm_module
from mlc.tune import remote, worker
from mlc.tune.farm import Farm, find
from mlc.tune.remote import RemoteMeasurer
from mlc.tune.roster import Roster
from mlc.tune.trial import Settings
from tests.unit.test_rpc_parts import framed, scripted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

A, B = Address("127.0.0.1", 1001), Address("127.0.0.1", 1002)
LIMITS = Settings(
    workers=2, threads=1, build_timeout=30, run_timeout=1, memory_bytes=1 << 40,
)  # fmt: skip


def test_a_device_that_is_gone_is_no_longer_of_interest() -> None:
    roster = Roster()
    assert "is gone (refused)" in roster.lost(A, "refused", [B])
    assert roster.usable([A, B]) == [A, B]  # should the tracker offer it again, it was restarted


def test_two_losses_in_a_row_put_aside() -> None:
    roster = Roster()
    assert "another chance" in roster.lost(A, "silent", [A, B])
    roster.worked(A)
    assert "another chance" in roster.lost(A, "silent", [A, B])
    assert "put aside (it did not answer 2 times in a row: silent)" in roster.lost(A, "silent", [A])
    assert roster.usable([A, B]) == [B]


class Devices:
    """A tracker with devices, and what a session with each does: "ok", "hang", or a message."""

    def __init__(self, **does: str):
        self.does = {int(name[1:]): how for name, how in does.items()}  # by port, given as p1001
        self.gone: set[int] = set()
        self.turn = 0

    def answer(self, message: Any) -> bytes:
        known = [port for port in self.does if port not in self.gone]
        if message == [6]:
            servers = [{"key": "server:pi", "addr": ["127.0.0.1", port]} for port in known]
            return framed([0, {"queue_info": {}, "server_info": servers}])
        port = known[self.turn % len(known)]
        self.turn += 1
        return framed([0, ["127.0.0.1", port, "pi:0"]])

    def serve(self, job: Any, tasks: Any, settings: Any, place: Any, channel: Any) -> None:
        """Stand for the child: it builds well, and then the session goes as the device does."""
        channel.send({"built": True})
        port = channel.receive()["run"]["port"]
        how = self.does[port]
        index = job.candidates[0][1]
        if how in ("crash", f"crash at {index}"):
            os._exit(3)
        elif how == "hang":
            channel.receive()
        elif how == "ok" or how.startswith("crash at"):
            result = {"costs": [float(port)], "build_seconds": 1.0, "run_seconds": 1.0}
            channel.send({"results": [result] * len(job.candidates)})
        else:
            channel.send(json.loads(how))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "GRACE_S", 0.1)
    monkeypatch.setattr(remote, "PATIENCE_S", 0.1)
    monkeypatch.setattr(remote, "session_seconds", lambda candidates, limit: 0.2)
    monkeypatch.setattr(worker, "warm_up", lambda target, place: None)
    autotvm = SimpleNamespace(GLOBAL_SCOPE=SimpleNamespace(in_tuning=False))
    monkeypatch.setitem(sys.modules, "tvm", SimpleNamespace(autotvm=autotvm))
    monkeypatch.setattr(remote, "linker_for", lambda _target: None)


class Bench:
    """A measurer over scripted devices, and what it said."""

    def __init__(self, devices: Devices, monkeypatch: pytest.MonkeyPatch):
        self.devices = devices
        self.notices: list[str] = []
        monkeypatch.setattr(worker, "serve", devices.serve)

    def measure(self, count: int) -> list[Any]:
        def hear(event: Any) -> None:
            assert isinstance(event, Notice)
            assert event.level == "warning"
            self.notices.append(event.text)

        known = facts.read(facts.here())
        with scripted(self.devices.answer) as at:
            farm = Farm(tracker=at, key="pi", facts=known)
            task = SimpleNamespace(target="llvm")
            with RemoteMeasurer({"t": task}, LIMITS, farm, hear) as measurer:
                return measurer.measure([("t", index) for index in range(count)])


def lost(why: str = "reset", kind: str = "") -> str:
    return json.dumps({"ended": kind, "message": why})


def test_several_devices_share_a_batch(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Devices(p1001="ok", p1002="ok"), monkeypatch)
    outcomes = bench.measure(6)
    assert Counter(o.costs[0] for o in outcomes) == {1001.0: 3, 1002.0: 3}
    assert bench.notices == []


@pytest.mark.parametrize("how", [lost(), "crash", "hang"], ids=["lost", "crash", "hang"])
def test_a_dead_device_costs_no_candidate(
    impatient: None, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bench = Bench(Devices(p1001="ok", p1002=how), monkeypatch)
    outcomes = bench.measure(6)
    assert [(o.costs, o.reason) for o in outcomes] == [((1001.0,), "")] * 6
    assert f"{B} did not answer" in bench.notices[0]
    assert f"{B} is put aside" in bench.notices[1]


def test_a_misfit_is_put_aside_at_once(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Devices(p1001="ok", p1002=lost("it is a toaster", "misfit")), monkeypatch)
    for _ in range(100):  # on a busy machine the other device may be done before this one is asked
        assert all(o.costs == (1001.0,) for o in bench.measure(4))
        if bench.notices:
            break
    assert bench.notices == [f"the device at {B} is put aside (it is a toaster)"]


def test_what_the_device_says_counts_against_the_candidate(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(Devices(p1001=lost("the session's process crashed", "crash")), monkeypatch)
    assert [o.reason for o in bench.measure(3)] == ["crash"] * 3
    assert bench.notices == []


def test_a_candidate_that_no_device_survives(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried three times in all, while the devices prove themselves with others."""
    how = "crash at 0"
    bench = Bench(Devices(p1001=how, p1002=how, p1003=how, p1004=how), monkeypatch)
    outcomes = bench.measure(9)
    assert [o.reason for o in outcomes] == ["crash", *[""] * 8]
    assert "3 devices in turn were lost" in outcomes[0].message
    assert len(bench.notices) == 3


def test_no_device_is_left(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Devices(p1001=lost("refused")), monkeypatch)
    with pytest.raises(TuningError, match=r"no device 'pi' is left .*refused") as error:
        bench.measure(4)
    assert "mlc rpc server" in str(error.value.hint)
    assert "continues" in str(error.value.hint)


@pytest.fixture(autouse=True)
def no_stray_children() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def children() -> set[str]:
    while True:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread ended meanwhile
            return {
                pid
                for f in Path("/proc/self/task").glob("*/children")
                for pid in f.read_text().split()
            }


def found_by(
    monkeypatch: pytest.MonkeyPatch, answers: dict[Address, Any], said: list[str]
) -> Farm | None:
    """Return what `find` makes of devices that answer so."""
    asked: list[int] = []

    def ask(tracker: Any, key: str, count: int) -> dict[Address, Any]:
        asked.append(count)
        return answers

    devices = [{"key": "server:pi", "addr": [at.host, at.port]} for at in answers]
    summary = {"queue_info": {"pi": {"free": 2, "pending": 0}}, "server_info": devices}
    monkeypatch.setattr(farm_module, "_ask", ask)
    monkeypatch.setattr(tvm_env, "tvm", lambda: None)
    with scripted(lambda _: framed([0, summary])) as at:
        options = TuneOptions(tracker=str(at), key="pi")
        found = find(options, lambda event: said.append(getattr(event, "text", "")))
    assert asked == [2]
    return found


def test_equal_devices_are_one_farm(monkeypatch: pytest.MonkeyPatch) -> None:
    known, said = facts.read(facts.here()), []
    found = found_by(monkeypatch, {A: known, B: "it does not answer"}, said)
    assert found is not None
    assert (found.key, found.facts) == ("pi", known)
    assert said == [f"the device at {B} is no use: it does not answer"]


def test_devices_that_are_not_alike_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = facts.read(facts.here())
    other = replace(known, cpu=replace(known.cpu, name="Toaster 3"))
    with pytest.raises(TuningError, match=f"not alike .*Toaster 3, .* cores: {B}") as error:
        found_by(monkeypatch, {A: known, B: other}, [])
    assert "its own --key" in str(error.value.hint)


def test_no_device_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TuningError, match=r"no device .pi. .* can be used"):
        found_by(monkeypatch, {A: "TVM's own", B: "silent"}, [])
