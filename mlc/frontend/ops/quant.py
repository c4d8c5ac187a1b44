"""Quantised operators, in plain integer and float arithmetic.

Source: onnx/docs/Operators.md (QuantizeLinear-10 to -25, DequantizeLinear, QLinearConv-10,
QLinearMatMul-10 and -21, ConvInteger-10, MatMulInteger-10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.frontend.ops.arith import round_even
from mlc.frontend.ops.conv import convolve
from mlc.frontend.ops.linear import matmul
from mlc.frontend.ops.operands import dtype_named, dtype_of, fixed, optional, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def quantize(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QuantizeLinear: saturate(round(x / scale) + zero point), halves to even."""
    data, scale, zero = inputs[0], inputs[1], optional(inputs, 2)
    target = "uint8"
    if zero is not None:
        target = dtype_of(zero)
    elif attributes.get("output_dtype", 0):
        target = dtype_named(attributes["output_dtype"])
    shape = shape_of(data)
    zero = None if zero is None else _spread(zero, shape, attributes)
    return _quantized(data, _spread(scale, shape, attributes), zero, target)


def _quantized(data: Any, scale: Any, zero: Any, target: str) -> Any:
    from tvm import relay

    kind = "float64" if dtype_of(data) == "float64" else "float32"
    value = round_even(relay.cast(data, kind) / relay.cast(scale, kind))
    if zero is not None:
        value = value + relay.cast(zero, kind)
    bounds = np.iinfo(target)
    return relay.cast(relay.clip(value, float(bounds.min), float(bounds.max)), target)


def dequantize(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """DequantizeLinear: (x - zero point) scale."""
    from tvm import relay

    data, scale, zero = inputs[0], inputs[1], optional(inputs, 2)
    shape, target = shape_of(data), dtype_of(scale)
    if attributes.get("output_dtype", 0):
        target = dtype_named(attributes["output_dtype"])
    value = relay.cast(data, "int32")
    if zero is not None:
        value = value - relay.cast(_spread(zero, shape, attributes), "int32")
    scaled = relay.cast(value, "float32") * relay.cast(_spread(scale, shape, attributes), "float32")
    return scaled if target == "float32" else relay.cast(scaled, target)


def _spread(value: Any, shape: Sequence[int], attributes: dict[str, Any]) -> Any:
    """Return a scale or zero point (one, one per element of the axis, one per block) to multiply."""
    from tvm import relay

    own = shape_of(value)
    if int(np.prod(own)) == 1:
        return relay.reshape(value, [])
    axis = attributes.get("axis", 1) % len(shape)
    if len(own) == 1:
        return relay.reshape(value, [-1 if k == axis else 1 for k in range(len(shape))])
    block = attributes.get("block_size", 0) or -(-shape[axis] // own[axis])
    return relay.take(value, fixed(np.arange(shape[axis]) // block), axis=axis)


def qlinear_matmul(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QLinearMatMul: the integer product, rescaled; per row on the left, per column on the right."""
    from tvm import relay

    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs

    def per_row(value: Any) -> Any:
        rows = len(shape_of(value)) == 1 and shape_of(value)[0] > 1
        return relay.expand_dims(value, 1) if rows else value

    left = relay.cast(a, "int32") - relay.cast(per_row(a_zero), "int32")
    right = relay.cast(b, "int32") - relay.cast(b_zero, "int32")
    total = relay.cast(matmul([left, right], attributes), "float32")
    scale = relay.cast(per_row(a_scale), "float32") * relay.cast(b_scale, "float32")
    y_scale = relay.cast(y_scale, "float32")
    return _quantized(total, per_row(y_scale) / scale, per_row(y_zero), dtype_of(y_zero))


def matmul_integer(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """MatMulInteger-10: (a - zero point) times (b - zero point) in 32 bits; per row, per column."""
    from tvm import relay

    sides = [relay.cast(value, "int32") for value in inputs[:2]]
    for side, axis in ((0, 1), (1, 0)):
        zero = optional(inputs, 2 + side)
        if zero is not None:
            many = len(shape_of(zero)) == 1 and shape_of(zero)[0] > 1
            zero = relay.expand_dims(zero, axis) if many else zero
            sides[side] = sides[side] - relay.cast(zero, "int32")
    return matmul(sides, attributes)


def conv_integer(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """ConvInteger: (x - zero point) convolved with (w - zero point), in 32 bits."""
    return _convolved(inputs[0], inputs[1], optional(inputs, 2), optional(inputs, 3), attributes)


def qlinear_conv(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QLinearConv: the integer convolution plus bias, rescaled; weights per output channel."""
    from tvm import relay

    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = inputs[:8]
    bias = optional(inputs, 8)
    total = _convolved(x, w, x_zero, w_zero, attributes)
    if bias is not None:
        total = relay.nn.bias_add(total, bias)
    scale = _per_channel(w_scale, len(shape_of(w)), 1) * relay.reshape(x_scale, [])
    ratio = relay.reshape(y_scale, []) / scale
    return _quantized(total, ratio, relay.reshape(y_zero, []), dtype_of(y_zero))


def _convolved(x: Any, w: Any, x_zero: Any, w_zero: Any, attributes: dict[str, Any]) -> Any:
    from tvm import relay

    data, weight = relay.cast(x, "int32"), relay.cast(w, "int32")
    if x_zero is not None:  # before padding: the padding's value is the zero point
        data = data - relay.reshape(relay.cast(x_zero, "int32"), [])
    if w_zero is not None:
        weight = weight - _per_channel(relay.cast(w_zero, "int32"), len(shape_of(w)), 0)
    return convolve(data, weight, attributes, "int32")


def _per_channel(value: Any, rank: int, axis: int) -> Any:
    from tvm import relay

    if int(np.prod(shape_of(value))) == 1:
        return relay.reshape(value, [])
    return relay.reshape(value, [-1 if k == axis else 1 for k in range(rank)])
