"""`mlc build` and artifacts for several targets, as a user would run them."""

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
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnxruntime
import pytest

import mlc as api
from mlc import bundle
from mlc.cpu import host_cpu
from mlc.target import all_targets, resolve, runs_on
from tests import models

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 targets")

CROSS = shutil.which("aarch64-linux-gnu-g++") is not None
OTHER = "rpi4" if CROSS else "x86-64-v2"
CONFIG = f"""
[build]
targets = ["llvm", {OTHER!r}]

[[build.model]]
path = "a.onnx"

[[build.model]]
path = "b.onnx"
targets = ["llvm"]
"""
NAMES = ["a-llvm", f"a-{OTHER}", "b-llvm"]
X = models.floats(1, 3, 9, 9, seed=40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.save(models.conv_net(), tmp_path, "a.onnx")
    models.save(models.conv_net(channels=6), tmp_path, "b.onnx")
    (tmp_path / "mlc.toml").write_text(CONFIG)
    return tmp_path


def states(text: str) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in json.loads(text)["entries"]}


def test_a_build_and_the_next(folder, mlc):
    listing = mlc("build", "--dry-run", cwd=folder)
    assert "not built yet" in listing.stdout
    assert not (folder / "dist").exists()
    done = mlc("build", cwd=folder)
    assert "3 to build" in done.stderr
    assert done.stdout.count("built") == 6  # the state, and "not built yet"
    if CROSS:
        assert "warning: a-rpi4: not verified" in done.stderr
        assert "not verified for rpi4" in done.stdout
    bytes_before = (folder / "dist/a-llvm.mlc").read_bytes()
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))  # times say nothing
    assert states(mlc("build", "--json", cwd=folder).stdout) == dict.fromkeys(NAMES, "up to date")

    models.save(models.conv_net(channels=7), folder, "b.onnx")
    again = json.loads(mlc("build", "--json", cwd=folder).stdout)["entries"]
    assert [one["state"] for one in again] == ["up to date", "up to date", "built"]
    assert again[2]["why"] == "the model changed"

    (folder / "dist/a-llvm.mlc").write_bytes(bytes_before[:-9] + b"XXXXXXXXX")
    done = mlc("build", cwd=folder)
    assert "the artifact was altered" in done.stdout
    assert (folder / "dist/a-llvm.mlc").read_bytes() == bytes_before
    with api.open(folder / "dist/a-llvm.mlc") as session:
        assert session.run({"x": X})["y"].shape == (1, 5)


