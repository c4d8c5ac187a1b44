"""`mlc check` as a command: exit codes, JSON, pasted options, and no TVM."""

from __future__ import annotations

import json
import shlex

import pytest
from onnx import helper

import mlc as package
from mlc.errors import ModelError
from tests import models
from tests.e2e.test_startup import imported, packages

node = helper.make_node


def test_a_good_model_compiles_as_foretold(mlc, conv):
    shown = mlc("check", conv.model, cwd=conv.model.parent)
    assert "yes, as far as" in shown.stdout
    found = json.loads(mlc("check", conv.model, "--json", cwd=conv.model.parent).stdout)
    assert found == package.check(conv.model)
    kernels = conv.report["manifest"]["kernels"].values()
    flops = sum(kernel["flops"] * kernel["calls"] for kernel in kernels)
    assert found["estimate"]["flops"] == pytest.approx(flops, rel=0.1)


def test_problems_end_with_the_code_of_compile(mlc, tmp_path):
    nodes = [node("Nonsense\x1b[2J", ["x"], ["a"]), node("Relu", ["a"], ["y"])]
    path = models.save(models.model(nodes, {"x": [1, "seq"]}, ["y"]), tmp_path)
    done = mlc("check", path, cwd=tmp_path, check_code=3)
    assert "2 problems" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    hint = next(line for line in done.stderr.splitlines() if "--shape" in line)
    option = shlex.split(hint.partition("example: ")[2])
    again = mlc("check", path, *option, "--json", cwd=tmp_path, check_code=3)
    assert [p["kind"] for p in json.loads(again.stdout)["problems"]] == ["operator"]
    compiled = mlc("compile", path, *option, cwd=tmp_path, check_code=3)
    assert "Nonsense" in compiled.stderr


@pytest.mark.parametrize("data", [b"", b"\x08\x07 no model", None], ids=["empty", "text", "none"])
def test_broken_files(mlc, tmp_path, data):
    path = tmp_path / "broken.onnx"
    if data is not None:
        path.write_bytes(data)
    said = mlc("check", path, cwd=tmp_path, check_code=3).stderr
    assert said == mlc("compile", path, cwd=tmp_path, check_code=3).stderr
    with pytest.raises(ModelError):
        package.check(path)


def test_no_tvm_is_imported(conv, environment, tmp_path):
    script = (
        "import sys; from mlc.inspection.check import check_model; "
        "check_model({'path': sys.argv[1], 'shapes': []}, lambda event: None)"
    )
    modules = imported(environment, tmp_path, "-c", script, str(conv.model))
    assert "onnxruntime" in packages(modules)
    assert not packages(modules) & {"tvm", "torch", "xgboost"}
