"""Types and shapes: cast, split, pad, take apart and put together.

Source: onnx/docs/Operators.md, by version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.bfloat16 import narrow, widen
from mlc.frontend.ops.operands import (
    BFLOAT16,
    constant,
    dtype_named,
    dtype_of,
    fixed,
    integers,
    is_open,
    number,
    optional,
    reshape,
    shape_of,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAX_RANGE = 1 << 24  # elements: a model file is small, what it counts to need not be


def cast(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Cast-1 to -25; `saturate` concerns 8-bit floats only, which are not supported anyway."""
    if attributes["to"] == BFLOAT16:
        return widen(narrow(inputs[0]))  # rounded to what the type can hold
    return _converted(inputs[0], dtype_named(attributes["to"]))


def _converted(value: Any, target: str) -> Any:
    from tvm import relay

    if (dtype_of(value), target) == ("float64", "float16"):
        # The code that LLVM makes of this one conversion calls a routine that is not there.
        value = relay.cast(value, "float32")
    return relay.cast(value, target)


def cast_like(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """CastLike-15 to -25: to the element type of the second input."""
    del attributes
    return _converted(inputs[0], dtype_of(inputs[1]))


def bit_cast(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """BitCast-26: the same bits under a type of equal size."""
    from tvm import relay

    target, source = dtype_named(attributes["to"]), dtype_of(inputs[0])
    if np.dtype(target).itemsize != np.dtype(source).itemsize:
        raise ModelError(f"{source} and {target} are not of one size")
    if "bool" in (source, target):
        return relay.cast(inputs[0], target)
    return relay.reinterpret(inputs[0], target)


def identity(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Hand on the input."""
    del attributes
    return inputs[0]


def split(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Split-1 to -18: sizes as attribute or input, or `num_outputs` parts, the last smaller."""
    from tvm import relay

    shape = shape_of(inputs[0])
    axis = attributes.get("axis", 0) % len(shape)
    sizes = attributes.get("split")
    if optional(inputs, 1) is not None:
        sizes = integers(inputs[1])
    count = attributes.get("num_outputs", attributes["outputs"])
    if sizes is None:
        part = -(-shape[axis] // count)
        sizes = [min(part, shape[axis] - k * part) for k in range(count)]
    if sum(sizes) != shape[axis] or min(sizes) < 0:
        raise ModelError(f"split sizes {list(sizes)} do not add up to {shape[axis]}")
    if len(sizes) == 1:
        return inputs[0]
    ends = np.cumsum(sizes)
    if min(sizes) > 0:
        return relay.split(inputs[0], [int(end) for end in ends[:-1]], axis).astuple()
    # Relay's split takes no empty parts.
    parts = []
    for size, end in zip(sizes, ends, strict=True):
        begin = [0] * axis + [int(end) - size]
        stop = [*shape[:axis], int(end)]
        empty = np.zeros([*shape[:axis], 0, *shape[axis + 1 :]], dtype_of(inputs[0]))
        parts.append(relay.strided_slice(inputs[0], begin, stop) if size else fixed(empty))
    return relay.Tuple(parts)


def concat(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Concat-4 to -13; parts without elements are left out: no schedule takes them."""
    from tvm import relay

    parts = [p for p in inputs if not any(n == 0 for n in shape_of(p))] or inputs[:1]
    return parts[0] if len(parts) == 1 else relay.concatenate(parts, axis=attributes["axis"])


def select(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Select of the domain mlc (see `control`): the second or third input, as the first says.

    Raises:
        ModelError: their shapes or types differ, so that the result's would depend on values.
    """
    from tvm import relay

    del attributes
    condition, yes, no = inputs
    kinds = [(shape_of(v), dtype_of(v)) for v in (yes, no)]
    if kinds[0] != kinds[1]:
        raise ModelError("the shape of a result depends on a condition that only the run knows")
    return relay.where(relay.reshape(condition, []), yes, no)


def arange(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Range-11 to -27, its bounds known at compile time."""
    del attributes
    start, limit, delta = (constant(value).reshape(-1)[0] for value in inputs)
    if delta == 0:
        raise ModelError("a range with steps of 0 has no end")
    count = max(0, int(np.ceil((float(limit) - float(start)) / float(delta))))
    if count > _MAX_RANGE:
        raise ModelError(f"a range of {count} elements is not supported")
    return fixed((np.arange(count) * delta + start).astype(start.dtype))


def space_to_depth(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """SpaceToDepth-1 to -28: blocks become channels, block position first, or (CRD) channel first."""
    from tvm import relay

    batch, channels, height, width = shape_of(inputs[0])
    size = attributes["blocksize"]
    if height % size or width % size:
        raise ModelError(f"{height} by {width} does not divide into blocks of {size}")
    split = [batch, channels, height // size, size, width // size, size]
    crd = text(attributes, "mode", "DCR") == "CRD"
    order = [0, 1, 3, 5, 2, 4] if crd else [0, 3, 5, 1, 2, 4]
    moved = relay.transpose(relay.reshape(inputs[0], split), order)
    return relay.reshape(moved, [batch, channels * size * size, height // size, width // size])


def squeeze(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Squeeze-1 to -25: axes of size 1 taken away, all of them if none is named."""
    shape = shape_of(inputs[0])
    axes = _axes(inputs, attributes, len(shape))
    if axes is None and is_open(shape):
        raise ModelError("which axes have size 1 depends on the input's")
    if axes is None:
        axes = [k for k, size in enumerate(shape) if size == 1]
    if any(shape[axis] != 1 for axis in axes):
        raise ModelError(f"axes {axes} of {shape} are not all of size 1")
    return reshape(inputs[0], [n for k, n in enumerate(shape) if k not in axes])


def unsqueeze(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Unsqueeze-1 to -25: axes of size 1, numbered as in the result."""
    shape = shape_of(inputs[0])
    given = attributes.get("axes") or integers(inputs[1])
    axes = sorted(axis % (len(shape) + len(given)) for axis in given)
    for axis in axes:
        shape.insert(axis, 1)
    return reshape(inputs[0], shape)


def _axes(inputs: Sequence[Any], attributes: dict[str, Any], rank: int) -> list[int] | None:
    given = optional(inputs, 1)
    axes = attributes.get("axes") if given is None else integers(given)
    return None if axes is None else [axis % rank for axis in axes]


def trilu(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Trilu-14: the upper or lower triangle of each matrix, zero elsewhere."""
    from tvm import relay

    data = inputs[0]
    shift = integers(inputs[1])[0] if optional(inputs, 1) is not None else 0
    shape = shape_of(data)
    keep = np.tri(shape[-2], shape[-1], shift if not attributes.get("upper", 1) else shift - 1) > 0
    mask = fixed(keep if not attributes.get("upper", 1) else ~keep)
    return relay.where(mask, data, number(0, data))


def pad(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Pad-1 to -25: constant, edge, reflect or wrap; negative pads take away.

    All but "constant" are gathers with constant indices: any rank and any width will do.
    """
    from tvm import relay

    data = inputs[0]
    shape = shape_of(data)
    axes = list(range(len(shape)))
    if attributes["opset"] < 11:
        widths = list(attributes.get("pads") or attributes.get("paddings", []))
        fill = number(attributes.get("value", 0.0), data)
    else:
        widths, fill = integers(inputs[1]), optional(inputs, 2)
        fill = number(0, data) if fill is None else relay.reshape(fill, [])
        if optional(inputs, 3) is not None:
            axes = [axis % len(shape) for axis in integers(inputs[3])]
    mode, count = text(attributes, "mode", "constant"), len(axes)
    pairs = list(zip(axes, widths[:count], widths[count:], strict=True))
    if mode == "constant":
        return _pad_constant(data, pairs, fill)
    if mode not in _SOURCES:
        raise ModelError(f"the mode {mode!r} is not known")
    for axis, before, after in pairs:
        where = np.arange(-before, shape[axis] + after)
        data = _take(data, _SOURCES[mode](where, shape[axis]), axis)
    return data


def _pad_constant(data: Any, pairs: Sequence[tuple[int, int, int]], fill: Any) -> Any:
    from tvm import relay

    shape = shape_of(data)
    begin, end = [0] * len(shape), list(shape)
    width = [[0, 0] for _ in shape]
    for axis, before, after in pairs:
        begin[axis], end[axis] = max(0, -before), shape[axis] + min(0, after)
        width[axis] = [max(0, before), max(0, after)]
    if (begin, end) != ([0] * len(shape), shape):
        data = relay.strided_slice(data, begin, end)
    return relay.nn.pad(data, width, fill) if any(map(any, width)) else data


def _take(data: Any, where: np.ndarray[Any, Any], axis: int) -> Any:
    from tvm import relay

    if np.array_equal(where, np.arange(shape_of(data)[axis])):
        return data
    return relay.take(data, fixed(where.astype(np.int64)), axis=axis, mode="clip")


def _mirror(where: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    period = max(2 * (size - 1), 1)
    folded = where % period
    return np.minimum(folded, period - folded) if size > 1 else where * 0


_SOURCES: dict[str, Callable[[np.ndarray[Any, Any], int], np.ndarray[Any, Any]]] = {
    "edge": lambda where, size: np.clip(where, 0, size - 1),
    "reflect": _mirror,
    "wrap": lambda where, size: where % size,
}
