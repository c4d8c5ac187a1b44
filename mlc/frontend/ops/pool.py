"""Pooling, and the padding that convolutions share with it.

Source: onnx/docs/Operators.md (AveragePool, MaxPool, LpPool, MaxUnpool, versions to 22; `auto_pad` of
Conv), and the formulas for output sizes there: with `ceil_mode` a window that would start behind the
data and its left padding is dropped.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.operands import dtype_of, fixed, integers, number, optional, shape_of, text

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Where the windows of a layer lie, per spatial axis.

    `begin` and `end` are the paddings of the data that the windows cover exactly; `declared` is the
    end padding that the node asks for, which `ceil_mode` may exceed.
    """

    size: list[int]
    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    begin: list[int]
    end: list[int]
    declared: list[int]
    out: list[int]

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.size)

    def positions(self, axis: int) -> np.ndarray[Any, Any]:
        """Return the elements of each window along an axis, [out, kernel]; outside: padding."""
        starts = np.arange(self.out[axis]) * self.stride[axis] - self.begin[axis]
        return starts[:, None] + np.arange(self.kernel[axis]) * self.dilation[axis]

    def count(self, *, padding: bool) -> np.ndarray[Any, Any]:
        """Return how many elements each window has, declared padding counted or not."""
        counts: Any = np.ones(())
        for axis in range(self.rank):
            where = self.positions(axis)
            low = -self.begin[axis] if padding else 0
            high = self.size[axis] + (self.declared[axis] if padding else 0)
            inside = ((where >= low) & (where < high)).sum(1)
            counts = np.multiply.outer(counts, inside)
        return np.asarray(counts)


