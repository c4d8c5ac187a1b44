"""Pooling and reductions over the image in blocks of channels: numbers, and where the schedule fits."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import helper

from mlc import target as targets
from mlc.cpu import host_cpu
from tests import models
from tests.compiler.conftest import Compile

node = helper.make_node

CASES: dict[str, tuple[int, str, dict[str, Any]]] = {  # channels, operator, attributes
    "max": (32, "MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2]}),
    "max-padded": (32, "MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "max-stride-1": (24, "MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "max-dilated": (7, "MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    "max-oblong": (16, "MaxPool", {"kernel_shape": [1, 5], "strides": [3, 1], "pads": [0, 2, 0, 2]}),
    "max-ceil": (16, "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "average": (32, "AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "average-padded": (32, "AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average-all": (
        8, "AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 0, 1], "count_include_pad": 1},
    ),
    "global-average": (40, "GlobalAveragePool", {}),
    "global-max": (32, "GlobalMaxPool", {}),
}  # fmt: skip


@pytest.mark.parametrize("target", ["llvm", "x86-64-v3"])
@pytest.mark.parametrize("name", CASES)
def test_pooling(check: Compile, quick: Any, name: str, target: str) -> None:
    """Behind a convolution and before relu."""
    channels, operator, attributes = CASES[name]
    weights = {"w": models.floats(channels, 5, 1, 1, seed=1)}
    proto = models.model(
        [
            node("Conv", ["x", "w"], ["c"]), node(operator, ["c"], ["p"], **attributes),
            node("Relu", ["p"], ["y"]),
        ],
        {"x": [2, 5, 9, 13]}, ["y"], weights,
    )  # fmt: skip
    check(proto, target=quick(target))


@pytest.mark.parametrize("target", ["llvm", "x86-64-v3"])
@pytest.mark.parametrize(
    ("operator", "axes", "kept"),
    [("ReduceMean", [2, 3], 1), ("ReduceMin", [2], 1), ("ReduceMax", [2, 3], 0), ("ReduceMean", [1], 1)],
)  # fmt: skip
def test_reductions(
    check: Compile, quick: Any, operator: str, axes: list[int], kept: int, target: str
) -> None:
    weights = {"w": models.floats(32, 5, 1, 1, seed=1)}
    proto = models.model(
        [
            node("Conv", ["x", "w"], ["c"]), node("Exp", ["c"], ["e"]),
            node(operator, ["e"], ["r"], axes=axes, keepdims=kept), node("Neg", ["r"], ["y"]),
        ],
        {"x": [2, 5, 9, 7]}, ["y"], weights,
    )  # fmt: skip
    check(proto, target=quick(target))


@pytest.fixture
def quick() -> Any:
    """Return a function from a target's name to its string, LLVM told to hurry."""

    def text(name: str) -> str:
        chosen = targets.resolve(name)
        if not targets.runs_on(chosen, host_cpu()):
            pytest.skip(f"this machine cannot run {name}")
        return f"{chosen.tvm} -opt-level=0"

    return text


@pytest.mark.parametrize(
    ("shape", "axes", "ours"),
    [
        ((1, 2, 9, 9, 16), (2, 3), True),
        ((1, 2, 9, 9, 16), (3, 4), False),  # lanes, too
        ((1, 2, 9, 9, 1), (2, 3), False),  # no vectors
        ((1, 32, 9, 9), (2, 3), False),
    ],
)
def test_where_it_fits(tvm: Any, shape: tuple[int, ...], axes: tuple[int, ...], ours: bool) -> None:
    from tvm import te, topi

    from mlc.schedules import spatial

    x = te.placeholder(shape, name="x")
    with tvm.target.Target("llvm -mcpu=x86-64-v3"):
        found = spatial.schedule(topi.sum(x, axes, keepdims=True) / 3.0)
    assert (found is not None) == ours
