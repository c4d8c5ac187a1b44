"""`mlc inspect` on a model and on an artifact: tables for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from mlc.artifact import Contents, save
from mlc.cli.inspect import inspect
from mlc.errors import ModelError, UsageError

HOSTILE = "y\x1b[2J[red]"  # a terminal escape, and Rich markup


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
            helper.make_node("Relu", ["h"], [HOSTILE]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info(HOSTILE, TensorProto.FLOAT, ["batch", 32])],
        [
            numpy_helper.from_array(np.ones((8, 32), np.float32), "w"),
            numpy_helper.from_array(np.ones(32, np.float32), "b"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    path = tmp_path / "tiny.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    manifest = {
        "mlc": "0.0",
        "versions": {"tvm": "0.19.0"},
        "model": {"path": "tiny.onnx", "sha256": "0" * 64, "opset": 17, "size": 1, "nodes": 2},
        "signature": {
            "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 8]}],
            "outputs": [{"name": HOSTILE, "dtype": "float32", "shape": [1, 32]}],
        },
        "target": {"name": "x86-64-v3", "tvm": "llvm -mcpu=x", "triple": "t", "features": ["avx2"]},
        "kernels": {"mlc_dense_add_1": {"operators": ["nn.dense"], "flops": 512, "calls": 2}},
        "buffer_bytes": 128,
        "opt_level": 3,
        "passes": ["legalize", "fuse-operators"],
        "verification": {"passed": True, "reference": "onnxruntime"},
    }
    weights = [(0, np.zeros(100, np.float32))]
    path = tmp_path / "tiny.mlc"
    save(Contents(manifest=manifest, library=b"\x7fELF", graph=b"{}", weights=weights), path)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(inspect, [str(argument) for argument in arguments])


def test_tables_for_a_model(model: Path, tmp_path: Path) -> None:
    result = call(model, "--passes", "--relay", "--dump-ir", tmp_path / "ir", "--kernel", "dense")
    assert result.exit_code == 0, result.output
    for text in ("float32[batch, 8]", "fuse-operators", "tir.VectorizeLoop", "Primitive=1"):
        assert text in result.stdout
    assert "\x1b" not in result.stdout
    assert r"y\x1b[2J[red]" in result.stdout
    assert (tmp_path / "ir" / "index.txt").is_file()


def test_json_for_a_model(model: Path) -> None:
    result = call(model, "--json", "-O", "1", "--shape", "batch=4", "--target", "x86-64-v3")
    found = json.loads(result.stdout)
    assert found["kind"] == "model"
    assert found["opt_level"] == 1
    assert found["flops"] >= 2 * 4 * 8 * 32
    assert [row for row in map(json.loads, result.stderr.splitlines()) if row["event"] == "stage"]


def test_tables_for_an_artifact(artifact: Path) -> None:
    result = call(artifact)
    assert result.exit_code == 0, result.output
    for text in ("float32[1, 32]", "mlc_dense_add_1", "passed against onnxruntime", "-O3"):
        assert text in result.stdout
    assert "\x1b" not in result.stdout


def test_json_for_an_artifact(artifact: Path) -> None:
    found = json.loads(call(artifact, "--json").stdout)
    assert found["kind"] == "artifact"
    assert found["flops"] == 1024
    assert found["parameters"] == {"tensors": 1, "bytes": 400, "bytes_in_memory": 400}


def test_model_options_are_refused_for_an_artifact(artifact: Path) -> None:
    result = call(artifact, "--passes", "--shape", "batch=1")
    assert isinstance(result.exception, UsageError)
    assert "--passes, --shape cannot" in result.exception.message


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    assert isinstance(call(tmp_path / "none.onnx").exception, ModelError)