def windows(shape: Sequence[int], attributes: dict[str, Any], kernel: Sequence[int]) -> Windows:
    """Return the windows over data of shape [N, C, ...], `auto_pad` resolved."""
    size = list(shape[2:])
    rank = len(size)
    stride = list(attributes.get("strides", [1] * rank))
    dilation = list(attributes.get("dilations", [1] * rank))
    pads = list(attributes.get("pads", [0] * 2 * rank))
    mode = text(attributes, "auto_pad", "NOTSET")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    begin, declared = pads[:rank], pads[rank:]
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (-(-n // s) - 1) * s + r - n)
            for n, s, r in zip(size, stride, reach, strict=True)
        ]
        small = [t // 2 for t in total]
        large = [t - t // 2 for t in total]
        begin, declared = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode == "VALID":
        begin, declared = [0] * rank, [0] * rank
    ceil = bool(attributes.get("ceil_mode", 0)) and mode == "NOTSET"
    out, end = [], []
    for n, s, r, b, e in zip(size, stride, reach, begin, declared, strict=True):
        count = (n + b + e - r + (s - 1 if ceil else 0)) // s + 1
        if ceil and (count - 1) * s >= n + b:
            count -= 1
        out.append(count)
        end.append(max(0, (count - 1) * s + r - n - b) if ceil else e)
    if min((count for count in out if isinstance(count, int)), default=1) < 1:
        raise ModelError(f"its windows are larger than the padded data {size}")
    return Windows(
        size=size, kernel=list(kernel), stride=stride, dilation=dilation, begin=begin, end=end,
        declared=declared, out=out,
    )  # fmt: skip


def max_pool(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """MaxPool: the largest of each window, and (second output) where it stands."""
    from tvm import relay

    data = inputs[0]
    where = windows(shape_of(data), attributes, attributes["kernel_shape"])
    if attributes["outputs"] > 1:
        return _max_with_indices(data, where, column_major=bool(attributes.get("storage_order", 0)))
    if where.rank > 3:
        raise ModelError(f"pooling over {where.rank} axes is not supported")
    return getattr(relay.nn, f"max_pool{where.rank}d")(data, **_arguments(where))


def average_pool(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """AveragePool: padding counts if the node says so, what `ceil_mode` adds never does."""
    from tvm import relay

    data = inputs[0]
    where = windows(shape_of(data), attributes, attributes["kernel_shape"])
    include = bool(attributes.get("count_include_pad", 0))
    if where.rank > 3:
        return _sums(data, where) / fixed(where.count(padding=include).astype(dtype_of(data)))
    pool = getattr(relay.nn, f"avg_pool{where.rank}d")
    if not include or where.end == where.declared:
        return pool(data, **_arguments(where), count_include_pad=include)
    factor = fixed((np.prod(where.kernel) / where.count(padding=True)).astype(dtype_of(data)))
    return pool(data, **_arguments(where), count_include_pad=True) * factor


def lp_pool(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """LpPool: the p-th root of the sum of p-th powers of each window."""
    from tvm import relay

    data = inputs[0]
    where = windows(shape_of(data), attributes, attributes["kernel_shape"])
    p = float(attributes.get("p", 2))
    total = _sums(relay.power(relay.abs(data), number(p, data)), where)
    return relay.power(total, number(1 / p, data))


def global_lp_pool(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """GlobalLpPool: one window over all spatial axes."""
    return lp_pool(inputs, {"p": attributes.get("p", 2), "kernel_shape": shape_of(inputs[0])[2:]})


def max_unpool(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """MaxUnpool: each value where its index says, zeros elsewhere.

    Indices are flat over the shape that the node's windows tell; a larger `output_shape` only adds
    zeros behind it (as onnx's reference has it).
    """
    from tvm import relay

    data, indices = inputs[0], inputs[1]
    shape = shape_of(data)
    kernel, rank = attributes["kernel_shape"], len(shape) - 2
    strides, pads = attributes.get("strides", [1] * rank), attributes.get("pads", [0] * 2 * rank)
    inner = [
        *shape[:2],
        *(
            (shape[2 + k] - 1) * strides[k] + kernel[k] - pads[k] - pads[rank + k]
            for k in range(rank)
        ),
    ]
    zeros = relay.zeros([int(np.prod(inner))], dtype_of(data))
    flat = relay.scatter_elements(zeros, relay.reshape(indices, [-1]), relay.reshape(data, [-1]))
    out = relay.reshape(flat, inner)
    if optional(inputs, 2) is None:
        return out
    wanted = integers(inputs[2])
    extra = [w - n for w, n in zip(wanted, inner, strict=True)]
    if min(extra) < 0:
        raise ModelError(f"its output shape {wanted} is smaller than the windows' {inner}")
    return relay.nn.pad(out, [[0, e] for e in extra]) if any(extra) else out


def _arguments(where: Windows) -> dict[str, Any]:
    return {
        "pool_size": where.kernel,
        "strides": where.stride,
        "dilation": where.dilation,
        "padding": [*where.begin, *where.end],
    }


def _sums(data: Any, where: Windows) -> Any:
    """Return the sum of each window, over any number of axes: gathered, padding as zeros."""
    from tvm import relay

    if where.rank <= 3:
        pool = getattr(relay.nn, f"avg_pool{where.rank}d")
        count = number(float(np.prod(where.kernel)), data)
        return pool(data, **_arguments(where), count_include_pad=True) * count
    width = [[0, 0], [0, 0], *([b, e] for b, e in zip(where.begin, where.end, strict=True))]
    padded = relay.nn.pad(data, width)
    total = None
    for offset in itertools.product(*map(range, where.kernel)):
        begin = [o * d for o, d in zip(offset, where.dilation, strict=True)]
        end = [b + (n - 1) * s + 1 for b, n, s in zip(begin, where.out, where.stride, strict=True)]
        part = relay.strided_slice(padded, [0, 0, *begin], [*shape_of(data)[:2], *end],
                                   [1, 1, *where.stride])  # fmt: skip
        total = part if total is None else total + part
    return total


def _max_with_indices(data: Any, where: Windows, *, column_major: bool) -> Any:
    from tvm import relay

    shape = shape_of(data)
    flat, inside = _flat_positions(where)
    values = relay.take(relay.reshape(data, [*shape[:2], -1]), fixed(flat), axis=2, mode="clip")
    lowest = np.iinfo(dtype_of(data)).min if "int" in dtype_of(data) else -np.inf
    values = relay.where(fixed(inside), values, number(lowest, data))
    best = relay.argmax(values, axis=[3])
    table = flat
    if column_major:
        axes = np.unravel_index(flat, where.size)
        table = np.ravel_multi_index(axes[::-1], where.size[::-1])
    rows = np.arange(flat.shape[0]) * flat.shape[1]
    spot = relay.cast(best, "int64") + fixed(rows)
    found = relay.take(fixed(table.reshape(-1).astype(np.int64)), spot)
    channels = np.arange(np.prod(shape[:2])).reshape(*shape[:2], 1) * np.prod(where.size)
    indices = found + fixed(channels.astype(np.int64))
    out = [*shape[:2], *where.out]
    return relay.Tuple(
        [relay.reshape(relay.max(values, axis=[3]), out), relay.reshape(indices, out)]
    )


def _flat_positions(where: Windows) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return for each window (row) its elements' flat positions, and which are no padding."""
    flat: Any = np.zeros((1, 1), np.int64)
    inside: Any = np.ones((1, 1), bool)
    for axis in range(where.rank):
        here = where.positions(axis)
        good = (here >= 0) & (here < where.size[axis])
        here = np.clip(here, 0, where.size[axis] - 1)
        flat = flat[:, None, :, None] * where.size[axis] + here[None, :, None, :]
        inside = inside[:, None, :, None] & good[None, :, None, :]
        flat = flat.reshape(flat.shape[0] * flat.shape[1], -1)
        inside = inside.reshape(flat.shape)
    return flat, inside
