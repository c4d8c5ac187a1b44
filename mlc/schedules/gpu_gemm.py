"""The templates `dense_mlc.cuda` and `batch_matmul_mlc.cuda`: C[b] = A[b] B[b] in float32 on a GPU.

    for each tile of C, by a block of threads:
        for each slice of K:
            the slices of A [k, rows] and B [k, columns] to shared memory, zeros beyond their ends
            each thread: rows x columns of C in registers += a column of A times a row of B

as in Volkov and Demmel, "Benchmarking GPUs to Tune Dense Linear Algebra" (2008). Shapes need not be
multiples of anything: tiles are computed whole, and what is beyond the ends of C is not stored. TVM's own
template for dense layers has a block of threads for each element of C, that for batches tiles of one row
where M has no factor of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tvm import autotvm, te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.relay.op.strategy import cuda, generic
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm
from mlc.schedules.batch_matmul import elements

if TYPE_CHECKING:
    from collections.abc import Callable

DENSE, BATCH_MATMUL = "dense_mlc.cuda", "batch_matmul_mlc.cuda"
_TAG = "mlc_gpu_product"
_MANY_ROWS = 16  # up to these TVM's own is faster: they wait for their weights
_BLOCKS = 256
_BANKS, _VECTOR = 32, 4


class Tile(NamedTuple):
    """Threads of a block, down and across C, and the rows and columns of C that each computes."""

    down: int
    across: int
    rows: int
    columns: int

    @property
    def height(self) -> int:
        """The rows of a block."""
        return self.down * self.rows

    @property
    def width(self) -> int:
        """The columns of a block."""
        return self.across * self.columns


#: the smallest first: it fits everywhere
_TILES = (
    Tile(4, 8, 2, 2),
    Tile(8, 8, 2, 2),
    Tile(4, 8, 4, 4),
    Tile(4, 16, 4, 4),
    Tile(8, 8, 4, 4),
    Tile(8, 16, 4, 4),
    Tile(16, 8, 4, 4),
    Tile(16, 16, 4, 4),
    Tile(8, 8, 8, 8),
    Tile(8, 16, 8, 8),
    Tile(16, 16, 8, 4),
    Tile(16, 16, 8, 8),
)
_SLICES = (8, 16, 32)
_DEFAULTS = ((Tile(16, 16, 8, 4), 16), (Tile(4, 8, 4, 4), 32), (Tile(4, 8, 2, 2), 32))


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A or B: `element(*item, i, step)`, `count` rows of A or columns of B.

    `across`: elements with neighbouring i are neighbours in memory, else those with neighbouring steps.
    """

    element: Callable[..., Any]
    count: int
    across: bool


def product(cfg: Any, a: Operand, b: Operand, k: int, batch: tuple[int, ...] = ()) -> Any:
    """Return the products [*batch, m, n]."""
    tile, depth = _define(cfg, math.prod(batch), a.count, b.count)
    rows = _slices(a, (*batch, k), depth, tile.height, "rows")
    columns = _slices(b, (*batch, k), depth, tile.width, "columns")
    step = te.reduce_axis((0, int(rows.shape[-2])), "k")

    def sums(*at: Any) -> Any:
        *item, i, j = at
        return te.sum(rows(*item, step, i) * columns(*item, step, j), step)

    acc = te.compute((*batch, rows.shape[-1], columns.shape[-1]), sums, name="acc")
    shape = (*batch, a.count, b.count)
    return te.compute(shape, acc, name="product", tag=_TAG)


