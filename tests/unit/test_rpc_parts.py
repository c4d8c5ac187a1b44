"""Addresses, what devices say of themselves, and a tracker's client against a scripted tracker."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from click.testing import CliRunner

from mlc import tvm_env
from mlc.cli.rpc import rpc
from mlc.errors import TuningError, UsageError
from mlc.options import TuneOptions
from mlc.rpc import address, facts
from mlc.rpc.address import Address
from mlc.rpc.tracker import Tracker
from mlc.tune.farm import find

MAGIC = struct.pack("<i", 0x2F271)
SUMMARY = {
    "queue_info": {"pi": {"free": 1, "pending": 0}, "old": {"free": 0, "pending": 0}},
    "server_info": [
        {"key": "server:pi", "addr": ["10.0.0.2", 9092]},
        {"key": "server:pi", "addr": ["10.0.0.1", 9091]},
    ],
}


def framed(message: Any) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("<i", len(data)) + data


@contextmanager
def scripted(answer: Callable[[Any], bytes], hello: bytes = MAGIC) -> Iterator[Address]:
    """Run a tracker that answers each message with what `answer` returns; b"" closes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def speak(connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as stream:
            stream.read(4)
            connection.sendall(hello)
            while head := stream.read(4):
                reply = answer(json.loads(stream.read(struct.unpack("<i", head)[0])))
                if not reply:
                    break
                connection.sendall(reply)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=speak, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield Address(*listening.getsockname())
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9190", Address("127.0.0.1", 9190)),
        (" board-1.lan:1 ", Address("board-1.lan", 1)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_an_address(text: str, expected: Address) -> None:
    assert address.parse(text) == expected
    assert str(expected) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":9190", "host:0", "host:65536", "host:9x", "::1:9190", "a b:1",
             "host:9190:1", "host:-1", "host:٣"],
)  # fmt: skip
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"--tracker .* is no address") as error:
        address.parse(text)
    assert "127.0.0.1:9190" in str(error.value.hint)


@pytest.mark.parametrize("key", ["", "a b", "a:b", "a" * 65, "é", "a\n"])
def test_no_key(key: str) -> None:
    with pytest.raises(UsageError, match="cannot name a kind of device"):
        address.check_key(key)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.7", False), ("board", False)],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert address.is_loopback(host) is expected


def test_facts_of_this_machine_come_back() -> None:
    found = facts.read(facts.here())
    assert found == facts.read(facts.here())
    assert found.cpu == facts.host_cpu()
    assert found.tvm == tvm_env.VERSION


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"physical_cores": 0},
        {"physical_cores": True},
        {"physical_cores": 1 << 40},
        {"cpu": None},
        {"cpu": {}},
        {"cpu.name": 3},
        {"cpu.name": "x" * 1000},
        {"cpu.features": 7},
        {"cpu.features": [["avx2"]]},
        {"cpu.cores": "2"},
        {"padding": "x" * (1 << 17)},
    ],
    ids=str,
)
def test_facts_that_are_wrong(change: dict[str, Any]) -> None:
    row = json.loads(facts.here())
    for name, value in change.items():
        group, _, field = name.rpartition(".")
        (row[group] if group else row)[field] = value
    with pytest.raises(TuningError, match="description of itself cannot be used"):
        facts.read(json.dumps(row))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_facts_that_are_none(text: str) -> None:
    with pytest.raises(TuningError, match="cannot be used") as error:
        facts.read(text)
    assert "mlc rpc server" in str(error.value.hint)


def test_unknown_features_do_not_count_and_escapes_do_not_pass() -> None:
    row = json.loads(facts.here())
    row["cpu"].update(features=["avx2", "made-up"], name="evil \x1b[2J")
    found = facts.read(json.dumps(row))
    assert found.cpu.features == {"avx2"}
    assert "\x1b" not in found.cpu.name


def test_another_tvm() -> None:
    row = json.loads(facts.here()) | {"tvm": "0.20.0"}
    with pytest.raises(TuningError, match=r"the device runs TVM 0\.20\.0, here is"):
        facts.read(json.dumps(row))


def test_a_tracker_is_asked() -> None:
    def answer(message: Any) -> bytes:
        if message == [6]:
            return framed([0, SUMMARY])
        assert message == [4, "pi", "", 1]
        return framed([0, ["10.0.0.1", 9091, "pi:0.5"]])

    with scripted(answer) as at, Tracker(at) as tracker:
        status = tracker.status()
        assert status.servers == {"pi": (Address("10.0.0.1", 9091), Address("10.0.0.2", 9092))}
        assert (status.free["pi"], status.waiting["pi"]) == (1, 0)
        tracker.request("pi")
        grant = tracker.granted()
    assert (grant.address, grant.match_key) == (Address("10.0.0.1", 9091), "pi:0.5")


def test_no_tracker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        at = Address(*closed.getsockname())
    with pytest.raises(TuningError, match=f"no tracker answers at {at}") as error:
        Tracker(at)
    assert f"mlc rpc tracker --port {at.port}" in str(error.value.hint)


def test_another_server_is_no_tracker() -> None:
    with (
        scripted(lambda _: b"", hello=b"HTTP") as at,
        pytest.raises(TuningError, match="is no TVM tracker"),
    ):
        Tracker(at)


@pytest.mark.parametrize(
    "reply",
    [
        framed([1, SUMMARY]), framed([0, {}]), framed([0, None]), framed(7), framed([0]),
        framed([0, {**SUMMARY, "server_info": [{"key": "server:a", "addr": ["h", "x"]}]}]),
        framed([0, {**SUMMARY, "server_info": [{"key": "server:a", "addr": ["h", 0]}]}]),
        framed([0, {**SUMMARY, "queue_info": {"a": {"free": "no", "pending": 0}}}]),
        struct.pack("<i", 1 << 30), struct.pack("<i", -1), struct.pack("<i", 3) + b"[[[",
    ],
)  # fmt: skip
def test_an_answer_that_no_tracker_gives(reply: bytes) -> None:
    with (
        scripted(lambda _: reply) as at,
        Tracker(at) as tracker,
        pytest.raises(TuningError, match="is no TVM tracker"),
    ):
        tracker.status()


def test_a_tracker_that_goes_away() -> None:
    with (
        scripted(lambda _: b"") as at,
        Tracker(at) as tracker,
        pytest.raises(TuningError, match=r"the tracker at .* is gone"),
    ):
        tracker.status()


@pytest.mark.parametrize("asked", [{"tracker": "127.0.0.1:9190"}, {"key": "pi"}])
def test_tracker_and_key_go_together(asked: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"needs .* beside it"):
        find(TuneOptions(**asked), print)


def test_without_a_tracker_this_machine_measures() -> None:
    assert find(TuneOptions(), print) is None


def test_status() -> None:
    with scripted(lambda _: framed([0, SUMMARY])) as at:
        as_text = CliRunner().invoke(rpc, ["status", "--tracker", str(at)], catch_exceptions=False)
        as_json = CliRunner().invoke(rpc, ["status", "--tracker", str(at), "--json"])
    assert "10.0.0.1:9091 10.0.0.2:9092" in as_text.stdout
    row = {"key": "pi", "devices": ["10.0.0.1:9091", "10.0.0.2:9092"], "free": 1, "waiting": 0}
    assert json.loads(as_json.stdout)["keys"] == [row]
