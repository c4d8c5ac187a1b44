"""The template `conv2d_direct_mlc.x86`: grouped convolutions, and those of few channels, in float32.

Filters lie in blocks (OIHWio), activations as well (NCHWc), but an image of few channels stays NCHW.

    for each group, each chunk of `rows` rows of outputs, in parallel:
        inputs = the rows of the group's channels under it         zeros outside the image
        for each `tile[1]` blocks of filters, each row, each `tile[0]` outputs of it:
            acc[blocks, outputs, block] = 0                        in registers
            for each row of taps, channel, tap:                    partly written out
                acc[:, :, :] += inputs[outputs, channel] * weight[block, tap, channel, :]
            outputs = epilogue(acc)                                what Relay fused behind, stored

Where a block of filters belongs to one group, an input is broadcast over it. A block of several small
groups, as in ResNeXt (Xie et al., arXiv:1611.05431: 32 groups of 4 channels), wants another channel in
each lane: then a pixel of `inputs` is written out as [channel of its group, lane] once, and read by all
taps as a vector, so that no multiply-add is wasted on the zeros between groups.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from tvm import autotvm, te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm
from mlc.schedules.blocks import block, output_axes
from mlc.schedules.tails import MARK
from mlc.schedules.window import Window

TEMPLATE = "conv2d_direct_mlc.x86"
_TAG = "mlc_direct"
_PACKED = "packed"
_COLUMNS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28)
_BLOCKS = (1, 2, 3, 4)
_ROWS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 56)
_UNROLL = (1, 2, 3, 4, 8)
_FEW = 4  # channels of an image

_CACHE_BYTES = 1 << 18  # what the inputs of a chunk may take: part of a common L2 cache
_CHUNKS = 16  # enough for the threads to share


@dataclass(frozen=True, kw_only=True)
class Layer(Window):
    """A convolution in `groups`; blocks of inputs (0: none, NCHW) and of filters."""

    filters: int
    groups: int
    in_block: int
    out_block: int

    @property
    def inputs(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def outputs(self) -> int:
        """Filters of a group."""
        return self.filters // self.groups

    @property
    def shared(self) -> bool:
        """Whether a block of filters has those of several groups."""
        return self.outputs < self.out_block

    @property
    def parts(self) -> int:
        """Groups, or those of a block together."""
        return self.filters // max(self.out_block, self.outputs)

    @property
    def image(self) -> tuple[int, ...]:
        """The shape of the inputs."""
        size = self.height, self.width
        if not self.in_block:
            return self.batch, self.channels, *size
        return self.batch, self.channels // self.in_block, *size, self.in_block

    @property
    def weights(self) -> tuple[int, ...]:
        """The shape of the weights in blocks."""
        return self.filters // self.out_block, 1, *self.taps, self.inputs, self.out_block

    @property
    def flops(self) -> int:
        """The operations, a multiply-add counted as two."""
        outputs = self.batch * self.filters * self.out_height * self.out_width
        return 2 * math.prod(self.taps) * self.inputs * outputs


def layer_of(
    data: Any, weight: Any, strides: Any, padding: Any, dilation: Any, groups: int
) -> Layer:
    """Return the layer of inputs [n, c, h, w] and filters [k, c / groups, kh, kw], or in blocks."""
    batch, channels, height, width, *inner = get_const_tuple(data.shape)
    filters, _, *taps = get_const_tuple(weight.shape)[:4]
    lanes = gemm.problem(1, 1, 1).lanes
    if len(weight.shape) == 6:
        out_block = int(weight.shape[5])
        filters *= out_block
    else:
        out_block = block(filters, lanes)
    in_block = inner[0] if inner else block(channels, lanes) if groups > 1 else 0
    return Layer(
        batch=batch,
        channels=channels * inner[0] if inner else channels,
        height=height,
        width=width,
        taps=(taps[0], taps[1]),
        strides=tuple(get_const_tuple(strides)),
        padding=tuple(get_const_tuple(padding)),
        dilation=tuple(get_const_tuple(dilation)),
        filters=filters,
        groups=int(groups),
        in_block=in_block,
        out_block=out_block,
    )


def define(cfg: Any, layer: Layer) -> None:
    """Define the knobs on a config space; write the default into a fallback config.

    `tile`: outputs of a row and blocks of filters in a register tile; `rows`: rows of outputs in a
    chunk, 0 for all; `unroll`: channels written out.
    """
    cfg.define_knob("tile", _tiles(layer))
    cfg.define_knob("rows", [rows for rows in _ROWS if rows < layer.out_height] + [0])
    cfg.define_knob("unroll", [u for u in _UNROLL if layer.inputs % u == 0])
    if cfg.is_fallback:
        for name, value in default(layer).items():
            cfg[name] = OtherOptionEntity(value)
    cfg.add_flop(layer.flops)


def _tiles(layer: Layer) -> list[list[int]]:
    """Return the register tiles that fit: accumulators, weights, and one for the input."""
    registers = gemm.problem(1, 1, 1).registers
    of_group = max(layer.outputs // layer.out_block, 1)
    whole = [-(-layer.out_width // -(-layer.out_width // size)) for size in _COLUMNS]
    return [
        [columns, blocks]
        for columns, blocks in itertools.product(sorted(set(whole)), _BLOCKS)
        if of_group % blocks == 0 and (columns + 1) * blocks + 1 <= registers
    ]


def default(layer: Layer) -> dict[str, Any]:
    """Return the knobs of the config that is used without a measurement.

    Two multiply-adds and two loads are started a cycle, and a multiply-add takes four: the tile of the
    fewest cycles over a row of the group's outputs, the largest and widest of equal ones. Where lanes
    belong to several groups, half of the registers and no unrolling were 10 to 20 % faster.
    """

    def cycles(tile: list[int]) -> tuple[float, int, int]:
        columns, blocks = tile
        tiles = -(-layer.out_width // columns) * (
            max(layer.outputs // layer.out_block, 1) // blocks
        )
        started = max(columns * blocks / 2, (columns + blocks) / 2, 4)
        return tiles * started, -columns * blocks, -columns

    tiles = _tiles(layer)
    if layer.shared:
        half = gemm.problem(1, 1, 1).registers // 2
        tiles = [tile for tile in tiles if tile[0] <= half]
    channels = layer.inputs * (layer.out_block if layer.shared else 1)
    per_row = 4 * channels * (layer.width + layer.padding[1] + layer.padding[3])
    parts = layer.batch * layer.parts
    rows = layer.chunk(per_row, parts, cache=_CACHE_BYTES, chunks=_CHUNKS)
    return {
        "tile": min(tiles, key=cycles),
        "rows": rows if rows < layer.out_height else 0,
        "unroll": 1 if layer.shared else next(u for u in (4, 3, 2, 1) if layer.inputs % u == 0),
    }


@autotvm.register_topi_compute(TEMPLATE)  # type: ignore[untyped-decorator]
def direct(
    cfg: Any, data: Any, weight: Any, strides: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    """Return the convolution, [n, k, oh, ow], or in blocks as `weight` is.

    Args:
        cfg: the config.
        data: [n, c, h, w], or [n, c / block, h, w, block].
        weight: [k, c / groups, kh, kw], or [k / block, 1, kh, kw, c / groups, block].
        strides: down and across.
        padding: top, left, bottom, right.
        dilation: down and across.
        groups: of channels, each with filters of its own.
    """
    layer = layer_of(data, weight, strides, padding, dilation, groups)
    define(cfg, layer)
    plain = len(weight.shape) == 4
    if plain and autotvm.GLOBAL_SCOPE.in_tuning:
        data = te.placeholder(layer.image, data.dtype, name="data")
        weight, plain = te.placeholder(layer.weights, weight.dtype, name="weight"), False
    size = layer.out_block
    if plain:
        filters = weight
        weight = te.compute(
            layer.weights, lambda b, _, y, x, i, k: filters[b * size + k, i, y, x], name=_PACKED
        )
    acc = _sums(layer, _inputs(layer, data, cfg["tile"].val[0]), weight)
    shape: tuple[int, ...] = (layer.out_height, layer.out_width)
    if not plain:
        shape = (layer.batch, layer.filters // size, *shape, size)
        return te.compute(shape, acc, name="direct", tag=_TAG)
    return te.compute(
        (layer.batch, layer.filters, *shape),
        lambda n, k, h, w: acc[n, k // size, h, w, k % size], name="direct", tag=_TAG,
    )  # fmt: skip


def _inputs(layer: Layer, data: Any, columns: int) -> Any:
    """Return the inputs with zeros around them, as wide as whole tiles need.

    Their axes are [n, part, channel of its group, row, column] where the image has no blocks,
    [n, part, row, column, channel of its group] where it has, the lane behind where parts are shared.
    """
    planes = not layer.in_block and not layer.shared
    shift = _shift(layer) if planes else 0
    across = shift + layer.span(1, -(-layer.out_width // columns) * columns)
    size = layer.span(0, layer.out_height), across
    top, left = layer.padding[0], layer.padding[1] + shift
    of_part = layer.channels // layer.parts

    def pixel(n: Any, channel: Any, y: Any, x: Any) -> Any:
        h, w, c = y - top, x - left, layer.in_block
        right = tir.LT(w, tir.const(layer.width, "int32"))
        inside = [h >= 0, h < layer.height, w >= 0, tir.likely(right) if planes else right]
        if len(data.shape) == 5:
            element = data[n, channel // c, h, w, channel % c]
        else:
            element = data[n, channel, h, w]
        return tir.if_then_else(tir.all(*inside), element, tir.const(0, gemm.DTYPE))

    if layer.shared:
        return te.compute(
            (layer.batch, layer.parts, *size, layer.inputs, layer.out_block),
            lambda n, q, y, x, i, k: pixel(
                n, q * of_part + k // layer.outputs * layer.inputs + i, y, x
            ),
            name="expanded",
        )  # fmt: skip
    if planes:
        return te.compute(
            (layer.batch, layer.parts, layer.inputs, *size),
            lambda n, q, i, y, x: pixel(n, q * of_part + i, y, x), name="planes",
        )  # fmt: skip
    return te.compute(
        (layer.batch, layer.parts, *size, layer.inputs),
        lambda n, q, y, x, i: pixel(n, q * of_part + i, y, x), name="padded",
    )  # fmt: skip


def _shift(layer: Layer) -> int:
    """Return the columns of zeros that make the padding on the left of a plane whole vectors.

    So that no vector is partly in the image there.
    """
    return -layer.padding[1] % gemm.problem(1, 1, 1).lanes


def _sums(layer: Layer, inputs: Any, weight: Any) -> Any:
    """Return the sums [n, block, row, column, filter] over all taps, as wide as whole tiles."""
    i, y, x = (
        te.reduce_axis((0, length), name)
        for length, name in zip((layer.inputs, *layer.taps), "iyx", strict=True)
    )
    (down, across), (far, wide) = layer.strides, layer.dilation
    blocks = layer.filters // layer.out_block

    def product(n: Any, b: Any, h: Any, w: Any, k: Any) -> Any:
        part = b // (blocks // layer.parts)
        row, column = h * down + y * far, w * across + x * wide
        if inputs.op.name == "expanded":
            pixel = inputs[n, part, row, column, i, k]
        elif inputs.op.name == "planes":
            pixel = inputs[n, part, i, row, column + _shift(layer)]
        else:
            pixel = inputs[n, part, row, column, i]
        return te.sum(pixel * weight[b, 0, y, x, i, k], [i, y, x])

    planes = inputs.op.name == "planes"
    last = int(inputs.shape[4]) - _shift(layer) if planes else int(inputs.shape[3])
    width = (last - layer.span(1, 1)) // across + 1
    return te.compute(
        (layer.batch, blocks, layer.out_height, width, layer.out_block), product, name="acc"
    )


@autotvm.register_topi_schedule(TEMPLATE)  # type: ignore[untyped-decorator]
def schedule_direct(cfg: Any, outs: Any) -> Any:
    """Return the schedule of a convolution with what Relay fused behind it."""
    return gemm.schedule_tagged(_TAG, _schedule, cfg, outs)


def _schedule(s: Any, cfg: Any, conv: Any, out: Any) -> None:
    (acc,) = conv.op.input_tensors
    inputs, weight = acc.op.input_tensors
    columns, blocks = cfg["tile"].val
    out, n, b, h, w, lane = output_axes(s, conv, out, int(acc.shape[-1]))
    part, b = s[out].split(b, nparts=int(inputs.shape[1]))
    chunk, row = s[out].split(h, factor=int(cfg["rows"].val) or int(acc.shape[2]))
    outer, b = s[out].split(b, factor=blocks)
    tile, column = s[out].split(w, factor=columns)
    s[out].reorder(n, part, chunk, outer, row, tile, b, column, lane)
    chunk = s[out].fuse(n, part, chunk)
    s[out].parallel(chunk)
    s[out].unroll(b)
    s[out].unroll(column)
    s[out].vectorize(lane)
    s[out].pragma(b, MARK, True)

    s[acc].compute_at(s[out], tile)
    n, b, h, column, lane = s[acc].op.axis
    i, y, x = s[acc].op.reduce_axis
    i, unrolled = s[acc].split(i, factor=int(cfg["unroll"].val))
    # Taps stay loops: were they written out, LLVM would keep the inputs that they share, and spill.
    order = [i, x] if inputs.op.name == "expanded" else [x, i]  # what is long is read once
    s[acc].reorder(n, h, y, *order, unrolled, column, b, lane)
    for axis in (unrolled, column, b):
        s[acc].unroll(axis)
    s[acc].vectorize(lane)

    s[inputs].compute_at(s[out], chunk)
    _schedule_inputs(s[inputs], inputs)
    if weight.op.name == _PACKED:
        s[weight].parallel(s[weight].op.axis[0])


def _schedule_inputs(stage: Any, inputs: Any) -> None:
    last = stage.op.axis[-1]
    lanes = gemm.problem(1, 1, 1).lanes
    if inputs.op.name == "expanded":
        stage.unroll(stage.op.axis[-2])
    elif inputs.op.name == "planes":
        _, last = stage.split(last, factor=lanes)
        stage.pragma(last, MARK, True)
    elif inputs.op.name == "padded":
        _, last = stage.split(last, factor=math.gcd(int(inputs.shape[-1]), lanes))
    stage.vectorize(last)


def takes(attrs: Any, inputs: Any, out_type: Any) -> bool:
    """Return whether the template takes a `nn.conv2d` in float32.

    It does where groups and blocks of filters are multiples of each other (but not depthwise ones),
    and where an image of few channels has a filter of more than one tap.
    """
    data, weight = inputs
    shape = get_const_tuple(weight.shape)
    plain = (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW")
    if not gemm.takes(data, weight, out_type):
        return False
    groups, blocked = int(attrs.groups), len(shape) == 6
    if not blocked and (not plain or str(attrs.out_layout) not in ("", "NCHW")):
        return False
    layer = layer_of(data, weight, attrs.strides, attrs.padding, attrs.dilation, groups)
    if blocked and shape[1:2] + shape[4:5] != (1, layer.inputs):
        return False
    if groups == 1:
        return layer.channels <= _FEW and len(data.shape) == 4 and math.prod(layer.taps) > 1
    fits = max(layer.outputs, layer.out_block) % min(layer.outputs, layer.out_block) == 0
    return fits and (layer.inputs, layer.outputs) != (1, 1)
