"""Tuning on other machines: a tracker and two servers on loopback, one of them killed at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlc.cpu import host_cpu, physical_cores
from mlc.target import for_cpu
from mlc.tune.device import device_for
from tests import models
from tests.e2e.conftest import Command
from tests.e2e.test_tune import in_session, records_in, small_net

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

TRIALS = 14


class Service(NamedTuple):
    """A running `mlc rpc tracker` or `server`, in a session of its own."""

    process: subprocess.Popen[str]
    address: str

    def stop(self) -> int:
        self.process.terminate()
        self.process.communicate(timeout=20)
        return self.process.returncode


Start = Callable[..., Service]


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start services; those that are left are killed."""
    running: list[Service] = []

    def make(*arguments: str) -> Service:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlc", "rpc", *arguments, "--port", "0", "--json"],
            cwd=tmp_path, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=20)[1]
        running.append(Service(process, json.loads(line)[arguments[0]]))
        return running[-1]

    yield make
    for service in running:
        if service.process.poll() is None:
            os.killpg(service.process.pid, signal.SIGKILL)
        service.process.communicate(timeout=20)


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
    return found


def sessions_of(server: Service) -> list[int]:
    """Return the processes of a server's sessions."""
    pid = server.process.pid
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def devices(mlc: Command, tracker: Service, cwd: Path) -> dict[str, Any]:
    done = mlc("rpc", "status", "--tracker", tracker.address, "--json", cwd=cwd)
    return {row["key"]: row for row in json.loads(done.stdout)["keys"]}


def kill_at_work(server: Service) -> None:
    """Kill a server and its sessions in the middle of its third session or a later one.

    The first one asked what it is, so by then it has measured.
    """
    seen: set[int] = set()

    def at_work() -> bool:
        current = sessions_of(server)
        seen.update(current)
        if len(seen) < 3 or not current:
            return False
        os.killpg(server.process.pid, signal.SIGSTOP)
        if state_of(current[-1]) == "T":  # stopped, so it had not ended
            return True
        os.killpg(server.process.pid, signal.SIGCONT)
        return False

    wait_for(at_work)
    os.killpg(server.process.pid, signal.SIGKILL)