def _slices(operand: Operand, outer: tuple[int, ...], depth: int, size: int, name: str) -> Any:
    """Return an operand as [*batch, k, i] of whole slices and tiles, zeros beyond its ends."""
    k, count = outer[-1], operand.count

    def value(*at: Any) -> Any:
        *item, step, i = at
        ends = ((step, k, depth), (i, count, size))
        inside = [place < most for place, most, part in ends if most % part]
        found = operand.element(*item, i, step)
        if not inside:
            return found
        return tir.if_then_else(tir.all(*inside), found, tir.const(0.0, gemm.DTYPE))

    padded = (*outer[:-1], -(-k // depth) * depth, -(-count // size) * size)
    return te.compute(padded, value, name=name, attrs={"across": int(operand.across)})


def _define(cfg: Any, batch: int, m: int, n: int) -> tuple[Tile, int]:
    """Define the knobs `tile` (see `Tile`) and `slice` (of K); write the default into a fallback config."""
    cfg.define_knob("tile", [list(tile) for tile in _TILES])
    cfg.define_knob("slice", list(_SLICES))
    if cfg.is_fallback:
        tile, depth = default(batch, m, n)
        cfg["tile"] = OtherOptionEntity(list(tile))
        cfg["slice"] = OtherOptionEntity(depth)
    return _chosen(cfg)


def _chosen(cfg: Any) -> tuple[Tile, int]:
    return Tile(*cfg["tile"].val), int(cfg["slice"].val)


def default(batch: int, m: int, n: int) -> tuple[Tile, int]:
    """Return the tile and the slice that are used without a measurement.

    The largest of three tiles that leaves enough blocks to an H200's 132 multiprocessors: of 29 products
    in networks they took 1.02 times as long as the best of 63 tiles and slices, at most 1.28 times.
    """

    def blocks(tile: Tile) -> int:
        return batch * -(-m // tile.height) * -(-n // tile.width)

    return next((choice for choice in _DEFAULTS if blocks(choice[0]) >= _BLOCKS), _DEFAULTS[-1])


@autotvm.register_topi_compute(DENSE)  # type: ignore[untyped-decorator]
def dense(cfg: Any, data: Any, weight: Any) -> Any:
    """Return the dense layer [m, n] of data [m, k] and weights [n, k]."""
    (m, k), (n, _) = get_const_tuple(data.shape), get_const_tuple(weight.shape)
    a = Operand(element=data, count=m, across=False)
    b = Operand(element=weight, count=n, across=False)
    return product(cfg, a, b, k)


@autotvm.register_topi_compute(BATCH_MATMUL)  # type: ignore[untyped-decorator]
def batch_matmul(cfg: Any, a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> Any:
    """Return the products [batch, m, n], operands as in `mlc.schedules.batch_matmul`."""
    (count, m, n, k), row, column = elements(a, b, transpose_a, transpose_b)
    return product(
        cfg,
        Operand(element=row, count=m, across=transpose_a),
        Operand(element=column, count=n, across=not transpose_b),
        k,
        (count,),
    )


@autotvm.register_topi_schedule(DENSE)  # type: ignore[untyped-decorator]
def schedule_dense(cfg: Any, outs: Any) -> Any:
    """Return the schedule of a dense layer with what Relay fused behind it."""
    return gemm.schedule_tagged(_TAG, _schedule, cfg, outs)


@autotvm.register_topi_schedule(BATCH_MATMUL)  # type: ignore[untyped-decorator]
def schedule_batch_matmul(cfg: Any, outs: Any) -> Any:
    """Return the schedule of a batch of products with what Relay fused behind them."""
    return gemm.schedule_tagged(_TAG, _schedule, cfg, outs)


def _schedule(s: Any, cfg: Any, c: Any, out: Any) -> None:
    (acc,) = c.op.input_tensors
    tile, depth = _chosen(cfg)
    if c.op not in s.outputs:
        s[c].compute_inline()
    *outer, i, j = s[out].op.axis
    down, i = s[out].split(i, factor=tile.height)
    across, j = s[out].split(j, factor=tile.width)
    ty, i = s[out].split(i, factor=tile.rows)
    tx, j = s[out].split(j, factor=tile.columns)
    s[out].reorder(*outer, across, down, ty, tx, i, j)
    blocks = s[out].fuse(*outer, across, down)  # x alone may have more than 65535
    s[out].bind(blocks, te.thread_axis("blockIdx.x"))
    s[out].bind(ty, te.thread_axis("threadIdx.y"))
    s[out].bind(tx, te.thread_axis("threadIdx.x"))
    s[out].unroll(i)
    s[out].unroll(j)

    s[acc].set_scope("local")
    s[acc].compute_at(s[out], tx)
    *_, i, j = s[acc].op.axis
    first, step = s[acc].split(s[acc].op.reduce_axis[0], factor=depth)
    s[acc].reorder(first, step, i, j)
    for axis in (step, i, j):
        s[acc].unroll(axis)
    for operand in acc.op.input_tensors:
        _schedule_slice(s, operand, s[acc], first, tile)


def _schedule_slice(s: Any, operand: Any, consumer: Any, at: Any, tile: Tile) -> None:
    """Have all threads of a block copy a slice of an operand, neighbours what lies side by side."""
    s[operand].set_scope("shared")
    s[operand].compute_at(consumer, at)
    *_, step, i = s[operand].op.axis
    if int(operand.op.attrs["across"]):
        together = s[operand].fuse(step, i)
    else:
        s[operand].storage_align(step, _BANKS, _VECTOR)  # else a warp stores to one bank
        s[operand].reorder(i, step)
        together = s[operand].fuse(i, step)
    together, tx = s[operand].split(together, factor=tile.across)
    together, ty = s[operand].split(together, factor=tile.down)
    s[operand].unroll(together)
    s[operand].bind(ty, te.thread_axis("threadIdx.y"))
    s[operand].bind(tx, te.thread_axis("threadIdx.x"))


def install() -> None:
    """Put the templates before TVM's own in the strategies for GPUs."""
    generic.dense_strategy.register(["cuda", "gpu"], _dense_strategy, override=True)
    generic.batch_matmul_strategy.register(["cuda", "gpu"], _batch_strategy, override=True)


def _dense_strategy(attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
    strategy = cuda.dense_strategy_cuda(attrs, inputs, out_type, target)
    if gemm.takes(*inputs, out_type) and int(inputs[0].shape[0]) > _MANY_ROWS:
        strategy.add_implementation(
            lambda _attrs, inputs, _out: [dense(*inputs)],
            generic.wrap_topi_schedule(schedule_dense), name=DENSE, plevel=gemm.PLEVEL,
        )  # fmt: skip
    return strategy


def _batch_strategy(attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
    strategy = cuda.batch_matmul_strategy_cuda(attrs, inputs, out_type, target)
    if gemm.takes(*inputs, out_type):
        strategy.add_implementation(
            _compute, generic.wrap_topi_schedule(schedule_batch_matmul), name=BATCH_MATMUL,
            plevel=gemm.PLEVEL,
        )  # fmt: skip
    return strategy


def _compute(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    return [batch_matmul(*inputs, bool(attrs.transpose_a), bool(attrs.transpose_b))]
