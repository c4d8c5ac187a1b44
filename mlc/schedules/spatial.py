"""Schedules for pooling and for reductions over the image, activations in blocks of channels (NCHWc).

    for each image, chunk of rows of outputs, block, in parallel:
        padded = the inputs under it                         for pooling with padding only
        for each row, each tile of outputs:
            acc[outputs, block] = identity                   in registers
            for each tap:
                acc[:, :] = combine(acc, inputs[tap])
            outputs = epilogue(acc)                          division, and what Relay fused behind

TVM's own schedules accumulate in memory, reduce lane by lane (`mean`, global and adaptive pooling) and
test for the padding at each tap. They stay for all other layouts and reductions.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import relay, te, tir
from tvm.relay.op import op as relay_op
from tvm.relay.op.strategy import x86
from tvm.topi import tag
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm

_ROWS = 8  # of outputs, whose padded inputs are in the L1 or L2 cache
_MOST_TAPS = 9  # that are written out
_OPERATORS = {  # by TVM's schedule
    x86.schedule_reduce_cpu: ("mean", "sum", "max", "min"),
    x86.schedule_pool_cpu: ("nn.max_pool2d", "nn.avg_pool2d"),
    x86.schedule_adaptive_pool_cpu: (
        "nn.global_avg_pool2d", "nn.global_max_pool2d", "nn.adaptive_avg_pool2d", "nn.adaptive_max_pool2d",
    ),
}  # fmt: skip


def schedule(outs: Any) -> Any:
    """Return the schedule of one reduction with what Relay fused around it; None if it does not fit."""
    outs = [outs] if isinstance(outs, te.Tensor) else list(outs)
    if len(outs) != 1:
        return None
    (out,) = outs
    stages = _stages(out)
    reductions = [tensor for tensor in stages if tensor.op.reduce_axis]
    if len(reductions) != 1 or not _fits(out, reductions[0]):
        return None
    s = te.create_schedule(out.op)
    (result,) = reductions
    padded = next((t for t in result.op.input_tensors if t.op.tag.find("pad") >= 0), None)
    for tensor in stages:
        if not _among(tensor, out, result, padded):
            s[tensor].compute_inline()
    if _among(result, out):
        result = s.cache_write(out, "global")
    _schedule(s, out, result, padded)
    return s


def _stages(out: Any) -> list[Any]:
    """Return the computed tensors that lead to an output, and itself."""
    found: list[Any] = []
    queue = [out]
    while queue:
        tensor = queue.pop()
        if isinstance(tensor.op, te.ComputeOp) and not _among(tensor, *found):
            found.append(tensor)
            queue += tensor.op.input_tensors
    return found


def _among(tensor: Any, *others: Any) -> bool:
    """Return whether a tensor is one of these; TVM's own comparison fails on tensors without axes."""
    return any(other is not None and tensor.op.same_as(other.op) for other in others)


def _fits(out: Any, result: Any) -> bool:
    """Return whether a reduction leaves blocks of channels, of known sizes, as they are."""
    shapes = [tensor.shape for tensor in (out, result, *result.op.input_tensors)]
    if any(len(shape) != 5 for shape in shapes) or result.op.num_outputs != 1:
        return False
    sizes = [get_const_tuple(shape) for shape in shapes]
    if not all(isinstance(size, int) for shape in sizes for size in shape):
        return False
    between = [tensor for tensor in _stages(out) if not _among(tensor, out, result)]
    simple = all(tag.is_injective(t.op.tag) or "pad" in t.op.tag for t in between)
    return simple and len({shape[-1] for shape in sizes}) == 1 < sizes[0][-1]


def _schedule(s: Any, out: Any, result: Any, padded: Any) -> None:
    n, b, h, w, lane = s[out].op.axis
    width, taps = int(out.shape[3]), [axis.dom.extent for axis in result.op.reduce_axis]
    known = all(isinstance(size, tir.IntImm) for size in taps)
    # Outputs share inputs, which LLVM keeps: both should fit the registers. Adaptive pooling takes other
    # taps for each output.
    step = -(-int(result.op.input_tensors[0].shape[3]) // width)
    fitting = gemm.problem(1, 1, 1).registers // (step + 1)
    most = min(max(fitting, 1), width) if known else 1
    columns = next(size for size in range(most, 0, -1) if width % size == 0)
    chunk, row = s[out].split(h, factor=_ROWS)
    tile, column = s[out].split(w, factor=columns)
    s[out].reorder(n, chunk, b, row, tile, column, lane)
    place = s[out].fuse(n, chunk, b)
    s[out].parallel(place)
    s[out].unroll(column)
    s[out].vectorize(lane)

    s[result].compute_at(s[out], tile)
    *_, column, lane = s[result].op.axis
    axes = list(s[result].op.reduce_axis)
    s[result].reorder(*axes, column, lane)
    s[result].unroll(column)
    s[result].vectorize(lane)
    if known and math.prod(map(int, taps)) <= _MOST_TAPS:
        for axis in axes:
            s[result].unroll(axis)
    if padded is not None:
        s[padded].compute_at(s[out], place)
        s[padded].vectorize(s[padded].op.axis[-1])


def install() -> None:
    """Put the schedule before TVM's own for key `cpu`."""
    for theirs, names in _OPERATORS.items():
        for name in names:
            op = relay.op.get(name)
            # TVM's wrapper of a compute and a schedule; what it was given itself is not reached any more.
            strategy = relay_op._wrap_default_fstrategy(
                op.get_attr("FTVMCompute"), _first(theirs), name
            )
            op.get_attr("FTVMStrategy").register(strategy, ["cpu"], allow_override=True)


def _first(theirs: Any) -> Any:
    def chosen(attrs: Any, outs: Any, target: Any) -> Any:
        with target:
            return schedule(outs) or theirs(attrs, outs, target)

    return chosen
