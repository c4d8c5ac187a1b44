"""DeformConv: a convolution whose taps stand where an input says.

Source: onnx/docs/Operators.md (DeformConv-19 to -22) and onnx/reference/ops/op_deform_conv.py: data
between elements is interpolated linearly, outside there are zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.linear import matmul
from mlc.frontend.ops.operands import dtype_of, fixed, optional, shape_of
from mlc.frontend.ops.pool import windows
from mlc.frontend.ops.sample import gather_linear

if TYPE_CHECKING:
    from collections.abc import Sequence


def deform_conv(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Return the convolution over two axes, [batch, channels, height, width]."""
    from tvm import relay

    data, weight, offset = inputs[:3]
    bias, mask = optional(inputs, 3), optional(inputs, 4)
    batch, channels, *size = shape_of(data)
    outs, _, *kernel = shape_of(weight)
    where = windows([batch, channels, *size], attributes, kernel)
    if where.rank != 2:
        raise ModelError(f"deformable taps over {where.rank} axes are not supported")
    groups, parts = attributes.get("group", 1), attributes.get("offset_group", 1)
    taps, places = int(np.prod(kernel)), int(np.prod(where.out))
    # Offsets: [batch, parts, taps, 2, places], y before x; each part moves its own channels.
    moved = relay.reshape(offset, [batch * parts, taps, 2, places])
    regular = np.meshgrid(where.positions(0).T, where.positions(1).T, indexing="ij")
    shape = (kernel[0], where.out[0], kernel[1], where.out[1])
    points = []
    for axis, grid in enumerate(regular):
        still = grid.reshape(shape).transpose(0, 2, 1, 3).reshape(1, taps, places)
        shift = relay.take(moved, relay.const(axis), axis=2)
        points.append(
            relay.reshape(shift + fixed(still.astype(dtype_of(offset))), [batch * parts, -1])
        )
    flat = relay.reshape(data, [batch * parts, channels // parts, -1])
    values = relay.reshape(gather_linear(flat, size, points), [batch, parts, -1, taps, places])
    if mask is not None:
        values = values * relay.reshape(mask, [batch, parts, 1, taps, places])
    columns = relay.reshape(values, [batch, groups, channels // groups * taps, places])
    rows = relay.reshape(weight, [1, groups, outs // groups, channels // groups * taps])
    out = relay.reshape(matmul([rows, columns], attributes), [batch, outs, *where.out])
    return out if bias is None else relay.nn.bias_add(out, bias)
