"""Integer tensors that hold shapes: what a few operators make of numbers and expressions of sizes."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.frontend.open_convert import OpenConverter
    from mlc.frontend.open_dims import Dims, Sizes

MOST = 64  # elements of a tensor that is looked at as a shape
_INTEGERS = {"int64", "int32", "bool"}


def evaluate(context: OpenConverter, node: Any) -> tuple[Sizes, str] | None:
    """Return the sizes that a node computes, and their type; None where they are not known.

    Only integer tensors of up to `MOST` elements are looked at. What has numbers alone is left to the
    other converters.
    """
    if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in ("Shape", "Size"):
        return _measured(context, node, given), "int64"
    if node.op_type not in RULES or not any(name in context.integers for name in node.input):
        return None
    operands = [context.known(name) if name else None for name in node.input]
    dtype = _dtype(context, node, given)
    missing = any(o is None for o, name in zip(operands, node.input, strict=True) if name)
    if missing or dtype not in _INTEGERS:
        return None
    found = RULES[node.op_type](context.dims, operands, given)
    return None if found is None or found.size > MOST else (found, dtype)


def limit(context: OpenConverter, node: Any) -> Any:
    """Return the size that all elements of a node's result lie below, none below 0; or None.

    That is known of what counts (Range), and of what is made of it without another value.
    """
    if node.domain not in ("", "ai.onnx") or not node.input:
        return None
    if node.op_type == "Range":
        start, end = (context.known(name) for name in node.input[:2])
        counts = start is not None and end is not None and context.dims.at_least(start.item(), 0)
        return end.item() if counts and end is not None else None
    known = [context.below.get(name) for name in node.input]
    if node.op_type in _MOVES:
        return known[0]
    if node.op_type == "Add" and None in known:
        limits = [found for found in known if found is not None]
        added = [context.known(n) for n, k in zip(node.input, known, strict=True) if k is None]
        numbers = _numbers(added[0]) if len(added) == 1 and added[0] is not None else None
        if limits and numbers and min(numbers) >= 0:
            return limits[0] + max(numbers)
    return None


def _array(values: Any) -> Sizes:
    """Return sizes as an array of objects, whatever they are."""
    array = np.empty(len(values), object)
    for position, value in enumerate(values):
        array[position] = value
    return array


def _measured(context: OpenConverter, node: Any, given: dict[str, Any]) -> Sizes:
    shape = context.shape(node.input[0])
    if node.op_type == "Size":
        return np.array(context.dims.product(shape), object)
    return _array(shape[given.get("start", 0) : given.get("end", len(shape))])


def _dtype(context: OpenConverter, node: Any, given: dict[str, Any]) -> str:
    from mlc.frontend.ops.operands import dtype_of

    if node.op_type == "Equal":
        return "bool"
    if node.op_type == "Cast":
        return str(onnx.helper.tensor_dtype_to_np_dtype(given["to"]).name)
    data = next(n for n in node.input[_DATA.get(node.op_type, 0) :] if n in context.values)
    return dtype_of(context.values[data].stub)


def _numbers(sizes: Sizes) -> list[int] | None:
    """Return the numbers that sizes are; None if one is an expression."""
    flat = list(sizes.reshape(-1))
    return [int(s) for s in flat] if all(isinstance(s, (int, np.integer)) for s in flat) else None


def _elementwise(function: Callable[[Dims, Any, Any], Any]) -> Callable[..., Any]:
    def rule(dims: Dims, operands: list[Any], _given: dict[str, Any]) -> Sizes | None:
        one, other = np.broadcast_arrays(*operands)
        pairs = zip(one.reshape(-1), other.reshape(-1), strict=True)
        found = [function(dims, dims.simplify(a), dims.simplify(b)) for a, b in pairs]
        return None if any(f is None for f in found) else _array(found).reshape(one.shape)

    return rule


def _divided(dims: Dims, a: Any, b: Any) -> Any:
    """Division towards zero, which is the floor where neither side is negative."""
    fine = isinstance(b, int) and b > 0 and dims.at_least(a, 0)
    return a // b if fine else None


def _rest(dims: Dims, a: Any, b: Any) -> Any:
    fine = isinstance(b, int) and b > 0 and dims.at_least(a, 0)
    return a % b if fine else None


def _larger(dims: Dims, a: Any, b: Any) -> Any:
    if dims.at_least(a, b):
        return a
    return b if dims.at_least(b, a) else None


def _smaller(dims: Dims, a: Any, b: Any) -> Any:
    larger = _larger(dims, a, b)
    return None if larger is None else b if larger is a else a


def _same(dims: Dims, a: Any, b: Any) -> Any:
    if dims.equal(a, b):
        return 1
    return 0 if dims.at_least(a - 1, b) or dims.at_least(b - 1, a) else None


def _gather(_dims: Dims, operands: list[Any], given: dict[str, Any]) -> Sizes | None:
    positions = _numbers(operands[1])
    if positions is None:
        return None
    where = np.array(positions, np.int64).reshape(operands[1].shape)
    return np.asarray(np.take(operands[0], where, axis=given.get("axis", 0)), object)


def _concat(_dims: Dims, operands: list[Any], given: dict[str, Any]) -> Sizes:
    return np.concatenate(operands, axis=given["axis"])


def _slice(_dims: Dims, operands: list[Any], given: dict[str, Any]) -> Sizes | None:
    data, *rest = operands
    if data.ndim != 1:
        return None
    if not rest:
        return np.asarray(data[given["starts"][0] : given["ends"][0]], object)
    numbers = [_numbers(part) if part is not None else [1] for part in (rest + [None] * 4)[:4]]
    starts, ends, _axes, steps = numbers
    if not starts or not ends or not steps or steps[0] < 1:
        return None
    return np.asarray(data[starts[0] : ends[0] : steps[0]], object)


def _reshape(_dims: Dims, operands: list[Any], _given: dict[str, Any]) -> Sizes | None:
    shape = _numbers(operands[1])
    return None if shape is None or 0 in shape else operands[0].reshape(shape)


def _squeeze(_dims: Dims, operands: list[Any], _given: dict[str, Any]) -> Sizes | None:
    return operands[0].reshape(()) if operands[0].size == 1 else None


def _unsqueeze(_dims: Dims, operands: list[Any], given: dict[str, Any]) -> Sizes | None:
    axes = given.get("axes") or _numbers(operands[1])
    return None if axes is None else np.expand_dims(operands[0], tuple(axes))


def _product(dims: Dims, operands: list[Any], given: dict[str, Any]) -> Sizes | None:
    if operands[0].ndim != 1:
        return None
    total = np.array(dims.product(list(operands[0])), object)
    return total.reshape(1) if given.get("keepdims", 1) else total


def _where(_dims: Dims, operands: list[Any], _given: dict[str, Any]) -> Sizes | None:
    condition = _numbers(operands[0])
    if condition is None:
        return None
    shape = np.broadcast_shapes(*(o.shape for o in operands))
    chosen = np.array(condition, bool).reshape(operands[0].shape)
    parts = (np.broadcast_to(part, shape) for part in (chosen, *operands[1:]))
    return np.asarray(np.where(*parts), object)


def _plain(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return _elementwise(lambda _dims, a, b: function(a, b))


def _hand_on(_dims: Dims, operands: list[Any], _given: dict[str, Any]) -> Sizes:
    return np.asarray(operands[0], object)


RULES: dict[str, Callable[[Dims, list[Any], dict[str, Any]], Sizes | None]] = {
    "Add": _plain(operator.add),
    "Cast": _hand_on,
    "Concat": _concat,
    "Div": _elementwise(_divided),
    "Equal": _elementwise(_same),
    "Gather": _gather,
    "Identity": _hand_on,
    "Max": _elementwise(_larger),
    "Min": _elementwise(_smaller),
    "Mod": _elementwise(_rest),
    "Mul": _plain(operator.mul),
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _plain(operator.sub),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
_MOVES = frozenset(
    {"Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile",
     "Transpose", "Unsqueeze"}
)  # fmt: skip
_DATA = {"Where": 1}  # the operand whose type the result has, where it is not the first
