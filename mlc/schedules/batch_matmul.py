"""The template `batch_matmul_mlc.x86`: C[b] = A[b] B[b] in float32, either operand transposed or not.

Both operands are activations. B is read in place where it lies as [k, n] and n is a multiple of the
tile; otherwise a thread packs each panel of it just before it is used for all rows of A.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import autotvm
from tvm.relay.op.strategy import generic, x86
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm, open_gemm

TEMPLATE = "batch_matmul_mlc.x86"
Element = Callable[[Any, Any, Any], Any]


@autotvm.register_topi_compute(TEMPLATE)  # type: ignore[untyped-decorator]
def batch_matmul(cfg: Any, a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> Any:
    """Return the products [batch, m, n].

    Args:
        cfg: the config.
        a: [batch, m, k], or [batch, k, m] with `transpose_a`; a batch of 1 is used for all.
        b: [batch, k, n], or [batch, n, k] with `transpose_b`; a batch of 1 is used for all.
        transpose_a: see `a`.
        transpose_b: see `b`.
    """
    (batch, m, n, k), row, column = elements(a, b, transpose_a, transpose_b)
    known = gemm.problem(m, n, k, batch)
    gemm.define(cfg, known, in_place=not transpose_b)
    tile = list(cfg["tile"].val)
    columns = tile[1] * known.lanes

    def in_place(item: Any, panel: Any, step: Any, j: Any) -> Any:
        return column(item, panel * columns + j, step)

    whole = not transpose_b and n % columns == 0
    panels = in_place if whole else gemm.pack(known, tile, column)
    return gemm.product(known, tile, row, panels, batched=True)


def elements(
    a: Any, b: Any, transpose_a: bool, transpose_b: bool
) -> tuple[tuple[int, int, int, int], Element, Element]:
    """Return batch, m, n and k of products, and what is in row i of A and column j of B at a step of k.

    Args:
        a: as for `batch_matmul`, and so are the others.
        b: see there.
        transpose_a: see there.
        transpose_b: see there.
    """
    batch_a, m, k = get_const_tuple(a.shape)
    batch_b, n = int(b.shape[0]), int(b.shape[1 if transpose_b else 2])
    if transpose_a:
        m, k = k, m

    def row(item: Any, i: Any, step: Any) -> Any:
        item = item if batch_a > 1 else 0
        return a[item, step, i] if transpose_a else a[item, i, step]

    def column(item: Any, j: Any, step: Any) -> Any:
        item = item if batch_b > 1 else 0
        return b[item, j, step] if transpose_b else b[item, step, j]

    return (max(batch_a, batch_b), m, n, k), row, column


@autotvm.register_topi_schedule(TEMPLATE)  # type: ignore[untyped-decorator]
def schedule_batch_matmul(cfg: Any, outs: Any) -> Any:
    """Return the schedule of a batch of products with what Relay fused behind them."""
    return gemm.schedule(cfg, outs)


def install() -> None:
    """Put the template before TVM's own in the strategy of key `cpu`."""
    generic.batch_matmul_strategy.register("cpu", _strategy, override=True)


def _strategy(attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
    strategy = x86.batch_matmul_strategy_cpu(attrs, inputs, out_type, target)
    if gemm.takes(*inputs, out_type):
        strategy.add_implementation(
            _compute, generic.wrap_topi_schedule(schedule_batch_matmul), name=TEMPLATE,
            plevel=gemm.PLEVEL,
        )  # fmt: skip
    elif open_gemm.takes(*inputs, out_type):
        open_gemm.offer(strategy, _open)
    return strategy


def _compute(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    return [batch_matmul(*inputs, bool(attrs.transpose_a), bool(attrs.transpose_b))]


def _open(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    a, b = inputs
    return [open_gemm.batch_matmul(a, b, bool(attrs.transpose_a), bool(attrs.transpose_b))]
