"""Matrix product for x86: a register tile over packed weights, its config space and its default.

The layers of loops are those of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication" (ACM TOMS 34(3), 2008), and of BLIS (Van Zee and van de Geijn, ACM TOMS 41(3), 2015),
without their blocking over K and their packing of A: measured up to K = 2048 a panel of W streams from
L2 fast enough, and both only cost.

    for each tile (rows x columns) of C, in parallel:      rows = tile[0], columns = tile[1] * lanes
        acc[rows, columns] = 0                             in registers
        for k in K:                                        unrolled `unroll` times
            acc[:, :] += A[rows, k] * W[panel, k, :]       a broadcast times a row of the panel
        C[rows, columns] = epilogue(acc)                   what Relay fused behind the product

W is packed in panels [N / columns, K, columns], padded with zeros: each step of k reads one
contiguous row, or one of each of two panels where C is a single row. A tile below the last row of A
computes that row again, so that its loops have no conditions, and the panel behind the last one is the
last again; what lies outside C is not stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.target import Target
from tvm.target.x86 import get_simd_32bit_lanes
from tvm.topi.utils import get_const_tuple, traverse_inline

from mlc.schedules.tails import MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DTYPE = "float32"
PLEVEL = 12  # before TVM's templates (5 and 10), behind libraries that a target asks for (13 to 15)
_TAG = "mlc_product"
_PANELS = "panels"

# Rows of a register tile. A row of A is a stream of its own, and where K is a multiple of 1024 all of
# them fall into one set of the L1 cache, which has 8 ways: more rows took 15 % longer there.
_ROWS = (1, 2, 3, 4, 5, 6, 7, 8)
_MORE_ROWS = (10, 12, 14)  # for tuning only
VECTORS = (1, 2, 3, 4, 6, 8)
_UNROLL = (1, 2, 4, 8)
_ORDERS = ("rows", "columns")

_CACHE_BYTES = 16 << 20  # of the last level that a process may hope for
SERIAL_FLOPS = 1 << 18  # about a microsecond: waking the other threads takes longer


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One product C[m, n] = sum over k of A[m, k] W[n, k], done `batch` times.

    `lanes` floats make a vector of the target, which has `registers` of them.
    """

    batch: int = 1
    m: int
    n: int
    k: int
    lanes: int
    registers: int

    @property
    def flops(self) -> int:
        """The floating-point operations, a multiply-add counted as two."""
        return 2 * self.batch * self.m * self.n * self.k

    def tiles(self, rows: int, vectors: int) -> tuple[int, int]:
        """Return how many tiles cover C, down and across."""
        columns = vectors * self.lanes
        return (self.m + rows - 1) // rows, (self.n + columns - 1) // columns

    def panels(self, tile: list[int]) -> tuple[int, int, int]:
        """Return the shape of weights that are packed for good: panels, k, columns."""
        width = self.width(tile)
        return (self.n + width - 1) // width, self.k, width

    def width(self, tile: list[int]) -> int:
        """Return the columns of such a panel: those of a tile, or half of them for a single row.

        One row waits for W, which it reads once: as two streams it took 0.85 to 0.91 of the time from L3
        (measured; four were no better, and two rows or more took as long as with one).
        """
        single = isinstance(self.m, int) and self.m == 1 and tile[1] % 2 == 0
        return tile[1] * self.lanes // (2 if single else 1)

    def fits(self, rows: int, vectors: int) -> bool:
        """Return whether the registers hold a tile, and it does not wait for its own sums.

        Beside the accumulators a tile needs a register for each vector of W and one for A; fewer
        than four accumulators wait.
        """
        least = min(4, self.m * -(-self.n // self.lanes))
        needed = rows * vectors + vectors + 1
        return needed <= self.registers and rows * vectors >= least

    def candidates(self, *, default: bool = False) -> Iterator[list[int]]:
        """Yield the register tiles [rows, vectors] worth trying, smallest first.

        Of tiles that cover C in equally many steps only the smallest is worth trying.
        """
        seen = set()
        for rows in _ROWS if default else _ROWS + _MORE_ROWS:
            for vectors in VECTORS:
                tiles = self.tiles(rows, vectors)
                if self.fits(rows, vectors) and tiles not in seen:
                    seen.add(tiles)
                    yield [rows, vectors]


def problem(m: int, n: int, k: int, batch: int = 1) -> Problem:
    """Return a problem with the vectors of the current target."""
    return Problem(
        batch=batch, m=m, n=n, k=k, lanes=get_simd_32bit_lanes(), registers=registers()
    )  # fmt: skip


def registers() -> int:
    """Return how many vector registers the current target has: AVX-512 and 64-bit Arm have 32."""
    features = Target.current(allow_none=False).features
    return 32 if get_simd_32bit_lanes() == 16 or features.is_aarch64 else 16


def define(cfg: Any, known: Problem, *, in_place: bool = False) -> None:
    """Define the knobs on a config space; write the default into a fallback config.

    `tile`: rows and vectors of the register tile; `unroll`: steps of k written out; `order`: whether
    tiles go down first ("columns": a panel of W stays in cache) or across ("rows": a block of A stays;
    without effect where panels are packed at run time). With `in_place`, W is packed only for tiles
    whose columns do not divide N, and the default is one that spares it.
    """
    cfg.define_knob("tile", list(known.candidates()))
    cfg.define_knob("unroll", [u for u in _UNROLL if u <= known.k])
    cfg.define_knob("order", list(_ORDERS))
    if cfg.is_fallback:
        tile = default_tile(known, in_place=in_place)
        cfg["tile"] = OtherOptionEntity(tile)
        cfg["unroll"] = OtherOptionEntity(min(4, known.k))
        cfg["order"] = OtherOptionEntity(default_order(known))
    cfg.add_flop(known.flops)


def default_tile(known: Problem, *, in_place: bool = False) -> list[int]:
    """Return the register tile [rows, vectors] of least modelled time, without a measurement.

    Of equal ones the largest is taken; with `in_place` only those whose columns divide N, if any do.
    """
    tiles = list(known.candidates(default=True))
    whole = [tile for tile in tiles if known.n % (tile[1] * known.lanes) == 0]
    return min(
        (in_place and whole) or tiles,
        key=lambda tile: (modelled_cycles(known, *tile), -math.prod(tile)),
    )


def modelled_cycles(known: Problem, rows: int, vectors: int) -> float:
    """Return the cycles that one step of k takes, summed over the tiles of C.

    Eight threads are assumed to share the tiles, the last round of them perhaps not full.
    """
    down, across = known.tiles(rows, vectors)
    tiles = known.batch * down * across
    rounds = -(-tiles // 8) * 8 if tiles > 8 else tiles
    return rounds * cycles_of_a_step(known, rows, vectors)


def cycles_of_a_step(known: Problem, rows: int, vectors: int) -> float:
    """Return the cycles that one step of k takes for one tile, modelled.

    A core starts two multiply-adds and two loads a cycle; a multiply-add takes four, so that fewer
    than eight accumulators wait for each other; and a row of W comes from L2 or L3 at 16 bytes a cycle.
    """
    products, loads = rows * vectors / 2, (rows + vectors) / 2
    bytes_of_w = vectors * known.lanes * 4
    return max(products, loads, 4, bytes_of_w / 16)


def default_order(known: Problem) -> str:
    """Return "rows" (a block of A stays in L1, W streams from L2 or L3) unless W weighs more than A and C.

    Then, and where W fits no cache, threads share W, and each panel is used for all rows while it is in
    L2. Alone, rows first was as fast; in encoders, where other layers have used the caches in
    between, columns first was 1 to 4 % faster at 128 rows, rows first 3 to 12 % at ViT's 197.
    """
    large = 4 * known.n * known.k > _CACHE_BYTES
    return "columns" if large or weights_weigh_more(known.m, known.n, known.k) else "rows"


def weights_weigh_more(m: int, n: int, k: int) -> bool:
    """Return whether threads had better share W [n, k] than the rows of A [m, k] and C [m, n].

    A thread with rows of its own reads what it wrote a layer before, and all of W; one with columns of its
    own reads those, and all of A. The less is read twice, the better: caches of two cores may
    be far apart (cores with separate L3 took twice as long for all of SqueezeNet).
    """
    return n * k >= m * (n + k)


def product(
    known: Problem,
    tile: list[int],
    a: Callable[..., Any],
    w: Callable[..., Any],
    batched: bool,
    width: int = 0,
) -> Any:
    """Return C as a tensor [m, n], or [batch, m, n] when `batched`.

    Args:
        known: the problem.
        tile: rows and vectors of the register tile.
        a: A's element for (batch, row < m, k).
        w: W's element for (batch, panel, k, column in the panel).
        batched: whether C has the axis of the batch.
        width: columns of a panel, a part of those of the tile (0: all of them).
    """
    down, across = known.tiles(*tile)
    rows, columns = tile[0], tile[1] * known.lanes
    step = te.reduce_axis((0, known.k), "k")

    def row(i: Any) -> Any:
        return i if is_multiple(known.m, rows) else tir.min(i, known.m - 1)

    width = width or columns
    whole = width == columns or is_multiple(known.n, columns)

    def panel(j: Any) -> Any:
        return j // width if whole else tir.min(j // width, (known.n - 1) // width)

    acc = te.compute(
        (known.batch, down * rows, across * columns),
        lambda b, i, j: te.sum(a(b, row(i), step) * w(b, panel(j), step, j % width), step),
        name="acc",
    )
    if batched:
        shape: tuple[int, ...] = (known.batch, known.m, known.n)
        return te.compute(shape, lambda b, i, j: acc[b, i, j], name="product", tag=_TAG)
    return te.compute((known.m, known.n), lambda i, j: acc[0, i, j], name="product", tag=_TAG)


def pack(known: Problem, tile: list[int], element: Callable[..., Any]) -> Any:
    """Return W in panels [batch, panels, K, columns], zeros behind N, to be computed at run time.

    `element` gives W's element for (batch, column of C, k).
    """
    columns = tile[1] * known.lanes
    panels = known.tiles(*tile)[1]

    def packed(b: Any, panel: Any, step: Any, column: Any) -> Any:
        n = panel * columns + column
        if is_multiple(known.n, columns):
            return element(b, n, step)
        return tir.if_then_else(tir.likely(n < known.n), element(b, n, step), tir.const(0, DTYPE))

    return te.compute((known.batch, panels, known.k, columns), packed, name=_PANELS)


def schedule(cfg: Any, outs: Any) -> Any:
    """Return the schedule of a `product` with what Relay fused behind it."""
    return schedule_tagged(_TAG, _schedule_product, cfg, outs)


def schedule_tagged(tag: str, stages: Callable[..., Any], cfg: Any, outs: Any) -> Any:
    """Return a schedule in which `stages(s, cfg, tensor, output)` did the tensor with a tag.

    What Relay fused around it is inlined.
    """
    outs = [outs] if isinstance(outs, te.Tensor) else outs
    s = te.create_schedule([out.op for out in outs])

    def visit(op: Any) -> None:
        if op.tag == tag:
            stages(s, cfg, op.output(0), outs[0])

    traverse_inline(s, outs[0].op, visit)
    return s


def schedule_product(config: Callable[[Problem], Any], outs: Any) -> Any:
    """Return the schedule of a `product` whose config follows from its problem."""

    def stages(s: Any, _cfg: Any, c: Any, out: Any) -> None:
        _schedule_product(s, config(_problem_of(c)), c, out)

    return schedule_tagged(_TAG, stages, None, outs)


def _problem_of(c: Any) -> Problem:
    (acc,) = c.op.input_tensors
    *batch, m, n = get_const_tuple(c.shape)
    (k,) = get_const_tuple([acc.op.reduce_axis[0].dom.extent])
    return problem(m, n, k, *batch)


def _schedule_product(s: Any, cfg: Any, c: Any, out: Any) -> None:
    if len(out.shape) != len(c.shape):
        out = c  # what follows has other axes: it cannot be done tile by tile
    if out.op != c.op:
        s[c].compute_inline()
    (acc,) = c.op.input_tensors
    packed = [t for t in acc.op.input_tensors if t.op.name == _PANELS]
    known = _problem_of(c)
    place = _schedule_tiles(s, cfg, known, out, packed[0] if packed else None)
    _schedule_registers(s, cfg, known, acc, s[out], place)


def _schedule_tiles(s: Any, cfg: Any, known: Problem, out: Any, panels: Any) -> Any:
    """Schedule the loops over tiles and their stores; return the loop inside which one is computed.

    With `panels`, the stage that packs W, a thread packs a panel where it is used, and goes through
    all rows of C with it.
    """
    rows, vectors = cfg["tile"].val
    *batch, i, j = s[out].op.axis
    down, row = s[out].split(i, factor=rows)
    # In two steps, so that where N is a multiple of the vector no condition looks into one.
    j, lane = s[out].split(j, factor=known.lanes)
    across, vector = s[out].split(j, factor=vectors)
    if panels is not None:
        s[out].reorder(*batch, across, down, row, vector, lane)
        threads, place = s[out].fuse(*batch, across), down
        _schedule_pack(s, known, panels, s[out], threads)
    else:
        outer = [across, down] if cfg["order"].val == "columns" else [down, across]
        s[out].reorder(*batch, *outer, row, vector, lane)
        threads = place = s[out].fuse(*batch, *outer)
    if not isinstance(known.flops, int) or known.flops >= SERIAL_FLOPS:
        s[out].parallel(threads)
    s[out].vectorize(lane)
    s[out].unroll(vector)
    s[out].unroll(row)
    s[out].pragma(lane, MARK, True)
    return place


def _schedule_registers(s: Any, cfg: Any, known: Problem, acc: Any, out: Any, place: Any) -> None:
    s[acc].compute_at(out, place)
    batch, i, j = s[acc].op.axis
    step, unrolled = s[acc].split(s[acc].op.reduce_axis[0], factor=cfg["unroll"].val)
    vector, lane = s[acc].split(j, factor=known.lanes)
    s[acc].reorder(batch, step, unrolled, i, vector, lane)
    s[acc].vectorize(lane)
    for axis in (vector, i, unrolled):
        s[acc].unroll(axis)


def _schedule_pack(s: Any, known: Problem, panels: Any, out: Any, place: Any) -> None:
    s[panels].compute_at(out, place)
    _batch, _panel, step, column = s[panels].op.axis
    vector, lane = s[panels].split(column, factor=known.lanes)
    s[panels].reorder(vector, step, lane)
    s[panels].vectorize(lane)
    s[panels].pragma(step, MARK, True)


def is_multiple(size: Any, factor: int) -> bool:
    """Return whether a size is known, and a multiple of `factor`."""
    return isinstance(size, int) and size % factor == 0


def takes(*tensors: Any) -> bool:
    """Return whether the templates take these tensors: float32, shapes known, not empty."""
    return all(
        tensor.dtype == DTYPE
        and all(isinstance(size, (int, tir.IntImm)) and int(size) > 0 for size in tensor.shape)
        for tensor in tensors
    )
