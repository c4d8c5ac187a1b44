"""`mlc tune` as a user runs it: measured once, kept, used by `mlc compile`, safe to interrupt."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
from onnx import helper

from mlc.tune.costmodel import CostModel
from mlc.tune.lines import Damage
from mlc.tune.record import Record, workload_id
from mlc.tune.store import Store
from tests import models
from tests.e2e.conftest import Command

TRIALS = 6
QUICK = ("--trials", TRIALS, "--run-timeout", 5)


def small_net(channels: int = 8, size: int = 12) -> onnx.ModelProto:
    """A convolution on a picture of `size` squared, and a dense layer."""
    weights = {
        "w1": models.floats(channels, 4, 3, 3, seed=1, scale=0.2),
        "w2": models.floats(6, channels, seed=2),
        "b2": models.floats(6, seed=3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["d"], "flatten"),
        helper.make_node("Gemm", ["d", "w2", "b2"], ["y"], "dense", transB=1),
    ]
    return models.model(nodes, {"x": [1, 4, size, size]}, ["y"], weights)


def plain_net() -> onnx.ModelProto:
    return models.model([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": [2, 8]}, ["y"])


def records_in(folder: Path) -> list[Record]:
    damage = Damage()
    records = list(Store(folder / "tuning_logs").read(damage=damage))
    assert damage == Damage()
    return records


class Tuned(NamedTuple):
    """A folder in which a model was tuned, and what that said."""

    folder: Path
    report: dict[str, Any]
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def tuned(mlc: Command, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    models.save(small_net(), folder, "net.onnx")
    done = mlc("tune", "net.onnx", *QUICK, "--json", "--report", "reports", cwd=folder)
    *lines, said = done.stderr.splitlines()
    assert said.startswith("report: ")
    events = [json.loads(line) for line in lines]
    return Tuned(folder, json.loads(done.stdout), events)


def test_the_report(tuned: Tuned) -> None:
    report = tuned.report
    assert (report["measured"], report["known"]) == (TRIALS, 0)
    assert sum(task["trials"] for task in report["tasks"]) == TRIALS
    assert {task["template"] for task in report["tasks"]} == {
        "conv2d_direct_mlc.x86",
        "dense_mlc.x86",
    }
    assert report["model"]["before"] > 0
    assert report["model"]["after"] > 0
    assert report["logs"] == str(tuned.folder / "tuning_logs")


def test_the_curve(tuned: Tuned) -> None:
    curve, tasks = tuned.report["curve"], tuned.report["tasks"]
    batches = [event for event in tuned.events if event["event"] == "tuning"]
    assert [point["trials"] for point in curve] == [0, *(event["done"] for event in batches)]
    for part in zip(*(point["parts"] for point in curve), strict=True):
        known = [seconds for seconds in part if seconds]  # none: too short for the profile's clock
        assert known == sorted(known, reverse=True)
    for point in curve:
        assert len(point["parts"]) == len(tasks)
        assert sum(point["parts"]) == pytest.approx(point["estimate"])


def test_the_limit_of_the_machine(tuned: Tuned) -> None:
    (start,) = [event for event in tuned.events if event["event"] == "baseline"]
    assert start["peak_gflops"] == tuned.report["peak_gflops"] > 0
    assert start["model"] > 0
    assert start["known"] == 0


def test_the_report_files(tuned: Tuned) -> None:
    page = (tuned.folder / "reports" / "net-tuning.html").read_text()
    assert (tuned.folder / "reports" / "net-tuning.png").read_bytes().startswith(b"\x89PNG")
    for task in tuned.report["tasks"]:
        assert task["id"] in page
    assert tuned.report["device"] in page


def test_every_measurement_is_kept(tuned: Tuned) -> None:
    records = records_in(tuned.folder)
    trials = [record for record in records if not record.chosen]
    assert len(trials) == len({(r.workload, r.index) for r in trials}) == TRIALS
    assert {record.device for record in records} == {tuned.report["device"]}
    assert {record.run for record in records} == {tuned.report["run"]}
    succeeded = {record.workload for record in trials if record.ok}
    assert {record.workload for record in records if record.chosen} == succeeded


def test_a_cost_model_is_kept_for_each_template(tuned: Tuned) -> None:
    device = tuned.report["device"]
    folder = tuned.folder / "tuning_logs" / device.partition(".")[0] / device
    assert {path.name for path in folder.iterdir()} == {
        "conv2d_direct_mlc.x86.json", "dense_mlc.x86.json",
    }  # fmt: skip
    for path in folder.iterdir():
        CostModel.load(path, path.stem, device)
    assert tuned.report["trust"] == {  # too few records to say
        "conv2d_direct_mlc.x86": None, "dense_mlc.x86": None,
    }  # fmt: skip


def test_no_trials_use_what_the_saved_model_predicts(
    mlc: Command, tuned: Tuned, tmp_path: Path
) -> None:
    """A network of other shapes: nothing is searched, predictions are timed beside the default."""
    models.save(small_net(channels=12), tmp_path, "other.onnx")
    logs = tmp_path / "logs"
    shutil.copytree(tuned.folder / "tuning_logs", logs)
    done = mlc("tune", "--trials", 0, "--logs", logs, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["measured"] == 0
    assert [task["trials"] for task in report["tasks"]] == [0, 0]
    assert all(task["untuned"] > 0 for task in report["tasks"])
    assert "configs are predicted by the saved cost model" in done.stderr
    keys = {task["id"] for task in report["tasks"]}
    new = [r for r in Store(logs).read() if workload_id(r.workload) in keys]
    assert {workload_id(record.workload) for record in new} == keys
    assert all(record.chosen for record in new)
    again = json.loads(
        mlc("tune", "--trials", 0, "--logs", logs, "--json", cwd=tmp_path).stdout
    )  # all is decided
    assert again["model"] is None


def test_no_trials_and_no_records(mlc: Command, tmp_path: Path) -> None:
    models.save(small_net(), tmp_path, "net.onnx")
    done = mlc("tune", "--trials", 0, cwd=tmp_path)
    assert "no cost model and fewer than 32 records" in done.stderr
    assert records_in(tmp_path) == []


def test_events_tell_of_every_batch(tuned: Tuned) -> None:
    batches = [event for event in tuned.events if event["event"] == "tuning"]
    assert batches
    assert batches[-1]["done"] == TRIALS
    assert {"stage", "tuning"} <= {event["event"] for event in tuned.events}


def test_the_same_again_measures_nothing(mlc: Command, tuned: Tuned) -> None:
    before = records_in(tuned.folder)
    report = json.loads(mlc("tune", "net.onnx", *QUICK, "--json", cwd=tuned.folder).stdout)
    assert (report["measured"], report["known"]) == (0, TRIALS)
    assert report["model"] is None
    assert [(task["id"], task["share"]) for task in report["tasks"]] == [
        (task["id"], task["share"]) for task in tuned.report["tasks"]
    ]  # times are not taken again, so that a continued run decides as it would have
    assert records_in(tuned.folder) == before


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_choice(
    mlc: Command, tuned: Tuned, tmp_path: Path
) -> None:
    """The same command measures nothing again, and makes the choice."""
    models.save(small_net(), tmp_path, "net.onnx")
    trials = [record for record in records_in(tuned.folder) if not record.chosen]
    Store(tmp_path / "tuning_logs").append(trials)
    known = [record for record in trials if record.template == "dense_mlc.x86"]
    done = mlc("tune", "--tasks", "dense", "--trials", len(known), "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["measured"] == 0
    choices = [record for record in records_in(tmp_path) if record not in trials]
    # A second one takes the first back, where the model was not faster with it.
    assert 1 <= len(choices) <= 2
    assert {(choice.chosen, choice.template) for choice in choices} == {(True, "dense_mlc.x86")}


def test_list(mlc: Command, tuned: Tuned) -> None:
    """`--list` needs no model's name where there is one only, and measures nothing."""
    before = records_in(tuned.folder)
    listed = json.loads(mlc("tune", "--list", "--json", cwd=tuned.folder).stdout)
    assert listed["device"] == tuned.report["device"]
    known = {task["id"]: task["trials"] for task in tuned.report["tasks"]}
    by_id = {task["id"]: task for task in listed["tasks"]}
    assert by_id.keys() == known.keys()
    for name, task in by_id.items():
        assert known[name] <= task["measured"] <= known[name] + 1  # the default may be chosen
        assert task["calls"] == 1
    assert sum(task["share"] for task in by_id.values()) <= 1
    assert records_in(tuned.folder) == before


