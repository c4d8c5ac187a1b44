"""`mlc.bisect` on a compiler with a fault: level, operator and pass are found, and shown again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import mlc
from mlc.bisection import trial
from mlc.bisection.run import BisectReport
from mlc.errors import ModelError, UsageError
from tests import models

node = helper.make_node


def net() -> onnx.ModelProto:
    """Seven layers of 3 x 5, every activation once."""
    weights = {f"w{k}": models.floats(5, 5, seed=k) for k in range(4)}
    nodes = [
        node("MatMul", ["x", "w0"], ["a"], "first"),
        node("Relu", ["a"], ["b"], "relu"),
        node("MatMul", ["b", "w1"], ["c"], "second"),
        node("Tanh", ["c"], ["d"], "tanh"),
        node("MatMul", ["d", "w2"], ["e"], "third"),
        node("Sigmoid", ["e"], ["f"], "sigmoid"),
        node("Softplus", ["f"], ["g"], "softplus"),
        node("Add", ["g", "b"], ["h"], "add"),
        node("MatMul", ["h", "w3"], ["y"], "last"),
    ]
    return models.model(nodes, {"x": ["batch", 5]}, ["y"], weights)


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_target: str) -> Any:
    """Return a function that bisects a model with a fault of `faults` built in."""

    def run(fault: str, proto: onnx.ModelProto | None = None, **options: Any) -> BisectReport:
        monkeypatch.setattr(trial, "FUNCTION", f"tests.compiler.faults:{fault}")
        monkeypatch.chdir(tmp_path)
        model = models.save(proto or net(), tmp_path)
        (tmp_path / "logs").mkdir(exist_ok=True)  # not the ones of this checkout
        asked = {"target": quick_target, "logs": "logs", "jobs": 1, "shapes": ("batch=3",)}
        return mlc.bisect(model, **{**asked, **options})

    return run


def operators(path: str) -> list[str]:
    return [each.op_type for each in onnx.load(path).graph.node]


def test_nothing_wrong(faulty: Any, tmp_path: Path) -> None:
    report = faulty("right")
    assert report.ok
    assert (report.level, report.passes, report.culprit, report.trials) == (None, (), None, 1)
    assert not (tmp_path / "culprit.onnx").exists()


def test_a_wrong_pass_of_the_highest_level(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = faulty("wrong_fast_math")
    assert (report.kind, report.level) == ("mismatch", 3)
    assert report.passes == ("fast-math",)
    assert report.operators == ("tanh (Tanh)",)
    assert (report.nodes, operators(report.culprit)) == (1, ["Tanh"])
    assert "MISMATCH" in report.message
    assert "--without-pass fast-math" in report.workaround
    # Random inputs show it: one command, and it says nothing where the compiler is right.
    assert report.inputs is None
    command = shlex.split(report.reproduce[0])
    assert command[:3] == ["mlc", "compile", "culprit.onnx"]
    again = faulty("wrong_fast_math", onnx.load("culprit.onnx"), shapes=(), output="again.onnx")
    assert (again.kind, again.nodes) == ("mismatch", 1)
    assert faulty("right", onnx.load("culprit.onnx"), shapes=()).ok


def test_a_wrong_pass_in_the_middle(faulty: Any) -> None:
    report = faulty("wrong_common_subexpressions")
    assert report.level == 2
    assert report.passes == ("eliminate-common-subexpressions",)
    assert report.operators == ("sigmoid (Sigmoid)",)
    assert operators(report.culprit) == ["Sigmoid"]


def test_a_wrong_pass_of_every_level(faulty: Any) -> None:
    report = faulty("wrong_legalize", opt_level=1)
    assert report.level == 0
    assert report.passes == ("legalize",)
    assert report.operators == ("sigmoid (Sigmoid)",)


def test_a_crash_is_narrowed_too(faulty: Any) -> None:
    report = faulty("crashing_fusion", opt_level=2)
    assert (report.kind, report.level) == ("failure", 1)
    assert "SIGABRT" in report.message
    assert report.passes == ("fuse-operators",)
    assert report.operators == ("sigmoid (Sigmoid)",)
    assert report.reproduce[0].startswith("mlc compile culprit.onnx -O 1")
    assert report.workaround is not None


def test_a_wrong_converter_is_no_pass(faulty: Any) -> None:
    report = faulty("wrong_converter", opt_level=1, output="small.onnx")
    assert (report.level, report.passes) == (0, ())
    assert "conversion" in report.why
    assert report.operators == ("softplus (Softplus)",)
    assert (report.culprit, operators("small.onnx")) == ("small.onnx", ["Softplus"])
    assert report.workaround is None


def test_inputs_are_kept_where_random_ones_do_not_show_it(faulty: Any) -> None:
    """abs(v) is softplus(v) within the tolerance where v is large, and only there."""
    nodes = [
        node("Mul", ["x", "x"], ["a"], "square"),
        node("Add", ["a", "twenty"], ["b"], "shift"),
        node("Softplus", ["b"], ["c"], "softplus"),
        node("Sub", ["c", "fifty"], ["y"], "sub"),
    ]
    constants = {"twenty": np.full((), -20, np.float32), "fifty": np.full((), 50, np.float32)}
    report = faulty("wrong_converter", models.model(nodes, {"x": [2, 3]}, ["y"], constants),
                    opt_level=0, shapes=())  # fmt: skip
    assert report.operators == ("softplus (Softplus)",)
    assert report.reproduce
    if report.inputs is not None:
        with np.load(report.inputs) as stored:
            assert stored["b"].shape == (2, 3)


def test_what_cannot_be_imported_is_a_model_error(faulty: Any) -> None:
    proto = models.model([node("Nonsense", ["x"], ["y"])], {"x": [1]}, ["y"])
    with pytest.raises(ModelError, match="cannot be converted"):
        faulty("right", proto, shapes=())


@pytest.mark.parametrize(
    "options",
    [{"output": "model.onnx"}, {"output": "no/such/c.onnx"}, {"output": "c.txt"},
     {"opt_level": 4}, {"shapes": ("sequence=3",)}, {"target": "rpi4"}],
    ids=str,
)  # fmt: skip
def test_wrong_options(faulty: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        faulty("right", **options)
