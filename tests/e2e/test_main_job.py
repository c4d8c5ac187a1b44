"""The main job: compile, run, verify, and the verbs around it, with what each prints and where."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from mlc.cpu import host_cpu
from mlc.target import resolve, runs_on
from tests import models

X = models.floats(1, 3, 9, 9, seed=20)
ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 targets")


def reference(model: Path, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def strict_json(text: str) -> Any:
    """Parse JSON as the standard has it: neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_compile_says_what_it_made(conv, mlc, tmp_path):
    assert conv.artifact.stat().st_size == conv.report["bytes"]
    assert conv.report["path"] == "conv.mlc"
    manifest = conv.report["manifest"]
    assert manifest["verification"]["passed"]
    assert manifest["signature"]["inputs"] == [
        {"name": "x", "shape": [1, 3, 9, 9], "dtype": "float32"}
    ]
    assert manifest["model"]["path"] == "conv.onnx"
    assert sum(kernel["flops"] for kernel in manifest["kernels"].values()) > 100_000


def test_default_name_and_progress(conv, mlc, tmp_path):
    done = mlc("compile", conv.model, "--no-cache", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["conv.mlc"]
    assert "conv.mlc" in done.stdout
    assert "verified   against onnxruntime" in done.stdout
    for stage in ("read", "convert", "passes", "kernels", "link", "write", "verify"):
        assert f"  {stage} " in done.stderr


def test_quiet(conv, mlc, tmp_path):
    done = mlc("compile", conv.model, "-o", "a.mlc", "-q", cwd=tmp_path)
    assert done.stderr == ""
    assert "a.mlc" in done.stdout


@pytest.mark.parametrize("name", ["a[/b]c.mlc", "ä [red]\x1b[2Jb.mlc"])
def test_any_output_name(conv, mlc, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    done = mlc("compile", conv.model, "-q", "-o", path, cwd=tmp_path)
    assert path.is_file()
    assert name.replace("\x1b", "\\x1b") in done.stdout
    assert "\x1b" not in done.stdout


def test_random_values_are_said_aloud(conv, mlc, tmp_path):
    done = mlc("run", conv.artifact, "--random", cwd=tmp_path)
    assert done.stderr == "note: random values (seed 0) for: x\n"
    assert done.stdout.startswith("y  float32[1, 5]  min ")
    other = mlc("run", conv.artifact, "--random", "--seed", 1, cwd=tmp_path)
    assert other.stdout != done.stdout


def test_input_files_and_saved_outputs(conv, mlc, tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "in.npz", x=X)
    expected = reference(conv.model, x=X)
    for given in ("x.npy", "x=x.npy", "in.npz"):
        done = mlc("run", conv.artifact, "-i", given, "-o", "out.npz", cwd=tmp_path)
        assert "saved to out.npz" in done.stdout
        assert done.stderr == ""
        with np.load(tmp_path / "out.npz") as saved:
            assert saved.files == ["y"]
            np.testing.assert_allclose(saved["y"], expected["y"], rtol=1e-4, atol=1e-5)
        (tmp_path / "out.npz").unlink()


def test_two_inputs(two_inputs, mlc, tmp_path):
    ids = np.array([[3, 49, 0, 7]])
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "mask.npy", np.ones((1, 4, 1), np.float32))
    files = ("-i", "ids=ids.npy", "-i", "mask=mask.npy")
    mlc("run", two_inputs.artifact, *files, "-o", "out.npz", cwd=tmp_path)
    with np.load(tmp_path / "out.npz") as saved:
        np.testing.assert_array_equal(saved["y"], models.floats(50, 8)[ids])
    done = mlc("run", two_inputs.artifact, "-i", "mask=mask.npy", "--random", cwd=tmp_path)
    assert "random values (seed 0) for: ids\n" in done.stderr


@pytest.fixture(scope="module")
def odd(compiled):
    """Outputs with names that `numpy.savez` has parameters for; one is NaN below zero."""
    kinds = {"file": "Relu", "allow_pickle": "Neg", "a/b": "Sqrt"}
    nodes = [helper.make_node(kind, ["x"], [name], name) for name, kind in kinds.items()]
    return compiled("odd", models.model(nodes, {"x": [2]}, list(kinds)))


def test_odd_output_names(odd, mlc, tmp_path):
    np.save(tmp_path / "x.npy", np.array([1, 4], np.float32))
    mlc("run", odd.artifact, "-i", "x.npy", "-o", "out.npz", cwd=tmp_path)
    with np.load(tmp_path / "out.npz") as saved:
        assert saved.files == ["file", "allow_pickle", "a/b"]
        np.testing.assert_array_equal(saved["allow_pickle"], [-1, -4])
        np.testing.assert_array_equal(saved["a/b"], [1, 2])


def test_json_of_values_that_json_has_not(odd, mlc, tmp_path):
    np.save(tmp_path / "x.npy", np.array([-1, 4], np.float32))
    done = mlc("run", odd.artifact, "-i", "x.npy", "--json", cwd=tmp_path)
    assert [entry["min"] for entry in strict_json(done.stdout)["outputs"]] == [0, -4, "nan"]
    # The reference has the NaN at the same place.
    done = mlc("verify", odd.artifact, odd.model, "-i", "x.npy", "--json", cwd=tmp_path)
    assert [check["nan"] for check in strict_json(done.stdout)["outputs"]] == [0, 0, 1]


def test_verify(conv, two_inputs, mlc, tmp_path):
    np.save(tmp_path / "x.npy", X)
    done = mlc("verify", conv.artifact, conv.model, "-i", "x.npy", cwd=tmp_path)
    assert " ok " in done.stdout
    done = mlc(
        "verify", two_inputs.artifact, two_inputs.model, "--rounds", 3, "--json", cwd=tmp_path
    )
    result = strict_json(done.stdout)
    assert result["passed"]
    assert result["rounds"] == 3
    assert [check["name"] for check in result["outputs"]] == ["y"]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_verifies(conv, mlc, tmp_path, level):
    """Level 3 is the default, so that of the fixtures."""
    done = mlc("compile", conv.model, "-O", level, "--json", cwd=tmp_path)
    manifest = strict_json(done.stdout)["manifest"]
    assert manifest["opt_level"] == level
    assert manifest["verification"]["passed"]
    assert conv.report["manifest"]["opt_level"] == 3
    assert ("fuse-operators" in manifest["passes"]) == (level > 0)
    fused = len(conv.report["manifest"]["kernels"])
    assert (len(manifest["kernels"]) > fused) == (level == 0)


@ON_X86
@pytest.mark.parametrize(
    ("target", "mcpu", "needs"),
    [
        ("x86-64-v2", "x86-64-v2", "sse4.2"),
        ("x86-64-v3", "x86-64-v3", "avx2"),
        ("llvm -mcpu=nehalem -mattr=+popcnt", "nehalem", "sse4.2"),
    ],
)
def test_targets_of_choice(conv, mlc, tmp_path, target, mcpu, needs):
    if runs_on(resolve(target), host_cpu()) is False:
        pytest.skip(f"this machine cannot run {target}")
    done = mlc("compile", conv.model, "--target", target, "--json", cwd=tmp_path)
    manifest = strict_json(done.stdout)["manifest"]
    assert manifest["verification"]["passed"]
    chosen = manifest["target"]
    assert f"-mcpu={mcpu}" in chosen["tvm"]
    assert needs in chosen["features"]
    assert "avx512f" not in chosen["features"]


def test_no_verify_is_recorded(conv, mlc, tmp_path):
    done = mlc("compile", conv.model, "--no-verify", "--json", cwd=tmp_path)
    assert strict_json(done.stdout)["manifest"]["verification"] is None
    stages = [strict_json(line) for line in done.stderr.splitlines()]
    assert "verify" not in {stage.get("name") for stage in stages}
    again = mlc("compile", conv.model, "--no-verify", cwd=tmp_path)
    assert "verified   no (--no-verify)" in again.stdout


def test_equal_inputs_give_equal_bytes(conv, mlc, tmp_path):
    mlc("compile", conv.model, "--no-cache", "-j", 1, cwd=tmp_path)
    assert (tmp_path / "conv.mlc").read_bytes() == conv.artifact.read_bytes()


def test_cache(conv, mlc, tmp_path):
    env = {"MLC_CACHE_DIR": str(tmp_path / "cache")}

    def compile_to(name: str) -> dict[str, Any]:
        done = mlc("compile", conv.model, "-o", name, "--json", cwd=tmp_path, env=env)
        return strict_json(done.stdout)

    def stats() -> dict[str, Any]:
        return strict_json(mlc("cache", "stats", "--json", cwd=tmp_path, env=env).stdout)

    assert not compile_to("a.mlc")["from_cache"]
    kernels = len(conv.report["manifest"]["kernels"])
    assert kernels > 1
    assert stats()["entries"] == {"artifacts": 1, "code": kernels, "facts": kernels}
    again = compile_to("b.mlc")
    assert again["from_cache"]
    assert again["path"] == "b.mlc"
    assert (tmp_path / "a.mlc").read_bytes() == conv.artifact.read_bytes()
    assert (tmp_path / "b.mlc").read_bytes() == conv.artifact.read_bytes()

    (entry,) = (tmp_path / "cache" / "artifacts").glob("*/*")
    entry.write_bytes(entry.read_bytes()[:-1])  # damage counts as missing
    assert not compile_to("d.mlc")["from_cache"]
    assert (tmp_path / "d.mlc").read_bytes() == conv.artifact.read_bytes()

    cleared = mlc("cache", "clear", "--json", cwd=tmp_path, env=env)
    assert strict_json(cleared.stdout)["removed"] == 2 * kernels + 1
    assert stats()["entries"] == {}
    assert "empty" in mlc("cache", "stats", cwd=tmp_path, env=env).stdout


def test_targets(mlc, tmp_path):
    listing = mlc("targets", cwd=tmp_path).stdout
    assert "x86-64-v3" in listing
    assert "llvm, the default, is " in listing
    found = strict_json(mlc("targets", "--json", cwd=tmp_path).stdout)
    assert {"x86-64-v2", "x86-64-v3", "znver4"} <= {row["name"] for row in found["targets"]}
    assert found["host"]["runs_here"]
    one = strict_json(mlc("targets", "llvm", "--json", cwd=tmp_path).stdout)
    assert one["tvm"] == found["host"]["tvm"]


def test_doctor(mlc, tmp_path):
    found = strict_json(mlc("doctor", "--json", cwd=tmp_path).stdout)
    assert found["ok"]
    assert all(check["status"] in ("ok", "warn") for check in found["checks"])


@pytest.mark.parametrize(
    ("verb", "progress"),
    [
        ("compile MODEL -o out.mlc", True),
        ("run ARTIFACT --random", True),
        ("verify ARTIFACT MODEL", False),
        ("inspect ARTIFACT", False),
    ],
)
def test_json_of_the_verbs(conv, mlc, tmp_path, verb, progress):
    words = verb.replace("MODEL", str(conv.model)).replace("ARTIFACT", str(conv.artifact)).split()
    done = mlc(*words, "--json", cwd=tmp_path)
    assert isinstance(strict_json(done.stdout), dict)
    events = [strict_json(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} <= {"stage", "progress", "notice"}
    assert not progress or events


def test_an_error_is_json_too(conv, mlc, tmp_path):
    done = mlc("run", conv.artifact, "--json", cwd=tmp_path, check_code=7)
    assert done.stdout == ""
    facts = strict_json(done.stderr)
    assert facts["error"] == "RunError"
    assert facts["exit_code"] == 7
    assert "--random" in facts["hint"]
