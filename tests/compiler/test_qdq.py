"""Quantised models stay integer: products of 8-bit values are summed up in 32 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mlc.events import ignore
from mlc.frontend import load as imports
from mlc.frontend import onnx_file
from mlc.frontend.qdq import to_integers
from tests import models
from tests.compiler.conftest import assert_same, calls_of, reference

f = models.floats
node = helper.make_node
PRODUCTS = ("nn.conv1d", "nn.conv2d", "nn.dense", "nn.batch_matmul")


def products(proto: onnx.ModelProto, folder: Path) -> list[str]:
    """Return the result types of the products in the imported model."""
    path = models.save(proto, folder, "imported.onnx")
    model = imports.load(onnx_file.read(path), (), ignore)
    calls = [call for name in PRODUCTS for call in calls_of(model.module, name)]
    for call in calls:
        assert {str(arg.checked_type.dtype) for arg in call.args} == {str(call.checked_type.dtype)}
    return [str(call.checked_type.dtype) for call in calls]


KINDS = {"one scale": ("QUInt8", False), "scales per channel": ("QInt8", True)}


@pytest.mark.parametrize("name", KINDS)
def test_a_quantised_network_is_computed_in_integers(
    name: str, tmp_path: Path, compiled: Any
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType

    kind, per_channel = KINDS[name]
    proto = models.quantised(
        models.conv_net(12, 13), tmp_path, quant_format=QuantFormat.QDQ, per_channel=per_channel,
        activation_type=QuantType[kind], weight_type=QuantType.QInt8,
    )  # fmt: skip
    assert products(proto, tmp_path) == ["int32"] * 3  # two convolutions, one dense
    made = compiled(proto, verify=True)
    assert made.manifest["verification"]["passed"]


def test_operators_that_quantise_as_they_run(tmp_path: Path, compiled: Any) -> None:
    from onnxruntime.quantization import quantize_dynamic

    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["r"]),
             node("MatMul", ["r", "v"], ["y"])]  # fmt: skip
    proto = models.model(nodes, {"x": [3, 20]}, ["y"], {"w": f(20, 16), "v": f(16, 7, seed=1)})
    source, target = models.save(proto, tmp_path, "float.onnx"), tmp_path / "int8.onnx"
    quantize_dynamic(str(source), str(target))
    proto = onnx.load(target)
    assert products(proto, tmp_path) == ["int32"] * 2
    assert compiled(proto, verify=True).manifest["verification"]["passed"]


def integers(*shape: int, kind: Any = np.int8, seed: int = 0) -> np.ndarray:
    bounds = np.iinfo(kind)
    return np.random.default_rng(seed).integers(bounds.min, bounds.max + 1, shape, kind)


def scales(count: int) -> np.ndarray:
    return np.linspace(0.01, 0.03, count).astype(np.float32)


X = [node("QuantizeLinear", ["x", "sx", "zx"], ["qx"]),
     node("DequantizeLinear", ["qx", "sx", "zx"], ["dx"])]  # fmt: skip
SCALAR = {"sx": np.float32(0.02), "zx": np.uint8(117)}


def weight(array: np.ndarray, axis: int | None, zero: int = 0) -> dict[str, np.ndarray]:
    count = 1 if axis is None else array.shape[axis]
    kind = array.dtype
    if axis is None:
        return {"w": array, "sw": np.float32(0.01), "zw": np.array(zero, kind)}
    return {"w": array, "sw": scales(count), "zw": np.full(count, zero, kind)}


def dequantised(axis: int = 1) -> Any:
    return node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], axis=axis)


CASES = {  # nodes, shape of x, weights: the products in integers
    "padding is the zero point": (
        [dequantised(0), node("Conv", ["dx", "dw", "b"], ["y"], pads=[1, 2, 0, 1], strides=[2, 1])],
        [1, 4, 7, 9], {**weight(integers(6, 4, 3, 3), 0), "b": f(6)}, 1),
    "images of one pixel": (
        [dequantised(0), node("Conv", ["dx", "dw", "b"], ["c"]), node("Relu", ["c"], ["y"])],
        [11, 20, 1, 1], {**weight(integers(48, 20, 1, 1), 0), "b": f(48)}, 1),
    "tails of rows, a residual": (
        [dequantised(0), node("Conv", ["dx", "dw"], ["c"], pads=[1, 1, 1, 1]),
         node("Add", ["c", "dx"], ["y"])], [2, 16, 5, 17], weight(integers(16, 16, 3, 3), 0), 1),
    "groups, dilated, weights off zero": (
        [dequantised(), node("Conv", ["dx", "dw"], ["y"], group=2, dilations=[2])],
        [2, 4, 11], weight(integers(6, 2, 3, kind=np.uint8), None, 130), 2),
    "gemm, turned, per row of the weight": (
        [dequantised(0), node("Gemm", ["dx", "dw", "b"], ["y"], transB=1)],
        [3, 9], {**weight(integers(5, 9), 0), "b": f(5)}, 1),
    "gemm, per column": (
        [dequantised(1), node("Gemm", ["dx", "dw"], ["y"])], [3, 9], weight(integers(9, 5), 1, 3), 1),
    "matmul of more axes": (
        [dequantised(), node("MatMul", ["dx", "dw"], ["y"])],
        [2, 3, 4, 9], weight(integers(9, 5), 1), 1),
    "both computed": (
        [node("Transpose", ["dx"], ["t"], perm=[0, 2, 1]), node("QuantizeLinear", ["t", "sx", "zx"], ["qt"]),
         node("DequantizeLinear", ["qt", "sx", "zx"], ["dt"]), node("MatMul", ["dx", "dt"], ["y"])],
        [2, 3, 8], {}, 1),
    "two readers": (
        [dequantised(), node("MatMul", ["dx", "dw"], ["m"]), node("ReduceSum", ["dx"], ["s"]),
         node("Add", ["m", "s"], ["y"])], [3, 9], weight(integers(9, 5), None), 1),
    "scales along the sum": (
        [dequantised(0), node("MatMul", ["dx", "dw"], ["y"])], [3, 9], weight(integers(9, 5), 0), 0),
    "scaled gemm": (
        [dequantised(), node("Gemm", ["dx", "dw"], ["y"], alpha=0.5)],
        [3, 9], weight(integers(9, 5), None), 0),
    "a float weight": ([node("MatMul", ["dx", "w"], ["y"])], [3, 9], {"w": f(9, 5)}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_products_of_every_form(name: str, tmp_path: Path, compiled: Any) -> None:
    nodes, shape, weights, count = CASES[name]
    proto = models.model([*X, *nodes], {"x": shape}, ["y"], {**SCALAR, **weights}, opset=19)
    assert products(proto, tmp_path).count("int32") == count
    feed = {"x": f(*shape)}
    (ours,) = compiled(proto).run(feed)
    assert_same(ours, reference(proto, feed))


def test_products_of_open_sizes(compiled: Any) -> None:
    nodes = [*X, dequantised(), node("Gemm", ["dx", "dw"], ["y"])]
    weights = {**SCALAR, **weight(integers(12, 8), 1)}
    proto = models.model(nodes, {"x": ["n", 12]}, ["y"], weights, opset=19)
    assert compiled(proto, dynamic=("n",), verify=True).manifest["verification"]["passed"]


def test_a_float_model_is_left_alone(tmp_path: Path) -> None:
    file = onnx_file.read(models.save(models.conv_net(), tmp_path))
    assert to_integers(file) is file
