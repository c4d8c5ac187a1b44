"""Horizontal fusion: layers of one kind that read the same input become one larger layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def combine_conv2d(module: Any) -> Any:
    """Combine three or more convolutions of one input (as in Inception's 1x1 branches)."""
    from tvm import relay

    return _end_slices(relay.transform.CombineParallelConv2D(3)(module))


def combine_dense(module: Any) -> Any:
    """Combine three or more dense layers of one input (as in query, key and value)."""
    from tvm import relay

    return _end_slices(relay.transform.CombineParallelDense(3, False)(module))


def combine_batch_matmul(module: Any) -> Any:
    """Combine three or more batched products of one left operand."""
    from tvm import relay

    return _end_slices(relay.transform.CombineParallelBatchMatmul(3)(module))


def _end_slices(module: Any) -> Any:
    """Rewrite slices given by size to slices given by their end.

    Work-around: when a layout is blocked, TVM's layout inference for `strided_slice` takes a size
    for an end, and type inference then fails (Inception v1). The test of that name in
    `tests/compiler/test_passes.py` tells when this is no longer needed.
    """
    from tvm import ir, relay, tir

    from mlc.passes.rewrite import rewrite_main

    def on_call(call: Any, args: Sequence[Any]) -> Any:
        if call.op != ir.Op.get("strided_slice") or call.attrs.slice_mode != "size":
            return None
        shape = call.args[0].checked_type.shape
        axes = call.attrs.axes
        axes = list(range(len(call.attrs.begin))) if axes is None else [int(a) for a in axes]
        parts = []
        for axis, begin, size in zip(axes, call.attrs.begin, call.attrs.end, strict=True):
            if isinstance(shape[axis], tir.IntImm):  # an open axis is taken whole
                end = int(shape[axis]) if int(size) == -1 else int(begin) + int(size)
                parts.append((int(begin), end, 1, axis))
            elif (int(begin), int(size)) != (0, -1):
                return None
        begins, ends, steps, axes = map(list, zip(*parts, strict=True))
        return relay.strided_slice(args[0], begins, ends, steps, axes)

    return rewrite_main(module, on_call)
