"""Arithmetic where TVM's converter is missing, wrong or partial.

Source: onnx/docs/Operators.md, by version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.operands import (
    constant,
    dtype_of,
    integers,
    number,
    optional,
    shape_of,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def round_even(x: Any) -> Any:
    """Return x rounded to integers, halves to the even one; a zero keeps the sign of x."""
    from mlc.schedules import operator, rounding

    return operator.call(rounding.NAME, [x])


def mod(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Mod-10 to -28: the sign of the divisor, or with `fmod` that of the dividend."""
    from tvm import relay

    left, right = inputs
    rest = relay.mod(left, right)  # as in C, integers and floats alike
    if attributes.get("fmod", 0) or dtype_of(left).startswith("uint"):
        return rest
    zero = number(0, rest)
    differ = relay.not_equal(relay.less(rest, zero), relay.less(right, zero))
    return relay.where(relay.logical_and(differ, relay.not_equal(rest, zero)), rest + right, rest)


def bit_shift(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """BitShift-11 to -28: shifting out of range leaves the sign (right) or nothing (left)."""
    from tvm import relay

    data, shift = inputs
    dtype = dtype_of(data)
    bits = np.iinfo(dtype).bits
    good = relay.less(shift, number(bits, shift))
    if not dtype.startswith("uint"):
        good = relay.logical_and(good, relay.greater_equal(shift, number(0, shift)))
    safe = relay.where(good, shift, number(0, shift))
    if text(attributes, "direction", "") == "LEFT":
        return relay.where(good, relay.left_shift(data, safe), number(0, data))
    out = number(0, data)
    if not dtype.startswith("uint"):
        out = relay.where(relay.less(data, out), number(-1, data), out)
    return relay.where(good, relay.right_shift(data, safe), out)


def cumulative(name: str) -> Any:
    """Return the converter of CumSum-11 and -14, or of CumProd-26."""

    def convert(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        from tvm import relay

        data = inputs[0]
        axis = integers(inputs[1])[0] % len(shape_of(data))
        back = attributes.get("reverse", 0)
        exclusive = bool(attributes.get("exclusive", 0))
        value = relay.reverse(data, axis) if back else data
        value = getattr(relay, name)(value, axis, dtype_of(data), exclusive)
        return relay.reverse(value, axis) if back else value

    return convert


def lp_normalization(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """LpNormalization-1 to -22: x / norm along an axis, and 0 where the norm is 0."""
    from tvm import relay

    data, axis, p = inputs[0], attributes.get("axis", -1), attributes.get("p", 2)
    if p not in (1, 2):
        raise ModelError(f"p={p} is not supported, only 1 and 2 are")
    norm = relay.sum(relay.abs(data) if p == 1 else data * data, [axis], True)
    norm = norm if p == 1 else relay.sqrt(norm)
    return relay.where(relay.equal(norm, number(0, norm)), relay.zeros_like(data), data / norm)


def softplus(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Softplus-1 to -22: ln(exp(x) + 1), without overflow on the way."""
    from tvm import relay

    del attributes
    x = inputs[0]
    d = relay.exp(relay.negative(relay.abs(x)))
    # log(1 + d) loses the digits of a small d: there its series, to 9 digits.
    third = number(1 / 3, x) - d * number(0.25, x)
    series = d * (number(1, x) - d * (number(0.5, x) - d * third))
    small = relay.where(d < number(0.01, x), series, relay.log(number(1, x) + d))
    return relay.maximum(x, number(0, x)) + small


def det(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Det-11 to -22 of matrices up to 4 by 4, by expansion along the first row."""
    from tvm import relay

    del attributes
    data = inputs[0]
    size = shape_of(data)[-1]
    if size > 4:
        raise ModelError(f"the determinant of {size} by {size} matrices is not supported")

    def element(row: int, column: int) -> Any:
        return relay.take(relay.take(data, relay.const(row), axis=-2), relay.const(column), axis=-1)

    def minor(row: int, columns: tuple[int, ...]) -> Any:
        if not columns:
            return number(1, data)
        total = None
        for k, column in enumerate(columns):
            rest = minor(row + 1, columns[:k] + columns[k + 1 :])
            part = element(row, column) * rest
            part = relay.negative(part) if k % 2 else part
            total = part if total is None else total + part
        return total

    return minor(0, tuple(range(size)))


def binarizer(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """ai.onnx.ml Binarizer-1: 1 above the threshold, else 0."""
    from tvm import relay

    data = inputs[0]
    return relay.cast(data > number(attributes.get("threshold", 0.0), data), dtype_of(data))


def clip(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Clip-1 to -13: min(max(x, low), high), so `high` where the ends are crossed."""
    from tvm import relay

    data = inputs[0]
    given = (optional(inputs, 1), optional(inputs, 2))
    ends = [
        number(attributes[name], data) if end is None and name in attributes else end
        for name, end in zip(("min", "max"), given, strict=True)
    ]
    known = all(end is None or isinstance(end, relay.Constant) for end in ends)
    if known and dtype_of(data).startswith("float"):
        low, high = (
            default if end is None else float(constant(end).reshape(-1)[0])
            for end, default in zip(ends, (-np.inf, np.inf), strict=True)
        )
        return relay.clip(data, min(low, high), high)
    for end, bound in zip(ends, (relay.maximum, relay.minimum), strict=True):
        data = data if end is None else bound(data, end)
    return data
