"""`mlc check` without TVM: what is reported, all at once, and what a run is estimated to cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlc.errors import ModelError, UsageError
from mlc.events import ignore
from mlc.frontend import onnx_file, simplify
from mlc.frontend.support import support
from mlc.inspection.check import check_model
from mlc.inspection.estimate import Estimate, estimate
from tests import models

node = helper.make_node


def check(proto: onnx.ModelProto, tmp_path: Path, *shapes: str) -> dict[str, Any]:
    path = models.save(proto, tmp_path)
    return check_model({"path": str(path), "shapes": list(shapes)}, ignore)


def check_open(proto: onnx.ModelProto, tmp_path: Path, *names: str) -> dict[str, Any]:
    path = models.save(proto, tmp_path)
    return check_model({"path": str(path), "shapes": [], "dynamic": names or ["*"]}, ignore)


def kinds(found: dict[str, Any]) -> list[str]:
    return [problem["kind"] for problem in found["problems"]]


def estimated(proto: onnx.ModelProto, tmp_path: Path) -> Estimate:
    file = onnx_file.read(models.save(proto, tmp_path))
    return estimate(simplify._infer_types(file))


def test_a_good_model(tmp_path: Path) -> None:
    found = check(models.conv_net(batch="batch"), tmp_path)
    assert found["compiles"]
    assert found["problems"] == found["open_shapes"] == []
    assert found["chosen"] == ["input 'x': batch is set to 1 (batch-like)"]
    assert (found["ir_version"], found["opsets"]) == (8, {"ai.onnx": 17})
    by = {row["operator"]: (row["count"], row["by"]) for row in found["support"]}
    assert by["Conv"] == (2, "mlc")
    assert by["Relu"] == (1, "TVM")
    convolutions = 2 * 9 * 9 * 9 * 8 * (3 + 8)
    assert found["estimate"]["flops"] == pytest.approx(convolutions, rel=0.05)
    assert found["estimate"]["input_bytes"] == 4 * 3 * 9 * 9


def test_every_problem_at_once(tmp_path: Path) -> None:
    nodes = [
        node("Nonsense", ["x"], ["a"], "first"),
        node("Mystery", ["a"], ["b"], domain="my.ops"),
        node("NonZero", ["x"], ["c"], "where"),
        node("Reshape", ["x", "shape"], ["y"], "free"),
    ]
    inputs = {"x": ["batch", "seq"], "shape": [2]}
    proto = models.model(nodes, inputs, ["y", "b", "c"], types={"shape": 7, "c": 7})
    proto.opset_import.add(domain="my.ops", version=1)
    found = check(proto, tmp_path)
    assert not found["compiles"]
    assert kinds(found) == ["shape", "operator", "operator", "dynamic shape", "dynamic shape"]
    assert found["open_shapes"] == ["seq=128"]
    assert "--shape 'seq=128'" in found["problems"][0]["hint"]
    said = " ".join(problem["message"] for problem in found["problems"])
    for text in ("Nonsense", "my.ops::Mystery", "'where'", "'shape'"):
        assert text in said
    fixed = check(proto, tmp_path, "seq=3")
    assert kinds(fixed) == kinds(found)[1:]


def test_operators_by_what_converts_them() -> None:
    condition = helper.make_graph(
        [node("Relu", ["x"], ["o"])], "then", [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 3])],
    )  # fmt: skip
    nodes = [
        node("If", ["c"], ["i"], then_branch=condition, else_branch=condition),
        node("Mish", ["i"], ["m"]),  # ONNX defines it by a body
        node("Own", ["m"], ["w"], domain="mine"),
        node("Conv", ["w", "w"], ["v"]),
        node("Adam", ["v"], ["y"]),
    ]
    proto = models.model(nodes, {"x": [2, 3], "c": []}, ["y"], opset=18, types={"c": 9})
    proto.opset_import.add(domain="mine", version=1)
    proto.functions.append(
        helper.make_function("mine", "Own", ["a"], ["b"], [node("Relu", ["a"], ["b"])],
                             [helper.make_opsetid("", 18)])
    )  # fmt: skip
    found = {row.operator: (row.by, row.count) for row in support(proto)}
    assert found == {
        "If": ("unrolled", 1), "Relu": ("TVM", 2), "Mish": ("body", 1), "Own": ("body", 1),
        "Conv": ("mlc", 1), "Adam": ("", 1),
    }  # fmt: skip


def test_what_is_folded_away_is_no_problem(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("NonZero", ["s"], ["n"]),  # of a constant, once the shape is fixed
        node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        node("ReduceSum", ["f"], ["t"]),
        node("Add", ["x", "t"], ["y"]),
    ]
    found = check(models.model(nodes, {"x": [2, 3]}, ["y"]), tmp_path)
    assert found["problems"] == []


@pytest.mark.parametrize("loops", [3, None])
def test_loops_by_their_trip_count(loops: int | None, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["keep"], ["kept"]), node("Relu", ["v"], ["w"])], "body",
        [value("i", 7, []), value("keep", 9, []), value("v", 1, [2])],
        [value("kept", 9, []), value("w", 1, [2])],
    )  # fmt: skip
    inputs: dict[str, list[int | str]] = {"x": [2]}
    weights = {}
    if loops is None:
        inputs["n"] = []
    else:
        weights["n"] = np.array(loops, np.int64)
    proto = models.model(
        [node("Loop", ["n", "", "x"], ["y"], body=body)], inputs, ["y"], weights, types={"n": 7}
    )
    found = check(proto, tmp_path)
    assert kinds(found) == ([] if loops else ["control flow"])
    assert {row["by"] for row in found["support"] if row["operator"] == "Loop"} == {"unrolled"}


def test_types_without_kernels(tmp_path: Path) -> None:
    proto = models.model([node("Identity", ["x"], ["y"])], {"x": [2]}, ["y"],
                         types={"x": TensorProto.STRING, "y": TensorProto.STRING})  # fmt: skip
    found = check(proto, tmp_path)
    assert kinds(found) == ["type"]
    assert "string" in found["problems"][0]["message"]


def test_an_input_without_a_shape(tmp_path: Path) -> None:
    proto = models.model([node("Relu", ["x"], ["y"])], {"x": [1]}, ["y"])
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    found = check(proto, tmp_path)
    assert found["open_shapes"] == ["x:1,3,224,224"]
    assert check(proto, tmp_path, *found["open_shapes"])["compiles"]


@pytest.mark.parametrize("shape", ["y=3", "x:1,2", "x"])
def test_a_wrong_shape_option(shape: str, tmp_path: Path) -> None:
    proto = models.conv_net()
    if shape == "x:1,2":
        found = check(proto, tmp_path, shape)
        assert kinds(found) == ["shape"]
        assert "declares 1,3,9,9" in found["problems"][0]["message"]
        return
    with pytest.raises(UsageError):
        check(proto, tmp_path, shape)


def test_sizes_that_do_not_fit_together(tmp_path: Path) -> None:
    weights = {"w": models.floats(4, 3)}
    proto = models.model([node("MatMul", ["x", "w"], ["y"], "mm")], {"x": [2, "k"]}, ["y"], weights)
    found = check(proto, tmp_path, "k=5")
    assert kinds(found) == ["shape"]
    assert "mm" in found["problems"][0]["message"]
    assert check(proto, tmp_path, "k=4")["compiles"]


def test_a_broken_file_is_a_model_error(tmp_path: Path) -> None:
    path = models.save(models.conv_net(), tmp_path)
    whole = path.read_bytes()
    for data in (b"", b"no model", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ModelError):
            check_model({"path": str(path), "shapes": []}, ignore)


@pytest.mark.parametrize(
    ("operator", "operands", "attributes", "flops"),
    [
        ("MatMul", {"x": (5, 7), "w": (7, 3)}, {}, 2 * 5 * 7 * 3),
        ("Gemm", {"x": (7, 5), "w": (7, 3)}, {"transA": 1}, 2 * 5 * 7 * 3),
        ("Conv", {"x": (2, 4, 9, 9), "w": (6, 2, 3, 3)}, {"group": 2}, 2 * 2 * 6 * 7 * 7 * 2 * 9),
        ("ConvTranspose", {"x": (1, 4, 5, 5), "w": (4, 6, 3, 3)}, {}, 2 * 4 * 25 * 6 * 9),
        ("Relu", {"x": (5, 7)}, {}, 35),
        ("ReduceSum", {"x": (5, 7)}, {"keepdims": 0}, 35),
        ("MaxPool", {"x": (1, 2, 8, 8)}, {"kernel_shape": [2, 2], "strides": [2, 2]}, 2 * 16 * 4),
        ("Transpose", {"x": (5, 7)}, {}, 0),
        ("LSTM", {"x": (6, 2, 5), "w": (1, 12, 5), "r": (1, 12, 3)}, {"hidden_size": 3},
         2 * 6 * 2 * 12 * (5 + 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_flops(
    operator: str, operands: dict[str, tuple[int, ...]], attributes: dict[str, Any], flops: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    proto = models.model([node(operator, list(operands), ["y"], **attributes)], operands, ["y"])
    assert estimated(proto, tmp_path).flops == flops


def test_buffers_are_reused(tmp_path: Path) -> None:
    """A chain of products needs two buffers; an element-wise operator takes its operand's."""
    weights = {f"w{k}": models.floats(16, 16, seed=k) for k in range(5)}
    nodes = []
    for k in range(5):
        nodes += [
            node("MatMul", [f"v{k}", f"w{k}"], [f"m{k}"]), node("Relu", [f"m{k}"], [f"v{k + 1}"])
        ]  # fmt: skip
    proto = models.model(nodes, {"v0": [4, 16]}, ["v5"], weights)
    found = estimated(proto, tmp_path)
    assert found.activation_bytes == 2 * 4 * 4 * 16
    assert found.weight_bytes == 5 * 4 * 16 * 16
    assert (found.input_bytes, found.output_bytes) == (256, 256)
    assert found.open_values == 0
    kept = models.model(nodes, {"v0": [4, 16]}, ["v5", "v1", "v2"], weights)
    assert estimated(kept, tmp_path).activation_bytes == 4 * 4 * 4 * 16


