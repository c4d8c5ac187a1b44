"""Convolutions.

Source: onnx/docs/Operators.md (Conv, ConvTranspose, Col2Im, by version).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.operands import dtype_of, fixed, integers, optional, shape_of, text
from mlc.frontend.ops.pool import windows

if TYPE_CHECKING:
    from collections.abc import Sequence


def conv(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Conv-1 to -22, over one to three axes."""
    data, weight, bias = inputs[0], inputs[1], optional(inputs, 2)
    return _add_bias(convolve(data, weight, attributes, dtype_of(data)), bias)


def convolve(data: Any, weight: Any, attributes: dict[str, Any], out_dtype: str) -> Any:
    """Return the convolution without bias; padding is with zeros."""
    from tvm import relay

    shape = shape_of(weight)
    rank, groups = len(shape) - 2, attributes.get("group", 1)
    _require_rank(rank)
    where = windows(shape_of(data), attributes, shape[2:])
    function = getattr(relay.nn, f"conv{rank}d")
    options = {
        "strides": where.stride, "dilation": where.dilation, "kernel_size": shape[2:],
        "padding": [*where.begin, *where.end], "out_dtype": out_dtype,
    }  # fmt: skip
    if groups == 1 or rank == 2:
        return function(data, weight, groups=groups, channels=shape[0], **options)
    # TVM has no schedule for groups over one or three axes: each group by itself.
    parts = zip(relay.split(data, groups, 1), relay.split(weight, groups, 0), strict=True)
    outs = [function(d, w, channels=shape[0] // groups, **options) for d, w in parts]
    return relay.concatenate(outs, 1)


def conv_transpose(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """ConvTranspose-1 to -22, over one to three axes."""
    from tvm import relay

    data, weight, bias = inputs[0], inputs[1], optional(inputs, 2)
    shape, kernel = shape_of(data), shape_of(weight)
    rank, groups = len(kernel) - 2, attributes.get("group", 1)
    _require_rank(rank)
    dilation = attributes.get("dilations", [1] * rank)
    if any(d > 1 for d in dilation):  # TVM's transposed kernels have none: zeros between taps
        weight = relay.nn.dilate(weight, [1, 1, *dilation])
        kernel = shape_of(weight)
    strides = attributes.get("strides", [1] * rank)
    begin, end, extra = _transposed_pads(shape[2:], kernel[2:], strides, attributes)
    options = {
        "strides": strides, "kernel_size": kernel[2:], "channels": kernel[1],
        "padding": [*begin, *end], "output_padding": extra, "out_dtype": dtype_of(data),
    }  # fmt: skip
    function = getattr(relay.nn, f"conv{rank}d_transpose")
    parts = [(data, weight)]
    if groups > 1:
        parts = [*zip(relay.split(data, groups, 1), relay.split(weight, groups, 0), strict=True)]
    outs = [function(d, w, **options) for d, w in parts]
    return _add_bias(outs[0] if groups == 1 else relay.concatenate(outs, 1), bias)


def _transposed_pads(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], attributes: dict[str, Any]
) -> tuple[list[int], list[int], list[int]]:
    """Return what is cut off the full result at both ends, and what is added behind it.

    total_padding = stride (size - 1) + output_padding + kernel - output_shape; SAME_UPPER puts the
    odd one at the end, everything else at the begin (documentation of `output_shape`).
    """
    rank = len(size)
    extra = list(attributes.get("output_padding", [0] * rank))
    pads = list(attributes.get("pads", [0] * 2 * rank))
    mode = text(attributes, "auto_pad", "NOTSET")
    wanted = attributes.get("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(size, strides, strict=True)]
    if wanted is None:
        return pads[:rank], pads[rank:], extra
    begin, end = [], []
    for axis, out in enumerate(wanted[-rank:]):
        full = strides[axis] * (size[axis] - 1) + extra[axis] + kernel[axis]
        total = max(0, full - out)
        extra[axis] += max(0, out - full)
        half = total // 2
        begin.append(half if mode == "SAME_UPPER" else total - half)
        end.append(total - half if mode == "SAME_UPPER" else half)
    return begin, end, extra


def col2im(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Col2Im-18: the blocks of an image added up where they overlap."""
    from tvm import relay

    data, image, block = inputs[0], integers(inputs[1]), integers(inputs[2])
    where = windows([1, 1, *image], attributes, block)
    flat = np.zeros((1, 1), np.int64)
    inside = np.ones((1, 1), bool)
    for axis in range(where.rank):
        here = where.positions(axis).T  # [kernel, out]
        good = (here >= 0) & (here < image[axis])
        flat = (flat[:, None, :, None] * image[axis] + here[None, :, None, :]).reshape(
            flat.shape[0] * here.shape[0], -1
        )
        inside = (inside[:, None, :, None] & good[None, :, None, :]).reshape(flat.shape)
    pixels, (batch, channels, _) = int(np.prod(image)), shape_of(data)
    channels //= int(np.prod(block))
    # What falls outside goes to one more pixel, which is cut off.
    target = np.where(inside, flat, pixels).reshape(-1)
    rows = [batch * channels, target.size]
    out = relay.scatter_elements(
        relay.zeros([rows[0], pixels + 1], dtype_of(data)),
        relay.broadcast_to(fixed(target.reshape(1, -1)), rows),
        relay.reshape(data, rows),
        axis=1,
        reduction="add",
    )
    kept = relay.strided_slice(out, [0, 0], [rows[0], pixels])
    return relay.reshape(kept, [batch, channels, *image])


def _require_rank(rank: int) -> None:
    if rank not in (1, 2, 3):
        raise ModelError(f"a convolution over {rank} axes is not supported")


def _add_bias(out: Any, bias: Any) -> Any:
    from tvm import relay

    return out if bias is None else relay.nn.bias_add(out, bias)
