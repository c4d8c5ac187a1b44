"""`mlc bisect` with a faulty compiler: level, operator and pass are found, and shown again."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mlc.bisection import run
from mlc.bisection.run import BisectReport
from mlc.errors import UnsupportedError, UsageError
from mlc.events import ignore
from mlc.frontend.operators import OWN
from mlc.options import BisectOptions
from mlc.passes import table
from mlc.passes.rewrite import rewrite_main
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


def right(patch: pytest.MonkeyPatch) -> None:
    """No fault at all."""


def wrong_fast_math(patch: pytest.MonkeyPatch) -> None:
    """At -O3, tanh becomes erf."""
    behind(patch, "fast-math", "mlc.tanh", "mlc.erf")


def wrong_common_subexpressions(patch: pytest.MonkeyPatch) -> None:
    """From -O2 on, sigmoid becomes tanh."""
    behind(patch, "eliminate-common-subexpressions", "sigmoid", "tanh")


def wrong_legalize(patch: pytest.MonkeyPatch) -> None:
    """At every level, sigmoid becomes tanh."""
    behind(patch, "legalize", "sigmoid", "tanh")


def crashing_fusion(patch: pytest.MonkeyPatch) -> None:
    """From -O1 on, the process ends where a sigmoid is fused."""
    fuse = next(row.run for row in table.PASSES if row.name == "fuse-operators")

    def run(module: Any) -> Any:
        if "sigmoid" in module.astext():
            os.kill(os.getpid(), signal.SIGKILL)
        return fuse(module)

    patch_row(patch, "fuse-operators", run)


def wrong_converter(patch: pytest.MonkeyPatch) -> None:
    """Softplus is converted to its argument's absolute value."""

    def convert(inputs: Any, attributes: Any) -> Any:
        from tvm import relay

        return relay.abs(inputs[0])

    patch.setitem(OWN[""], "Softplus", convert)


def wrong_large_values(patch: pytest.MonkeyPatch) -> None:
    """Relu is converted to one that ends at 6."""

    def convert(inputs: Any, attributes: Any) -> Any:
        from tvm import relay

        return relay.clip(inputs[0], 0.0, 6.0)

    patch.setitem(OWN[""], "Relu", convert)


def behind(patch: pytest.MonkeyPatch, name: str, old: str, new: str) -> None:
    """Let a row rename an operator behind what it does."""
    does = next(row.run for row in table.PASSES if row.name == name)

    def rename(call: Any, arguments: Any) -> Any:
        from tvm import relay

        if getattr(call.op, "name", "") != old:
            return None
        return relay.Call(relay.op.get(new), list(arguments))

    patch_row(patch, name, lambda module: rewrite_main(does(module), rename))


def patch_row(patch: pytest.MonkeyPatch, name: str, run: Callable[[Any], Any]) -> None:
    rows = (replace(r, run=run, needs=()) if r.name == name else r for r in table.PASSES)
    patch.setattr(table, "PASSES", tuple(rows))


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_target: str) -> Any:
    """Return a function that bisects a model with a compiler that has a fault (forks have it)."""

    def bisect(
        fault: Callable[[pytest.MonkeyPatch], None],
        proto: onnx.ModelProto | None = None,
        **options: Any,
    ) -> BisectReport:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "logs").mkdir(exist_ok=True)  # not the ones of this checkout
        model = models.save(proto or net(), tmp_path)
        asked = {"target": quick_target, "logs": "logs", "jobs": 1, "shapes": ("batch=3",)}
        with monkeypatch.context() as patch:
            fault(patch)
            return run.bisect(BisectOptions(model=str(model), **{**asked, **options}), ignore)

    return bisect


def operators(path: str) -> list[str]:
    return [each.op_type for each in onnx.load(path).graph.node]


def test_nothing_wrong(faulty: Any, tmp_path: Path) -> None:
    report = faulty(right)
    assert report.ok
    assert (report.level, report.passes, report.culprit, report.trials) == (None, (), None, 1)
    assert not (tmp_path / "culprit.onnx").exists()


def test_a_wrong_pass_of_the_highest_level(faulty: Any) -> None:
    report = faulty(wrong_fast_math)
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
    assert faulty(right, onnx.load("culprit.onnx"), shapes=()).ok


@pytest.mark.slow
def test_a_wrong_pass_in_the_middle(faulty: Any) -> None:
    report = faulty(wrong_common_subexpressions)
    assert report.level == 2
    assert report.passes == ("eliminate-common-subexpressions",)
    assert report.operators == ("sigmoid (Sigmoid)",)
    assert operators(report.culprit) == ["Sigmoid"]


@pytest.mark.slow
def test_a_wrong_pass_of_every_level(faulty: Any) -> None:
    report = faulty(wrong_legalize, opt_level=0)
    assert report.level == 0
    assert report.passes == ("legalize",)
    assert report.operators == ("sigmoid (Sigmoid)",)


