"""`mlc tune` killed at any moment: what it had measured is still there, and is not measured again.

Each command goes on with what the killed one before it left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlc.tune.index import Damage
from mlc.tune.record import Record
from mlc.tune.store import Store
from tests import models
from tests.e2e.test_tune import small_net

TRIALS, BATCH = 24, 4
ARGUMENTS = ("tune", "net.onnx", "--trials", str(TRIALS), "--batch", str(BATCH), "--json")
DELAY_S = 0.5  # at most, after the event at which a command is killed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the command as the leader of a process group, its events in a file."""
    with (folder / "events.jsonl").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mlc", *ARGUMENTS],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )


def events(folder: Path) -> list[dict[str, Any]]:
    """Return what the command said so far, but for progress: that depends on the kernel cache."""
    whole = (folder / "events.jsonl").read_bytes().split(b"\n")[:-1]  # the last may be cut off
    return [event for event in map(json.loads, whole) if event["event"] != "progress"]


def announced(folder: Path) -> int:
    """Return how many trials the command said to have, of its own and of earlier ones."""
    return max((e["done"] for e in events(folder) if e["event"] == "tuning"), default=0)


def parents() -> dict[int, int]:
    """Return the parent of every living process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


def family(process: int) -> set[int]:
    """Return a process and those below it, which may be in groups of their own."""
    living, found = parents(), {process}
    while more := {child for child, parent in living.items() if parent in found} - found:
        found |= more
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the group of a command; what measures for it, in another group, ends with it."""
    everyone = family(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while everyone & parents().keys():
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.01)


def killed(process: subprocess.Popen[bytes], folder: Path, event: int, delay: float) -> bool:
    """Kill a command `delay` seconds after its n-th event; False when it ended before."""
    while len(events(folder)) < event and process.poll() is None:
        time.sleep(0.005)
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        kill(process)
        return True
    assert process.returncode == 0, (folder / "events.jsonl").read_text()
    return False


def trials(folder: Path, kills: int) -> list[Record]:
    """Return the measurements in the log, which loads: a kill costs one torn line at most."""
    damage = Damage()
    records = [r for r in Store(folder / "tuning_logs").read(damage=damage) if not r.chosen]
    assert damage.torn <= kills
    assert (damage.foreign, damage.other_version, damage.other_template) == (0, 0, 0)
    known = Counter((record.workload, record.index) for record in records)
    assert set(known.values()) <= {1}, "a config was measured twice"
    return records


def complete(folder: Path, environment: dict[str, str], kills: int) -> int:
    """Let the command go on to its end; return how many events it had."""
    before = trials(folder, kills)
    process = start(folder, environment)
    assert process.wait(timeout=300) == 0, (folder / "events.jsonl").read_text()
    after = trials(folder, kills)
    assert after[: len(before)] == before
    assert len(after) in (announced(folder), len(before))  # nothing announced: nothing was left
    return len(events(folder))


@pytest.mark.parametrize(
    "moments", [3, pytest.param(20, marks=pytest.mark.slow)], ids="{} times".format
)
def test_killed_at_random_moments(
    environment: dict[str, str], tmp_path: Path, moments: int
) -> None:
    """Moments are spread over the events of a whole run, in random order, each a random time after.

    A command that ends before its moment is whole; the next one then starts from nothing.
    """

    def fresh() -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        models.save(small_net(), folder, "net.onnx")
        return folder

    count = complete(fresh(), environment, 0)
    rng = random.Random(moments)
    waiting = [int(count * (k + rng.random()) / moments) for k in range(moments)]
    rng.shuffle(waiting)
    folder, kills, most = fresh(), 0, 0
    while waiting:
        known = trials(folder, kills)
        process = start(folder, environment)
        if killed(process, folder, waiting[-1], rng.random() * DELAY_S):
            waiting.pop()
            kills += 1
            left = trials(folder, kills)
            assert left[: len(known)] == known
            assert len(left) >= announced(folder), "a batch that was announced is not in the log"
            most = max(most, len(left))
        else:
            complete(folder, environment, kills)
            folder, kills = fresh(), 0
    complete(folder, environment, kills)
    assert most, "no kill had anything to lose"
