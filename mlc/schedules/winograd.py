"""The template `conv2d_winograd_mlc.x86`: 3x3 convolutions with stride 1 by Winograd's algorithm.

F(2x2, 3x3) takes 2.25 times fewer multiplications than direct convolution, F(4x4, 3x3) 4 times; see
`transforms` for the algorithm. Activations stay in the blocked layout NCHWc of the layers around.

    for each chunk of tiles (`rows` rows of tiles of an image), in parallel:
        for each block of channels, each row of tiles:
            padded = the rows of inputs under it                 zeros outside the image
            V[(m+2)^2, tiles, C] = B^T d B for each tile d
        for each of the (m+2)^2 positions:
            M[position] = V[position] U[position]                matrix product, register tiles
        for each tile: epilogue(A^T M A)                         what Relay fused behind, stored

The register tiles are those of `gemm`: rows are tiles of the image, columns are output channels. The
chunk keeps V and M in the L2 cache. Few chunks do not fill the threads: then (`parallel` is "stages")
chunks follow each other, and each of the three stages is parallel in itself, the product over
positions and channels, so that every weight is read once.

Every loop inside a tile is written out, with vectors over channels; the conditions of the padding and
of tiles over the edge of the image are tested once for a vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import autotvm, te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm
from mlc.schedules.blocks import block
from mlc.schedules.transforms import SIZES, TAPS, transform_input, transform_output
from mlc.schedules.winograd_loops import schedule_stages

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPLATE = "conv2d_winograd_mlc.x86"
_TAG = "mlc_winograd"
_UNROLL = (1, 2, 4, 8)
_ROWS = (1, 2, 4, 8, 0)  # of tiles in a chunk, 0: all of the image
_PARALLEL = ("chunks", "stages")

_CACHE_BYTES = 1 << 19  # what V and M of a chunk may take: half of a common L2 cache
_LEAST_TILES = 8  # of a chunk: with fewer, a weight from L3 is used too seldom
_LEAST_CHANNELS = 16
_MARGIN = 0.75  # for what the model does not see
_THREADS = 8  # assumed to share the chunks, as in `gemm`


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution, 3x3 with stride 1: sizes in elements; padding top, left, bottom, right.

    Activations lie in blocks of `in_block` and `out_block` channels.
    """

    batch: int
    channels: int
    height: int
    width: int
    filters: int
    padding: tuple[int, int, int, int]
    in_block: int
    out_block: int
    lanes: int

    @property
    def out_height(self) -> int:
        """Rows of outputs."""
        return self.height + self.padding[0] + self.padding[2] - TAPS + 1

    @property
    def out_width(self) -> int:
        """Outputs in a row."""
        return self.width + self.padding[1] + self.padding[3] - TAPS + 1

    @property
    def flops(self) -> int:
        """The operations of the direct convolution, a multiply-add counted as two."""
        outputs = self.batch * self.filters * self.out_height * self.out_width
        return 2 * TAPS * TAPS * self.channels * outputs

    def tiles(self, m: int) -> tuple[int, int]:
        """Return how many tiles of m x m outputs cover the image, down and across."""
        return -(-self.out_height // m), -(-self.out_width // m)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a layer is computed: m x m outputs a tile, `rows` rows of tiles a chunk, register tile."""

    layer: Layer
    m: int
    rows: int
    tile: tuple[int, int]

    @property
    def points(self) -> int:
        """Elements of a transformed tile, down or across."""
        return self.m + TAPS - 1

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return self.layer.tiles(self.m)[1]

    @property
    def tiles(self) -> int:
        """Tiles in a chunk."""
        return self.rows * self.across

    @property
    def chunks(self) -> int:
        """Chunks of one image."""
        return -(-self.layer.tiles(self.m)[0] // self.rows)

    @property
    def weights(self) -> tuple[int, int, int, int]:
        """The shape of transformed weights: positions, panels, channels, columns of a panel."""
        columns = self.tile[1] * self.layer.lanes
        return self.points**2, -(-self.layer.filters // columns), self.layer.channels, columns


def layer_of(data: Any, padding: Any, filters: int, out_block: int = 0) -> Layer:
    """Return the layer of an input [n, c, h, w] or [n, c / block, h, w, block].

    Where no block is given it is that of all layers by default.
    """
    shape = get_const_tuple(data.shape)
    batch, channels, height, width = shape[:4]
    lanes = gemm.problem(1, 1, 1).lanes
    in_block = shape[4] if len(shape) == 5 else block(channels, lanes)
    return Layer(
        batch=batch,
        channels=channels * in_block if len(shape) == 5 else channels,
        height=height,
        width=width,
        filters=filters,
        padding=tuple(get_const_tuple(padding)),
        in_block=in_block,
        out_block=out_block or block(filters, lanes),
        lanes=lanes,
    )


def define(cfg: Any, layer: Layer) -> Plan:
    """Define the knobs on a config space, write the default into a fallback config; return the plan.

    `outputs`: m; `rows`: rows of tiles in a chunk, 0 for all; `parallel`: over the chunks, or in each
    of the "stages"; `tile`, `unroll`: as in `gemm`, rows are tiles of the image.
    """
    down = layer.tiles(max(SIZES))[0]
    cfg.define_knob("outputs", list(SIZES))
    cfg.define_knob("rows", [rows for rows in _ROWS if rows < down])
    cfg.define_knob("parallel", list(_PARALLEL))
    every = gemm.problem(1 << 20, layer.filters, layer.channels)  # so many rows: any tile fits
    cfg.define_knob("tile", list(every.candidates()))
    cfg.define_knob("unroll", [u for u in _UNROLL if layer.in_block % u == 0])
    if cfg.is_fallback:
        for name, value in default(layer).items():
            cfg[name] = OtherOptionEntity(value)
    cfg.add_flop(layer.flops)
    m, tile = int(cfg["outputs"].val), tuple(cfg["tile"].val)
    return Plan(layer=layer, m=m, rows=int(cfg["rows"].val) or layer.tiles(m)[0], tile=tile)


def default(layer: Layer, outputs: int = 0) -> dict[str, Any]:
    """Return the knobs of the config that is used without a measurement (for a given m, if any)."""
    m = outputs or min(SIZES, key=lambda size: modelled_cycles(layer, size))
    down, across = layer.tiles(m)
    per_row = across * (m + 2) ** 2 * 4 * (layer.channels + layer.filters)
    rows = max(_CACHE_BYTES // per_row, -(-_LEAST_TILES // across), 1)
    chunks = layer.batch * -(-down // min(rows, down))
    full = chunks / (-(-chunks // _THREADS) * _THREADS)  # of the rounds in which threads take them
    products = gemm.problem(min(rows, down) * across, layer.filters, layer.channels, (m + 2) ** 2)
    return {
        "outputs": m,
        "rows": rows if rows < down else 0,
        "parallel": "chunks" if full > 0.7 else "stages",
        "tile": gemm.default_tile(products),
        "unroll": math.gcd(4, layer.in_block),
    }


def modelled_cycles(layer: Layer, m: int) -> float:
    """Return the modelled time with tiles of m x m outputs in cycles of a core; m = 1 is direct.

    A core does 32 operations a cycle (two multiply-adds of 8 floats, or one of 16) and reads 4 bytes
    of weights a cycle from memory; half of the shorter of both is hidden behind the longer. A vector
    of a transformed tile takes 3 cycles. Larger tiles multiply less, but have more weights:
    (m + 2)^2 for each filter and channel.
    """
    positions, (down, across) = (m + TAPS - 1) ** 2, layer.tiles(m)
    tiles = layer.batch * down * across
    weights = positions * layer.channels * layer.filters
    transforms = tiles * positions * (layer.channels + layer.filters) / layer.lanes * 3
    products, reading = 2 * tiles * weights / 32, 4 * weights / 4
    hidden = min(products, reading) / 2
    return products + reading - hidden + (transforms if m > 1 else 0)


def suits(layer: Layer) -> bool:
    """Return whether the algorithm may pay at all: channels are whole vectors, and not few."""
    vectors = layer.in_block == layer.out_block == layer.lanes
    return vectors and min(layer.channels, layer.filters) >= _LEAST_CHANNELS


def pays(layer: Layer) -> bool:
    """Return whether the default config is expected to beat direct convolution clearly.

    Of ResNet-18's layers those with 7x7 outputs do not: timed alone they gain some, in the network
    F(2x2) took as long as direct convolution, and its weights are larger.
    """
    best = min(modelled_cycles(layer, m) for m in SIZES)
    return best < _MARGIN * modelled_cycles(layer, 1)


@autotvm.register_topi_compute(TEMPLATE)  # type: ignore[untyped-decorator]
def conv2d(cfg: Any, data: Any, weight: Any, padding: Any, filters: int, out_block: int) -> Any:
    """Return the convolution [n, filters / out_block, oh, ow, out_block].

    Args:
        cfg: the config.
        data: [n, c / block, h, w, block]; for tuning [n, c, h, w], then blocked inputs are made up.
        weight: transformed (`Plan.weights`); for tuning [filters, c, 3, 3].
        padding: top, left, bottom, right.
        filters: how many output channels there are; `weight` may have zeros behind them.
        out_block: the block of output channels, a divisor of `filters`.
    """
    layer = layer_of(data, padding, int(filters), int(out_block))
    plan = define(cfg, layer)
    if len(data.shape) == 4:
        blocked = (layer.batch, layer.channels // layer.in_block, layer.height, layer.width)
        data = te.placeholder((*blocked, layer.in_block), data.dtype, name="data")
        weight = te.placeholder(plan.weights, weight.dtype, name="weight")
    assert get_const_tuple(weight.shape) == plan.weights, "transformed for another config"
    return _outputs(plan, _products(plan, _inputs(plan, data), weight))


def _pick(index: Any, values: Sequence[Any]) -> Any:
    """Return `values[index]`: once loops are written out the index is known, and nothing else stays."""
    *others, picked = values
    for position, value in reversed(list(enumerate(others))):
        picked = tir.Select(index == position, value, picked)
    return picked


def _inputs(plan: Plan, data: Any) -> Any:
    """Return V [chunk, position, block of channels, tile, channel]."""
    layer, m, points = plan.layer, plan.m, plan.points
    top, left, _, _ = layer.padding
    blocks = layer.channels // layer.in_block
    chunks = layer.batch * plan.chunks

    def pixel(q: Any, b: Any, y: Any, x: Any, c: Any) -> Any:
        h, w = q % plan.chunks * (plan.rows * m) + y - top, x - left
        inside = tir.all(h >= 0, h < layer.height, w >= 0, w < layer.width)
        value = data[q // plan.chunks, b, h, w, c]
        return tir.if_then_else(inside, value, tir.const(0, gemm.DTYPE))

    size = (plan.rows * m + TAPS - 1, plan.across * m + TAPS - 1)
    padded = te.compute((chunks, blocks, *size, layer.in_block), pixel, name="padded")

    def down(q: Any, b: Any, t: Any, i: Any, x: Any, c: Any) -> Any:
        row, column = t // plan.across * m, t % plan.across * m
        return _pick(i, transform_input(m, lambda y: padded[q, b, row + y, column + x, c]))

    shape = (chunks, blocks, plan.tiles, points, points, layer.in_block)
    half = te.compute(shape, down, name="inputs_down")

    def across(q: Any, p: Any, b: Any, t: Any, c: Any) -> Any:
        return _pick(p % points, transform_input(m, lambda x: half[q, b, t, p // points, x, c]))

    whole = (chunks, points**2, blocks, plan.tiles, layer.in_block)
    return te.compute(whole, across, name="inputs")


def _products(plan: Plan, v: Any, u: Any) -> Any:
    """Return M [chunk, position, panel, tile, column]."""
    layer, tiles = plan.layer, plan.tiles
    positions, panels, _, columns = plan.weights
    chunks, whole = layer.batch * plan.chunks, -(-tiles // plan.tile[0]) * plan.tile[0]
    outer = te.reduce_axis((0, layer.channels // layer.in_block), "b")
    inner = te.reduce_axis((0, layer.in_block), "c")

    def multiplied(q: Any, p: Any, panel: Any, t: Any, k: Any) -> Any:
        row = tir.min(t, tiles - 1) if whole > tiles else t  # computed again, not stored
        weight = u[p, panel, outer * layer.in_block + inner, k]
        return te.sum(v[q, p, outer, row, inner] * weight, [outer, inner])

    acc = te.compute((chunks, positions, panels, whole, columns), multiplied, name="acc")
    shape = (chunks, positions, panels, tiles, columns)
    return te.compute(shape, lambda q, p, panel, t, k: acc[q, p, panel, t, k], name="products")


def _outputs(plan: Plan, products: Any) -> Any:
    """Return the convolution in blocks of channels."""
    layer, m, points = plan.layer, plan.m, plan.points
    size, columns = layer.out_block, plan.weights[3]
    blocks, chunks = layer.filters // size, layer.batch * plan.chunks

    def down(q: Any, b: Any, t: Any, i: Any, j: Any, k: Any) -> Any:
        panel, column = (b * size + k) // columns, (b * size + k) % columns
        return _pick(
            i, transform_output(m, lambda r: products[q, r * points + j, panel, t, column])
        )

    half = te.compute((chunks, blocks, plan.tiles, m, points, size), down, name="outputs_down")

    def across(q: Any, b: Any, t: Any, i: Any, j: Any, k: Any) -> Any:
        return _pick(j, transform_output(m, lambda r: half[q, b, t, i, r, k]))

    tiles = te.compute((chunks, blocks, plan.tiles, m, m, size), across, name="outputs")

    def pixel(n: Any, b: Any, h: Any, w: Any, k: Any) -> Any:
        chunk, row = n * plan.chunks + h // (m * plan.rows), h // m % plan.rows
        return tiles[chunk, b, row * plan.across + w // m, h % m, w % m, k]

    shape = (layer.batch, blocks, layer.out_height, layer.out_width, size)
    return te.compute(shape, pixel, name="conv2d", tag=_TAG)


@autotvm.register_topi_schedule(TEMPLATE)  # type: ignore[untyped-decorator]
def schedule_conv2d(cfg: Any, outs: Any) -> Any:
    """Return the schedule of a convolution with what Relay fused behind it."""
    return gemm.schedule_tagged(_TAG, schedule_stages, cfg, outs)
