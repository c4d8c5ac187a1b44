"""Products with sizes that only the run knows, in float32: the loops of `gemm` without AutoTVM.

A size may be an expression of variables instead of a number. The register tile is then the default
of a problem with `_TYPICAL` in its place; where the real size is smaller, rows are computed twice and
not stored. There is nothing to tune: a workload is a tuple of numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm import tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.relay.op.strategy import generic
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "open_product.x86"
_TYPICAL = 128  # rows or columns: the length of a short text, a large batch
_UNROLL = 4


def takes(*tensors: Any) -> bool:
    """Return whether these tensors, float32, have a size that is not known, and none without elements."""
    sizes = [size for tensor in tensors for size in tensor.shape]
    known = [int(size) for size in sizes if isinstance(size, (int, tir.IntImm))]
    return (
        all(tensor.dtype == gemm.DTYPE for tensor in tensors)
        and len(known) < len(sizes)
        and min(known, default=1) > 0
    )


def offer(strategy: Any, compute: Callable[..., Any]) -> None:
    """Put `compute` before TVM's implementations in a strategy."""
    strategy.add_implementation(
        compute, generic.wrap_topi_schedule(schedule), name=NAME, plevel=gemm.PLEVEL + 10
    )


def columns(data: Any, weight: Any) -> int:
    """Return the columns of a panel in which a dense layer wants its weights [units, k]."""
    m, k = get_const_tuple(data.shape)
    known = gemm.problem(m, int(weight.shape[0]), k)
    return known.panels(_config(known)["tile"].val)[2]


def dense(data: Any, weight: Any, units: int) -> Any:
    """Return the product [m, units] of `data` [m, k] and `weight`, [units, k] or packed."""
    m, k = get_const_tuple(data.shape)
    known = gemm.problem(m, units, k)
    tile = _config(known)["tile"].val

    def packed(_batch: Any, *position: Any) -> Any:
        return weight(*position)

    in_panels = len(weight.shape) == 3
    panel = packed if in_panels else gemm.pack(known, tile, lambda _b, n, step: weight[n, step])
    width = known.width(tile) if in_panels else 0

    def row(_batch: Any, i: Any, step: Any) -> Any:
        return data[i, step]

    return gemm.product(known, tile, row, panel, batched=False, width=width)


def batch_matmul(a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> Any:
    """Return the products [batch, m, n]; a batch of 1 on one side is used for all."""
    batch_a, m, k = get_const_tuple(a.shape)
    batch_b, n = b.shape[0], b.shape[1 if transpose_b else 2]
    if transpose_a:
        m, k = k, m
    one_a, one_b = _is_one(batch_a), _is_one(batch_b)
    (n,) = get_const_tuple([n])
    known = gemm.problem(m, n, k, get_const_tuple([batch_b if one_a else batch_a])[0])
    tile = _config(known)["tile"].val
    width = tile[1] * known.lanes

    def row(item: Any, i: Any, step: Any) -> Any:
        item = 0 if one_a else item
        return a[item, step, i] if transpose_a else a[item, i, step]

    def column(item: Any, j: Any, step: Any) -> Any:
        item = 0 if one_b else item
        return b[item, j, step] if transpose_b else b[item, step, j]

    def in_place(item: Any, panel: Any, step: Any, j: Any) -> Any:
        return column(item, panel * width + j, step)

    whole = not transpose_b and gemm.is_multiple(n, width)
    panels = in_place if whole else gemm.pack(known, tile, column)
    return gemm.product(known, tile, row, panels, batched=True)


def schedule(outs: Any) -> Any:
    """Return the schedule of such a product with what Relay fused behind it."""
    return gemm.schedule_product(_config, outs)


def _is_one(size: Any) -> bool:
    return isinstance(size, (int, tir.IntImm)) and int(size) == 1


def _config(known: gemm.Problem) -> dict[str, Any]:
    """Return the knobs of `gemm` for a problem, by the default of a typical one."""
    sizes = {name: getattr(known, name) for name in ("batch", "m", "n", "k")}
    typical = {n: size if isinstance(size, int) else _TYPICAL for n, size in sizes.items()}
    near = replace(known, **typical)
    steps = _UNROLL if gemm.is_multiple(known.k, _UNROLL) else 1
    chosen = {
        "tile": gemm.default_tile(near, in_place=isinstance(known.n, int)),
        "unroll": steps,
        "order": gemm.default_order(near),
    }
    return {name: OtherOptionEntity(value) for name, value in chosen.items()}
