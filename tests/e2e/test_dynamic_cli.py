"""`--dynamic` through every verb that takes an artifact."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
from onnx import helper

import mlc as library
from tests import models
from tests.e2e.conftest import Command


def test_one_artifact_for_any_batch(mlc: Command, tmp_path: Path) -> None:
    weights = {"w": models.floats(3, 6, seed=1), "b": models.floats(3, seed=2)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "layer", transB=1)]
    models.save(models.model(nodes, {"x": ["batch", 6]}, ["y"], weights), tmp_path)
    foretold = mlc("check", "--dynamic", "model.onnx", cwd=tmp_path).stdout
    assert "batch: can stay open" in foretold
    done = mlc("compile", "--json", "--dynamic", "model.onnx", cwd=tmp_path)
    manifest = json.loads(done.stdout)["manifest"]
    assert [at["batch"] for at in manifest["verification"]["sizes"]] == [1, 3, 8]
    for rows in (1, 5):
        np.save(tmp_path / "x.npy", models.floats(rows, 6, seed=rows))
        mlc("run", "model.mlc", "-i", "x.npy", "-o", "y.npz", cwd=tmp_path)
        found = np.load(tmp_path / "y.npz")["y"]
        expected = models.floats(rows, 6, seed=rows) @ weights["w"].T + weights["b"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    done = mlc("run", "model.mlc", "--random", "--shape", "batch=7", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["outputs"][0]["shape"] == [7, 3]
    refused = mlc("run", "model.mlc", "--random", cwd=tmp_path, check_code=7)
    assert "--shape batch=8" in refused.stderr
    refused = mlc(
        "run", "model.mlc", "-i", "x.npy", "--shape", "batch=4", cwd=tmp_path, check_code=7
    )
    assert "'batch' is 5 in the inputs, and 4 in --shape" in refused.stderr
    mlc("bench", "model.mlc", "--shape", "batch=2", "--duration", "0.05", "--warmup", "0",
        "--against", "onnxruntime", "--model", "model.onnx", "--profile", cwd=tmp_path)  # fmt: skip
    done = mlc("verify", "model.mlc", "model.onnx", "--shape", "batch=13", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["sizes"] == [{"batch": 13}]
    shown = mlc("inspect", "model.mlc", cwd=tmp_path).stdout
    assert "batch 1 to 1048576" in shown
    assert "FLOPs depend on the sizes" in shown
    assert "0 FLOP" not in shown
    mlc("verify", "model.mlc", "model.onnx", "--emulate", cwd=tmp_path, check_code=2)

    report = library.compile(tmp_path / "model.onnx", tmp_path / "api.mlc", dynamic=("batch",))
    assert report.path.read_bytes() == (tmp_path / "model.mlc").read_bytes()


def test_refusals_are_foretold(mlc: Command, tmp_path: Path) -> None:
    """`mlc check` and `mlc compile` name the same nodes, and end alike; mlc.toml says it once."""
    weights = {"w": models.floats(8, 3, 3, 3)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "layer")]
    models.save(models.model(nodes, {"x": ["n", 3, "h", 9]}, ["y"], weights), tmp_path)
    (tmp_path / "mlc.toml").write_text('[model]\npath = "model.onnx"\ndynamic = true\n')
    for verb in ("check", "compile"):
        refused = mlc(verb, cwd=tmp_path, check_code=3)
        assert "'layer'" in refused.stderr
        assert "a convolution over axes of open size" in refused.stderr
    checked = mlc("check", "--json", cwd=tmp_path, check_code=3)
    found = json.loads(checked.stdout)
    assert {dim["name"]: dim["stays"] for dim in found["dynamic"]} == {"n": True, "h": False}
    (hint,) = (problem["hint"] for problem in found["problems"])
    option = shlex.split(hint.partition("example: ")[2])
    made = json.loads(mlc("compile", "model.onnx", "--json", *option, cwd=tmp_path).stdout)
    assert [dim["name"] for dim in made["manifest"]["dynamic"]] == ["n"]
    assert library.check(tmp_path / "model.onnx", dynamic=True) == {
        **found, "path": str(tmp_path / "model.onnx")
    }  # fmt: skip
    for verb in ("check", "compile", "bisect"):
        wrong = mlc(verb, "model.onnx", "--dynamic", "m", cwd=tmp_path, check_code=2)
        assert "--dynamic m: the model has no such dimension" in wrong.stderr
