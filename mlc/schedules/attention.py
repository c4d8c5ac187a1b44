"""The template `attention_mlc.x86`: softmax(scale Q K^T + mask) V in float32, scores never in memory.

    pack K of each head in panels [M / columns, D, columns], zeros of the mask behind M
    for each batch, head and block of rows of Q, in parallel:       rows = tile[0]
        scores[rows, M] = scale Q K^T + mask                        register tiles rows x columns
        e = exp(scores - largest of the row)
        out[rows, :] = e V / (sum of e)                             register tiles rows x (part of) Dv

A block's scores stay in L1 or L2, where softmax and the second product find them. Rabe and Staats,
"Self-attention Does Not Need O(n^2) Memory" (2021), and Dao et al., "FlashAttention" (2022), also cut M
and correct the sums as they go; with a row of scores in cache that only costs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import autotvm, te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.relay.op import op as relay_op
from tvm.target.x86 import get_simd_32bit_lanes
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm, operator, rows
from mlc.schedules.tails import MARK

TEMPLATE = "attention_mlc.x86"
NAME, MASKED = "mlc.attention", "mlc.masked_attention"
_OWN = ("panels", "no_mask", "mask", "products", "scores", "sums")  # scheduled here, not as rows
_OPERANDS = {
    "query": "[batch, n, at least heads * d]",
    "key": "[batch, m, at least heads * d]",
    "value": "[batch, m, at least heads * dv]",
}


@autotvm.register_topi_compute(TEMPLATE)  # type: ignore[untyped-decorator]
def attention(
    cfg: Any, query: Any, key: Any, value: Any, mask: Any, layout: tuple[int, ...], scale: float
) -> Any:
    """Return attention as [batch, n, heads * dv].

    Args:
        cfg: the config.
        query: [batch, n, ...], element i of head h in column `first_q + h * d + i`.
        key: [batch, m, ...], element i of head h in column `first_k + h * d + i`.
        value: [batch, m, ...], element i of head h in column `first_v + h * dv + i`.
        mask: added to the scores, broadcast to [batch, heads, n, m]; None for none.
        layout: heads, d, dv (a multiple of the lanes), first_q, first_k, first_v.
        scale: of the scores.
    """
    heads, d, dv, _, _, first_v = (int(k) for k in layout)
    batch, n, _ = get_const_tuple(query.shape)
    m, lanes = int(key.shape[1]), get_simd_32bit_lanes()
    known = gemm.problem(n, m, d, batch * heads)
    _define(cfg, known, dv)
    tile = list(cfg["tile"].val)
    products = _products(query, key, known.tiles(*tile), tile, layout)
    e, total = rows.exponentials(_scores(products, mask, (n, m), scale))
    at = te.reduce_axis((0, m), "at")
    sums = te.compute(
        (*get_const_tuple(products.shape)[:3], dv),
        lambda b, h, i, j: te.sum(
            e[b, h, i, at // lanes, at % lanes] * value[b, at, first_v + h * dv + j], at
        ),
        name="sums",
    )
    return te.compute(
        (batch, n, heads * dv),
        lambda b, i, j: sums[b, j // dv, i, j % dv] / total[b, j // dv, i],
        name="attention",
        tag=TEMPLATE,
        attrs={"dv": dv},
    )


def _products(
    query: Any, key: Any, tiles: tuple[int, int], tile: list[int], layout: tuple[int, ...]
) -> Any:
    """Return Q K^T as [batch, heads, rows, columns], both of whole tiles, K packed in panels.

    `tiles` are how many there are down and across.
    """
    heads, d, _, first_q, first_k, _ = (int(k) for k in layout)
    (batch, n, _), m = get_const_tuple(query.shape), int(key.shape[1])
    down, across = tiles
    columns = tile[1] * get_simd_32bit_lanes()
    panels = te.compute(
        (batch, heads, across, d, columns),
        lambda b, h, p, s, c: key[b, tir.min(p * columns + c, m - 1), first_k + h * d + s],
        name="panels",
    )
    step = te.reduce_axis((0, d), "k")
    return te.compute(
        (batch, heads, down * tile[0], across * columns),
        lambda b, h, i, j: te.sum(
            query[b, tir.min(i, n - 1), first_q + h * d + step]
            * panels[b, h, j // columns, step, j % columns],
            step,
        ),
        name="products",
    )


def _scores(products: Any, mask: Any, shape: tuple[int, int], scale: float) -> Any:
    """Return products of a shape [n, m], scaled and masked, as vectors; minus infinity behind m."""
    n, m = shape
    lanes = get_simd_32bit_lanes()
    batch, heads, down, across = get_const_tuple(products.shape)
    if mask is None and across > m:
        mask = te.compute((1, 1, 1, m), lambda *_at: tir.const(0.0, gemm.DTYPE), name="no_mask")
    added = None if mask is None else _vectors(mask, m, across // lanes)

    def score(b: Any, h: Any, i: Any, c: Any, lane: Any) -> Any:
        found = products[b, h, i, c * lanes + lane] * tir.const(scale, gemm.DTYPE)
        if added is None:
            return found
        at = zip(added.shape, (b, h, tir.min(i, n - 1)), strict=False)
        return found + added(*(0 if int(size) == 1 else k for size, k in at), c, lane)

    return te.compute((batch, heads, down, across // lanes, lanes), score, name="scores")


def _vectors(mask: Any, m: int, count: int) -> Any:
    """Return a mask [..., m] or [..., 1] as `count` vectors, minus infinity behind column m.

    It is a tensor of its own: TVM 0.19 names a condition on lanes that occurs twice, and its debug
    information cannot describe a vector.
    """
    *outer, width = get_const_tuple(mask.shape)
    lanes = get_simd_32bit_lanes()

    def element(*at: Any) -> Any:
        *i, c, lane = at
        j = c * lanes + lane
        return tir.if_then_else(j < m, mask(*i, j if width > 1 else 0), rows.infinity(-1))

    return te.compute((*outer, count, lanes), element, name="mask")


def _define(cfg: Any, known: gemm.Problem, dv: int) -> None:
    """Define the knobs `tile` and `unroll` as for a product; write the default into a fallback config."""
    cfg.define_knob("tile", list(known.candidates()))
    cfg.define_knob("unroll", [1, 2, 4])
    if cfg.is_fallback:
        second = replace(known, n=dv, k=known.m)

        def cycles(tile: list[int]) -> float:
            first = known.k * gemm.modelled_cycles(known, *tile)
            vectors = _value_vectors(tile[0], dv)
            return first + second.k * gemm.modelled_cycles(second, tile[0], vectors)

        cfg["tile"] = OtherOptionEntity(min(known.candidates(default=True), key=cycles))
        cfg["unroll"] = OtherOptionEntity(2)
    cfg.add_flop(2 * known.batch * known.m * known.n * (known.k + dv))


def _value_vectors(tile_rows: int, dv: int) -> int:
    """Return how many vectors of `value` the second product takes at a time: all that registers hold."""
    lanes = get_simd_32bit_lanes()
    whole, most = dv // lanes, gemm.registers()
    fits = [v for v in range(1, whole + 1) if whole % v == 0 and (tile_rows + 1) * v < most]
    return max(fits, default=1)


@autotvm.register_topi_schedule(TEMPLATE)  # type: ignore[untyped-decorator]
def schedule_attention(cfg: Any, outs: Any) -> Any:
    """Return the schedule of attention."""
    return gemm.schedule_tagged(TEMPLATE, _schedule, cfg, outs)


def _schedule(s: Any, cfg: Any, result: Any, _out: Any) -> None:
    lanes = get_simd_32bit_lanes()
    tile_rows, vectors = cfg["tile"].val
    unroll, dv = cfg["unroll"].val, int(result.op.attrs["dv"])
    out = s[result]
    b, i, j = out.op.axis
    h, j = out.split(j, factor=dv)
    down, row = out.split(i, factor=tile_rows)
    j, lane = out.split(j, factor=lanes)
    part, vector = out.split(j, factor=_value_vectors(tile_rows, dv))
    out.reorder(b, h, down, part, row, vector, lane)
    place = out.fuse(b, h, down)
    out.parallel(place)
    out.vectorize(lane)
    out.unroll(vector)
    out.unroll(row)
    out.pragma(lane, MARK, True)
    stages = {stage.op.name: s[stage] for stage in rows.inner(result)}
    for stage in rows.inner(result):
        if stage.op.name not in _OWN:
            s[stage].compute_at(out, place)
            rows.schedule_step(s, stage)
    if "no_mask" in stages:
        stages["no_mask"].compute_inline()
    if "mask" in stages:
        mask = stages["mask"]
        mask.parallel(mask.fuse(*mask.op.axis[:-2]))
    _schedule_panels(stages["panels"])
    stages["scores"].compute_at(out, place)
    stages["products"].compute_at(stages["scores"], _schedule_scores(stages["scores"], vectors))
    stages["sums"].compute_at(out, part)
    for name in ("products", "sums"):
        _schedule_tile(stages[name], unroll)


def _schedule_scores(stage: Any, vectors: int) -> Any:
    """Schedule the stores of a block's scores; return the loop over panels."""
    b, h, i, c, lane = stage.op.axis
    panel, vector = stage.split(c, factor=vectors)
    stage.reorder(b, h, panel, i, vector, lane)
    stage.vectorize(lane)
    stage.unroll(vector)
    stage.unroll(i)
    return panel


