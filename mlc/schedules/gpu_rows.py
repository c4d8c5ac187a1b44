"""Softmax, its logarithm and layer norm over the last axis on GPUs: a block of threads for each row.

TVM's schedule of softmax gives a row to one thread, three times; a row of a matrix to a warp, in code that
LLVM 22 aborts on, or that gives wrong numbers, where a thread has four elements. Layer norm would be six
launches, and on an H200 a launch takes as long as a row.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import te, tir
from tvm.relay.op.strategy import cuda, generic
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm, operator, rows

NAME = "softmax_mlc.cuda"
_TAG = "mlc_gpu_rows"
_LAYER_NORM_STRATEGY = "mlc_layer_norm_strategy"  # as `operator.register_strategy` calls it
# Threads of a row, and elements that each has while there are more.
_WARP, _MOST, _EACH = 32, 256, 4
_DTYPES = ("float16", "float32", "float64")


def softmax(x: Any, *, log: bool) -> Any:
    """Return softmax over the last axis, or its logarithm, in x's dtype; float16 is computed in float32."""
    *outer, n = get_const_tuple(x.shape)
    dtype = "float32" if x.dtype == "float16" else x.dtype

    def shifted(*at: Any) -> Any:
        return x(*at).astype(dtype) - biggest(*at[:-1])

    k = te.reduce_axis((0, n), "k")
    biggest = te.compute(outer, lambda *at: te.max(x(*at, k).astype(dtype), axis=k), name="biggest")
    step = te.reduce_axis((0, n), "step")
    total = te.compute(
        outer, lambda *at: te.sum(te.exp(shifted(*at, step)), axis=step), name="total"
    )

    def result(*at: Any) -> Any:
        if log:
            return (shifted(*at) - te.log(total(*at[:-1]))).astype(x.dtype)
        return (te.exp(shifted(*at)) / total(*at[:-1])).astype(x.dtype)

    return te.compute((*outer, n), result, name="softmax", tag=_TAG)


def layer_norm(data: Any, scale: Any, shift: Any, epsilon: float) -> Any:
    """Return rows of float32 with a mean of 0 and a variance of 1, times scale [n], plus shift [n]."""
    *outer, n = get_const_tuple(data.shape)
    k, step = te.reduce_axis((0, n), "k"), te.reduce_axis((0, n), "step")
    total = te.compute(outer, lambda *at: te.sum(data(*at, k), axis=k), name="total")

    def centred(*at: Any) -> Any:
        return data(*at) - total(*at[:-1]) * tir.const(1 / n, data.dtype)

    squares = te.compute(
        outer,
        lambda *at: te.sum(centred(*at, step) * centred(*at, step), axis=step),
        name="squares",
    )

    def result(*at: Any) -> Any:
        variance = squares(*at[:-1]) * tir.const(1 / n, data.dtype)
        factor = te.rsqrt(variance + tir.const(epsilon, data.dtype))
        return centred(*at) * factor * scale[at[-1]] + shift[at[-1]]

    return te.compute((*outer, n), result, name="layer_norm", tag=_TAG)


def schedule(outs: Any) -> Any:
    """Return the schedule of one of these with what Relay fused behind it."""
    return gemm.schedule_tagged(_TAG, _schedule, None, outs)


def _schedule(s: Any, _cfg: Any, result: Any, out: Any) -> None:
    if result.op not in s.outputs:
        s[result].compute_inline()
    threads = te.thread_axis((0, _threads(int(result.shape[-1]))), "threadIdx.x")
    *outer, column = s[out].op.axis
    row = s[out].fuse(*outer)
    s[out].bind(row, te.thread_axis("blockIdx.x"))
    _, column = s[out].split(column, factor=threads.dom.extent)
    s[out].bind(column, threads)
    for tensor in rows.inner(result):
        _, part = s[tensor].split(s[tensor].op.reduce_axis[0], factor=threads.dom.extent)
        partial = s.rfactor(tensor, part)
        across = s[tensor].op.reduce_axis[0]
        s[tensor].bind(across, threads)
        s[partial].compute_at(s[tensor], across)
        s[tensor].compute_at(s[out], row)
        s[tensor].set_store_predicate(threads.var.equal(0))


def _threads(n: int) -> int:
    """Return how many threads a row of n elements gets: a power of two."""
    count = _WARP
    while count < _MOST and count * _EACH < n:
        count *= 2
    return count


def takes(tensor: Any, axis: int) -> bool:
    """Return whether the kernel takes a tensor: floats, two dimensions or more, the last axis, known sizes."""
    sizes = all(isinstance(size, (int, tir.IntImm)) and int(size) > 0 for size in tensor.shape)
    rank = len(tensor.shape)
    return tensor.dtype in _DTYPES and sizes and rank > 1 and axis in (-1, rank - 1)


def install() -> None:
    """Put the kernel before TVM's in the strategies for GPUs."""
    for strategy, theirs, log in (
        (generic.softmax_strategy, cuda.softmax_strategy_cuda, False),
        (generic.log_softmax_strategy, cuda.log_softmax_strategy_cuda, True),
    ):
        strategy.register(["cuda", "gpu"], _offered(theirs, log=log), override=True)

    norms = tvm.target.get_native_generic_func(_LAYER_NORM_STRATEGY)
    norms.register(_layer_norm_strategy, ["cuda", "gpu"], True)


def _layer_norm_strategy(_attrs: Any, _inputs: Any, _out_type: Any, _target: Any) -> Any:
    def compute(attrs: Any, inputs: Any, _out: Any) -> list[Any]:
        data, scale, shift = inputs
        return [layer_norm(data, scale, shift, float(attrs["epsilon"]))]

    return operator.only(compute, schedule, NAME)


def _offered(theirs: Any, *, log: bool) -> Any:
    def strategy(attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
        found = theirs(attrs, inputs, out_type, target)
        if takes(inputs[0], int(attrs.axis)):
            found.add_implementation(
                lambda _attrs, inputs, _out: [softmax(inputs[0], log=log)],
                generic.wrap_topi_schedule(schedule), name=NAME, plevel=gemm.PLEVEL,
            )  # fmt: skip
        return found

    return strategy