# --- open dimensions -----------------------------------------------------------------------------


def stays(found: dict[str, Any]) -> dict[str, bool | None]:
    return {dim["name"]: dim["stays"] for dim in found["dynamic"]}


def test_a_batch_can_stay_open_and_an_image_cannot(tmp_path: Path) -> None:
    weights = {"w": models.floats(8, 3, 3, 3)}
    nodes = [node("Conv", ["x", "w"], ["a"], "first"), node("Conv", ["a", "w2"], ["y"], "second")]
    weights["w2"] = models.floats(8, 8, 3, 3)
    proto = models.model(nodes, {"x": ["n", 3, "h", 9]}, ["y"], weights)
    found = check_open(proto, tmp_path)
    assert not found["compiles"]
    assert kinds(found) == ["open size"]  # the second takes what the first does not make
    assert stays(found) == {"n": True, "h": False}
    (why,) = found["dynamic"][1]["why"]
    assert "Conv, 1x ('first'): a convolution over axes of open size" in why
    assert "--shape 'h=224' --dynamic 'n'" in found["problems"][0]["hint"]
    fixed = check_model(
        {"path": str(tmp_path / "model.onnx"), "shapes": ["h=9"], "dynamic": ["n"]}, ignore
    )
    assert (fixed["compiles"], stays(fixed), fixed["estimate"]) == (True, {"n": True}, None)