def _schedule_tile(stage: Any, unroll: int) -> None:
    """Schedule a product of which the whole tile is kept in registers."""
    *outer, i, j = stage.op.axis
    step, unrolled = stage.split(stage.op.reduce_axis[0], factor=unroll)
    vector, lane = stage.split(j, factor=get_simd_32bit_lanes())
    stage.reorder(*outer, step, unrolled, i, vector, lane)
    stage.vectorize(lane)
    for axis in (vector, i, unrolled):
        stage.unroll(axis)


def _schedule_panels(stage: Any) -> None:
    b, h, panel, step, column = stage.op.axis
    vector, lane = stage.split(column, factor=get_simd_32bit_lanes())
    stage.reorder(b, h, panel, vector, step, lane)
    stage.parallel(stage.fuse(b, h, panel))
    stage.vectorize(lane)


def call(operands: list[Any], **attributes: Any) -> Any:
    """Return the Relay call: query, key, value, perhaps a mask; attributes as `attention` has them."""
    return operator.call(NAME if len(operands) == 3 else MASKED, operands, **attributes)


def takes(n: int, dv: int) -> bool:
    """Return whether attention of n queries, with values of width dv, is faster in this way."""
    return n >= 4 and dv % get_simd_32bit_lanes() == 0


def install() -> None:
    """Register the operators, with and without mask, and their strategy."""
    for name, operands in ((NAME, _OPERANDS), (MASKED, {**_OPERANDS, "mask": "four axes"})):
        operator.register(
            name,
            "attention of heads that lie side by side in the columns of query, key and value",
            operands,
            (name.replace(".", "_"), _type),
            relay_op.OpPattern.OPAQUE,
        )
        operator.register_strategy(name, _compute, schedule_attention, TEMPLATE)


def _type(types: Any, attrs: Any) -> Any:
    batch, n, _ = types[0].shape
    return tvm.relay.TensorType(
        [batch, n, int(attrs["layout"][0]) * int(attrs["layout"][2])], gemm.DTYPE
    )


def _compute(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    query, key, value, *masks = inputs
    layout = tuple(int(k) for k in attrs["layout"])
    return [
        attention(query, key, value, masks[0] if masks else None, layout, float(attrs["scale"]))
    ]
