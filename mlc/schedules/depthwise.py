"""The template `depthwise_conv2d_mlc.x86`: every channel with a filter of its own, in float32.

Activations lie in blocks of channels, a vector or less (NCHWc).

    for each chunk of `rows` rows of outputs, each block of channels, in parallel:
        padded = the rows of inputs under it                 zeros outside the image
        for each row, each tile of `columns` outputs:
            acc[columns] = 0                                 in registers
            for each of the filter's taps:                   written out
                acc[:] += padded[:, tap] * weight[tap]
            outputs = epilogue(acc)                          what Relay fused behind, stored

There is one multiply-add for each input that is read, so memory decides: the padded rows of a chunk
are in the L1 or L2 cache when they are used, and outputs are written once. `padded` is as wide as
whole tiles need; without padding and with whole tiles the inputs are read in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import autotvm, te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm
from mlc.schedules.blocks import block, output_axes
from mlc.schedules.tails import MARK
from mlc.schedules.window import Window

TEMPLATE = "depthwise_conv2d_mlc.x86"
_TAG = "mlc_depthwise"
_COLUMNS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 28)
_ROWS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 56)

_CACHE_BYTES = 1 << 17  # what the padded rows of a chunk may take: part of a common L2 cache
# The same with strides, where reading decides: half of the L1 cache was 1.1 to 1.3 times as fast as all of
# it and as L2, if three rows of outputs fit.
_NEAR_BYTES = 1 << 14
_CHUNKS = 16  # enough for the threads to share
_MOST_TAPS = 49  # of a filter: all are written out


@dataclass(frozen=True, kw_only=True)
class Layer(Window):
    """A depthwise convolution, its channels in blocks."""

    block: int

    @property
    def image(self) -> tuple[int, ...]:
        """The shape of the inputs in blocks."""
        return self.batch, self.blocks, self.height, self.width, self.block

    @property
    def weights(self) -> tuple[int, ...]:
        """The shape of the weights in blocks."""
        return self.blocks, 1, *self.taps, 1, self.block

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return self.channels // self.block

    @property
    def flops(self) -> int:
        """The operations, a multiply-add counted as two."""
        outputs = self.batch * self.channels * self.out_height * self.out_width
        return 2 * self.taps[0] * self.taps[1] * outputs


def layer_of(data: Any, weight: Any, strides: Any, padding: Any, dilation: Any) -> Layer:
    """Return the layer of inputs [n, c, h, w] and filters [c, 1, kh, kw], or of both in blocks."""
    shape = get_const_tuple(data.shape)
    batch, channels, height, width = shape[:4]
    size = shape[4] if len(shape) == 5 else block(channels, gemm.problem(1, 1, 1).lanes)
    return Layer(
        batch=batch,
        channels=channels * size if len(shape) == 5 else channels,
        height=height,
        width=width,
        block=size,
        taps=tuple(get_const_tuple(weight.shape)[2:4]),
        strides=tuple(get_const_tuple(strides)),
        padding=tuple(get_const_tuple(padding)),
        dilation=tuple(get_const_tuple(dilation)),
    )


def define(cfg: Any, layer: Layer) -> None:
    """Define the knobs on a config space; write the default into a fallback config.

    `columns`: outputs in a register tile; `rows`: rows of outputs in a chunk, 0 for all.
    """
    most = gemm.problem(1, 1, 1).registers
    columns = {min(size, layer.out_width) for size in _COLUMNS if size < most}
    cfg.define_knob("columns", sorted(columns))
    cfg.define_knob("rows", [rows for rows in _ROWS if rows < layer.out_height] + [0])
    if cfg.is_fallback:
        for name, value in default(layer).items():
            cfg[name] = OtherOptionEntity(value)
    cfg.add_flop(layer.flops)


def default(layer: Layer) -> dict[str, int]:
    """Return the knobs of the config that is used without a measurement.

    The register tile takes half of the registers, and few steps for a row; the chunk is the largest
    whose inputs fit the cache (with strides the L1 cache) and that leaves the threads enough chunks.
    """
    most = min(gemm.problem(1, 1, 1).registers // 2, 14)
    tiles = -(-layer.out_width // most)
    per_row = 4 * layer.block * (layer.width + layer.padding[1] + layer.padding[3])
    parts = layer.batch * layer.blocks
    near = max(layer.strides) > 1 and per_row * layer.span(0, 3) <= _NEAR_BYTES
    cache = _NEAR_BYTES if near else _CACHE_BYTES
    rows = layer.chunk(per_row, parts, cache=cache, chunks=_CHUNKS)
    return {
        "columns": -(-layer.out_width // tiles),
        "rows": rows if rows < layer.out_height else 0,
    }


@autotvm.register_topi_compute(TEMPLATE)  # type: ignore[untyped-decorator]
def depthwise(cfg: Any, data: Any, weight: Any, strides: Any, padding: Any, dilation: Any) -> Any:
    """Return the convolution, [n, c, oh, ow] or in blocks as `data` is.

    Args:
        cfg: the config.
        data: [n, c, h, w], or [n, c / block, h, w, block]; for tuning blocks are made up.
        weight: [c, 1, kh, kw], or [c / block, 1, kh, kw, 1, block].
        strides: down and across.
        padding: top, left, bottom, right.
        dilation: down and across.
    """
    layer = layer_of(data, weight, strides, padding, dilation)
    define(cfg, layer)
    if len(data.shape) == 4 and autotvm.GLOBAL_SCOPE.in_tuning:
        data = te.placeholder(layer.image, data.dtype, name="data")
        weight = te.placeholder(layer.weights, weight.dtype, name="weight")
    acc = sums(layer, padded(layer, data, int(cfg["columns"].val)), weight)
    if len(data.shape) == 5:
        shape: tuple[int, ...] = (*acc.shape[:3], layer.out_width, layer.block)
        return te.compute(shape, acc, name="depthwise", tag=_TAG)
    size, shape = layer.block, (layer.batch, layer.channels, layer.out_height, layer.out_width)
    return te.compute(
        shape, lambda n, c, h, w: acc[n, c // size, h, w, c % size], name="depthwise", tag=_TAG
    )


def padded(layer: Layer, data: Any, columns: int) -> Any:
    """Return the inputs [n, block, row, column, channel] with zeros around them where needed."""
    top, left, _, _ = layer.padding
    across = layer.span(1, -(-layer.out_width // columns) * columns)
    down = layer.span(0, layer.out_height)
    if len(data.shape) == 5 and not any(layer.padding) and across <= layer.width:
        return data

    def pixel(n: Any, b: Any, y: Any, x: Any, c: Any) -> Any:
        h, w = y - top, x - left
        inside = tir.all(h >= 0, h < layer.height, w >= 0, w < layer.width)
        at = (n, b, h, w, c) if len(data.shape) == 5 else (n, b * layer.block + c, h, w)
        return tir.if_then_else(inside, data(*at), tir.const(0, gemm.DTYPE))

    shape = (layer.batch, layer.blocks, down, across, layer.block)
    return te.compute(shape, pixel, name="padded")


def sums(layer: Layer, data: Any, weight: Any) -> Any:
    """Return the sums over all taps, as wide as whole tiles."""
    i, j = (te.reduce_axis((0, size), name) for size, name in zip(layer.taps, "ij", strict=True))
    (down, across), (far, wide) = layer.strides, layer.dilation

    def product(n: Any, b: Any, h: Any, w: Any, c: Any) -> Any:
        at = (b, 0, i, j, 0, c) if len(weight.shape) == 6 else (b * layer.block + c, 0, i, j)
        pixel = data[n, b, h * down + i * far, w * across + j * wide, c]
        return te.sum(pixel * weight(*at), [i, j])

    width = (int(data.shape[3]) - layer.span(1, 1)) // across + 1
    shape = (layer.batch, layer.blocks, layer.out_height, max(width, layer.out_width), layer.block)
    return te.compute(shape, product, name="acc")


@autotvm.register_topi_schedule(TEMPLATE)  # type: ignore[untyped-decorator]
def schedule_depthwise(cfg: Any, outs: Any) -> Any:
    """Return the schedule of a depthwise convolution with what Relay fused behind it."""
    return gemm.schedule_tagged(_TAG, schedule, cfg, outs)


def schedule(s: Any, cfg: Any, conv: Any, out: Any) -> tuple[Any, Any]:
    """Schedule the tagged tensor; return the stage that stores its outputs, and its axis of chunks."""
    (acc,) = conv.op.input_tensors
    out, n, b, h, w, lane = output_axes(s, conv, out, int(acc.shape[-1]))
    chunk, row = s[out].split(h, factor=int(cfg["rows"].val) or int(acc.shape[2]))
    tile, column = s[out].split(w, factor=int(cfg["columns"].val))
    s[out].reorder(n, chunk, b, row, tile, column, lane)
    chunk = s[out].fuse(n, chunk, b)
    s[out].parallel(chunk)
    s[out].unroll(column)
    s[out].vectorize(lane)
    s[out].pragma(column, MARK, True)

    s[acc].compute_at(s[out], tile)
    *_, column, lane = s[acc].op.axis
    i, j = s[acc].op.reduce_axis
    s[acc].reorder(i, j, column, lane)
    for axis in (i, j, column):
        s[acc].unroll(axis)
    s[acc].vectorize(lane)

    padded = acc.op.input_tensors[0]
    if padded.op.name == "padded":
        s[padded].compute_at(s[out], chunk)
        s[padded].vectorize(s[padded].op.axis[-1])
    return out, chunk


def takes(attrs: Any, inputs: Any, out_type: Any) -> bool:
    """Return whether the template takes a `nn.conv2d`: float32, one small filter for each channel."""
    data, weight = inputs
    shape = get_const_tuple(weight.shape)
    plain = (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW")
    blocked = len(data.shape) == 5 and len(shape) == 6 and data.shape[4] == shape[5]
    return (
        (blocked or (plain and str(attrs.out_layout) in ("", "NCHW")))
        and gemm.takes(data, weight, out_type)
        and shape[1] == 1 < attrs.groups
        and attrs.groups == shape[0] * (shape[5] if blocked else 1)
        and shape[2] * shape[3] <= _MOST_TAPS
    )
