"""Loops, scans and branches that become straight lines, against onnx's reference evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlc.errors import ModelError
from mlc.frontend import expand
from mlc.frontend.onnx_file import OnnxFile
from tests import models
from tests.compiler.conftest import assert_same, reference

node = helper.make_node
INT, BOOL = TensorProto.INT64, TensorProto.BOOL


def info(name: str, kind: int = TensorProto.FLOAT, shape: Any = ()) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def counting_loop(condition: list[Any], last: str, *, collect: bool = True) -> Any:
    """x doubles at each step; the condition is what `condition` computes as `last`."""
    outputs = [info(last, BOOL), info("next", shape=[2])]
    body = helper.make_graph(
        [*condition, node("Add", ["x_in", "x_in"], ["next"])],
        "body", [info("i", INT), info("go", BOOL), info("x_in", shape=[2])],
        outputs + ([info("next", shape=[2])] if collect else []),
    )  # fmt: skip
    return node("Loop", ["n", "c", "x"], ["y", "all"][: 1 + collect], "loop", body=body)


def weights(steps: int) -> dict[str, Any]:
    return {"n": np.array(steps, np.int64), "c": np.array(True), "three": np.array(3, np.int64)}


def run(nodes: list[Any], outputs: list[str], constants: dict[str, Any], compiled: Any) -> Any:
    proto = models.model(nodes, {"x": [2]}, outputs, constants)
    feed = {"x": models.floats(2)}
    (ours,) = compiled(proto).run(feed)
    assert_same(ours, reference(proto, feed))
    return ours


def test_a_loop_with_a_known_count_is_unrolled(compiled: Any) -> None:
    loop = counting_loop([node("Identity", ["go"], ["on"])], "on")
    assert run([loop], ["y", "all"], weights(4), compiled)["all"].shape == (4, 2)


def test_a_loop_ends_where_its_counter_says(compiled: Any) -> None:
    loop = counting_loop([node("Less", ["i", "three"], ["on"])], "on")
    assert run([loop], ["y", "all"], weights(100), compiled)["all"].shape == (4, 2)


def test_a_loop_that_data_ends_keeps_its_state(compiled: Any) -> None:
    condition = [
        node("ReduceSum", ["x_in"], ["s"], keepdims=0), node("Abs", ["s"], ["a"]),
        node("Less", ["a", "limit"], ["on"]),
    ]  # fmt: skip
    loop = counting_loop(condition, "on", collect=False)
    run([loop], ["y"], {**weights(6), "limit": np.array(3.0, np.float32)}, compiled)


@pytest.mark.parametrize(
    ("given", "why"),
    [({"n": [1]}, "how often the loop runs"), ({}, "number of collected results")],
)
def test_loops_whose_length_only_data_tells_are_refused(
    given: Any, why: str, compiled: Any
) -> None:
    condition = [node("ReduceSum", ["x_in"], ["s"], keepdims=0), node("Less", ["s", "z"], ["on"])]
    constants = {**weights(3), "z": np.array(0.0, np.float32)}
    constants = {name: array for name, array in constants.items() if name not in given}
    inputs = {"x": [2], **{name: [] for name in given}}
    proto = models.model(
        [counting_loop(condition, "on")], inputs, ["y", "all"], constants,
        types=dict.fromkeys(given, INT),
    )  # fmt: skip
    with pytest.raises(ModelError, match=rf"node 'loop' \(Loop\) cannot be converted: .*{why}"):
        compiled(proto)


def test_a_loop_without_end_is_refused(compiled: Any) -> None:
    body = helper.make_graph(
        [node("Identity", ["x_in"], ["next"])], "body",
        [info("i", INT), info("go", BOOL), info("x_in", shape=[2])],
        [info("go", BOOL), info("next", shape=[2])],
    )  # fmt: skip
    proto = models.model(
        [node("Loop", ["", "c", "x"], ["y"], "loop", body=body)], {"x": [2]}, ["y"],
        {"c": np.array(True)},
    )  # fmt: skip
    with pytest.raises(ModelError, match="more than 200000"):
        compiled(proto)


def branch(nodes: list[Any], output: str, tensors: dict[str, Any] | None = None) -> Any:
    initializers = [numpy_helper.from_array(a, n) for n, a in (tensors or {}).items()]
    return helper.make_graph(nodes, output, [], [info(output, shape=None)], initializers)


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_a_branch_is_chosen_or_both_are_computed(truth: bool, known: bool, compiled: Any) -> None:
    choice = node(
        "If", ["c"], ["y"],
        then_branch=branch([node("Mul", ["x", "k"], ["t"])], "t", {"k": np.float32([2, 3])}),
        else_branch=branch([node("Neg", ["x"], ["e"])], "e"),
    )  # fmt: skip
    condition = {"c": np.array(truth)}
    inputs = {"x": [2]} if known else {"x": [2], "c": []}
    proto = models.model([choice], inputs, ["y"], condition if known else {}, types={"c": BOOL})
    feed = {"x": models.floats(2), **({} if known else condition)}
    (ours,) = compiled(proto).run(feed)
    assert_same(ours, reference(proto, feed))


def test_branches_of_different_shape_need_a_known_condition(compiled: Any) -> None:
    choice = node(
        "If", ["c"], ["y"], then_branch=branch([node("Neg", ["x"], ["t"])], "t"),
        else_branch=branch([node("Concat", ["x", "x"], ["e"], axis=0)], "e"),
    )  # fmt: skip
    proto = models.model([choice], {"x": [2], "c": []}, ["y"], types={"c": BOOL})
    with pytest.raises(ModelError, match="condition that only the run knows"):
        compiled(proto)


@pytest.mark.parametrize("backward", [0, 1])
def test_a_scan_walks_along_an_axis(backward: int, compiled: Any) -> None:
    body = helper.make_graph(
        [node("Add", ["s", "e"], ["s_out"]), node("Mul", ["s_out", "e"], ["o"])], "body",
        [info("s", shape=[3]), info("e", shape=[3])],
        [info("s_out", shape=[3]), info("o", shape=[3])],
    )  # fmt: skip
    scan = node(
        "Scan", ["s0", "x"], ["last", "y"], body=body, num_scan_inputs=1, scan_input_axes=[1],
        scan_input_directions=[backward], scan_output_directions=[backward], scan_output_axes=[1],
    )  # fmt: skip
    proto = models.model([scan], {"x": [3, 5], "s0": [3]}, ["last", "y"])
    feed = {"x": models.floats(3, 5), "s0": models.floats(3, seed=1)}
    (ours,) = compiled(proto).run(feed)
    # By hand: onnx's reference walks along the first axis only, and forwards.
    x = feed["x"][:, ::-1] if backward else feed["x"]
    states = feed["s0"][:, None] + np.cumsum(x, 1)
    y = states * x
    assert_same(ours, {"last": states[:, -1], "y": y[:, ::-1] if backward else y})


def functions(*bodies: tuple[str, list[Any]]) -> onnx.ModelProto:
    proto = models.model([node(bodies[0][0], ["x"], ["y"], domain="own")], {"x": [3]}, ["y"])
    proto.opset_import.add(domain="own", version=1)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for name, nodes in bodies:
        proto.functions.append(helper.make_function("own", name, ["a"], ["b"], nodes, opsets))
    return proto


def test_functions_of_the_model_are_inlined(compiled: Any) -> None:
    proto = functions(
        ("Outer", [node("Inner", ["a"], ["c"], domain="own"), node("Abs", ["c"], ["b"])]),
        ("Inner", [node("Neg", ["a"], ["b"])]),
    )
    feed = {"x": models.floats(3)}
    (ours,) = compiled(proto).run(feed)
    np.testing.assert_array_equal(ours["y"], np.abs(feed["x"]))


def test_functions_that_never_end_or_explode_are_refused(compiled: Any) -> None:
    circle = functions(("A", [node("B", ["a"], ["b"], domain="own")]),
                       ("B", [node("A", ["a"], ["b"], domain="own")]))  # fmt: skip
    with pytest.raises(ModelError, match="Cycle detected"):  # by onnx's checker
        compiled(circle)
    file = OnnxFile(path=Path("m"), proto=circle, weights={}, sha256="", size=0)
    with pytest.raises(ModelError, match="in a circle: 'A', 'B'"):
        expand.expand(file)
    doubling = [
        (f"F{k}", [node(f"F{k + 1}", ["a"], ["c"], domain="own"),
                   node(f"F{k + 1}", ["c"], ["b"], domain="own")])
        for k in range(40)
    ]  # fmt: skip
    with pytest.raises(ModelError, match="expand to more than 200000 nodes"):
        compiled(functions(*doubling, ("F40", [node("Neg", ["a"], ["b"])])))


def test_operands_left_out_do_not_stop_an_expansion(compiled: Any) -> None:
    """onnx's inliner fails on them where the body depends on the operands' types."""
    proto = models.model(
        [node("Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "nk", "nv"], is_causal=1)],
        {"q": [1, 2, 3, 8], "k": [1, 2, 3, 8], "v": [1, 2, 3, 8], "pk": [1, 2, 4, 8],
         "pv": [1, 2, 4, 8]}, ["y", "nk", "nv"], opset=23,
    )  # fmt: skip
    made = compiled(proto)
    feed = made.feed()
    (ours,) = made.run(feed)
    assert_same(ours, reference(proto, feed))
