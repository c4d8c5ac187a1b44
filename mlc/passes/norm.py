"""Recognise layer norm in the arithmetic that exporters and the importer make of it.

    centred = x - mean(x);  variance = mean(centred^2)                      over the last axis
    centred * rsqrt(variance + epsilon)   or   centred / sqrt(variance + epsilon)

with a scale and a shift of one number per column behind it, or without. It becomes one operator,
`mlc.layer_norm`, that computes the same in the same two passes over a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.passes.expr import op_name, scalar
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class _Norm:
    """A layer norm: what is normalised, what is added to the variance; scale and shift [n] if any."""

    data: Any
    epsilon: float
    scale: Any = None
    shift: Any = None


def take_layer_norm(module: Any) -> Any:
    """Return the module with layer norms over the last axis, in float32, as one operator each."""
    found: dict[int, _Norm] = {}

    def reads(call: Any) -> Sequence[Any] | None:
        norm = _match(call)
        if norm is None:
            return None
        found[call.handle.value] = norm
        return [e for e in (norm.data, norm.scale, norm.shift) if e is not None]

    def on_call(call: Any, args: Sequence[Any]) -> Any:
        norm = found.get(call.handle.value)
        return _operator(norm, list(args)) if norm else None

    return rewrite_main(module, on_call, reads)


def _operator(norm: _Norm, args: list[Any]) -> Any:
    from tvm import relay

    from mlc.schedules import operator, rows

    n = int(norm.data.checked_type.shape[-1])
    if norm.scale is None:
        args.insert(1, relay.const(np.ones(n, np.float32)))
    if norm.shift is None:
        args.append(relay.const(np.zeros(n, np.float32)))
    return operator.call(rows.LAYER_NORM, args, epsilon=norm.epsilon)


def _match(call: Any) -> _Norm | None:
    """Return the layer norm that a call computes, None if it is none."""
    from mlc.schedules import rows

    core, shift = _peel(call, "add")
    core, scale = _peel(core, "multiply")
    name = op_name(core)
    if (name == "multiply" and op_name(core.args[1]) == "rsqrt") or (
        name == "divide" and op_name(core.args[1]) == "sqrt"
    ):
        centred, root = core.args
    else:
        return None
    epsilon = _epsilon(centred, root.args[0])
    if epsilon is None or not rows.takes(call.checked_type, centred.args[0].checked_type):
        return None
    return _Norm(data=centred.args[0], epsilon=epsilon, scale=scale, shift=shift)


def _peel(call: Any, name: str) -> tuple[Any, Any]:
    """Return what a call multiplies or adds a vector [n] to, and the vector; (call, None) if it does not."""
    if op_name(call) != name:
        return call, None
    one, other = call.args
    if len(call.checked_type.shape) < 2:
        return call, None
    for rest, vector in ((one, other), (other, one)):
        if _same(vector.checked_type.shape, call.checked_type.shape[-1:]) and op_name(rest):
            return rest, vector
    return call, None


def _same(one: Any, other: Any) -> bool:
    from tvm import ir

    return len(one) == len(other) and all(map(ir.structural_equal, one, other))


def _epsilon(centred: Any, variance: Any) -> float | None:
    """Return epsilon if `variance` is that of `centred`, x - mean(x), with epsilon added."""
    if op_name(variance) != "add" or op_name(centred) != "subtract":
        return None
    data, mean = centred.args
    square, epsilon = variance.args
    if _mean_of(mean) is None or not _mean_of(mean).same_as(data):
        return None
    squared, epsilon = _mean_of(square), scalar(epsilon)
    if squared is None or epsilon is None:
        return None
    whole = op_name(squared) == "multiply" and all(arg.same_as(centred) for arg in squared.args)
    power = op_name(squared) == "power" and squared.args[0].same_as(centred)
    return epsilon if whole or (power and scalar(squared.args[1]) == 2.0) else None


def _mean_of(call: Any) -> Any:
    """Return what a call takes the mean of, over the last axis, which is kept; None otherwise."""
    if op_name(call) != "mean" or not call.attrs.keepdims or call.attrs.exclude:
        return None
    (data,) = call.args
    rank = len(data.checked_type.shape)
    axes = None if call.attrs.axis is None else [int(axis) % rank for axis in call.attrs.axis]
    return data if axes == [rank - 1] else None
