"""The template `conv2d_1x1_mlc.x86`: convolutions with filters of one tap, in float32.

They are matrix products: rows are positions of the image, columns output channels. Activations and
weights stay in the blocks of the layers around (NCHWc, OIHWio), no panels are packed.

    for each chunk of `rows` rows of outputs, each group of blocks of filters, in parallel:
        for each tile of positions:
            acc[blocks, positions, block] = 0                in registers
            for each channel:                                unrolled `unroll` times
                acc[:, :, :] += input[position, channel] * weight[block, channel, :]
            outputs = epilogue(acc)                          what Relay fused behind, stored

A tile whose columns divide the rows of the image lies in one of them, or in two, and its sums are stored
out of the registers. Others go over the ends of rows: the sums of a chunk are kept, in the L1 cache, until
all are there. That costs as much as some twelve channels. The register tile is that of `gemm`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import autotvm, te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm
from mlc.schedules.blocks import block, output_axes
from mlc.schedules.tails import MARK

if TYPE_CHECKING:
    from collections.abc import Callable

TEMPLATE = "conv2d_1x1_mlc.x86"
_TAG = "mlc_pointwise"
_PACKED = "packed"
_UNROLL = (1, 2, 4, 8)
_FEW = 64  # channels: stores decide, and are faster to one block at a time (measured)
# Channels up to which a tile in two rows is a default: with 16 registers they gain 7 % and more at 96, up to 4 % at 256,
# nothing at 1024 (measured in blocks); tuning may take them anywhere.
_FEW_STEPS = 128
_MOST_POSITIONS = 16  # of a tile in a row: 28 were slower (measured)
_COPY = 6  # modelled cycles that it costs to keep a vector of sums and read it again (measured)
_WASTE = 20  # of so many blocks one may be computed in vain
_POSITIONS = 128  # of a chunk: its sums are in the L1 cache
_SHORT = 32  # positions of a chunk


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A 1x1 convolution without padding: sizes in elements, strides (down, across)."""

    batch: int
    channels: int
    height: int
    width: int
    filters: int
    strides: tuple[int, int]
    in_block: int
    out_block: int

    @property
    def out_height(self) -> int:
        """Rows of outputs."""
        return (self.height - 1) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Outputs in a row."""
        return (self.width - 1) // self.strides[1] + 1

    @property
    def image(self) -> tuple[int, ...]:
        """The shape of the inputs in blocks."""
        blocks = self.channels // self.in_block
        return self.batch, blocks, self.height, self.width, self.in_block

    @property
    def weights(self) -> tuple[int, ...]:
        """The shape of the weights in blocks."""
        blocks = self.filters // self.out_block, self.channels // self.in_block
        return *blocks, 1, 1, self.in_block, self.out_block

    def products(self, rows: int) -> gemm.Problem:
        """Return the matrix product of a chunk of some rows of outputs."""
        return gemm.Problem(
            m=rows * self.out_width, n=self.filters, k=self.channels, lanes=self.out_block,
            registers=gemm.problem(1, 1, 1).registers,
        )  # fmt: skip


def layer_of(data: Any, weight: Any, strides: Any) -> Layer:
    """Return the layer of inputs [n, c, h, w] and filters [k, c, 1, 1], or of both in blocks."""
    batch, channels, height, width, *inner = get_const_tuple(data.shape)
    filters, *_, last = get_const_tuple(weight.shape)
    lanes = gemm.problem(1, 1, 1).lanes
    in_block = inner[0] if inner else block(channels, lanes)
    out_block = last if inner else block(filters, lanes)
    return Layer(
        batch=batch,
        channels=channels * in_block if inner else channels,
        height=height,
        width=width,
        filters=filters * out_block if inner else filters,
        strides=tuple(get_const_tuple(strides)),
        in_block=in_block,
        out_block=out_block,
    )


def define(cfg: Any, layer: Layer) -> None:
    """Define the knobs on a config space; write the default into a fallback config.

    `tile`: positions and blocks of filters in a register tile; `unroll`: channels written out;
    `rows`: rows of outputs in a chunk.
    """
    tile, rows = _default(layer)
    known = layer.products(rows)
    cfg.define_knob("tile", [list(tile) for tile in _tiles(layer, known)])
    cfg.define_knob("unroll", [u for u in _UNROLL if layer.in_block % u == 0])
    cfg.define_knob(
        "rows", [r for r in range(1, layer.out_height + 1) if layer.out_height % r == 0]
    )
    if cfg.is_fallback:
        cfg["tile"] = OtherOptionEntity(tile)
        cfg["unroll"] = OtherOptionEntity(4 if layer.in_block % 4 == 0 else 1)
        cfg["rows"] = OtherOptionEntity(rows)
    chunks = layer.batch * layer.out_height // rows
    cfg.add_flop(known.flops * chunks)


def _tiles(layer: Layer, known: gemm.Problem, *, default: bool = False) -> list[list[int]]:
    """Return the register tiles that cover the layer without computing much that is not there."""
    blocks, rows = layer.filters // layer.out_block, known.m // layer.out_width
    in_rows = [
        [positions, vectors]
        for positions in range(1, _MOST_POSITIONS + 1)
        for vectors in gemm.VECTORS
        if _in_rows(layer.out_width, rows, positions) and known.fits(positions, vectors)
    ]
    tiles = [*known.candidates(default=default), *in_rows]
    found = [
        tile for k, tile in enumerate(tiles)
        if -blocks % tile[1] * _WASTE <= blocks and tile not in tiles[:k]
    ]  # fmt: skip
    return found or [[min(known.m, 4), 1]]


def _in_rows(width: int, rows: int, positions: int) -> tuple[int, int] | None:
    """Return the rows and columns of a tile of so many positions that goes over no end of a row.

    It divides `rows` rows of `width` outputs; None: there is no such tile.
    """
    shapes = ((down, positions // down) for down in (1, 2) if positions % down == rows % down == 0)
    return next((shape for shape in shapes if width % shape[1] == 0), None)


def _default(layer: Layer) -> tuple[list[int], int]:
    """Return the tile and the rows of a chunk of the fewest modelled cycles.

    Blocks of filters over the end must save a tenth of them.
    """
    blocks = layer.filters // layer.out_block

    def tiles(rows: int) -> list[list[int]]:
        known = layer.products(rows)
        found = _tiles(layer, known, default=True)
        if layer.channels > _FEW_STEPS:
            one_row = [
                t for t in found if _in_rows(layer.out_width, rows, t[0]) in (None, (1, t[0]))
            ]
            found = one_row or found
        if layer.channels <= _FEW and known.registers == 32:
            return [t for t in found if t[1] == 1 and layer.out_width % t[0] == 0] or found
        return found

    def cycles(choice: tuple[list[int], int]) -> tuple[float, int]:
        tile, rows = choice
        known = layer.products(rows)
        extra = 1 if blocks % tile[1] == 0 else 1 / 0.9
        # A position's line of the image lasts a block of channels, and no stream of them is prefetched.
        step = gemm.cycles_of_a_step(known, *tile) + tile[0] / layer.in_block
        products = math.prod(known.tiles(*tile)) * step * layer.channels
        copies = 0 if _in_rows(layer.out_width, rows, tile[0]) else _COPY * known.m * blocks
        chunks = layer.out_height // rows
        return chunks * (extra * products + copies), -tile[0] * tile[1]

    choices = [(tile, rows) for rows in _default_rows(layer) for tile in tiles(rows)]
    return min(choices, key=cycles)


def _default_rows(layer: Layer) -> list[int]:
    """Return the rows of a chunk that are worth trying without a measurement.

    They are the most, a divisor of all, that make no more positions than a chunk should have; two of an image
    of few channels, for tiles that lie in two rows; all of a small one, which leaves fewer tiles over the ends,
    where threads share filters. A short chunk cuts up the wide tiles that blocks of half a vector need: those
    take a small image whole.
    """
    height, most = layer.out_height, max(_POSITIONS // layer.out_width, 1)
    rows = next(rows for rows in range(min(most, height), 0, -1) if height % rows == 0)
    half = layer.out_block < gemm.problem(1, 1, 1).lanes
    short = rows * layer.out_width < _SHORT
    small = height * layer.out_width <= 2 * _POSITIONS
    filters_shared = gemm.weights_weigh_more(
        height * layer.out_width, layer.filters, layer.channels
    )
    if half and short and small:
        return [height]
    pairs = [2] if rows % 2 and height % 2 == 0 and layer.channels <= _FEW_STEPS else []
    return [rows, *pairs, *([height] if small and filters_shared else [])]


@autotvm.register_topi_compute(TEMPLATE)  # type: ignore[untyped-decorator]
def pointwise(cfg: Any, data: Any, weight: Any, strides: Any) -> Any:
    """Return the convolution, [n, k, oh, ow] or in blocks as `data` is.

    Args:
        cfg: the config.
        data: [n, c, h, w], or [n, c / block, h, w, block]; for tuning blocks are made up.
        weight: [k, c, 1, 1], or [k / out, c / block, 1, 1, block, out].
        strides: down and across.
    """
    layer = layer_of(data, weight, strides)
    define(cfg, layer)
    if len(data.shape) == 4 and autotvm.GLOBAL_SCOPE.in_tuning:
        data = te.placeholder(layer.image, data.dtype, name="data")
        weight = te.placeholder(layer.weights, weight.dtype, name="weight")
    plain, (size, inner) = len(data.shape) == 4, (layer.out_block, layer.in_block)
    if plain:
        filters = weight
        weight = te.compute(
            layer.weights, lambda b, c, y, x, i, o: filters[b * size + o, c * inner + i, y, x],
            name=_PACKED,
        )  # fmt: skip
    sums, position = _sums(cfg, layer, data, weight)
    shape = (layer.out_height, layer.out_width)
    if plain:
        return te.compute(
            (layer.batch, layer.filters, *shape),
            lambda n, k, h, w: sums(n, k // size, *position(h, w), k % size),
            name="conv2d", tag=_TAG,
        )  # fmt: skip
    return te.compute(
        (layer.batch, layer.filters // size, *shape, size),
        lambda n, b, h, w, k: sums(n, b, *position(h, w), k), name="conv2d", tag=_TAG,
    )  # fmt: skip


def _sums(cfg: Any, layer: Layer, data: Any, weight: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the sums [n, block, position..., filter], and what gives the position of outputs (h, w).

    They have rows and columns, and are the accumulators, where tiles lie in rows; else there is one axis
    of positions, and `sums` that are kept.
    """
    tile, group = cfg["tile"].val
    rows = int(cfg["rows"].val)
    height, width, size, inner = layer.out_height, layer.out_width, layer.out_block, layer.in_block
    blocks = layer.filters // size
    covered = -(-blocks // group) * group
    outer = te.reduce_axis((0, layer.channels // inner), "c")
    step = te.reduce_axis((0, inner), "i")

    def product(n: Any, b: Any, h: Any, w: Any, k: Any) -> Any:
        h, w = h * layer.strides[0], w * layer.strides[1]
        if len(data.shape) == 5:
            pixel = data[n, outer, h, w, step]
        else:
            pixel = data[n, outer * inner + step, h, w]
        last = tir.min(b, blocks - 1) if covered > blocks else b  # computed again, not stored
        return te.sum(pixel * weight[last, outer, 0, 0, step, k], [outer, step])

    if _in_rows(width, rows, tile):
        shape = (layer.batch, covered, height, width, size)
        return te.compute(shape, product, name="acc"), lambda h, w: (h, w)

    positions, chunk = height * width, rows * width
    whole = positions - chunk + -(-chunk // tile) * tile

    def flat(n: Any, b: Any, p: Any, k: Any) -> Any:
        at = tir.min(p, positions - 1) if whole > positions else p  # the same holds for positions
        return product(n, b, at // width, at % width, k)

    acc = te.compute((layer.batch, covered, whole, size), flat, name="acc")
    kept = (layer.batch, blocks, positions, size)
    sums = te.compute(kept, lambda n, b, p, k: acc[n, b, p, k], name="sums")
    return sums, lambda h, w: (h * width + w,)


@autotvm.register_topi_schedule(TEMPLATE)  # type: ignore[untyped-decorator]
def schedule_pointwise(cfg: Any, outs: Any) -> Any:
    """Return the schedule of a 1x1 convolution with what Relay fused behind it."""
    return gemm.schedule_tagged(_TAG, _schedule, cfg, outs)


def _schedule(s: Any, cfg: Any, conv: Any, out: Any) -> None:
    (sums,) = conv.op.input_tensors
    in_rows = bool(sums.op.reduce_axis)
    acc = sums if in_rows else sums.op.input_tensors[0]
    (positions, blocks), rows = cfg["tile"].val, int(cfg["rows"].val)
    out, n, b, h, w, lane = output_axes(s, conv, out, int(acc.shape[-1]))
    chunk, row = s[out].split(h, factor=rows)
    group, b = s[out].split(b, factor=blocks)
    outer = [group, chunk] if _weights_weigh_more(conv, acc) else [chunk, group]
    if in_rows:
        shape = _in_rows(int(acc.shape[3]), rows, positions)
        assert shape is not None
        row, down = s[out].split(row, factor=shape[0])
        place, p = s[out].split(w, factor=shape[1])
        s[out].reorder(n, *outer, row, place, b, down, p, lane)
        s[out].unroll(down)
    else:
        s[out].reorder(n, *outer, b, row, w, lane)
    chunk = s[out].fuse(n, *outer)
    flops = 2 * math.prod(get_const_tuple(conv.shape)) * _channels(acc)
    if flops >= gemm.SERIAL_FLOPS:
        s[out].parallel(chunk)
    s[out].vectorize(lane)

    stores = s[out]
    if not in_rows:
        s[sums].compute_at(s[out], chunk)
        n, b, p, lane = s[sums].op.axis
        place, p = s[sums].split(p, factor=positions)
        s[sums].reorder(n, place, b, p, lane)
        s[sums].vectorize(lane)
        stores = s[sums]
    stores.unroll(b)
    stores.unroll(p)
    stores.pragma(b, MARK, True)

    s[acc].compute_at(stores, place)
    n, b, *places, lane = s[acc].op.axis
    outer, step = s[acc].op.reduce_axis
    step, unrolled = s[acc].split(step, factor=cfg["unroll"].val)
    s[acc].reorder(n, outer, step, unrolled, *places, b, lane)
    for axis in (unrolled, *places, b):
        s[acc].unroll(axis)
    s[acc].vectorize(lane)

    weight = acc.op.input_tensors[1]
    if weight.op.name == _PACKED:
        s[weight].parallel(s[weight].op.axis[0])


def _channels(acc: Any) -> int:
    return math.prod(int(axis.dom.extent) for axis in acc.op.reduce_axis)


def _weights_weigh_more(conv: Any, acc: Any) -> bool:
    """Return whether threads had better share filters than rows of the image."""
    _, blocks, height, width, *inner = get_const_tuple(conv.shape)
    filters = blocks * math.prod(inner)
    return gemm.weights_weigh_more(height * width, filters, _channels(acc))


def takes(attrs: Any, inputs: Any, out_type: Any) -> bool:
    """Return whether the template takes a `nn.conv2d`: float32, one tap, no padding, one group."""
    data, weight = inputs
    shape = get_const_tuple(weight.shape)
    plain = (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW")
    blocked = len(data.shape) == 5 and len(shape) == 6 and data.shape[4] == shape[4]
    return (
        (blocked or (plain and str(attrs.out_layout) in ("", "NCHW")))
        and gemm.takes(data, weight, out_type)
        and shape[2:4] == (1, 1)
        and attrs.groups == 1
        and not any(get_const_tuple(attrs.padding))
    )
