"""The loops of the template `conv2d_winograd_mlc.x86`; its stages are described in `winograd`."""

from __future__ import annotations

import math
from typing import Any

from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm
from mlc.schedules.tails import MARK
from mlc.schedules.transforms import TAPS


def schedule_stages(s: Any, cfg: Any, conv: Any, out: Any) -> None:
    """Schedule a convolution `conv` of `winograd.conv2d`, and `out`, what Relay fused behind it."""
    if len(out.shape) != len(conv.shape):
        out = conv  # what follows has other axes: it cannot be done tile by tile
    if out.op != conv.op:
        s[conv].compute_inline()
    (outputs,) = conv.op.input_tensors
    (outputs_down,) = outputs.op.input_tensors
    (products,) = outputs_down.op.input_tensors
    (acc,) = products.op.input_tensors
    inputs = acc.op.input_tensors[0]
    (inputs_down,) = inputs.op.input_tensors
    (padded,) = inputs_down.op.input_tensors
    staged = cfg["parallel"].val == "stages"

    chunk, tile = _store(s, out, outputs, padded, staged=staged)
    for stage in (outputs_down, outputs):
        _transform(s, stage, s[out], tile)
    _multiply(s, cfg, products, acc, s[out], chunk, staged=staged)
    _collect(s, inputs, inputs_down, padded, s[out], chunk, staged=staged)


def _lanes(block: int) -> int:
    """Return the length of the vectors that a block of channels is cut into."""
    return math.gcd(block, gemm.problem(1, 1, 1).lanes)


def _store(s: Any, out: Any, outputs: Any, padded: Any, *, staged: bool) -> tuple[Any, Any]:
    """Schedule the loops over the outputs; return those of a chunk and of a tile."""
    m, block = get_const_tuple(outputs.shape)[-2:]
    rows = (int(padded.shape[2]) - TAPS + 1) // m
    n, b, h, w, k = s[out].op.axis
    chunk, h = s[out].split(h, factor=rows * m)
    row, down = s[out].split(h, factor=m)
    column, across = s[out].split(w, factor=m)
    vector, lane = s[out].split(k, factor=_lanes(block))
    s[out].reorder(n, chunk, b, row, column, vector, down, across, lane)
    chunk = s[out].fuse(n, chunk)
    s[out].parallel(s[out].fuse(b, row) if staged else chunk)
    s[out].vectorize(lane)
    s[out].unroll(down)
    s[out].unroll(across)
    return chunk, vector


def _transform(s: Any, stage: Any, where: Any, place: Any) -> None:
    """Schedule half of a transform of a tile: everything written out."""
    s[stage].compute_at(where, place)
    *_, i, j, k = s[stage].op.axis
    vector, lane = s[stage].split(k, factor=_lanes(int(stage.shape[-1])))
    for axis in (i, j, vector):
        s[stage].unroll(axis)
    s[stage].vectorize(lane)


def _multiply(
    s: Any, cfg: Any, products: Any, acc: Any, where: Any, chunk: Any, *, staged: bool
) -> None:
    """Schedule the matrix products: a panel of weights for all tiles of the chunk, then the next."""
    lanes = gemm.problem(1, 1, 1).lanes
    s[products].compute_at(where, chunk)
    _, position, panel, t, k = s[products].op.axis
    down, row = s[products].split(t, factor=cfg["tile"].val[0])
    vector, lane = s[products].split(k, factor=lanes)
    s[products].reorder(position, panel, down, row, vector, lane)
    if staged:
        s[products].parallel(s[products].fuse(position, panel))
    s[products].unroll(row)
    s[products].unroll(vector)
    s[products].vectorize(lane)
    s[products].pragma(row, MARK, True)

    s[acc].compute_at(s[products], down)
    *_, t, k = s[acc].op.axis
    block, channel = s[acc].op.reduce_axis
    step, unrolled = s[acc].split(channel, factor=cfg["unroll"].val)
    vector, lane = s[acc].split(k, factor=lanes)
    s[acc].reorder(block, step, unrolled, t, vector, lane)
    for axis in (vector, t, unrolled):
        s[acc].unroll(axis)
    s[acc].vectorize(lane)


def _collect(
    s: Any, inputs: Any, inputs_down: Any, padded: Any, where: Any, chunk: Any, *, staged: bool
) -> None:
    """Schedule the input transform: a row of tiles in a block of channels at a time."""
    m, width = int(inputs_down.shape[-2]) - TAPS + 1, int(padded.shape[3])
    lanes = _lanes(int(inputs.shape[-1]))
    s[inputs].compute_at(where, chunk)
    _, position, b, t, c = s[inputs].op.axis
    row, column = s[inputs].split(t, factor=(width - TAPS + 1) // m)
    vector, lane = s[inputs].split(c, factor=lanes)
    s[inputs].reorder(b, row, column, vector, position, lane)
    if staged:
        row = s[inputs].fuse(b, row)
        s[inputs].parallel(row)
    s[inputs].unroll(position)
    s[inputs].vectorize(lane)
    _transform(s, inputs_down, s[inputs], vector)
    s[padded].compute_at(s[inputs], row)
    _, lane = s[padded].split(s[padded].op.axis[-1], factor=lanes)
    s[padded].vectorize(lane)
