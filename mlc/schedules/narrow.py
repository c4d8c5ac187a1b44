"""The templates `conv2d_narrow_mlc.arm` and `.x86`: convolutions of 8-bit values, summed up in int32.

Padding is done before. Activations lie in blocks of channels (NCHWc), weights in
[filter block, channel block, down, across, channel / group, filter, group].

    for each group of blocks of filters, each row of outputs, in parallel:
        for each tile of `columns` outputs:
            acc[blocks, columns, block] = 0                  in registers
            for each channel block, tap, group of channels:
                acc[:, :, lanes] += dot(group of data, broadcast; lanes x group of weights)
            outputs = epilogue(acc)                          what Relay fused behind, stored

The innermost step is an instruction of the CPU's (`dot`), which says what data and weights it takes. A
tile behind the end of a row computes its last column again. Where images are single pixels, as those
that dense layers make of their rows are, a row of outputs goes over the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import autotvm, te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.topi.utils import get_const_tuple

from mlc.schedules import dot, gemm
from mlc.schedules.blocks import output_axes
from mlc.schedules.tails import MARK
from mlc.schedules.window import Window

_TAG = "mlc_narrow"
_BLOCKS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Layer(Window):
    """An 8-bit convolution without padding; blocks of inputs and of filters; the instruction."""

    filters: int
    in_block: int
    out_block: int
    dot: dot.Dot

    @property
    def image(self) -> tuple[int, ...]:
        """The shape of the inputs in blocks."""
        blocks = self.channels // self.in_block
        return self.batch, blocks, self.height, self.width, self.in_block

    @property
    def weights(self) -> tuple[int, ...]:
        """The shape of the weights in blocks."""
        blocks = self.filters // self.out_block, self.channels // self.in_block
        return *blocks, *self.taps, self.in_block // self.dot.group, self.out_block, self.dot.group

    @property
    def outputs(self) -> tuple[int, ...]:
        """The shape of the outputs in blocks."""
        size = self.out_height, self.out_width
        return self.batch, self.filters // self.out_block, *size, self.out_block

    @property
    def is_pixel(self) -> bool:
        """Whether an image is one pixel: then the batch is a row of outputs."""
        return self.height == self.width == 1

    @property
    def row(self) -> int:
        """The outputs in a row."""
        return self.batch if self.is_pixel else self.out_width

    def registers(self, columns: int, blocks: int) -> int:
        """Return the vectors that a tile takes: its sums, a step's weights, what else a step holds."""
        vectors = blocks * self.out_block // self.dot.vector(self.out_block)
        return columns * vectors + vectors + self.dot.spare

    def steps(self, columns: int, blocks: int) -> int:
        """Return the instructions for a step of the sums, of all tiles of a row: products and loads."""
        vectors = blocks * self.out_block // self.dot.vector(self.out_block)
        tiles = -(-self.row // columns) * (self.outputs[1] // blocks)
        return tiles * (columns * vectors + columns + vectors)


def layer_of(data: Any, weight: Any, strides: Any, dilation: Any) -> Layer:
    """Return the layer of inputs [n, c, h, w] and filters [k, c, kh, kw], or of both in blocks."""
    batch, channels, height, width, *inner = get_const_tuple(data.shape)
    shape = get_const_tuple(weight.shape)
    instruction = dot.of_target()
    assert instruction is not None, "the target has no instruction for it"
    in_block = inner[0] if inner else instruction.block(channels)
    out_block = shape[5] if inner else instruction.block(shape[0])
    return Layer(
        batch=batch,
        channels=channels * in_block if inner else channels,
        height=height,
        width=width,
        filters=shape[0] * out_block if inner else shape[0],
        in_block=in_block,
        out_block=out_block,
        dot=instruction,
        taps=shape[2:4],
        strides=tuple(get_const_tuple(strides)),
        padding=(0, 0, 0, 0),
        dilation=tuple(get_const_tuple(dilation)),
    )


def define(cfg: Any, layer: Layer) -> None:
    """Define the knob `tile`, columns and blocks of filters, on a config space; write its default."""
    cfg.define_knob("tile", _tiles(layer, layer.dot.registers))
    if cfg.is_fallback:
        cfg["tile"] = OtherOptionEntity(default(layer))
    cfg.add_flop(2 * math.prod(layer.outputs) * layer.channels * layer.taps[0] * layer.taps[1])


def _tiles(layer: Layer, registers: int) -> list[list[int]]:
    """Return the tiles that fit some registers: those of columns that leave the least behind the row."""
    columns = {-(-layer.row // -(-layer.row // size)) for size in range(1, registers)}
    return [
        [size, together]
        for size in sorted(columns)
        for together in _BLOCKS
        if layer.outputs[1] % together == 0 and layer.registers(size, together) <= registers
    ]


def default(layer: Layer) -> list[int]:
    """Return the tile without a measurement: that of the fewest instructions, the largest of equal ones."""
    return min(_tiles(layer, layer.dot.default), key=lambda t: (layer.steps(*t), -t[0] * t[1]))


def convolution(cfg: Any, data: Any, weight: Any, strides: Any, dilation: Any) -> Any:
    """Return the convolution in int32, [n, k, oh, ow] or in blocks as `data` is.

    Args:
        cfg: the config.
        data: [n, c, h, w], or [n, c / block, h, w, block]; for tuning blocks are made up. Its dtype is
            that of the instruction's.
        weight: [k, c, kh, kw], or in blocks as the module says; its dtype likewise.
        strides: down and across.
        dilation: down and across.
    """
    layer = layer_of(data, weight, strides, dilation)
    define(cfg, layer)
    if len(data.shape) == 4 and autotvm.GLOBAL_SCOPE.in_tuning:
        data = te.placeholder(layer.image, data.dtype, name="data")
        weight = te.placeholder(layer.weights, weight.dtype, name="weight")
    plain, size = len(data.shape) == 4, layer.out_block
    if plain:
        data, weight = _in_blocks(layer, data, weight)
    acc = _sums(layer, data, weight, cfg["tile"].val[0])

    def at(n: Any, b: Any, h: Any, w: Any, o: Any) -> Any:
        return acc[0, b, h, n, o] if layer.is_pixel else acc[n, b, h, w, o]

    if not plain:
        return te.compute(layer.outputs, at, name="conv2d", tag=_TAG)
    return te.compute(
        (layer.batch, layer.filters, layer.out_height, layer.out_width),
        lambda n, k, h, w: at(n, k // size, h, w, k % size),
        name="conv2d",
        tag=_TAG,
    )


def _in_blocks(layer: Layer, image: Any, filters: Any) -> tuple[Any, Any]:
    """Return plain inputs and filters in blocks, to be computed at run time."""
    inner, size, group = layer.in_block, layer.out_block, layer.dot.group
    data = te.compute(
        layer.image, lambda n, b, h, w, c: image[n, b * inner + c, h, w], name="blocks"
    )
    weight = te.compute(
        layer.weights,
        lambda b, a, i, j, f, o, q: filters[b * size + o, a * inner + f * group + q, i, j],
        name="packed",
    )
    return data, weight


def _sums(layer: Layer, data: Any, weight: Any, columns: int) -> Any:
    """Return the sums over channels and taps, [images, block, row, column, filter], as wide as whole tiles."""
    _, *sizes, _, _ = layer.weights
    group = layer.dot.group
    outer, i, j, some, q = (
        te.reduce_axis((0, size), name) for size, name in zip([*sizes, group], "aijfq", strict=True)
    )
    (down, across), (far, wide) = layer.strides, layer.dilation
    batch, blocks, height, _, size = layer.outputs
    images, width = (1 if layer.is_pixel else batch), layer.row
    whole = -(-width // columns) * columns

    def product(n: Any, b: Any, h: Any, w: Any, o: Any) -> Any:
        column = tir.min(w, width - 1) if whole > width else w
        channel = some * group + q
        if layer.is_pixel:
            pixel = data[column, outer, 0, 0, channel]
        else:
            pixel = data[n, outer, h * down + i * far, column * across + j * wide, channel]
        tap = weight[b, outer, i, j, some, o, q]
        return te.sum(pixel.astype("int32") * tap.astype("int32"), [outer, i, j, some, q])

    return te.compute((images, blocks, height, whole, size), product, name="acc")


def schedule(cfg: Any, outs: Any) -> Any:
    """Return the schedule of an 8-bit convolution with what Relay fused behind it."""
    return gemm.schedule_tagged(_TAG, _schedule, cfg, outs)


def _schedule(s: Any, cfg: Any, conv: Any, out: Any) -> None:
    (acc,) = conv.op.input_tensors
    image, _ = acc.op.input_tensors
    columns, blocks = cfg["tile"].val
    size = int(acc.shape[-1])
    out, n, b, h, w, lane = output_axes(s, conv, out, size)
    together, b = s[out].split(b, factor=blocks)
    if get_const_tuple(image.shape)[2:4] == (1, 1):
        tile, column = s[out].split(n, factor=columns)
        s[out].reorder(together, h, tile, b, column, w, lane)
        row = tile = s[out].fuse(together, h, tile)
    else:
        tile, column = s[out].split(w, factor=columns)
        s[out].reorder(n, together, h, tile, b, column, lane)
        row = s[out].fuse(n, together, h)
    s[out].parallel(row)
    s[out].vectorize(lane)
    s[out].pragma(b, MARK, True)

    s[acc].compute_at(s[out], tile)
    n, b, h, column, o = s[acc].op.axis
    outer, i, j, some, q = s[acc].op.reduce_axis
    instruction = dot.of_target()
    assert instruction is not None
    lanes = instruction.vector(size)
    vector, lane = s[acc].split(o, factor=lanes)
    s[acc].reorder(n, h, outer, i, j, some, b, column, vector, lane, q)
    for axis in (b, column, vector):
        s[acc].unroll(axis)
    s[acc].tensorize(lane, instruction.intrinsic(lanes))


_NAMES = (dot.ARM, dot.X86)
COMPUTE = {name: autotvm.register_topi_compute(name)(convolution) for name in _NAMES}
SCHEDULE = {name: autotvm.register_topi_schedule(name)(schedule) for name in _NAMES}
