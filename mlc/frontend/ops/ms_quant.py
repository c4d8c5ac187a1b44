"""Quantised operators of com.microsoft: to floats, the operator, and back to integers.

Source: onnxruntime/docs/ContribOperators.md; compared with ONNX Runtime in the tests. Operands come
as triples (value, scale, zero point).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mlc.errors import ModelError
from mlc.frontend.ops.linear import matmul
from mlc.frontend.ops.ms_matmul import matmul_integer_to_float
from mlc.frontend.ops.operands import dtype_of, number, optional, shape_of
from mlc.frontend.ops.pool import average_pool
from mlc.frontend.ops.quant import dequantize, qlinear_conv, quantize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.frontend.ops.operands import Converter


def binary(operator: str) -> Converter:
    """Return the converter of QLinearAdd or QLinearMul: a, b, and the result's scale and zero."""

    def convert(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        from tvm import relay

        del attributes
        left, right = dequantize(inputs[:3], {}), dequantize(inputs[3:6], {})
        return _back(getattr(relay, operator)(left, right), inputs, 6)

    return convert


def unary(rule: Converter) -> Converter:
    """Return the converter of an operator of one operand, by what it does to floats."""

    def convert(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        return _back(rule([dequantize(inputs[:3], {})], attributes), inputs, 3)

    return convert


def _channels_first(attributes: dict[str, Any]) -> None:
    if attributes.get("channels_last", 0):
        raise ModelError("channels last are not supported")


def _back(value: Any, inputs: Sequence[Any], at: int) -> Any:
    """Quantise to the scale and the zero point at `at`; without one to the first operand's type."""
    zero = optional(inputs, at + 1)
    zero = number(0, inputs[0]) if zero is None else zero
    return quantize([value, inputs[at], zero], {})


def _sigmoid(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    from tvm import relay

    del attributes
    return relay.sigmoid(inputs[0])


def _leaky_relu(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    from tvm import relay

    return relay.nn.leaky_relu(inputs[0], attributes.get("alpha", 0.01))


def _softmax(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    from tvm import relay

    if attributes.get("opset", 13) < 13:
        raise ModelError("a softmax over several axes (opset below 13) is not supported")
    return relay.nn.softmax(inputs[0], attributes.get("axis", -1))


def global_average(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QLinearGlobalAveragePool: the integers' sum, rescaled once, as ONNX Runtime has it."""
    from tvm import relay

    _channels_first(attributes)
    data, scale, zero, y_scale = inputs[:4]
    count = number(math.prod(shape_of(data)[2:]), scale)
    centred = relay.cast(data, "int32") - relay.cast(zero, "int32")
    total = relay.sum(centred, [0, 1], keepdims=True, exclude=True)
    value = relay.cast(total, dtype_of(scale)) * (scale / (y_scale * count))
    return quantize([value, number(1, value), inputs[4]], {})


def average(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QLinearAveragePool: ONNX Runtime adds the zero point before it rounds, which decides ties."""
    from tvm import relay

    _channels_first(attributes)
    value = average_pool([dequantize(inputs[:3], {})], attributes)
    moved = value / inputs[3] + relay.cast(inputs[4], dtype_of(value))
    return quantize([moved, number(1, value), number(0, inputs[4])], {})


sigmoid, leaky_relu, softmax = unary(_sigmoid), unary(_leaky_relu), unary(_softmax)


def concat(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QLinearConcat: the result's scale and zero point first, then triples."""
    from tvm import relay

    parts = [dequantize(inputs[k : k + 3], {}) for k in range(2, len(inputs), 3)]
    return quantize([relay.concatenate(parts, attributes["axis"]), *inputs[:2]], {})


def where(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QLinearWhere: a condition, two triples, and the result's scale and zero point."""
    from tvm import relay

    del attributes
    parts = [dequantize(inputs[k : k + 3], {}) for k in (1, 4)]
    return quantize([relay.where(inputs[0], *parts), *inputs[7:9]], {})


def gemm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QGemm: alpha times the integers' product plus c, rescaled; floats without a result's scale."""
    from tvm import relay

    a, a_scale, a_zero, b, b_scale, b_zero = inputs[:6]
    a = relay.transpose(a) if attributes.get("transA", 0) else a
    b = relay.transpose(b) if attributes.get("transB", 0) else b
    sides = [
        relay.cast(value, "int32") - relay.cast(zero, "int32")
        for value, zero in ((a, a_zero), (b, b_zero))
    ]
    total = matmul(sides, attributes)
    if optional(inputs, 6) is not None:  # its scale is alpha times both others
        total = total + inputs[6]
    scale = a_scale * b_scale
    out = relay.cast(total, dtype_of(scale)) * scale * number(attributes.get("alpha", 1.0), scale)
    return out if optional(inputs, 7) is None else quantize([out, *inputs[7:9]], {})


def conv(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QLinearConv, as in ONNX but for the layout."""
    _channels_first(attributes)
    return qlinear_conv(inputs, attributes)


def attention_projection(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Return query, key and value of QAttention: the product of integers, in floats, plus bias."""
    data, weights, bias, scale, weight_scale = inputs[:5]
    zeros = [optional(inputs, 6), optional(inputs, 7)]
    return matmul_integer_to_float([data, weights, scale, weight_scale, *zeros, bias], attributes)