def test_compile_uses_the_records(mlc: Command, tuned: Tuned) -> None:
    done = mlc("compile", "net.onnx", "--require-tuned", 1, "--json", cwd=tuned.folder)
    manifest = json.loads(done.stdout)["manifest"]
    assert manifest["tuning"]["share_of_flops"]["tuned"] == 1
    assert {row["task"] for row in manifest["tuning"]["records"]} == {
        task["id"] for task in tuned.report["tasks"]
    }
    assert manifest["verification"]["passed"]


def test_coverage_by_time(mlc: Command, tuned: Tuned, tmp_path: Path) -> None:
    """Times decide where some kernels are tuned and some are not, and stay out of the artifact."""
    models.save(small_net(size=64), tmp_path, "net.onnx")
    dense = [r for r in records_in(tuned.folder) if r.template == "dense_mlc.x86"]
    Store(tmp_path / "tuning_logs").append(dense)

    def compiled(*options: object) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(
            mlc("compile", "net.onnx", *options, "--json", cwd=tmp_path).stdout
        )
        return report

    first = compiled()
    shares = first["coverage"]
    assert shares["by"] == "time"
    assert 0 <= shares["tuned"] < 1
    assert shares["tuned"] + shares["fallback"] == pytest.approx(1)
    content = (tmp_path / "net.mlc").read_bytes()
    again = compiled()
    assert again["from_cache"]
    assert again["coverage"] == shares
    compiled("--no-cache")
    assert (tmp_path / "net.mlc").read_bytes() == content
    unverified = compiled("--no-verify")
    assert unverified["coverage"] == {
        "by": "FLOPs", **unverified["manifest"]["tuning"]["share_of_flops"],
    }  # fmt: skip
    done = mlc("compile", "net.onnx", "--require-tuned", 1, cwd=tmp_path, check_code=9)
    assert "100.0% was required (by time" in done.stderr
    assert (tmp_path / "net.mlc").read_bytes() != content  # still the unverified one


