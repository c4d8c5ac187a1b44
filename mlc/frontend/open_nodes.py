"""Operators that read a shape from their operands, where sizes are open.

Each function takes the converter, the node and its operands in Relay. Source:
onnx/docs/Operators.md, by version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mlc.errors import ModelError
from mlc.frontend.ops.linear import broadcast
from mlc.frontend.ops.operands import (
    broadcast_to,
    dtype_of,
    fixed,
    is_open,
    number,
    reshape,
    shape_of,
)

if TYPE_CHECKING:
    from mlc.frontend.open_convert import OpenConverter

_END = 1 << 30  # an end beyond it means the end of the axis
Rule = Callable[["OpenConverter", Any, list[Any]], Any]


def _attributes(node: Any) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _sizes(context: OpenConverter, node: Any, position: int) -> list[Any]:
    """Return the elements of an operand that holds sizes.

    Raises:
        ModelError: they are not known.
    """
    found = context.known(node.input[position])
    if found is None:
        raise ModelError("an operand that decides a shape depends on the input's values")
    return [context.dims.simplify(size) for size in found.reshape(-1)]


def _reshape(context: OpenConverter, node: Any, inputs: list[Any]) -> Any:
    """Reshape-5 to -25: 0 keeps a size unless `allowzero`, -1 is what is left."""
    shape, wanted = shape_of(inputs[0]), _sizes(context, node, 1)
    keeps = not _attributes(node).get("allowzero", 0)
    wanted = [shape[k] if keeps and _is(size, 0) else size for k, size in enumerate(wanted)]
    total = context.dims.product(shape)
    others = context.dims.product([size for size in wanted if not _is(size, -1)])
    if any(_is(size, -1) for size in wanted):
        left = context.dims.quotient(total, others)
        wanted = [left if _is(size, -1) else size for size in wanted]
    elif not context.dims.equal(total, others):
        texts = [context.dims.text(size) for size in (total, others)]
        raise ModelError(f"it makes {texts[1]} elements of {texts[0]}")
    return reshape(inputs[0], wanted)


def _flatten(context: OpenConverter, node: Any, inputs: list[Any]) -> Any:
    """Flatten-1 to -25: the axes before `axis` become one, and those from it on."""
    shape = shape_of(inputs[0])
    axis = _attributes(node).get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return reshape(inputs[0], [context.dims.product(part) for part in (shape[:axis], shape[axis:])])


def _expand(context: OpenConverter, node: Any, inputs: list[Any]) -> Any:
    """Expand-8 to -13: broadcast both ways."""
    wanted = broadcast(shape_of(inputs[0]), _sizes(context, node, 1))
    return broadcast_to(inputs[0], wanted)


def _constant_of_shape(context: OpenConverter, node: Any, _inputs: list[Any]) -> Any:
    """ConstantOfShape-9 to -25: one value everywhere, a float 0 by default."""
    value = _attributes(node).get("value")
    array = np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
    return broadcast_to(fixed(array.reshape(())), _sizes(context, node, 0))


def _range(context: OpenConverter, node: Any, inputs: list[Any]) -> Any:
    """Range-11 to -27 of integers, one by one."""
    from tvm import relay

    from mlc.schedules import open_ops

    start, limit, delta = (_sizes(context, node, k)[0] for k in range(3))
    if not _is(delta, 1):
        raise ModelError("a range of open length has steps other than 1")
    count = context.dims.simplify(limit - start)
    if not context.dims.at_least(count, 1):
        raise ModelError(f"a range may have no element: {context.dims.text(count)} of them")
    steps = relay.cast(open_ops.call(open_ops.IOTA, [], shape=[count]), dtype_of(inputs[0]))
    return steps + inputs[0]


def _slice(context: OpenConverter, node: Any, inputs: list[Any]) -> Any:
    """Slice-10 to -13, steps forward, by numpy's rule for what lies beyond an end."""
    from mlc.schedules import open_ops

    shape = shape_of(inputs[0])
    starts, ends = _sizes(context, node, 1), _sizes(context, node, 2)
    has = [len(node.input) > k and bool(node.input[k]) for k in (3, 4)]
    axes = _sizes(context, node, 3) if has[0] else list(range(len(starts)))
    steps = _sizes(context, node, 4) if has[1] else [1] * len(starts)
    begin: list[Any] = [0] * len(shape)
    step, after = [1] * len(shape), list(shape)
    for axis, first, last, by in zip(axes, starts, ends, steps, strict=True):
        if not isinstance(by, int) or by < 1:
            raise ModelError("a slice of open size goes backwards")
        low, high = _limits(context, shape[axis], first, last)
        begin[axis], step[axis] = low, by
        after[axis] = context.dims.simplify((high - low + by - 1) // by)
        context.dims.require_positive(after[axis])
    if all(_is(b, 0) for b in begin) and step == [1] * len(shape):
        unchanged = [context.dims.equal(a, b) for a, b in zip(after, shape, strict=True)]
        if all(unchanged):
            return inputs[0]
    return open_ops.call(open_ops.SLICE, [inputs[0]], begin=begin, steps=step, shape=after)


def _limits(context: OpenConverter, size: Any, first: Any, last: Any) -> tuple[Any, Any]:
    """Return where a slice of an axis begins and ends, inside it."""
    dims = context.dims
    low, high = (_from_front(dims, size, place) for place in (first, last))
    if isinstance(last, int) and last >= _END:
        high = size
    elif isinstance(size, int) and not isinstance(high, int):
        dims.require_at_most(high, size)
    elif not dims.at_least(size, high):
        high = _least(size, high)
    if not dims.at_least(size, low):
        raise ModelError(f"a slice may begin behind the end: {dims.text(low)}")
    return low, high


def _least(one: Any, other: Any) -> Any:
    from tvm import tir

    return tir.min(one, other)


def _from_front(dims: Any, size: Any, place: Any) -> Any:
    """Return a position that may count from the end; below 0 it is 0."""
    if isinstance(place, int):
        if place >= 0:
            return place
        found = size + place
        return dims.simplify(found) if dims.at_least(found, 0) else 0 if place <= -_END else found
    if not dims.at_least(place, 0):
        raise ModelError(f"a position in a slice may be negative: {dims.text(place)}")
    return place


def _gather(context: OpenConverter, node: Any, inputs: list[Any]) -> Any:
    """Gather-1 to -13: indices below 0 count from the end; those outside take the nearest place.

    What counts up to an open size (positions) makes the table's length a bound of that size.
    """
    from tvm import relay

    data, indices = inputs
    shape = shape_of(data)
    axis = _attributes(node).get("axis", 0) % len(shape)
    size = shape[axis]
    known, limit = context.known(node.input[1]), context.below.get(node.input[1])
    if limit is not None and isinstance(size, int):
        context.dims.require_at_most(limit, size)
    elif limit is not None and context.dims.at_least(size, limit):
        pass
    elif known is not None and all(isinstance(k, int) and k >= 0 for k in known.reshape(-1)):
        for place in known.reshape(-1):
            if not context.dims.at_least(size, place + 1):
                raise ModelError(f"place {place} may lie outside of {context.dims.text(size)}")
    else:
        count = context.runtime_size(size, dtype_of(indices))
        indices = relay.where(indices < number(0, indices), indices + count, indices)
    return relay.take(data, indices, axis=axis, mode="clip")


def _split(context: OpenConverter, node: Any, inputs: list[Any]) -> Any:
    """Split-1 to -18 of an axis of known size, the others open."""
    from tvm import relay

    shape, given = shape_of(inputs[0]), _attributes(node)
    axis = given.get("axis", 0) % len(shape)
    size, count = shape[axis], given.get("num_outputs", len(node.output))
    if not isinstance(size, int):
        raise ModelError("it splits an axis of open size")
    parts = given.get("split")
    if len(node.input) > 1 and node.input[1]:
        parts = _sizes(context, node, 1)
    if parts is None:
        part = -(-size // count)
        parts = [min(part, size - k * part) for k in range(count)]
    if not all(isinstance(p, int) and p > 0 for p in parts) or sum(parts) != size:
        raise ModelError(f"split sizes do not add up to {size}")
    if len(parts) == 1:
        return inputs[0]
    return relay.split(inputs[0], np.cumsum(parts)[:-1].tolist(), axis).astuple()


def _trilu(context: OpenConverter, node: Any, inputs: list[Any]) -> Any:
    """Trilu-14: the upper or lower triangle of each matrix, zero elsewhere."""
    from tvm import relay

    from mlc.schedules import open_ops

    *_, rows, columns = shape_of(inputs[0])
    shift = _sizes(context, node, 1)[0] if len(node.input) > 1 and node.input[1] else 0
    if not isinstance(shift, int):
        raise ModelError("the diagonal depends on an open size")
    i = relay.expand_dims(open_ops.call(open_ops.IOTA, [], shape=[rows]), 1)
    j = relay.expand_dims(open_ops.call(open_ops.IOTA, [], shape=[columns]), 0)
    distance = j - i
    limit = relay.const(shift, "int64")
    keep = distance >= limit if _attributes(node).get("upper", 1) else distance <= limit
    return relay.where(keep, inputs[0], number(0, inputs[0]))


def _conv(context: OpenConverter, node: Any, inputs: list[Any]) -> Any:
    """Conv-1 to -22 and ConvTranspose-1 to -22, the batch open."""
    if is_open(shape_of(inputs[0])[1:]):
        raise ModelError("a convolution over axes of open size has no schedule")
    return context.as_usual(node, inputs)


def _is(size: Any, value: int) -> bool:
    return isinstance(size, int) and size == value


NODES: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Trilu": _trilu,
}
