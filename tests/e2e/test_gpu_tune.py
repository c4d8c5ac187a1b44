"""Tuning for a GPU on loopback, on a driver that the simulator stands for, up to the compiled model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from mlc import artifact
from mlc.errors import MissingToolError
from mlc.gpu import ptxas
from mlc.gpu.device import read
from tests import models
from tests.e2e.conftest import Command
from tests.e2e.test_rpc import Start, devices, start, wait_for
from tests.e2e.test_tune import records_in
from tests.fake_gpu import scripted

__all__ = ["start"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
ROOT = Path(__file__).resolve().parents[2]
TRIALS = 4


def test_a_gpu_is_tuned_for_and_its_records_apply(
    mlc: Command, environment: dict[str, str], tmp_path: Path, start: Start
) -> None:
    try:
        ptxas.find()
    except MissingToolError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    weights = {"w": models.floats(4, 2, 3, 3, scale=0.2)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    models.save(models.model(nodes, {"x": [1, 2, 4, 5]}, ["y"], weights), tmp_path, "net.onnx")
    tracker = start("tracker")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fake_gpu", tracker.address], cwd=ROOT, env=environment
    )
    try:
        wait_for(lambda: "gpu" in devices(mlc, tracker, tmp_path))
        done = mlc(
            "tune", "net.onnx", "--target", "cuda", "--arch", "sm_80", "--trials", TRIALS,
            "--tracker", tracker.address, "--key", "gpu", "--json", cwd=tmp_path,
        )  # fmt: skip
    finally:
        server.kill()
        server.communicate(timeout=20)
    check_report(json.loads(done.stdout))
    records = records_in(tmp_path)
    trials = [record for record in records if not record.chosen]
    (chosen,) = (record for record in records if record.chosen)
    assert len(trials) == TRIALS
    assert all(record.device.endswith(".sm_80.numpy-rtx-4") for record in records)
    assert all("-mcpu=sm_80" in record.target for record in records)
    assert all(record.ok for record in trials), [record.message for record in trials]
    # Times are scripted.
    assert chosen.cost == pytest.approx(min(record.cost for record in trials))

    def compiled(*words: str) -> dict[str, Any]:
        found = mlc("compile", "net.onnx", *words, "-o", "net.mlc", "--json", cwd=tmp_path)
        report: dict[str, Any] = json.loads(found.stdout)
        return report

    report = compiled("--target", "cuda", "--arch", "sm_80")
    assert report["coverage"] == {"by": "FLOPs", "tuned": 1, "other_device": 0, "fallback": 0}
    (used,) = report["manifest"]["tuning"]["records"]
    assert (used["config"], used["device"]) == (chosen.index, chosen.device)
    members = artifact.load(tmp_path / "net.mlc", for_gpu=True).members
    (program,) = read(bytes(members[artifact.PROGRAMS])).values()
    (launch,) = program.launches
    assert chosen.cost == pytest.approx(scripted(math.prod(launch.block)))
    mlc("verify", "net.mlc", "net.onnx", "--emulate", cwd=tmp_path)
    assert compiled("--target", "a100")["coverage"]["other_device"] == 1  # Numpy's card is none


def check_report(report: dict[str, Any]) -> None:
    assert report["measured"] == TRIALS
    assert report["failures"] == {}
    assert report["device"].endswith(".sm_80.numpy-rtx-4")
    (task,) = report["tasks"]
    assert task["template"] == "conv2d_nchw.cuda"
    assert task["untuned"] > task["best"] > 0
    assert task["checked"] == "agrees"
    # The model is its one kernel, and compared on the device.
    assert report["not_compared"] == ""
    assert report["model"]["ratio"] == pytest.approx(task["untuned"] / task["best"])
