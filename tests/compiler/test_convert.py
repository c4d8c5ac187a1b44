"""Our own converters against onnx's reference evaluator, on odd shapes.

The models are converted as they stand (ONNX Runtime would rewrite some of these nodes before). One
model holds many nodes, each with an output of its own: linking once is what makes it quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlc.errors import ModelError
from mlc.frontend import convert
from mlc.frontend.operators import OWN
from tests import models
from tests.compiler.conftest import assert_same, calls_of, reference

Array = np.ndarray
node = helper.make_node


def onnx_type(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


class Nodes:
    """Nodes collected into one model, each of its results an output."""

    def __init__(self, opset: int, **inputs: Array):
        self.opset = opset
        self.inputs = inputs
        self.nodes: list[Any] = []
        self.weights: dict[str, Array] = {}
        self.outputs: dict[str, int] = {}
        self.labels: dict[str, str] = {}

    def add(
        self, operator: str, inputs: Sequence[str | Array], outputs: int = 1, **more: Any
    ) -> None:
        """Add a node; arrays among its inputs become weights."""
        kind = more.pop("type", TensorProto.FLOAT)
        kept = more.pop("kept", range(outputs))
        names = [v if isinstance(v, str) else self.weight(v) for v in inputs]
        results = [f"y{len(self.outputs)}_{k}" if k in kept else "" for k in range(outputs)]
        self.nodes.append(node(operator, names, results, **more))
        for result in filter(None, results):
            self.outputs[result] = kind
            self.labels[result] = f"{operator}-{self.opset} {inputs} {more}"

    def weight(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def model(self) -> onnx.ModelProto:
        types = {name: onnx_type(array) for name, array in self.inputs.items()} | self.outputs
        shapes = {name: array.shape for name, array in self.inputs.items()}
        return models.model(
            self.nodes, shapes, list(self.outputs), self.weights, opset=self.opset, types=types
        )

    def check(self, converted: Any, execute: Any) -> None:
        proto = self.model()
        ours = execute(converted(proto), self.inputs)
        expected = reference(proto, self.inputs)
        for name, label in self.labels.items():
            try:
                # The reference sums 32-bit integers to 64 bits: the declared type is the right one.
                wanted = expected[name].astype(helper.tensor_dtype_to_np_dtype(self.outputs[name]))
                assert_same({name: ours[name]}, {name: wanted})
            except AssertionError as error:
                raise AssertionError(f"{label}: {error}") from None


# --- Reduce* -------------------------------------------------------------------------------------

NEED_FLOATS = {"ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean"}
REDUCTIONS = sorted(name for name in OWN[""] if name.startswith("Reduce"))


def axes_input(*axes: int) -> Array:
    return np.array(axes, np.int64)


def test_the_family_is_complete() -> None:
    schemas = {s.name for s in onnx.defs.get_all_schemas() if s.name.startswith("Reduce")}
    assert set(REDUCTIONS) == schemas


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions_take_axes_as_an_attribute(operator: str, converted: Any, execute: Any) -> None:
    nodes = Nodes(11, x=np.abs(models.floats(3, 1, 5)) + 0.1)
    nodes.add(operator, ["x"], axes=[-1, 0], keepdims=0)
    nodes.add(operator, ["x"], axes=[-1, 0])
    nodes.add(operator, ["x"], axes=[1], keepdims=1)
    nodes.add(operator, ["x"], keepdims=0)
    nodes.check(converted, execute)


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions_take_axes_as_an_input(operator: str, converted: Any, execute: Any) -> None:
    nodes = Nodes(18, x=np.abs(models.floats(3, 1, 5)) + 0.1)
    nodes.add(operator, ["x", axes_input(-2, 2)], keepdims=0)
    nodes.add(operator, ["x", axes_input(2)], keepdims=1)
    nodes.add(operator, ["x", axes_input()], keepdims=0)  # empty: all of them
    nodes.add(operator, ["x", axes_input()], noop_with_empty_axes=1)
    nodes.add(operator, ["x"], keepdims=0, noop_with_empty_axes=1)
    nodes.add(operator, ["x", ""])
    nodes.check(converted, execute)


def test_reduce_sum_had_the_input_first(converted: Any, execute: Any) -> None:
    nodes = Nodes(13, x=models.floats(3, 4, 5))
    nodes.add("ReduceSum", ["x", axes_input(1)], keepdims=0)
    nodes.add("ReduceSum", ["x"])
    nodes.add("ReduceMax", ["x"], axes=[1], keepdims=0)
    nodes.check(converted, execute)


def test_reductions_of_a_scalar_are_its_own_terms(converted: Any, execute: Any) -> None:
    nodes = Nodes(18, x=np.array(1.7, np.float32))
    for operator in REDUCTIONS:
        if operator != "ReduceLogSumExp":  # the reference evaluator fails on it; the value is x
            nodes.add(operator, ["x"])
            nodes.add(operator, ["x", axes_input()], keepdims=0)
    nodes.check(converted, execute)
    lone = Nodes(18, x=np.array(1.7, np.float32))
    lone.add("ReduceLogSumExp", ["x"])
    (value,) = execute(converted(lone.model()), lone.inputs).values()
    assert (value.shape, value.dtype) == ((), np.float32)
    np.testing.assert_allclose(value, 1.7, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_reductions_of_integers(dtype: str, converted: Any, execute: Any) -> None:
    array = models.rng(1).integers(-4, 5, (3, 2, 3)).astype(dtype)
    nodes = Nodes(13, x=array)
    for operator in set(REDUCTIONS) - NEED_FLOATS - {"ReduceSum"}:
        nodes.add(operator, ["x"], axes=[0, 2], type=onnx_type(array))
    nodes.add("ReduceSum", ["x", axes_input(0, 2)], type=onnx_type(array))
    nodes.check(converted, execute)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_roots_and_logarithms_of_integers_are_cut_to_integers(
    dtype: str, converted: Any, execute: Any
) -> None:
    array = np.array([[3, 4, 12], [1, 2, 7]], dtype)
    nodes = Nodes(18, x=array)
    for operator in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp"):
        nodes.add(operator, ["x", axes_input(1)], keepdims=0, type=onnx_type(array))
    values = list(execute(converted(nodes.model()), nodes.inputs).values())
    exact = [np.sqrt((array**2).sum(1)), np.log(array.sum(1)), np.log(np.exp(array).sum(1))]
    for ours, wanted in zip(values, exact, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, np.trunc(wanted))


def test_large_values_do_not_overflow_on_the_way(converted: Any, execute: Any) -> None:
    nodes = Nodes(18, x=np.array([[300.0, 301.0], [-300.0, -300.0]], np.float32))
    nodes.add("ReduceLogSumExp", ["x", axes_input(1)])
    nodes.check(converted, execute)


def test_axes_that_are_computed_at_run_time_are_refused(converted: Any) -> None:
    nodes = [node("Add", ["a", "a"], ["b"]), node("ReduceSum", ["x", "b"], ["y"], "sum")]
    types = {"a": TensorProto.INT64}
    proto = models.model(nodes, {"x": [3, 5], "a": [1]}, ["y"], types=types)
    with pytest.raises(ModelError, match=r"node 'sum' .*decides a shape is not a constant"):
        converted(proto)


# --- the others ----------------------------------------------------------------------------------


def test_gelu_has_two_forms(converted: Any, execute: Any) -> None:
    for dtype in (np.float32, np.float64):
        nodes = Nodes(20, x=(models.floats(3, 7) * 3).astype(dtype))
        for attributes in ({}, {"approximate": "none"}, {"approximate": "tanh"}):
            nodes.add("Gelu", ["x"], type=onnx_type(nodes.inputs["x"]), **attributes)
        nodes.check(converted, execute)


def test_clip_gives_the_upper_end_where_its_ends_are_crossed(converted: Any, execute: Any) -> None:
    low, high = np.float32(0.5), np.float32(-0.5)
    nodes = Nodes(13, x=models.floats(3, 5), n=np.arange(-7, 8) << 40, low=low)
    nodes.add("Clip", ["x", low, high])
    nodes.add("Clip", ["x", high, low])
    nodes.add("Clip", ["x", "low", high])
    nodes.add("Clip", ["x", "", low])
    nodes.add("Clip", ["x", high])
    nodes.add("Clip", ["n", np.int64(3), np.int64((1 << 62) + 1)], type=TensorProto.INT64)
    nodes.add("Clip", ["n", np.int64(3), np.int64(-3)], type=TensorProto.INT64)
    nodes.check(converted, execute)
    nodes = Nodes(6, x=models.floats(3, 5))
    nodes.add("Clip", ["x"], min=-0.25, max=0.5)
    nodes.add("Clip", ["x"], max=0.5)
    nodes.check(converted, execute)


@pytest.mark.parametrize(
    ("axis", "shape"), [(-1, (2, 3, 5)), (1, (2, 3, 5)), (0, (3, 5)), (-2, (4, 1, 7))]
)
def test_layer_norm_has_up_to_three_outputs(
    axis: int, shape: tuple[int, ...], converted: Any, execute: Any
) -> None:
    nodes = Nodes(17, x=models.floats(*shape))
    scale, bias = models.floats(*shape[axis:], seed=1), models.floats(*shape[axis:], seed=2)
    nodes.add("LayerNormalization", ["x", scale, bias], axis=axis)
    nodes.add("LayerNormalization", ["x", scale], axis=axis, epsilon=1e-1)
    nodes.add("LayerNormalization", ["x", scale, bias], 3, axis=axis)
    nodes.add("LayerNormalization", ["x", scale, bias], 3, kept=[0, 2], axis=axis)
    nodes.add("LayerNormalization", ["x", scale], 2, axis=axis)
    nodes.check(converted, execute)


def test_split_takes_sizes_as_an_attribute(converted: Any, execute: Any) -> None:
    nodes = Nodes(11, x=models.floats(3, 7, 2))
    nodes.add("Split", ["x"], 3, axis=1, split=[1, 4, 2])
    nodes.add("Split", ["x"], 3, kept=[0, 2], axis=-2, split=[1, 4, 2])
    nodes.add("Split", ["x"], 3)
    nodes.add("Split", ["x"], 2, axis=-1)
    nodes.add("Split", ["x"], 1, axis=1)
    nodes.check(converted, execute)


def test_split_takes_sizes_as_an_input(converted: Any, execute: Any) -> None:
    nodes = Nodes(13, x=models.floats(3, 7))
    nodes.add("Split", ["x", axes_input(5, 2)], 2, axis=1)
    nodes.add("Split", ["x", axes_input(3)], 1)
    nodes.add("Split", ["x", axes_input(1, 1, 1)], 3)
    nodes.check(converted, execute)


def test_split_takes_a_count_the_last_part_smaller(converted: Any, execute: Any) -> None:
    nodes = Nodes(18, x=models.floats(2, 7))
    nodes.add("Split", ["x"], 3, axis=1, num_outputs=3)
    nodes.add("Split", ["x"], 4, axis=-1, num_outputs=4)
    nodes.add("Split", ["x"], 2, axis=0, num_outputs=2)
    nodes.add("Split", ["x"], 1, axis=1, num_outputs=1)
    nodes.check(converted, execute)


def test_split_keeps_integers(converted: Any, execute: Any) -> None:
    nodes = Nodes(13, x=np.arange(12).reshape(3, 4))
    nodes.add("Split", ["x"], 2, axis=1, type=TensorProto.INT64)
    nodes.check(converted, execute)


def test_split_sizes_must_add_up(converted: Any) -> None:
    proto = models.model(
        [node("Split", ["x", "s"], ["a", "b"], "cut")], {"x": [7, 2]}, ["a", "b"],
        {"s": axes_input(5, 3)},
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"node 'cut' .*\[5, 3\] do not add up to 7"):
        converted(proto)


PRODUCTS = [
    ((5,), (5,)), ((5,), (5, 3)), ((3, 5), (5,)), ((3, 5), (5, 7)), ((1, 1), (1, 1)),
    ((2, 3, 5), (5, 7)), ((2, 3, 5), (5,)), ((5,), (2, 5, 3)), ((2, 3, 5), (2, 5, 7)),
    ((4, 1, 3, 5), (2, 5, 7)), ((1, 3, 5), (4, 5, 2)), ((2, 1, 3, 5), (1, 4, 5, 1)),
    ((3, 5), (2, 5, 7)), ((2, 3, 4, 5), (5,)), ((2, 3, 4, 5), (5, 1)),
]  # fmt: skip


@pytest.mark.parametrize("weight", ["none", "left", "right"])
def test_matmul_is_numpys(weight: str, converted: Any, execute: Any) -> None:
    operands = {}
    for k, (a, b) in enumerate(PRODUCTS):
        operands[f"a{k}"] = models.floats(*a, seed=k)
        operands[f"b{k}"] = models.floats(*b, seed=50 + k)
    side = {"none": "", "left": "a", "right": "b"}[weight]
    given = {name: array for name, array in operands.items() if name[0] != side}
    nodes = Nodes(17, **given)
    for k in range(len(PRODUCTS)):
        left, right = f"a{k}", f"b{k}"
        nodes.add("MatMul", [left if left in given else operands[left],
                             right if right in given else operands[right]])  # fmt: skip
    nodes.check(converted, execute)


@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_matmul_of_other_types(dtype: str, converted: Any, execute: Any) -> None:
    nodes = Nodes(
        17, a=(models.floats(3, 5) * 5).astype(dtype), b=(models.floats(2, 5, 3) * 5).astype(dtype)
    )
    kind = onnx_type(nodes.inputs["a"])
    nodes.add("MatMul", ["a", "b"], type=kind)
    nodes.add("MatMul", ["a", np.arange(10).reshape(5, 2).astype(dtype)], type=kind)
    nodes.check(converted, execute)


def test_a_product_with_a_weight_is_one_dense(converted: Any) -> None:
    nodes = Nodes(17, x=models.floats(2, 3, 5))
    nodes.add("MatMul", ["x", models.floats(5, 7)])
    names = [call.op.name for call in calls_of(converted(nodes.model()).module)]
    assert names.count("nn.dense") == 1
    assert "nn.batch_matmul" not in names


CASTS = {
    "float32": ["int8", "uint8", "int32", "int64", "uint32", "float16", "float64", "bool"],
    "float64": ["float32", "int64"],
    "float16": ["float32", "int32"],
    "int64": ["float32", "int32", "bool", "uint8"],
    "int32": ["float32", "int64"],
    "uint8": ["float32", "int8", "int32"],
    "bool": ["float32", "int64"],
}


@pytest.mark.parametrize("source", CASTS)
def test_casts(source: str, converted: Any, execute: Any) -> None:
    values = np.array([[0, 1, 2.75], [3.2, 100.9, 5.5]])
    if source not in ("uint8", "bool"):
        values = np.concatenate([values, -values])
    nodes = Nodes(13, x=values.astype(source))
    for target in CASTS[source]:
        kind = int(helper.np_dtype_to_tensor_dtype(np.dtype(target)))
        # A negative float is no unsigned number: what comes of it is nobody's promise.
        if target[0] == "u" and source.startswith("float"):
            nodes.inputs["x"] = np.abs(nodes.inputs["x"])
        nodes.add("Cast", ["x"], to=kind, type=kind)
    nodes.check(converted, execute)


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.FLOAT8E4M3FN])
def test_types_that_no_kernel_has_are_refused(kind: int, converted: Any) -> None:
    proto = models.model([node("Cast", ["x"], ["y"], "c", to=kind)], {"x": [2]}, ["y"], opset=19)
    with pytest.raises(ModelError, match=r"node 'c' \(ai\.onnx::Cast-19\).* is not supported"):
        converted(proto)


@pytest.mark.parametrize("opset", [7, 11, 13])
def test_dropout_does_nothing_at_inference(opset: int, converted: Any, execute: Any) -> None:
    """Old exporters name the mask as well, though nobody reads it."""
    x = models.floats(3, 5)
    ratio = {"ratio": 0.4} if opset < 12 else {}
    nodes = Nodes(opset, x=x)
    nodes.add("Dropout", ["x"], **ratio)
    nodes.add("Dropout", ["x"], 2, **ratio)
    if opset >= 12:
        nodes.add("Dropout", ["x", np.array(0.4, np.float32)])
    proto = nodes.model()
    masks = [output for output in proto.graph.output if output.name == "y1_1"]
    for mask in masks:
        proto.graph.output.remove(mask)
    ours = execute(converted(proto), {"x": x})
    assert len(ours) == len(proto.graph.output)
    for array in ours.values():
        np.testing.assert_array_equal(array, x)


def test_a_dropout_mask_keeps_everything(converted: Any, execute: Any) -> None:
    types = {"m": TensorProto.BOOL}
    proto = models.model(
        [node("Dropout", ["x"], ["y", "m"])], {"x": [3, 5]}, ["y", "m"], types=types
    )
    ours = execute(converted(proto), {"x": models.floats(3, 5)})
    assert ours["m"].dtype == bool
    assert ours["m"].shape == (3, 5)
    assert ours["m"].all()


# --- the converter as a whole --------------------------------------------------------------------


def test_constants_of_every_form(converted: Any, execute: Any) -> None:
    nodes = [
        node("Constant", [], ["f"], value_float=2.5),
        node("Constant", [], ["fs"], value_floats=[1.0, 2.0, 3.0]),
        node("Constant", [], ["i"], value_int=1),
        node("Constant", [], ["is"], value_ints=[3, 2]),
        node("Constant", [], ["t"], value=numpy_helper.from_array(models.floats(2, 1))),
        node("Mul", ["x", "f"], ["a"]), node("Add", ["a", "fs"], ["b"]), node("Sub", ["b", "t"], ["c"]),
        node("Gather", ["c", "i"], ["d"], axis=0), node("Reshape", ["c", "is"], ["e"]),
    ]  # fmt: skip
    proto = models.model(nodes, {"x": [2, 3]}, ["d", "e"])
    feed = {"x": models.floats(2, 3, seed=5)}
    assert_same(execute(converted(proto), feed), reference(proto, feed))


def test_a_constant_of_text_is_refused(converted: Any) -> None:
    nodes = [node("Constant", [], ["s"], "words", value_string="a"), node("Relu", ["x"], ["y"])]
    with pytest.raises(ModelError, match=r"node 'words' .*form 'value_string' is not supported"):
        converted(models.model(nodes, {"x": [2]}, ["y"]))


def test_the_signature_is_the_files(converted: Any) -> None:
    nodes = [node("Cast", ["größe:0"], ["n"], to=TensorProto.INT64), node("Relu", ["b"], ["out/1"])]
    types = {"n": TensorProto.INT64, "b": TensorProto.DOUBLE, "out/1": TensorProto.DOUBLE}
    inputs: Mapping[str, Sequence[int]] = {"größe:0": [], "b": [3, 5]}
    model = converted(models.model(nodes, dict(inputs), ["out/1", "n"], types=types))
    assert [str(spec) for spec in model.signature.inputs] == [
        "größe:0 float32[]",
        "b float64[3, 5]",
    ]
    assert [str(spec) for spec in model.signature.outputs] == ["out/1 float64[3, 5]", "n int64[]"]
    assert [p.name_hint for p in model.module["main"].params] == ["input0", "input1"]
    assert (model.source.nodes, model.source.opset) == (2, 17)


def test_an_output_that_nothing_computes_is_named(tmp_path: Any, tvm: Any) -> None:
    from mlc.frontend.onnx_file import OnnxFile

    proto = models.model([node("Relu", ["x"], ["y"])], {"x": [2]}, ["nowhere"])
    file = OnnxFile(path=tmp_path / "m.onnx", proto=proto, weights={}, sha256="", size=0)
    with pytest.raises(ModelError, match="output 'nowhere' is computed by no node"):
        convert.convert(file)


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.COMPLEX64])
def test_an_input_of_another_type_is_refused(kind: int, converted: Any) -> None:
    types = {"x": kind, "y": kind}
    with pytest.raises(ModelError, match=r"an input has the element type .* not supported"):
        converted(models.model([node("Identity", ["x"], ["y"])], {"x": [2]}, ["y"], types=types))


def test_an_output_whose_shape_depends_on_values_is_refused(converted: Any) -> None:
    types = {"y": TensorProto.INT64}
    proto = models.model([node("NonZero", ["x"], ["y"])], {"x": [3, 5]}, ["y"], types=types)
    with pytest.raises(ModelError, match="shape of output 'y' depends on the input's values"):
        converted(proto)


@pytest.mark.parametrize("name", ["product", ""])
def test_a_wrong_shape_is_told_with_its_node(name: str, compiled: Any) -> None:
    weights = {"w": models.floats(40, 41)}
    nodes = [node("Relu", ["x"], ["r"], "relu"), node("MatMul", ["r", "w"], ["y"], name)]
    proto = models.model(nodes, {"x": ["batch", "width"]}, ["y"], weights)
    assert compiled(proto, shapes=("batch=3", "width=40")).manifest["signature"]["outputs"][0][
        "shape"
    ] == [3, 41]
    with pytest.raises(ModelError) as caught:
        compiled(proto, shapes=("batch=3", "width=39"))
    label = repr(name) if name else "'#1'"
    assert caught.value.message.startswith(f"node {label} (ai.onnx::MatMul-17) cannot be converted")
    assert "--shape" in (caught.value.hint or "")


def test_the_cost_of_a_node_does_not_grow_with_the_graph(converted: Any, monkeypatch: Any) -> None:
    """TVM's importer infers types over the whole graph built so far, for every node."""
    from tvm import relay

    sizes: list[int] = []
    original = relay.transform.InferType

    def counted() -> Any:
        def run(module: Any) -> Any:
            sizes.append(len(calls_of(module)))
            return original()(module)

        return run

    nodes = [node("Relu", [f"x{k}"], [f"x{k + 1}"]) for k in range(30)]
    proto = models.model(nodes, {"x0": [3]}, ["x30"])
    monkeypatch.setattr(relay.transform, "InferType", counted)
    converted(proto)
    assert max(sizes) == 30  # once, at the end
    assert sorted(sizes)[-2] <= 1
