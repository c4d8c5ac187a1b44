"""Quantised models: products of dequantised values become integer products, rescaled afterwards.

Quantizers write an 8-bit network as float operators between DequantizeLinear and QuantizeLinear.
With x = s_x (q_x - z_x) and w = s_w (q_w - z_w) a convolution or matrix product is

    sum x w = s_x s_w sum (q_x - z_x) (q_w - z_w)

whose sum is exact in 32-bit integers (Jacob et al. 2018, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", section 2.2). So the weights stay in 8
bits. Scales must be constants, one per tensor for the data and one per tensor or per output channel
for the weights; other products are left as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.frontend.onnx_file import OnnxFile

Array = np.ndarray[Any, Any]
_BYTES = frozenset({np.dtype(np.int8), np.dtype(np.uint8)})


class _Quantized(NamedTuple):
    """What a DequantizeLinear reads: names of data and zero point, the scale, its axis."""

    data: str
    zero: str
    scale: Array
    axis: int


def to_integers(file: OnnxFile) -> OnnxFile:
    """Return the file with Conv, Gemm and MatMul of dequantised bytes computed in integers."""
    if not any(node.op_type == "DequantizeLinear" for node in file.proto.graph.node):
        return file
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    rewriter = _Rewriter(proto, file.weights)
    for node in file.proto.graph.node:
        rewriter.visit(node)
    del proto.graph.node[:]
    proto.graph.node.extend(rewriter.live())
    proto.graph.initializer.extend(rewriter.constants)
    return replace(file, proto=proto)


class _Rewriter:
    def __init__(self, proto: Any, weights: dict[str, Array]):
        self.graph = proto.graph
        self.arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} | weights
        self.quantized: dict[str, _Quantized] = {}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def visit(self, node: Any) -> None:
        if node.op_type == "DequantizeLinear":
            self._remember(node)
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is not None:
            left, right = (self.quantized.get(name) for name in node.input[:2])
            if left is not None and right is not None and rule(self, node, left, right):
                return
        self.nodes.append(node)

    def _remember(self, node: Any) -> None:
        data, scale, zero = [*node.input, ""][:3]
        attributes = {a.name: a.i for a in node.attribute}
        known = self.arrays.get(scale)
        zeros = self.arrays.get(zero)
        if known is None or zeros is None or zeros.dtype not in _BYTES or known.ndim > 1:
            return
        if known.dtype == np.float32 and not attributes.get("block_size", 0):
            axis = attributes.get("axis", 1) if known.size > 1 else -1
            self.quantized[node.output[0]] = _Quantized(data, zero, known, axis)

    def product(self, node: Any, operator: str, inputs: list[str], scale: Array, bias: str) -> None:
        """Append an integer product, its rescaling and a bias, which ends in the node's output."""
        name = node.output[0]
        total, single, factor = (f"{name}/mlc.{part}" for part in ("total", "float", "scale"))
        kept = [a for a in node.attribute if operator == "ConvInteger"]
        product = helper.make_node(operator, inputs, [total], node.name)
        product.attribute.extend(kept)
        self.constants.append(numpy_helper.from_array(scale, factor))
        scaled = f"{name}/mlc.scaled" if bias else name
        self.nodes += [
            product,
            helper.make_node("Cast", [total], [single], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [single, factor], [scaled]),
        ]
        if bias:
            self.nodes.append(helper.make_node("Add", [scaled, bias], [name]))

    def live(self) -> list[Any]:
        """Return the nodes without the DequantizeLinear that nobody reads any more."""
        used = {name for node in self.nodes for name in node.input}
        used |= {info.name for info in self.graph.output}
        return [n for n in self.nodes if n.op_type != "DequantizeLinear" or n.output[0] in used]


def _conv(to: _Rewriter, node: Any, x: _Quantized, w: _Quantized) -> bool:
    if x.scale.size > 1 or (w.scale.size > 1 and w.axis != 0):
        return False
    bias = node.input[2] if len(node.input) > 2 else ""
    weight = to.arrays.get(w.data)
    if weight is None:
        return False
    spread = [-1] + [1] * (weight.ndim - 2)
    scale = (x.scale.reshape(-1) * w.scale.reshape(-1)).reshape(spread)
    if bias:
        shaped = f"{node.output[0]}/mlc.bias"
        shape = numpy_helper.from_array(np.array(spread), f"{shaped}.shape")
        to.constants.append(shape)
        to.nodes.append(helper.make_node("Reshape", [bias, shape.name], [shaped]))
        bias = shaped
    to.product(node, "ConvInteger", [x.data, w.data, x.zero, w.zero], scale, bias)
    return True


def _matmul(to: _Rewriter, node: Any, a: _Quantized, b: _Quantized) -> bool:
    """Scales per column need a weight of rank 2, whose columns are its axis 1."""
    if a.scale.size > 1 or (b.scale.size > 1 and not _is_columns(to, b, 1)):
        return False
    scale = a.scale.reshape(-1) * b.scale.reshape(-1)
    to.product(node, "MatMulInteger", [a.data, b.data, a.zero, b.zero], scale, "")
    return True


def _gemm(to: _Rewriter, node: Any, a: _Quantized, b: _Quantized) -> bool:
    given = {k.name: helper.get_attribute_value(k) for k in node.attribute}
    turned = bool(given.get("transB", 0))
    plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
    if not plain or a.scale.size > 1 or (b.scale.size > 1 and not _is_columns(to, b, 1 - turned)):
        return False
    right = b.data
    if turned:
        right = f"{node.output[0]}/mlc.turned"
        to.nodes.append(helper.make_node("Transpose", [b.data], [right], perm=[1, 0]))
    bias = node.input[2] if len(node.input) > 2 else ""
    scale = a.scale.reshape(-1) * b.scale.reshape(-1)
    to.product(node, "MatMulInteger", [a.data, right, a.zero, b.zero], scale, bias)
    return True


def _is_columns(to: _Rewriter, weight: _Quantized, axis: int) -> bool:
    array = to.arrays.get(weight.data)
    return array is not None and array.ndim == 2 and weight.axis % 2 == axis


_RULES: dict[str, Callable[[_Rewriter, Any, _Quantized, _Quantized], bool]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
