"""Products of matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.operands import broadcast_to, dtype_of, fixed, is_open, reshape, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def matmul(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """MatMul-13 (numpy.matmul): a product with a weight becomes one dense over all rows."""
    from tvm import relay

    del attributes
    left, right = inputs
    dtype, a, b = dtype_of(left), shape_of(left), shape_of(right)
    rows, columns = ([] if len(a) == 1 else a[-2:-1]), ([] if len(b) == 1 else b[-1:])
    lead = broadcast(a[:-2], b[:-2])
    if len(a) == 1:
        left, a = reshape(left, [1, *a]), [1, *a]
    if len(b) == 1:
        right, b = reshape(right, [*b, 1]), [*b, 1]
    final = [*lead, *rows, *columns]
    if a[-1] == 0:  # sums of nothing; no schedule takes them
        return fixed(np.zeros(final, dtype))
    layer = len(b) == 2 and not is_open(b)
    if layer:
        flat = reshape(left, _merged(a[:-1], a[-1:])) if len(a) != 2 else left
        out = relay.nn.dense(flat, relay.transpose(right), units=b[1], out_dtype=dtype)
        whole = [*a[:-1], b[1]]
    else:
        left3 = reshape(_broadcast_lead(left, a, lead), _merged(lead, a[-2:]))
        right3 = reshape(_broadcast_lead(right, b, lead), _merged(lead, b[-2:]))
        # Our template reads [k, n] as it lies; TVM's x86 schedule, for other types, wants [n, k].
        turned = dtype != "float32"
        if turned:
            right3 = relay.transpose(right3, [0, 2, 1])
        out = relay.nn.batch_matmul(left3, right3, out_dtype=dtype, transpose_b=turned)
        whole = [*lead, a[-2], b[-1]]
    return out if layer and whole == final and len(whole) == len(a) == 2 else reshape(out, final)


def _merged(sizes: list[Any], rest: list[Any]) -> list[Any]:
    """Return the shape with the first axes as one: -1, what is left, where no size is open."""
    return [math.prod(sizes) if is_open([*sizes, *rest]) else -1, *rest]


def broadcast(a: list[Any], b: list[Any]) -> list[Any]:
    """Return the shape that two broadcast to; they may hold expressions of open dimensions.

    Raises:
        ModelError: two sizes are neither 1 nor the same.
    """
    rank = max(len(a), len(b))
    pairs = zip([1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b, strict=True)
    return [_broadcast_size(one, other) for one, other in pairs]


def _broadcast_size(one: Any, other: Any) -> Any:
    from tvm import ir

    if one == 1:
        return other
    if other not in (1, one) and not ir.structural_equal(one, other):
        raise ModelError(f"sizes {one} and {other} do not broadcast")
    return one


def _broadcast_lead(value: Any, shape: list[Any], lead: list[Any]) -> Any:
    wanted = [*lead, *shape[-2:]]
    return value if wanted == shape else broadcast_to(value, wanted)


def dense(data: Any, weight: Any) -> Any:
    """Return data times the transposed weight: [rows, k] and [units, k] give [rows, units]."""
    from tvm import relay

    return relay.nn.dense(data, weight, units=shape_of(weight)[0], out_dtype=dtype_of(data))
