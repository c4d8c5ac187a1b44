"""Vectors that TVM binds to a name: LLVM refuses the code that TVM makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from mlc.codegen.lets import inline_vector_lets
from tests import models


def lanes_of_lets(module: Any) -> list[int]:
    from tvm import DataType, tir

    found: list[int] = []

    def visit(node: Any) -> None:
        if isinstance(node, tir.LetStmt | tir.Let):
            found.append(DataType(node.var.dtype).lanes)

    tir.stmt_functor.post_order_visit(module["main"].body, visit)
    return found


def stores(tvm: Any) -> Any:
    """Return a module that writes i // 3 * 5 + 2 for i < 8, with nested bindings of every kind."""
    from tvm import tir

    out = tir.decl_buffer((8,), "int32", "out")
    scale, vector, inner = (
        tir.Var("scale", "int32"), tir.Var("vector", "int32x8"), tir.Var("inner", "int32x8"),
    )  # fmt: skip
    lanes = tir.Ramp(0, 1, 8)
    value = tir.Let(inner, vector * tir.Broadcast(scale, 8), inner + tir.Broadcast(2, 8))
    body = tir.BufferStore(out, value, [lanes])
    body = tir.LetStmt(vector, tir.FloorDiv(lanes, tir.Broadcast(3, 8)), body)
    body = tir.LetStmt(scale, tir.const(5), body)
    handle = tir.Var("handle", "handle")
    function = tir.PrimFunc([handle], body, buffer_map={handle: out})
    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def test_bindings_of_vectors_are_written_out_and_others_stay(tvm: Any) -> None:
    before = stores(tvm)
    assert sorted(lanes_of_lets(before)) == [1, 8, 8]
    after = inline_vector_lets()(before)
    assert lanes_of_lets(after) == [1]
    out = tvm.nd.array(np.zeros(8, np.int32))
    tvm.build(after, target="llvm")(out)
    np.testing.assert_array_equal(out.numpy(), np.arange(8) // 3 * 5 + 2)


def test_a_group_normalisation_between_convolutions(check: Any) -> None:
    """Its reshapes between blocked layouts index by vectors that are used twice."""
    f = models.floats
    weights = {"w1": f(16, 3, 3, 3, scale=0.2), "w2": f(10, 16, 1, 1, seed=1), "s": f(16, seed=2),
               "b": f(16, seed=3)}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GroupNormalization", ["c", "s", "b"], ["n"], num_groups=4),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"]),
    ]
    check(models.model(nodes, {"x": [1, 3, 17, 24]}, ["y"], weights, opset=21))
