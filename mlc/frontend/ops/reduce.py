"""Reduce*: versions 1 to 28, axes as attribute or input, none meaning all of them (or none at all).

Source: onnx/docs/Operators.md, and the function bodies there: what has a root or a logarithm in it
is computed in floating point and converted back for integers; a maximum of booleans is their "or".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlc.frontend.ops.operands import Converter, dtype_of, fixed, integers, optional, shape_of

_Calculate = Callable[[Any, list[int], bool], Any]


def reduce(calculate: _Calculate, empty: float, *, floating: bool = False) -> Converter:
    """Return the converter of a reduction; `empty` is its value over no elements at all."""

    def convert(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        from tvm import relay

        data, dtype, shape = inputs[0], dtype_of(inputs[0]), shape_of(inputs[0])
        axes = attributes.get("axes")
        if optional(inputs, 1) is not None:
            axes = integers(inputs[1])
        if not axes:
            axes = [] if attributes.get("noop_with_empty_axes", 0) else list(range(len(shape)))
        axes = [axis % len(shape) for axis in axes]
        keep = bool(attributes.get("keepdims", 1))
        if any(size == 0 for size in shape):
            left = [1 if k in axes else n for k, n in enumerate(shape) if keep or k not in axes]
            value = _lowest(empty, dtype) if np.isinf(empty) else empty
            return fixed(np.full(left, value, dtype))
        inner = _computed_in(dtype, floating=floating)
        data = data if inner == dtype else relay.cast(data, inner)
        if shape:
            result = calculate(data, axes, keep)
        else:
            result = calculate(relay.expand_dims(data, 0), [0], False)
        return result if inner == dtype else relay.cast(result, dtype)

    return convert


def _computed_in(dtype: str, *, floating: bool) -> str:
    if dtype == "bool":
        return "uint8"
    return "float64" if floating and "float" not in dtype else dtype


def _lowest(sign: float, dtype: str) -> Any:
    """Return the value of a type that is infinite, or as far as the type goes."""
    if np.dtype(dtype).kind == "f":
        return sign
    if dtype == "bool":
        return sign > 0
    return np.iinfo(dtype).max if sign > 0 else np.iinfo(dtype).min


def plain(name: str) -> _Calculate:
    """Return a reduction that Relay has."""

    def calculate(data: Any, axes: list[int], keep: bool) -> Any:
        from tvm import relay

        return getattr(relay, name)(data, axes, keep) if axes else data

    return calculate


def extreme(name: str) -> _Calculate:
    """Return the maximum or minimum; TVM starts from the largest finite number, not from infinity."""

    def calculate(data: Any, axes: list[int], keep: bool) -> Any:
        from tvm import relay

        value = plain(name)(data, axes, keep)
        if not axes or "float" not in dtype_of(data):
            return value
        limit, end = np.finfo(dtype_of(data)).max, np.inf
        limit, end = (-limit, -end) if name == "max" else (limit, end)
        start = relay.const(limit, dtype_of(data))
        within = data >= start if name == "max" else data <= start
        some = relay.max(relay.cast(within, "uint8"), axes, keep)
        return relay.where(relay.cast(some, "bool"), value, relay.const(end, dtype_of(data)))

    return calculate


def composed(inner: str, name: str, outer: str = "") -> _Calculate:
    """outer(reduce(inner(x))): for instance sqrt(sum(x * x)) is ReduceL2."""

    def calculate(data: Any, axes: list[int], keep: bool) -> Any:
        from tvm import relay

        value = data
        if inner:
            value = data * data if inner == "square" else getattr(relay, inner)(data)
        value = getattr(relay, name)(value, axes, keep) if axes else value
        return getattr(relay, outer)(value) if outer else value

    return calculate


def log_sum_exp(data: Any, axes: list[int], keep: bool) -> Any:
    """log(sum(exp(x))), the largest element taken out first."""
    from tvm import relay

    if not axes:
        return data
    largest = relay.max(data, axes, True)
    # All elements infinite: there is nothing to take out, and inf - inf is no number.
    largest = relay.where(relay.isfinite(largest), largest, relay.zeros_like(largest))
    total = relay.log(relay.sum(relay.exp(data - largest), axes, True)) + largest
    return total if keep else relay.squeeze(total, axes)
