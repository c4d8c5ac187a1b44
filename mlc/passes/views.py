"""Where the elements of a view come from: reshapes, transposes and slices as maps of indices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.passes.expr import op_name, sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

Indices = np.ndarray[Any, np.dtype[np.int64]]


def chain(expr: Any) -> Iterator[Any]:
    """Yield an expression, what it is a view of, and so on to what is computed.

    The expressions must be typed.
    """
    yield expr
    while True:
        source = _source(expr)
        if source is None:
            return
        expr = source
        yield expr


def indices(expr: Any, source: Any) -> Indices:
    """Return for each element of a view, in its shape, its position in a source out of its `chain`."""
    steps = []
    while not expr.same_as(source):
        steps.append(expr)
        expr = _source(expr)
    shape = sizes(source)
    found = np.arange(math.prod(shape)).reshape(shape)
    for step in reversed(steps):
        found = _apply(step, found)
    return found


def moved(call: Any, found: Indices) -> Indices | None:
    """Return the indices of what a typed call makes of a view; None if that is no reshape or transpose."""
    name = op_name(call)
    return _apply(call, found) if name in ("reshape", "transpose") else None


def _source(expr: Any) -> Any:
    from tvm import relay

    if isinstance(expr, relay.TupleGetItem):
        split = expr.tuple_value
        return split.args[0] if op_name(split) == "split" else None
    name = op_name(expr)
    if name == "strided_slice":
        plain = expr.attrs.slice_mode == "end" and expr.attrs.axes is not None
        return expr.args[0] if plain and len(expr.args) == 1 else None
    return expr.args[0] if name in ("reshape", "transpose", "squeeze", "expand_dims") else None


def _apply(step: Any, found: Indices) -> Indices:
    from tvm import relay

    if isinstance(step, relay.TupleGetItem):
        attrs = step.tuple_value.attrs
        parts = np.split(found, _integers(attrs.indices_or_sections), int(attrs.axis))
        return np.asarray(parts[step.index])
    attrs = step.attrs
    if step.op.name == "strided_slice":
        cut = [slice(None)] * found.ndim
        bounds = zip(attrs.begin, attrs.end, strict=True)
        strides = _integers(attrs.strides)
        for k, (axis, (begin, end)) in enumerate(zip(_integers(attrs.axes), bounds, strict=True)):
            cut[axis] = slice(int(begin), int(end), strides[min(k, len(strides) - 1)])
        return found[tuple(cut)]
    if step.op.name == "transpose":
        return found.transpose(None if attrs.axes is None else _integers(attrs.axes))
    return found.reshape(sizes(step))


def _integers(values: Any) -> Any:
    """Return the integers of an attribute that holds one or several."""
    try:
        return [int(value) for value in values]
    except TypeError:
        return int(values)