@pytest.mark.parametrize(
    ("operator", "operands", "attributes", "verdict"),
    [
        ("ConvTranspose", {"x": ("n", 3, 8, 8), "w": (3, 4, 3, 3)}, {}, True),
        ("ConvTranspose", {"x": (1, 3, "n", 8), "w": (3, 4, 3, 3)}, {}, False),
        ("LSTM", {"x": (6, "n", 5), "w": (1, 12, 5), "r": (1, 12, 3)}, {"hidden_size": 3}, False),
        ("Reshape", {"x": ("n", 6), "s": [-1, 3]}, {}, True),
        ("Reshape", {"x": ("n", 6), "s": [0, 2, 3]}, {}, True),
        ("Reshape", {"x": ("n", 6), "s": [3, 6]}, {}, False),
        ("Split", {"x": ("n", 6), "s": [2, 4]}, {"axis": 1}, True),
        ("Split", {"x": ("n", 6), "s": [2, 4]}, {"axis": -2}, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_open_operators(
    operator: str, operands: dict[str, Any], attributes: dict[str, Any], verdict: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    outputs = ["y", "z"] if operator == "Split" else ["y"]
    weights = {
        name: np.array(shape) if isinstance(shape, list) else models.floats(*shape)
        for name, shape in operands.items()
        if name != "x"
    }
    proto = models.model(
        [node(operator, list(operands), outputs, **attributes)], {"x": operands["x"]}, outputs,
        weights,
    )  # fmt: skip
    found = check_open(proto, tmp_path)
    assert stays(found) == {"n": verdict}
    assert found["compiles"] == verdict


def test_shapes_from_sizes_and_from_values(tmp_path: Path) -> None:
    """What is made of sizes may be a shape; what is made of values may not."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Concat", ["n", "rest"], ["wanted"], axis=0),
        node("Reshape", ["x", "wanted"], ["a"], "fine"),
        node("Reshape", ["x", "given"], ["b"], "free"),
        node("Cast", ["shape"], ["float"], to=TensorProto.FLOAT),
        node("Cast", ["float"], ["back"], to=TensorProto.INT64),
        node("Expand", ["one", "back"], ["c"], "round"),
    ]
    weights = {"zero": np.array([0]), "rest": np.array([2, 3]), "one": models.floats(1, 6)}
    inputs: dict[str, list[int | str]] = {"x": ["n", 6], "given": [2]}
    proto = models.model(nodes, inputs, ["a", "b", "c"], weights, types={"given": 7})
    found = check_open(proto, tmp_path)
    assert kinds(found) == ["dynamic shape", "dynamic shape"]
    said = " ".join(problem["message"] for problem in found["problems"])
    assert "'free'" in said
    assert "'round'" in said
    assert "'fine'" not in said


def test_what_only_compiling_tells(tmp_path: Path) -> None:
    """No converter takes such a Tile, and the Reshape makes a fixed number of elements."""
    weights = {"one": models.floats(1, 1), "seven": np.array([7])}
    for operator, operands in (("Tile", ["one", "s"]), ("Reshape", ["x", "odd"])):
        nodes = [
            node("Shape", ["x"], ["s"]), node("Add", ["s", "seven"], ["odd"]),
            node(operator, operands, ["y"], "layer"),
        ]  # fmt: skip
        found = check_open(models.model(nodes, {"x": ["n", 6]}, ["y"], weights), tmp_path)
        assert found["compiles"]
        assert stays(found) == {"n": None}
        assert f"{operator}, 1x ('layer')" in found["dynamic"][0]["why"][0]


def test_dimensions_that_are_not_open(tmp_path: Path) -> None:
    proto = models.conv_net(batch="batch")
    with pytest.raises(UsageError, match="--dynamic batsch") as error:
        check_open(proto, tmp_path, "batsch")
    assert "did you mean 'batch'" in str(error.value.hint)
    assert stays(check_open(proto, tmp_path, "batch")) == {"batch": True}
    with pytest.raises(UsageError, match="no open dimension"):
        check_open(models.conv_net(), tmp_path)
    fields = {"path": str(tmp_path / "model.onnx"), "shapes": ["batch=1,4"], "dynamic": ["*"]}
    with pytest.raises(UsageError, match="--dynamic keeps dimensions open"):
        check_model(fields, ignore)


def test_sequences_of_known_length(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [node("SplitToSequence", ["x"], ["s"], axis=1), node("SequenceAt", ["s", "at"], ["y"])]
    proto = models.model(nodes, {"x": [2, 3]}, ["y"], {"at": np.array(2)})
    answer = check(proto, tmp_path)
    assert answer["compiles"]
    assert {entry["by"] for entry in answer["support"]} == {"unrolled"}
    proto = models.model(nodes, {"x": [2, 3], "at": []}, ["y"], types={"at": TensorProto.INT64})
    assert "depends on the input's values" in check(proto, tmp_path)["problems"][0]["message"]