def test_a_server_is_killed_during_a_run(
    mlc: Command, environment: dict[str, str], tmp_path: Path, start: Start
) -> None:
    models.save(small_net(), tmp_path, "net.onnx")
    tracker = start("tracker")
    stays, dies = (start("server", "--key", "here", "--tracker", tracker.address) for _ in "12")
    wait_for(lambda: devices(mlc, tracker, tmp_path).get("here", {}).get("free") == 2)
    command = [
        "tune", "net.onnx", "--trials", str(TRIALS), "--batch", "4", "--json",
        "--tracker", tracker.address, "--key", "here",
    ]  # fmt: skip
    tuning = subprocess.Popen(
        [sys.executable, "-m", "mlc", *command], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    kill_at_work(dies)
    out, err = tuning.communicate(timeout=120)
    assert tuning.returncode == 0, err
    report = json.loads(out)
    events = [json.loads(line) for line in err.splitlines()]

    here = device_for(for_cpu(host_cpu()), host_cpu(), physical_cores())
    records = records_in(tmp_path)
    trials = [record for record in records if not record.chosen]
    assert report["device"] == here.id
    assert {record.device for record in records} == {here.id}
    assert report["measured"] == len(trials) == TRIALS
    assert [record.message for record in trials if record.reason] == []
    assert any(record.chosen for record in records)
    assert report["not_compared"] == ""
    assert report["model"]["before"] > 0  # the whole model ran on the server that stays

    warnings = [e["text"] for e in events if e["event"] == "notice" and e["level"] == "warning"]
    assert any(dies.address in text for text in warnings), warnings
    assert not any(stays.address in text for text in warnings), warnings
    assert devices(mlc, tracker, tmp_path)["here"]["devices"] == [stays.address]

    # The server that stays ends all that it started; so does the tracker.
    assert stays.stop() == 0
    assert tracker.stop() == 0
    wait_for(lambda: not in_session(stays.process.pid) and not in_session(tracker.process.pid))


def test_the_only_server_is_killed_while_it_compares(
    mlc: Command, environment: dict[str, str], tmp_path: Path, start: Start
) -> None:
    """The run ends well, with what it chose, and says that this was not compared."""
    models.save(small_net(), tmp_path, "net.onnx")
    tracker = start("tracker")
    server = start("server", "--key", "here", "--tracker", tracker.address)
    wait_for(lambda: "here" in devices(mlc, tracker, tmp_path))
    tuning = subprocess.Popen(
        [sys.executable, "-m", "mlc", "tune", "net.onnx", "--trials", "4", "--json",
         "--tracker", tracker.address, "--key", "here"],
        cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: any(map(holds_artifacts, sessions_of(server))))
    os.killpg(server.process.pid, signal.SIGKILL)
    out, err = tuning.communicate(timeout=60)
    assert tuning.returncode == 0, err
    report = json.loads(out)
    assert report["model"] is None
    assert f"the device at {server.address} did not compare them" in report["not_compared"]
    warnings = [json.loads(line) for line in err.splitlines() if '"warning"' in line]
    assert "not compared with the untuned model end to end" in warnings[-1]["text"]
    records = records_in(tmp_path)
    assert len([record for record in records if not record.chosen]) == report["measured"] == 4
    chosen = {record.workload: record for record in records if record.chosen}
    assert len(chosen) == len([r for r in records if r.chosen]) > 0  # nothing was taken back


def holds_artifacts(session: int) -> bool:
    """Whether a session has got both artifacts."""
    return Path(f"/proc/{session}/cwd/after.mlc").exists()


def test_what_is_not_there(mlc: Command, tmp_path: Path, start: Start) -> None:
    models.save(small_net(), tmp_path, "net.onnx")
    tracker = start("tracker")
    start("server", "--key", "rpi4", "--tracker", tracker.address)
    wait_for(lambda: "rpi4" in devices(mlc, tracker, tmp_path))

    def tune(*more: str, code: int) -> str:
        return mlc("tune", "net.onnx", *more, cwd=tmp_path, check_code=code).stderr

    said = tune("--tracker", tracker.address, "--key", "rpi5", code=6)
    assert f"the tracker at {tracker.address} has no device 'rpi5'" in said
    assert "did you mean 'rpi4'?" in said
    assert "mlc rpc server" in said
    said = tune(
        "--tracker", tracker.address, "--key", "rpi4", "--target",
        "llvm -mtriple=riscv64-linux-gnu", code=4,
    )  # fmt: skip
    assert "the device cannot run code for" in said
    assert "needs --key K beside it" in tune("--tracker", tracker.address, code=2)
    assert "is no address" in tune("--tracker", "nowhere", "--key", "rpi4", code=2)
    assert tracker.stop() == 0
    said = tune("--tracker", tracker.address, "--key", "rpi4", code=6)
    assert f"no tracker answers at {tracker.address}" in said
    assert "mlc rpc tracker" in said
    said = mlc(
        "rpc", "server", "--key", "x", "--tracker", tracker.address, cwd=tmp_path, check_code=6
    ).stderr
    assert "no tracker answers" in said
    assert not (tmp_path / "tuning_logs").exists()


def test_other_addresses_are_warned_of(start: Start) -> None:
    tracker = start("tracker", "--host", "0.0.0.0")
    tracker.process.terminate()
    _, err = tracker.process.communicate(timeout=20)
    assert "can run code on this machine" in err
    assert "SSH tunnel" in err
    assert tracker.process.returncode == 0
    quiet = start("tracker")
    quiet.process.terminate()
    assert quiet.process.communicate(timeout=20)[1] == "stopped\n"


def test_a_port_that_is_taken(mlc: Command, tmp_path: Path, start: Start) -> None:
    tracker = start("tracker")
    port = tracker.address.rpartition(":")[2]
    done = mlc("rpc", "tracker", "--port", port, cwd=tmp_path, check_code=2)
    assert f"cannot listen at {tracker.address}" in done.stderr
    assert "--port chooses another" in done.stderr
