"""`mlc bisect` as a command: nothing wrong, wrong files and options, `--without-pass`."""

from __future__ import annotations

import json

import pytest

import mlc as package
from mlc.errors import ModelError
from tests import models


def test_nothing_wrong(mlc, conv, tmp_path):
    done = mlc("bisect", conv.model, "--json", "-O", "1", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["kind"], found["trials"], found["passes"]) == ("ok", 1, [])
    stages = [json.loads(line) for line in done.stderr.splitlines()]
    assert [stage["note"] for stage in stages] == ["the model at -O1: ok"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("none.onnx",), 3, "no such model file"),
        (("broken.onnx",), 3, "not an ONNX model"),
        (("conv.onnx", "--shape", "y=3"), 2, "no dimension named"),
        (("conv.onnx", "--shape", "x:1,3,9"), 3, "declares 1,3,9,9"),
        (("conv.onnx", "-o", "conv.onnx"), 2, "would overwrite"),
        (("conv.onnx", "-t", "nonsense"), 4, "nonsense"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_wrong_files_and_options(mlc, tmp_path, arguments, code, text):
    path = models.save(models.conv_net(), tmp_path, "conv.onnx")
    (tmp_path / "broken.onnx").write_bytes(path.read_bytes()[:300])
    assert text in mlc("bisect", *arguments, cwd=tmp_path, check_code=code).stderr


def test_the_api_is_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        package.bisect("none.onnx")


def test_compile_without_a_pass(mlc, conv, tmp_path):
    done = mlc("compile", conv.model, "--json", "--without-pass", "alter-layout", cwd=tmp_path)
    manifest = json.loads(done.stdout)["manifest"]
    assert "alter-layout" not in manifest["passes"]
    assert "winograd" in manifest["passes"]
    assert manifest["verification"]["passed"]
    assert "alter-layout" in conv.report["manifest"]["passes"]
    wrong = mlc(
        "compile", conv.model, "--without-pass", "alter-layouts", cwd=tmp_path, check_code=2
    )
    assert "did you mean 'alter-layout'" in wrong.stderr
