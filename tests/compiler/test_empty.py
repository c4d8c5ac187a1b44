"""Tensors without elements: parts of a concatenation, slices, inputs, results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests import models

f = models.floats
node = helper.make_node
ENDS = {name: np.array([at]) for name, at in {"zero": 0, "one": 1, "far": 99}.items()}
SLICE = node("Slice", ["x", "far", "far", "one"], ["none"])

NETS = {
    "a part of a concatenation": [SLICE, node("Concat", ["x", "none"], ["y"], axis=1)],
    "a roll by nothing": [
        node("Slice", ["x", "zero", "zero", "one"], ["none"]), node("Relu", ["none"], ["r"]),
        node("Concat", ["x", "r", "none"], ["c"], axis=1), node("Exp", ["c"], ["y"]),
    ],
    "all parts of a concatenation": [SLICE, node("Concat", ["none", "none"], ["y"], axis=1)],
    "a result": [SLICE, node("Tanh", ["none"], ["y"])],
    "summed": [SLICE, node("ReduceSum", ["none", "one"], ["y"], keepdims=1)],
    "multiplied": [
        SLICE, node("Transpose", ["none"], ["t"], perm=[1, 0]), node("MatMul", ["none", "t"], ["y"])
    ],
    "a product of constants": [SLICE, node("MatMul", ["none", "w"], ["y"])],
    "normalised": [SLICE, node("Softmax", ["none"], ["y"], axis=0)],
    "looked up": [node("Gather", ["x", "nobody"], ["y"], axis=0)],
}  # fmt: skip


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("name", NETS)
def test_values_without_elements(name: str, level: int, check: Any) -> None:
    constants = {**ENDS, "w": f(0, 5), "nobody": np.zeros(0, np.int64)}
    check(models.model(NETS[name], {"x": [3, 4]}, ["y"], constants), opt_level=level)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_past_that_may_be_empty(steps: int, check: Any) -> None:
    """One step of attention over keys that were kept."""
    nodes = [
        node("Concat", ["past", "key"], ["keys"], axis=0),
        node("Transpose", ["keys"], ["t"], perm=[1, 0]),
        node("MatMul", ["query", "t"], ["scores"]), node("Softmax", ["scores"], ["p"], axis=-1),
        node("MatMul", ["p", "keys"], ["y"]),
    ]  # fmt: skip
    shapes = {"past": ["past_length", 6], "key": [1, 6], "query": [1, 6]}
    feed = {"past": f(steps, 6), "key": f(1, 6, seed=1), "query": f(1, 6, seed=2)}
    proto = models.model(nodes, shapes, ["y", "keys"])
    check(proto, feed=feed, shapes=(f"past:{steps},6",))


def test_an_empty_input_that_is_handed_on(check: Any) -> None:
    kinds = {"i": TensorProto.INT64, "y": TensorProto.INT64}
    proto = models.model([node("Add", ["i", "i"], ["y"])], {"i": ["n", 3]}, ["y"], types=kinds)
    check(proto, feed={"i": np.zeros((0, 3), np.int64)}, shapes=("i:0,3",))