def test_compile_without_logs(mlc: Command, tuned: Tuned, tmp_path: Path) -> None:
    model = models.save(small_net(), tmp_path, "net.onnx")
    done = mlc("compile", model.name, "--require-tuned", "1.0", cwd=tmp_path, check_code=9)
    assert "0.0% of the model's work is tuned on this device, 100.0% was required" in done.stderr
    assert "mlc tune" in done.stderr
    assert not (tmp_path / "net.mlc").exists()


def test_interrupted(environment: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group; what was measured is kept, and no process stays."""
    models.save(small_net(), tmp_path, "my net.onnx")
    arguments = ["tune", "my net.onnx", "--trials", "200", "--tuner", "random"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlc", *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "/200 trials" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    assert "continue with `mlc tune 'my net.onnx' --trials 200 --tuner random`" in err
    kept = records_in(tmp_path)
    assert kept
    assert len({(record.workload, record.index) for record in kept}) == len(kept)
    deadline = time.monotonic() + 10
    while in_session(process.pid):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.05)


def in_session(session: int) -> list[int]:
    """Return the live processes of a session (Linux; none elsewhere)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, _group, its = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_nothing_to_tune(mlc: Command, tmp_path: Path) -> None:
    models.save(plain_net(), tmp_path, "plain.onnx")
    done = mlc("tune", "--trials", 5, cwd=tmp_path, check_code=6)
    assert "no operator of this model has an AutoTVM template" in done.stderr
    assert "nn.relu" in done.stderr
    assert not (tmp_path / "tuning_logs").exists()


def test_a_target_of_another_machine(mlc: Command, tmp_path: Path) -> None:
    models.save(small_net(), tmp_path, "net.onnx")
    arm = platform.machine() in ("aarch64", "arm64")
    target = "x86-64-v3" if arm else "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72"
    done = mlc("tune", "--target", target, *QUICK, cwd=tmp_path, check_code=4)
    assert "this machine cannot run code for" in done.stderr
    assert "mlc logs import" in done.stderr
    assert not (tmp_path / "tuning_logs").exists()


def test_an_option_that_cannot_work(mlc: Command, tmp_path: Path) -> None:
    models.save(small_net(), tmp_path, "net.onnx")
    done = mlc("tune", "--trials", "-5", cwd=tmp_path, check_code=2)
    assert "--trials needs 0 or more" in done.stderr
