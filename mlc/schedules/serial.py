"""A TIR pass: what takes less time than waking the other threads runs on the calling one.

TVM's schedules make the outermost loop parallel whatever the size. A launch of its thread pool takes
microseconds, more when other programs have the cores: far longer than the few hundred elements of a
squeezed image or of a state.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tir

LEAST_WORK = 1 << 13  # of a parallel loop, in operations (vectors count as one): microseconds
_LANES = 8  # operations of a vectorised loop that are done at once


@functools.cache
def serialize_short_loops() -> Any:
    """Return the pass. It runs before loops are unrolled (`tir.add_lower_pass`, phase 1)."""

    @tir.transform.prim_func_pass(opt_level=0, name="mlc.serialize_short_loops")  # type: ignore[untyped-decorator]
    def run(function: Any, _module: Any, _context: Any) -> Any:
        body = tir.stmt_functor.ir_transform(function.body, None, _visit, ["tir.For"])
        return function if body.same_as(function.body) else function.with_body(body)

    return run


def _visit(loop: Any) -> Any:
    if loop.kind != tir.ForKind.PARALLEL or _work(loop, LEAST_WORK) >= LEAST_WORK:
        return None
    return tir.For(
        loop.loop_var, loop.min, loop.extent, tir.ForKind.SERIAL, loop.body, None, loop.annotations
    )


def _work(statement: Any, enough: float) -> float:
    """Return how many operations a statement takes, at least those of one pass where that is `enough`.

    A loop of unknown length counts as enough, of two branches the longer one.
    """
    if isinstance(statement, tir.For):
        if not isinstance(statement.extent, tir.IntImm):
            return enough
        times = max(1, int(statement.extent))
        if statement.kind == tir.ForKind.VECTORIZED:
            times = max(1, times // _LANES)
        return times * _work(statement.body, enough / times)
    if isinstance(statement, tir.SeqStmt):
        total = 0.0
        for part in statement:
            total += _work(part, enough - total)
            if total >= enough:
                break
        return total
    if isinstance(statement, tir.IfThenElse):
        branches = [statement.then_case, statement.else_case]
        return max(_work(branch, enough) for branch in branches if branch is not None)
    if isinstance(statement, (tir.BufferStore, tir.Evaluate)):
        return _operations(statement.value)
    body = getattr(statement, "body", None)
    return enough if body is None else _work(body, enough)


def _operations(value: Any) -> float:
    """Return the arithmetic of an expression, the store included; a call counts as ten."""
    found = 1.0

    def visit(node: Any) -> None:
        nonlocal found
        if isinstance(node, tir.Call):
            found += 10
        elif isinstance(node, tir.expr.BinaryOpExpr) and "float" in str(node.dtype):
            found += 1

    tir.stmt_functor.post_order_visit(value, visit)
    return found
