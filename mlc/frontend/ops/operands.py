"""What a converter asks of its operands: values, shapes, types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlc.errors import ModelError

# What TVM's kernels can hold on a CPU; others would be silently reinterpreted.
DTYPES = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64",
     "uint8", "uint16", "uint32", "uint64", "bool"}
)  # fmt: skip
BFLOAT16 = 16  # its number in ONNX; see `bfloat16`
Converter = Callable[[Sequence[Any], dict[str, Any]], Any]


def constant(value: Any) -> np.ndarray[Any, Any]:
    """Return the value of an input that must be known at compile time.

    Raises:
        ModelError: it is computed at run time.
    """
    from tvm import relay

    if not isinstance(value, relay.Constant):
        raise ModelError("an operand that decides a shape is not a constant")
    return np.asarray(value.data.numpy())


def integers(value: Any) -> list[int]:
    """Return the elements of a constant input as integers; see `constant`."""
    return [int(v) for v in constant(value).reshape(-1)]


def optional(inputs: Sequence[Any], position: int) -> Any:
    """Return an input, None where it is left out."""
    return inputs[position] if position < len(inputs) else None


def shape_of(value: Any) -> list[int]:
    """Return the shape of a value: numbers, and expressions where the model has open dimensions.

    What compares such a shape or puts it together works for both; what computes a number raises.

    Raises:
        ModelError: it depends on values.
    """
    from tvm import tir
    from tvm.relay.frontend.common import infer_type

    shape = infer_type(value).checked_type.shape
    if any(isinstance(size, tir.Any) for size in shape):
        raise ModelError("the shape of an operand depends on the input's values")
    return [int(size) if isinstance(size, tir.IntImm) else size for size in shape]


def reshape(value: Any, shape: Sequence[Any]) -> Any:
    """Return a value in another shape, which may hold expressions of open dimensions."""
    from tvm import relay

    from mlc.schedules import open_ops

    if not is_open(shape) and not is_open(shape_of(value)):
        return relay.reshape(value, list(shape))
    return open_ops.call(open_ops.RESHAPE, [value], shape=shape)


def broadcast_to(value: Any, shape: Sequence[Any]) -> Any:
    """Return a value broadcast to a shape, which may hold expressions of open dimensions."""
    from tvm import relay

    from mlc.schedules import open_ops

    if not is_open(shape) and not is_open(shape_of(value)):
        return relay.broadcast_to(value, list(shape))
    return open_ops.call(open_ops.BROADCAST, [value], shape=shape)


def is_open(shape: Sequence[Any]) -> bool:
    """Return whether a size of a shape (see `shape_of`) is no number."""
    return not all(isinstance(size, int) for size in shape)


def dtype_of(value: Any) -> str:
    """Return the element type of a value."""
    from tvm.relay.frontend.common import infer_type

    return str(infer_type(value).checked_type.dtype)


def number(value: float, like: Any) -> Any:
    """Return a constant scalar of the element type of another value."""
    from tvm import relay

    return relay.const(value, dtype_of(like))


def fixed(array: np.ndarray[Any, Any]) -> Any:
    """Return an array as a constant of its own type; `relay.const` alone makes 32 bits of 64."""
    from tvm import relay

    return relay.const(array, array.dtype.name)


def text(attributes: dict[str, Any], name: str, default: str) -> str:
    """Return a text attribute."""
    value = attributes.get(name, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def dtype_named(kind: int) -> str:
    """Return the numpy name of an ONNX element type.

    Raises:
        ModelError: no kernel can hold it.
    """
    import onnx

    try:
        name = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name)
    except (KeyError, ValueError):
        name = f"type {kind}"
    if name not in DTYPES:
        raise ModelError(f"the element type {name} is not supported")
    return name
