"""Files as exporters write them: odd types, names, inputs and captures; compiled and verified."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tests.compiler.conftest import assert_same
from tests.compiler.test_microsoft import expected

f = models.floats
node = helper.make_node
HALF, BFLOAT, BOOL, INT64 = (
    TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL, TensorProto.INT64,
)  # fmt: skip


def converted(proto: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """Return a float32 model with weights, inputs and outputs in another float type."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))
    for info in [*proto.graph.input, *proto.graph.output]:
        info.type.tensor_type.elem_type = kind
    return proto


def passes(made: Any) -> bool:
    return bool(made.manifest["verification"]["passed"])


@pytest.mark.parametrize("level", [0, 3])
def test_a_network_in_half_precision(level: int, compiled: Any) -> None:
    proto = converted(models.conv_net(16, 11), HALF)
    made = compiled(proto, verify=True, opt_level=level)
    assert passes(made)
    entries = made.manifest["signature"]
    assert {e["dtype"] for e in [*entries["inputs"], *entries["outputs"]]} == {"float16"}


def test_weights_in_bfloat16(compiled: Any) -> None:
    """Stored in 16 bits, computed in float32: ONNX Runtime has no bfloat16 product on CPUs."""
    proto = converted(
        models.model([node("Cast", ["w"], ["v"], to=1), node("MatMul", ["x", "v"], ["y"])],
                     {"x": [3, 40]}, ["y"], {"w": f(40, 30)}), BFLOAT)  # fmt: skip
    for info in [*proto.graph.input, *proto.graph.output]:
        info.type.tensor_type.elem_type = TensorProto.FLOAT
    assert passes(compiled(proto, verify=True))


def test_a_network_in_bfloat16(compiled: Any) -> None:
    """Each result is that of float32, rounded once: within one unit in the eighth bit."""
    exact = models.conv_net(8, 9)
    feed = {"x": f(1, 3, 9, 9)}
    proto = converted(models.conv_net(8, 9), BFLOAT)
    dtype = helper.tensor_dtype_to_np_dtype(BFLOAT)
    (ours,) = compiled(proto).run({"x": feed["x"].astype(dtype)})
    assert ours["y"].dtype == dtype
    for tensor in exact.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(dtype).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    (rounded,) = compiled(exact).run({"x": feed["x"].astype(dtype).astype(np.float32)})
    np.testing.assert_allclose(ours["y"].astype(np.float32), rounded["y"], rtol=2**-8, atol=0)


def test_initializers_that_are_inputs_too(compiled: Any) -> None:
    """As IR version 3 wants them; ONNX Runtime takes them for defaults."""
    proto = models.conv_net()
    for tensor in proto.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(info)
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    made = compiled(proto, verify=True)
    assert passes(made)
    assert [entry["name"] for entry in made.manifest["signature"]["inputs"]] == ["x"]


@pytest.mark.parametrize("name", ["", "same", "a/b:c d\n\\\"'"])
def test_names_of_nodes_mean_nothing(name: str, check: Any) -> None:
    """Not even if they are all the same, which ONNX Runtime refuses."""
    proto = models.conv_net()
    for each in proto.graph.node:
        each.name = name
    check(proto)


def test_results_that_nobody_reads(compiled: Any) -> None:
    nodes = [
        node("Split", ["x"], ["a", "b"], axis=1), node("TopK", ["a", "k"], ["values", "indices"]),
        node("Exp", ["b"], ["unread"]), node("MaxPool", ["image"], ["p", ""], kernel_shape=[2, 2]),
        node("Relu", ["values"], ["y"]), node("Relu", ["p"], ["z"]),
    ]  # fmt: skip
    shapes = {"x": [3, 8], "image": [1, 2, 5, 5], "ignored": [7]}
    made = compiled(models.model(nodes, shapes, ["y", "z"], {"k": np.array([2])}), verify=True)
    assert passes(made)
    assert len(made.manifest["signature"]["inputs"]) == 3


def test_scalar_inputs(check: Any) -> None:
    nodes = [
        node("Mul", ["x", "scale"], ["m"]), node("Where", ["flag", "m", "x"], ["w"]),
        node("Cast", ["count"], ["c"], to=1), node("Add", ["w", "c"], ["y"]),
        node("Sub", ["scale", "c"], ["z"]),
    ]  # fmt: skip
    proto = models.model(
        nodes, {"x": [2, 3], "scale": [], "flag": [], "count": []}, ["y", "z"],
        types={"flag": BOOL, "count": INT64},
    )  # fmt: skip
    for flag in (True, False):
        feed = {"x": f(2, 3), "scale": np.float32(1.5), "flag": np.array(flag),
                "count": np.array(-3)}  # fmt: skip
        check(proto, feed={name: np.asarray(value) for name, value in feed.items()})


@pytest.mark.parametrize("known", [True, False])
def test_subgraphs_read_values_of_every_graph_around_them(known: bool, compiled: Any) -> None:
    """A branch in a loop reads the loop's state, its counter, an input and a weight."""
    value = helper.make_tensor_value_info
    branches = {
        "then_branch": [node("Mul", ["state", "w"], ["t"]), node("Add", ["t", "x"], ["r"])],
        "else_branch": [node("Sub", ["state", "number"], ["s"]), node("Mul", ["s", "x"], ["r"])],
    }
    graphs = {
        key: helper.make_graph(nodes, key, [], [value("r", 1, None)])
        for key, nodes in branches.items()
    }
    body = helper.make_graph(
        [node("Cast", ["i"], ["number"], to=1),
         node("If", ["early" if known else "flag"], ["next"], **graphs),
         node("Identity", ["go"], ["on"]), node("Neg", ["next"], ["row"])],
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("state", 1, None)],
        [value("on", BOOL, []), value("next", 1, None), value("row", 1, None)],
    )  # fmt: skip
    body.node.insert(0, node("Less", ["i", "two"], ["early"]))
    proto = models.model(
        [node("Loop", ["count", "", "x"], ["y", "rows"], body=body)], {"x": [2, 3], "flag": []},
        ["y", "rows"], {"w": f(2, 3, seed=1), "count": np.array(4), "two": np.array(2)},
        types={"flag": BOOL},
    )  # fmt: skip
    feed = {"x": f(2, 3, seed=2), "flag": np.array(True)}
    (ours,) = compiled(proto).run(feed)
    assert_same(ours, expected(proto, feed))  # onnx's reference loses the rows
