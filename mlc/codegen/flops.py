"""Floating-point operations of a kernel, for GFLOP/s in profiles."""

from __future__ import annotations

import math
from typing import Any

from mlc.codegen.open_kernel import is_open


def count(function: Any) -> int:
    """Return the arithmetic operations of one call of a primitive function; 0 where sizes are open.

    A multiply-add counts as two; an element-wise operator as one per output element.
    """
    from tvm import ir, relay

    if is_open(function):
        return 0

    calls: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, relay.Call) and isinstance(node.op, ir.Op):
            calls.append(node)

    relay.analysis.post_order_visit(function.body, visit)
    return sum(_of_call(call) for call in calls)


def _of_call(call: Any) -> int:
    name = call.op.name
    elements = sum(math.prod(_shape(kind)) for kind in _types(call.checked_type))
    if name in _FREE:
        return 0
    if name in _OURS:
        return _OURS[name](call)
    if "conv" in name and "transpose" not in name and len(call.args) > 1:
        weight = _shape(call.args[1].checked_type)
        channels = _shape(call.checked_type)
        outputs = channels[1] * (channels[4] if len(channels) == 5 else 1)
        if name.startswith("nn.conv") and "NHWC" in str(getattr(call.attrs, "data_layout", "")):
            outputs = channels[-1]
        return 2 * elements * max(1, math.prod(weight) // max(1, outputs))
    if "dense" in name or "matmul" in name:
        reduced = _shape(call.args[0].checked_type)[-1]
        return 2 * elements * reduced
    return elements


_FREE = frozenset(
    {"reshape", "transpose", "layout_transform", "squeeze", "expand_dims", "concatenate", "copy",
     "strided_slice", "split", "take", "cast", "broadcast_to", "nn.batch_flatten", "nn.pad"}
)  # fmt: skip


def _winograd(call: Any) -> int:
    """Return those of the direct convolution, so that times compare."""
    outputs = math.prod(_shape(call.checked_type))
    return 2 * outputs * 9 * _shape(call.args[1].checked_type)[2]


def _recurrent(call: Any) -> int:
    """Return those of the product of every step."""
    x, weight = (_shape(arg.checked_type) for arg in call.args[:2])
    return 2 * math.prod(x) * weight[0]


def _attention(call: Any) -> int:
    """Return those of the two products."""
    (_, n, _), (_, m, _) = (_shape(arg.checked_type) for arg in call.args[:2])
    heads, d, dv = (int(k) for k in call.attrs["layout"][:3])
    return 2 * _shape(call.checked_type)[0] * heads * n * m * (d + dv)


def _expand_depthwise(call: Any) -> int:
    """Return those of both convolutions."""
    batch, outer, height, width, inner = _shape(call.args[0].checked_type)
    filters = math.prod(_shape(call.args[2].checked_type))
    taps = math.prod(_shape(call.args[3].checked_type)) // filters
    made = 2 * batch * height * width * outer * inner * filters
    return made + 2 * taps * math.prod(_shape(call.checked_type))


_OURS = {
    "mlc.expand_depthwise": _expand_depthwise,
    "mlc.conv2d_winograd": _winograd,
    "mlc.recurrent": _recurrent,
    "mlc.attention": _attention,
    "mlc.masked_attention": _attention,
}


def _shape(kind: Any) -> list[int]:
    return [int(size) for size in kind.shape]


def _types(kind: Any) -> list[Any]:
    return list(kind.fields) if hasattr(kind, "fields") else [kind]
