"""Products of matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.frontend.ops.operands import dtype_of, fixed, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def matmul(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """MatMul-13 (numpy.matmul): a product with a weight becomes one dense over all rows."""
    from tvm import relay

    del attributes
    left, right = inputs
    dtype, a, b = dtype_of(left), shape_of(left), shape_of(right)
    rows, columns = ([] if len(a) == 1 else a[-2:-1]), ([] if len(b) == 1 else b[-1:])
    lead = list(np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2])))
    if len(a) == 1:
        left, a = relay.reshape(left, [1, *a]), [1, *a]
    if len(b) == 1:
        right, b = relay.reshape(right, [*b, 1]), [*b, 1]
    final = [*lead, *rows, *columns]
    if a[-1] == 0:  # sums of nothing; no schedule takes them
        return fixed(np.zeros(final, dtype))
    if len(b) == 2:
        flat = relay.reshape(left, [-1, a[-1]]) if len(a) != 2 else left
        out = relay.nn.dense(flat, relay.transpose(right), units=b[1], out_dtype=dtype)
        whole = [*a[:-1], b[1]]
    else:
        left3 = relay.reshape(_broadcast_lead(left, a, lead), [-1, *a[-2:]])
        right3 = relay.reshape(_broadcast_lead(right, b, lead), [-1, *b[-2:]])
        # Our template reads [k, n] as it lies; TVM's x86 schedule, for other types, wants [n, k].
        turned = dtype != "float32"
        if turned:
            right3 = relay.transpose(right3, [0, 2, 1])
        out = relay.nn.batch_matmul(left3, right3, out_dtype=dtype, transpose_b=turned)
        whole = [*lead, a[-2], b[-1]]
    return out if whole == final and len(whole) == len(a) == 2 else relay.reshape(out, final)


def _broadcast_lead(value: Any, shape: list[int], lead: list[int]) -> Any:
    from tvm import relay

    wanted = [*lead, *shape[-2:]]
    return value if wanted == shape else relay.broadcast_to(value, wanted)


def dense(data: Any, weight: Any) -> Any:
    """Return data times the transposed weight: [rows, k] and [units, k] give [rows, units]."""
    from tvm import relay

    return relay.nn.dense(data, weight, units=shape_of(weight)[0], out_dtype=dtype_of(data))
