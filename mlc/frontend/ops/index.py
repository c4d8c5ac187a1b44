"""Gather, scatter and what else moves elements to computed places.

Source: onnx/docs/Operators.md, by version. A negative index counts from the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.operands import (
    constant,
    dtype_named,
    dtype_of,
    fixed,
    integers,
    number,
    optional,
    shape_of,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def scatter_elements(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """ScatterElements-11 to -18, Scatter-9."""
    from tvm import relay

    data, indices, updates = inputs
    shape = shape_of(data)
    axis = attributes.get("axis", 0) % len(shape)
    indices = from_start(indices, shape[axis])
    how = _reduction(attributes)
    return relay.scatter_elements(data, indices, updates, axis=axis, reduction=how)


def scatter_nd(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """ScatterND-11 to -18."""
    from tvm import relay

    data, indices, updates = inputs
    shape, rank = shape_of(data), len(shape_of(indices))
    sizes = np.array(shape[: shape_of(indices)[-1]])
    indices = from_start(indices, sizes)
    # Relay wants the index's components first.
    first = relay.transpose(indices, [rank - 1, *range(rank - 1)])
    return relay.scatter_nd(data, first, updates, mode=_reduction(attributes))


def tensor_scatter(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """TensorScatter-24: new rows written into a cache, from each batch entry's own position on."""
    from tvm import relay

    cache, update = inputs[0], inputs[1]
    shape, new = shape_of(cache), shape_of(update)
    axis = attributes.get("axis", -2) % len(shape)
    steps = np.arange(new[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    start = optional(inputs, 2)
    where = fixed(steps.astype(np.int64))
    if start is not None:
        side = [shape[0]] + [1] * (len(shape) - 1)
        where = where + relay.reshape(relay.cast(start, "int64"), side)
    if text(attributes, "mode", "linear") == "circular":
        where = relay.mod(where, number(shape[axis], where))
    where = relay.broadcast_to(where, new)
    return relay.scatter_elements(cache, where, update, axis=axis, reduction="update")


def one_hot(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """OneHot-9 to -11: out of range indices give a row of `off`."""
    from tvm import relay

    indices, values = inputs[0], inputs[2]
    depth = int(constant(inputs[1]).reshape(-1)[0])
    rank = len(shape_of(indices)) + 1
    axis = attributes.get("axis", -1) % rank
    classes = np.arange(depth).reshape([-1 if k == axis else 1 for k in range(rank)])
    if np.dtype(dtype_of(indices)).kind != "f":
        indices = relay.cast(indices, "int64")
    spread = relay.expand_dims(from_start(indices, depth), axis)
    hit = relay.equal(spread, fixed(classes.astype(dtype_of(spread))))
    off, on = (relay.take(values, relay.const(k)) for k in (0, 1))
    return relay.where(hit, on, off)


def eye_like(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """EyeLike-9: ones on a diagonal."""
    rows, columns = shape_of(inputs[0])
    dtype = dtype_of(inputs[0])
    if "dtype" in attributes:
        dtype = dtype_named(attributes["dtype"])
    return fixed(np.eye(rows, columns, attributes.get("k", 0), dtype))


def top_k(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """TopK-1 to -24: values and indices."""
    from tvm import relay

    count = attributes["k"] if "k" in attributes else integers(inputs[1])[0]
    data, axis = inputs[0], attributes.get("axis", -1) % len(shape_of(inputs[0]))
    smallest = not attributes.get("largest", 1)
    if dtype_of(data).startswith("uint") and dtype_of(data) != "uint8":
        raise ModelError(f"sorting {dtype_of(data)} is not supported")
    return relay.topk(data, count, axis, "both", smallest, "int64").astuple()


def flatten(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Flatten-1 to -25: to two axes."""
    from tvm import relay

    shape = shape_of(inputs[0])
    axis = attributes.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    sizes = [int(np.prod(part, dtype=np.int64)) for part in (shape[:axis], shape[axis:])]
    return relay.reshape(inputs[0], sizes)


def from_start(indices: Any, size: Any) -> Any:
    """Return indices with negative ones counted from the end; `size` broadcasts to them."""
    from tvm import relay

    dtype = dtype_of(indices)
    sizes = fixed(np.asarray(size, dtype))
    return relay.where(indices < number(0, indices), indices + sizes, indices)


def array_feature_extractor(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """ai.onnx.ml ArrayFeatureExtractor-1: elements of the last axis; one axis becomes two."""
    from tvm import relay

    del attributes
    out = relay.take(inputs[0], relay.reshape(inputs[1], [-1]), axis=-1)
    return relay.expand_dims(out, 0) if len(shape_of(inputs[0])) == 1 else out


def _reduction(attributes: dict[str, Any]) -> str:
    name = text(attributes, "reduction", "none")
    if name not in _REDUCTIONS:
        raise ModelError(f"the reduction {name!r} is not known")
    return _REDUCTIONS[name]
