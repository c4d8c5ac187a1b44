"""Softmax and layer norm of rows, in float32: one kernel, each row fetched once, all on vectors.

A row is cut into vectors of the target, `lanes` wide: x[row, c, lane] is element c * lanes + lane. So a
reduction is one over c, on vectors, and then one over the lanes. Rows are done in parallel; what
a row needs in between stays in L1, long rows themselves. A row that is no whole number of vectors
is padded in a buffer, with what the reduction ignores.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvm import te, tir
from tvm.target.x86 import get_simd_32bit_lanes
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm, open_gemm, operator
from mlc.schedules.elementary import exp
from mlc.schedules.tails import MARK

if TYPE_CHECKING:
    from collections.abc import Callable

SOFTMAX, LAYER_NORM = "mlc.softmax", "mlc.layer_norm"
_TAG = "mlc_rows"
_CHAINS = 4  # of vectors: what an addition takes
_SERIAL_ELEMENTS = 1 << 13  # a few microseconds: waking the other threads takes as long


def softmax(data: Any) -> Any:
    """Return softmax over the last axis of a tensor, which has at least two axes."""
    *rows, n = get_const_tuple(data.shape)
    e, total = exponentials(_vectors(data, infinity(-1)))
    lanes = get_simd_32bit_lanes()

    def element(*at: Any) -> Any:
        *i, j = at
        return e(*i, j // lanes, j % lanes) / total(*i)

    return te.compute((*rows, n), element, name="softmax", tag=_TAG)


def exponentials(row: Any) -> tuple[Any, Any]:
    """Return exp(x - largest of the row), as rows [..., c, lanes] like x, and its sum for each row."""
    largest = _over_row(row, te.max)
    e = te.compute(row.shape, lambda *at: exp(row(*at) - largest(*at[:-2])), name="exponentials")
    return e, _over_row(e, te.sum)


def infinity(sign: int) -> Any:
    """Return plus or minus infinity."""
    return tir.const(sign * math.inf, gemm.DTYPE)


def layer_norm(data: Any, scale: Any, shift: Any, epsilon: float) -> Any:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + shift over the last axis.

    The variance is the mean of the squared differences from the mean: two passes over the row.

    Args:
        data: at least two axes, the last n long.
        scale: [n].
        shift: [n].
        epsilon: added to the variance.
    """
    *rows, n = get_const_tuple(data.shape)
    row = _vectors(data, tir.const(0.0, "float32"))
    lanes = get_simd_32bit_lanes()
    total = _over_row(row, te.sum)
    mean = te.compute(rows, lambda *i: total(*i) / tir.const(n, "float32"), name="mean")

    def squared(*at: Any) -> Any:
        *i, c, lane = at
        centred = row(*at) - mean(*i)
        square = centred * centred
        return square if n % lanes == 0 else tir.Select(c * lanes + lane < n, square, _zero())

    squares = _over_row(te.compute(row.shape, squared, name="squares"), te.sum)

    def inverse(*i: Any) -> Any:
        return tir.rsqrt(squares(*i) / tir.const(n, "float32") + tir.const(epsilon, "float32"))

    deviation = te.compute(rows, inverse, name="inverse_deviation")

    def element(*at: Any) -> Any:
        *i, j = at
        centred = row(*i, j // lanes, j % lanes) - mean(*i)
        return centred * deviation(*i) * scale(j) + shift(j)

    return te.compute((*rows, n), element, name="layer_norm", tag=_TAG)


def _zero() -> Any:
    return tir.const(0.0, "float32")


def _vectors(data: Any, padding: Any) -> Any:
    """Return rows as vectors [..., c, lanes], `padding` behind the last element."""
    *rows, n = get_const_tuple(data.shape)
    lanes = get_simd_32bit_lanes()

    def element(*at: Any) -> Any:
        *i, c, lane = at
        j = c * lanes + lane
        if n % lanes == 0:
            return data(*i, j)
        return tir.if_then_else(tir.likely(j < n), data(*i, j), padding)

    return te.compute((*rows, (n + lanes - 1) // lanes, lanes), element, name="row")


def _over_row(vectors: Any, reducer: Callable[..., Any]) -> Any:
    """Return each row of [..., c, lanes] reduced: several vectors at a time, those to one, its halves.

    One operation waits for the one before, so a single chain of them would take four times as long.
    """
    *rows, count, lanes = get_const_tuple(vectors.shape)
    chains = _CHAINS if gemm.is_multiple(count, _CHAINS) else 1
    c = te.reduce_axis((0, count // chains), "c")
    partial = te.compute(
        (*rows, chains, lanes),
        lambda *at: reducer(vectors(*at[:-2], c * chains + at[-2], at[-1]), axis=c),
        name="partial",
    )
    chain = te.reduce_axis((0, chains), "chain")
    halves = te.compute(
        (*rows, lanes),
        lambda *at: reducer(partial(*at[:-1], chain, at[-1]), axis=chain),
        name="joined",
    )
    while lanes > 1:
        lanes //= 2
        halves = _halved(halves, (*rows, lanes), reducer)
    return te.compute(rows, lambda *i: halves(*i, 0), name="reduced")


def _halved(vector: Any, shape: tuple[Any, ...], reducer: Callable[..., Any]) -> Any:
    half = te.reduce_axis((0, 2), "half")
    return te.compute(
        shape,
        lambda *at: reducer(vector(*at[:-1], half * shape[-1] + at[-1]), axis=half),
        name="halves",
    )


def schedule(outs: Any) -> Any:
    """Return the schedule of one of these with what Relay fused behind it."""
    return gemm.schedule_tagged(_TAG, _schedule, None, outs)


def _schedule(s: Any, _config: Any, result: Any, out: Any) -> None:
    if len(out.shape) != len(result.shape):
        out = result
    if out.op != result.op:
        s[result].compute_inline()
    *rows, j = s[out].op.axis
    place = s[out].fuse(*rows)
    elements = math.prod(get_const_tuple(result.shape))
    if not isinstance(elements, int) or elements >= _SERIAL_ELEMENTS:
        s[out].parallel(place)
    _, lane = s[out].split(j, factor=get_simd_32bit_lanes())
    s[out].vectorize(lane)
    s[out].pragma(lane, MARK, True)
    for stage in inner(result):
        if stage.name == "squares" or _is_view(stage):
            s[stage].compute_inline()
            continue
        s[stage].compute_at(s[out], place)
        schedule_step(s, stage)


def _is_view(stage: Any) -> bool:
    """Return whether a row is read from its tensor each time: no registers could hold a copy."""
    if stage.name != "row":
        return False
    (data,) = stage.op.input_tensors
    *_, n = get_const_tuple(data.shape)
    lanes = get_simd_32bit_lanes()
    whole = gemm.is_multiple(n, lanes) and isinstance(data.op, te.PlaceholderOp)
    return whole and n > gemm.registers() // 2 * lanes


def schedule_step(s: Any, stage: Any) -> None:
    """Schedule one step between a row and its result: on vectors, if its last axis is one."""
    axes, reduced = list(s[stage].op.axis), list(s[stage].op.reduce_axis)
    if stage.name in ("row", "exponentials", "squares"):
        s[stage].vectorize(axes[-1])
        s[stage].pragma(axes[-1], MARK, True)
    elif stage.name == "partial":
        s[stage].reorder(*axes[:-2], *reduced, *axes[-2:])
        s[stage].unroll(axes[-2])
        s[stage].vectorize(axes[-1])
    elif reduced:
        s[stage].reorder(*axes[:-1], *reduced, axes[-1])
        s[stage].unroll(reduced[0])
        s[stage].vectorize(axes[-1])


def inner(result: Any) -> list[Any]:
    """Return the tensors computed on the way to a result, the last ones first."""
    found: list[Any] = []
    queue = list(result.op.input_tensors)
    while queue:
        tensor = queue.pop(0)
        if isinstance(tensor.op, te.PlaceholderOp):
            continue
        if tensor in found:
            found.remove(tensor)
        found.append(tensor)
        queue += tensor.op.input_tensors
    return found


def takes(*tensors: Any, open_width: bool = False) -> bool:
    """Return whether the last axis of these tensors, float32, makes rows.

    How many rows there are may be known at run time only, with `open_width` how long they are as well.
    """
    fits = gemm.takes(*tensors) or open_gemm.takes(*tensors)
    wide = open_width or isinstance(tensors[0].shape[-1], tir.IntImm)
    return fits and wide and len(tensors[0].shape) > 1


def install() -> None:
    """Register the operators and their strategies."""
    operator.register(
        SOFTMAX,
        "softmax over the last axis, on vectors",
        {"data": "at least two axes, float32"},
        ("MlcSoftmax", lambda types, _attrs: types[0]),
    )
    operator.register(
        LAYER_NORM,
        "normalised over the last axis, scaled and shifted",
        {"data": "at least two axes, float32", "scale": "[n]", "shift": "[n]"},
        ("MlcLayerNorm", lambda types, _attrs: types[0]),
    )
    operator.register_strategy(SOFTMAX, _softmax, schedule, SOFTMAX)
    operator.register_strategy(LAYER_NORM, _layer_norm, schedule, LAYER_NORM)


def _softmax(_attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    return [softmax(*inputs)]


def _layer_norm(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    data, scale, shift = inputs
    return [layer_norm(data, scale, shift, float(attrs["epsilon"]))]
