"""Integer products in float32, where it holds all their sums exactly.

Quantised products that no instruction of `passes/narrow.py` takes (both operands computed, filters no
multiple of 4) are left in 32-bit integers, for which there are no fast kernels. All integers of a
magnitude up to 2^24 are floats, so a sum whose terms' magnitudes add up to no more is exact in float32,
in any order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.passes.expr import op_name
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = ("nn.conv2d", "nn.dense", "nn.batch_matmul")
_LARGEST = 1 << 24
_BYTES = ("int8", "uint8")
_DEPTH = 8  # operators that are looked at for what bounds a value: at most 2^8 of them
_MOVES = frozenset({"reshape", "transpose", "expand_dims", "squeeze", "broadcast_to"})


def take_whole(module: Any) -> Any:
    """Compute int32 convolutions, dense layers and batched products of small values in float32.

    Operands are 8-bit values cast to 32 bits, perhaps less a constant, or constants. The result is cast
    back, and where it is read as float32 it is not. Products of others are left as they are. It comes
    behind passes that take products of floats apart: their rounding errors would be wrong integers.
    """
    floats: dict[int, tuple[Any, Any]] = {}  # integers -> themselves, the floats they are cast from

    def on_call(call: Any, args: Sequence[Any]) -> Any:
        from tvm import relay

        from mlc.schedules import operator, rounding

        name = op_name(call)
        if name == "cast" and str(call.checked_type.dtype) == "float32":
            return floats.get(args[0].handle.value, (None, None))[1]
        if name not in NAMES or str(call.checked_type.dtype) != "int32" or not _fits(call):
            return None
        operands = [_as_float(arg) for arg in args]
        attrs = {key: call.attrs[key] for key in call.attrs.keys()}  # noqa: SIM118
        attrs["out_dtype"] = "float32"
        product = getattr(relay.nn, name.removeprefix("nn."))(*operands, **attrs)
        # Already whole, unless a tuning record asks for a template that rounds (Winograd's on Arm).
        product = operator.call(rounding.NAME, [product])
        whole = relay.cast(product, "int32")
        floats[whole.handle.value] = (whole, product)
        return whole

    return rewrite_main(module, on_call)


def _as_float(operand: Any) -> Any:
    from tvm import nd, relay

    if isinstance(operand, relay.Constant):
        return relay.Constant(nd.array(operand.data.numpy().astype(np.float32)))
    return relay.cast(operand, "float32")


def _fits(call: Any) -> bool:
    """Return whether the magnitudes of each sum's terms add up to no more than float32 counts to."""
    from tvm import relay

    data, weight = call.args
    if {str(operand.checked_type.dtype) for operand in call.args} != {"int32"}:
        return False  # an instruction for narrow operands has it already
    ours, theirs = _magnitude(data), _magnitude(weight)
    if ours is None or theirs is None:
        return False
    if call.op.name == "nn.conv2d":
        plain = str(call.attrs.kernel_layout) == "OIHW"
        if not plain or call.attrs.groups != 1:  # with groups floats took longer (measured)
            return False
    if call.op.name == "nn.batch_matmul":
        terms = int(data.checked_type.shape[1 if call.attrs.transpose_a else 2])
    elif isinstance(weight, relay.Constant):
        array = np.abs(weight.data.numpy().astype(np.int64))
        return int(array.reshape(len(array), -1).sum(axis=1).max()) * ours <= _LARGEST
    else:
        terms = math.prod(int(size) for size in weight.checked_type.shape[1:])
    return terms * ours * theirs <= _LARGEST


def _magnitude(expr: Any) -> int | None:
    """Return the largest magnitude that an int32 tensor has, None if it is not known."""
    bounds = _bounds(expr)
    return None if bounds is None else max(map(abs, bounds))


def _bounds(expr: Any, depth: int = _DEPTH) -> tuple[int, int] | None:
    """Return the least and the largest value, None if it cannot be told from so many operators."""
    from tvm import relay

    if depth == 0:
        return None
    if isinstance(expr, relay.Constant):
        array = expr.data.numpy()
        return (int(array.min()), int(array.max())) if array.size else None
    name = op_name(expr)
    if name in _MOVES:
        return _bounds(expr.args[0], depth - 1)
    if name == "cast" and str(expr.args[0].checked_type.dtype) in _BYTES:
        limits = np.iinfo(str(expr.args[0].checked_type.dtype))
        return int(limits.min), int(limits.max)
    if name == "subtract":
        left, right = (_bounds(arg, depth - 1) for arg in expr.args)
        if left is not None and right is not None:
            return left[0] - right[1], left[1] - right[0]
    return None