def test_a_crash_is_narrowed_too(faulty: Any) -> None:
    report = faulty(crashing_fusion, opt_level=2)
    assert (report.kind, report.level) == ("failure", 1)
    assert "SIGKILL" in report.message
    assert report.passes == ("fuse-operators",)
    assert report.operators == ("sigmoid (Sigmoid)",)
    assert report.reproduce[0].startswith("mlc compile culprit.onnx -O 1")
    assert report.workaround is not None


def test_a_wrong_converter_is_no_pass(faulty: Any) -> None:
    report = faulty(wrong_converter, opt_level=0, output="small.onnx")
    assert (report.level, report.passes) == (0, ())
    assert "conversion" in report.why
    assert report.operators == ("softplus (Softplus)",)
    assert (report.culprit, operators("small.onnx")) == ("small.onnx", ["Softplus"])
    assert report.workaround is None


def short_net() -> onnx.ModelProto:
    """Two layers and one activation."""
    nodes = [
        node("MatMul", ["x", "w0"], ["a"], "first"),
        node("Sigmoid", ["a"], ["b"], "sigmoid"),
        node("MatMul", ["b", "w1"], ["y"], "last"),
    ]
    weights = {"w0": models.floats(5, 5), "w1": models.floats(5, 5, seed=1)}
    return models.model(nodes, {"x": ["batch", 5]}, ["y"], weights)


def test_open_dimensions(faulty: Any) -> None:
    """The level and the pass are looked for with them, the operator at fixed sizes."""
    asked = {"shapes": (), "dynamic": ("batch",), "opt_level": 2}
    report = faulty(wrong_common_subexpressions, short_net(), **asked)
    assert (report.kind, report.level) == ("mismatch", 2)
    assert report.sizes == {"batch": 3}
    assert report.passes == ("eliminate-common-subexpressions",)
    assert (report.operators, operators(report.culprit)) == (("sigmoid (Sigmoid)",), ["Sigmoid"])
    assert "--dynamic=batch" in shlex.split(report.workaround)
    assert not any("--dynamic" in line for line in report.reproduce)


def wrong_open_sizes(patch: pytest.MonkeyPatch) -> None:
    """Sigmoid becomes tanh, where dimensions are open only."""
    name = "eliminate-common-subexpressions"
    right_run = next(row.run for row in table.PASSES if row.name == name)
    with pytest.MonkeyPatch.context() as inner:
        behind(inner, name, "sigmoid", "tanh")
        wrong_run = next(row.run for row in table.PASSES if row.name == name)

    def run(module: Any) -> Any:
        from tvm import tir

        rows = module["main"].params[0].type_annotation.shape[0]
        return (right_run if isinstance(rows, tir.IntImm) else wrong_run)(module)

    patch_row(patch, name, run)


def test_a_fault_of_open_dimensions_alone(faulty: Any) -> None:
    """No part of fixed sizes shows it: the pass is found on the whole model."""
    report = faulty(wrong_open_sizes, short_net(), shapes=(), dynamic=("*",), opt_level=2)
    assert (report.kind, report.level, report.culprit) == ("mismatch", 2, None)
    assert (report.operators, report.sizes) == ((), {"batch": 3})
    assert report.passes == ("eliminate-common-subexpressions",)
    assert "--dynamic=*" in shlex.split(report.workaround)


def test_open_dimensions_that_cannot_be(faulty: Any) -> None:
    with pytest.raises(UsageError, match="no such dimension"):
        faulty(right, dynamic=("rows",), shapes=())
    with pytest.raises(UsageError, match="for CPUs"):
        faulty(right, dynamic=("*",), shapes=(), target="cuda:sm_80")


def test_inputs_are_kept_where_random_ones_do_not_show_it(faulty: Any) -> None:
    """Random inputs stay below 6; those of the operator in its place do not."""
    nodes = [
        node("Mul", ["x", "hundred"], ["a"], "scale"),
        node("Relu", ["a"], ["b"], "relu"),
        node("Sub", ["b", "x"], ["y"], "sub"),
    ]
    constants = {"hundred": np.full((), 100, np.float32)}
    proto = models.model(nodes, {"x": [2, 3]}, ["y"], constants)
    report = faulty(wrong_large_values, proto, opt_level=0, shapes=())
    assert report.operators == ("relu (Relu)",)
    assert operators(report.culprit) == ["Relu"]
    assert report.inputs == "culprit.npz"
    with np.load(report.inputs) as stored:
        assert stored.files == ["a"]
        assert stored["a"].max() > 6
    assert [shlex.split(line)[1] for line in report.reproduce] == ["compile", "verify"]
    assert report.reproduce[1].endswith("--input culprit.npz")


def test_what_cannot_be_imported_is_a_model_error(faulty: Any) -> None:
    proto = models.model([node("Nonsense", ["x"], ["y"])], {"x": [1]}, ["y"])
    with pytest.raises(UnsupportedError, match="cannot be converted"):
        faulty(right, proto, shapes=())


@pytest.mark.parametrize(
    "options",
    [{"output": "model.onnx"}, {"output": "no/such/c.onnx"}, {"output": "c.txt"},
     {"opt_level": 4}, {"shapes": ("sequence=3",)}, {"target": "rpi4"}],
    ids=str,
)  # fmt: skip
def test_wrong_options(faulty: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        faulty(right, **options)