def test_failures_have_their_codes(folder, mlc):
    (folder / "b.onnx").write_bytes(b"no model")
    done = mlc("build", "--json", cwd=folder, check_code=3)
    assert states(done.stdout) == dict(zip(NAMES, ["built", "built", "failed"], strict=True))
    error = json.loads(done.stderr.splitlines()[-1])
    assert error["error"] == "ModelError"
    assert "1 of 3 artifacts failed: b-llvm" in error["message"]
    suite = ET.parse(folder / "dist/junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("3", "1", "0")

    shutil.copy(folder / "a.onnx", folder / "b.onnx")
    (folder / "mlc.toml").write_text(CONFIG.replace("[build]", "[build]\nmax_mb = 0.001"))
    done = mlc("build", cwd=folder, check_code=9)
    assert "3 of 3 artifacts failed: a-llvm" in done.stderr
    assert "max_mb is 0.001" in done.stderr
    assert not (folder / "dist/b-llvm.mlc").exists()
    (folder / "mlc.toml").write_text(CONFIG.replace("llvm", "lllvm"))
    assert "unknown target 'lllvm'" in mlc("build", cwd=folder, check_code=4).stderr
    (folder / "mlc.toml").write_text("[build]\ntarget = 'llvm'")
    assert "did you mean 'targets'" in mlc("build", cwd=folder, check_code=2).stderr


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def ended(
    how: signal.Signals, folder: Path, environment: dict[str, str]
) -> tuple[int, dict[str, str]]:
    """Build until one artifact is made and the next is at work, then end it.

    Return the exit code, and what the report says.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "mlc", "build", "-j", "1"],
        cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            if "built" in line and "dist/" in line:
                break
        time.sleep(0.4)
        children = descendants(process.pid)
        process.send_signal(how)
        process.stderr.read()
    code = process.wait(20)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a compile outlived the build"
        time.sleep(0.05)
    return code, states((folder / "dist/report.json").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_build_ended_in_the_middle_goes_on(folder, mlc, environment, tmp_path_factory):
    fresh = {**environment, "MLC_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    code, said = ended(signal.SIGTERM, folder, fresh)
    assert code == 130
    assert list(said.values()) == ["built", "not run", "not run"]
    assert not (folder / "dist/.mlc-build").exists()
    code, said = ended(signal.SIGKILL, folder, fresh)
    assert code == -signal.SIGKILL
    assert list(said.values()) == ["up to date", "built", "not run"]
    after = states(mlc("build", "--json", cwd=folder, env=fresh).stdout)
    assert list(after.values()) == ["up to date", "up to date", "built"]
    assert sorted(path.name for path in (folder / "dist").iterdir()) == sorted(
        [f"{name}.mlc" for name in NAMES] + ["junit.xml", "report.json"]
    )


# --- one artifact for several targets ------------------------------------------------------------


@pytest.fixture(scope="module")
def several(mlc, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """a.mlc for this machine, for older ones, and for Arm or a GPU where tools are installed."""
    folder = tmp_path_factory.mktemp("several")
    models.save(models.conv_net(), folder, "a.onnx")
    targets = ["x86-64-v2", "llvm", "native", *(["rpi4"] if CROSS else [])]
    words = [word for name in targets for word in ("--target", name)]
    done = mlc("compile", "a.onnx", *words, "--json", cwd=folder)
    assert "the target native is the same as llvm here" in done.stderr
    return folder, json.loads(done.stdout)


def best_here() -> str:
    return resolve("llvm").name


def test_it_opens_as_what_fits_best(several, mlc):
    folder, said = several
    assert said["bytes"] == (folder / "a.mlc").stat().st_size
    assert [bool(one["manifest"]["verification"]) for one in said["variants"]][:2] == [True, True]
    session = onnxruntime.InferenceSession(folder / "a.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": X})[0]
    with api.open(folder / "a.mlc") as opened:
        assert opened.manifest["target"]["name"] == best_here()
        np.testing.assert_allclose(opened.run({"x": X})["y"], expected, rtol=1e-4, atol=1e-5)
    mlc("run", "a.mlc", "--random", cwd=folder)
    mlc("verify", "a.mlc", "a.onnx", cwd=folder)
    mlc("verify", "a.mlc", "a.onnx", "--target", "x86-64-v2", cwd=folder)
    timing = ("--warmup", 0.01, "--duration", 0.05)
    mlc("bench", "a.mlc", *timing, "--json", cwd=folder)


def test_each_variant_is_what_a_plain_compile_writes(several, mlc, tmp_path):
    folder, said = several
    mlc("compile", folder / "a.onnx", "-t", "x86-64-v2", "-o", "one.mlc", cwd=tmp_path)
    ours = bundle.load(folder / "a.mlc", target="x86-64-v2")
    alone = bundle.load(tmp_path / "one.mlc")
    assert {k: bytes(v) for k, v in ours.members.items() if k != "weights.bin"} == {
        k: bytes(v) for k, v in alone.members.items() if k != "weights.bin"
    }
    for (key, mine), (other, its) in zip(ours.weights(), alone.weights(), strict=True):
        assert key == other
        np.testing.assert_array_equal(mine, its)
    together = sum(one["bytes"] for one in said["variants"])
    assert said["weights"]["shared"] > 0
    assert said["bytes"] < together


def test_inspect_lists_it_and_shows_one(several, mlc):
    folder, said = several
    listing = mlc("inspect", "a.mlc", cwd=folder).stdout
    assert f"mlc artifact for {len(said['variants'])} targets" in listing
    row = next(line for line in listing.splitlines() if line.strip().startswith(best_here()))
    assert "this one" in row
    one = json.loads(mlc("inspect", "a.mlc", "-t", "x86-64-v2", "--json", cwd=folder).stdout)
    assert (one["kind"], one["target"]["name"]) == ("artifact", "x86-64-v2")
    done = mlc("inspect", "a.mlc", "-t", "graviton3", cwd=folder, check_code=7)
    assert "holds nothing for graviton3, but for x86-64-v2" in done.stderr
    mlc("inspect", "a.mlc", "--passes", cwd=folder, check_code=2)


def test_nothing_fits_this_machine(mlc, tmp_path):
    foreign = [t for t in all_targets() if t.kind == "cpu" and not runs_on(t, host_cpu())]
    name = "rpi4" if CROSS else next(t.name for t in foreign if t.arch == "x86_64")
    models.save(models.conv_net(), tmp_path, "a.onnx")
    mlc("compile", "a.onnx", "-t", name, "-o", "one.mlc", cwd=tmp_path)
    bundle.save([tmp_path / "one.mlc"], tmp_path / "a.mlc")
    done = mlc("run", "a.mlc", "--random", cwd=tmp_path, check_code=7)
    assert "holds nothing that this machine can run" in done.stderr
    assert f"{name}: it " in done.stderr


def test_options_that_do_not_go_together(several, mlc, tmp_path):
    folder, _ = several
    two = ("compile", folder / "a.onnx", "-t", "llvm", "-t", "x86-64-v2")
    assert "--dump-ir" in mlc(*two, "--dump-ir", "ir", cwd=tmp_path, check_code=2).stderr
    assert "no such folder" in mlc(*two, "-o", "no/x.mlc", cwd=tmp_path, check_code=2).stderr
    assert "unknown target" in mlc(*two, "-t", "nothing", cwd=tmp_path, check_code=4).stderr
    said = mlc(*two, "--arch", "sm_80", cwd=tmp_path, check_code=2).stderr
    assert "--arch goes with --target cuda" in said
    assert list(tmp_path.iterdir()) == []
