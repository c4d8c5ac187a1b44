"""A TIR pass: loops over whole tiles without conditions, apart from those over partial ones.

A tile at the edge of a tensor is stored under `likely` conditions, and one that looks into a vector
makes TVM store every lane by itself, in all tiles. TVM's LoopPartition would split such loops, but
only those with bounds known at run time (or all loops of all kernels, by its option). Here a loop
nest that a schedule marked (`pragma(axis, MARK, True)`) is written twice,

    if every condition in it holds for all of its iterations: the nest without them
    else: the nest as it was

which is loop versioning; the test is made once, outside of the nest.
"""

from __future__ import annotations

import functools
from typing import Any

import tvm
from tvm import arith, tir

MARK = "whole_tiles"
_LIKELY = "tir.likely"


@functools.cache
def version_loops() -> Any:
    """Return the pass. It runs before vectors are made (`tir.add_lower_pass`, phase 1)."""

    @tir.transform.prim_func_pass(opt_level=0, name="mlc.version_loops")  # type: ignore[untyped-decorator]
    def run(function: Any, _module: Any, _context: Any) -> Any:
        body = tir.stmt_functor.ir_transform(function.body, None, _visit, ["tir.AttrStmt"])
        return function if body.same_as(function.body) else function.with_body(body)

    return run


def _visit(statement: Any) -> Any:
    if statement.attr_key != f"pragma_{MARK}":
        return None
    nest = statement.body
    conditions = _conditions(nest)
    if not conditions:
        return nest
    ranges = _ranges(nest)
    whole: list[Any] = []
    for condition in conditions:
        test = _for_all(condition, ranges)
        if test is None:
            return nest
        if not any(tvm.ir.structural_equal(test, other) for other in whole):
            whole.append(test)
    test = functools.reduce(tir.And, whole)
    return tir.IfThenElse(test, _renamed(_without_conditions(nest)), nest)


def _conditions(nest: Any) -> list[Any]:
    found: list[Any] = []

    def visit(node: Any) -> None:
        if _is_likely(node):
            found.append(node.args[0])

    tir.stmt_functor.post_order_visit(nest, visit)
    return found


def _is_likely(node: Any) -> bool:
    return isinstance(node, tir.Call) and getattr(node.op, "name", "") == _LIKELY


def _ranges(nest: Any) -> dict[Any, Any]:
    """Return the values that the variables of the loops in the nest take."""
    found: dict[Any, Any] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tir.For):
            found[node.loop_var] = arith.IntervalSet(node.min, node.min + node.extent - 1)

    tir.stmt_functor.post_order_visit(nest, visit)
    return found


def _for_all(condition: Any, ranges: dict[Any, Any]) -> Any:
    """Return when `a < b` holds for all values of the variables; None for other conditions."""
    if not isinstance(condition, tir.LT):
        return None
    analyzer = arith.Analyzer()
    # Every variable must stand in the map: those from outside are points.
    outside: dict[Any, Any] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tir.Var) and node not in ranges:
            outside[node] = arith.IntervalSet(node, node)

    tir.stmt_functor.post_order_visit(condition, visit)
    largest = analyzer.int_set(condition.a - condition.b, {**ranges, **outside}).max_value
    return analyzer.simplify(largest < 0)


def _without_conditions(nest: Any) -> Any:
    return tir.stmt_functor.ir_transform(
        nest, None, lambda node: tir.const(True, "bool") if _is_likely(node) else None, ["tir.Call"]
    )


def _renamed(nest: Any) -> Any:
    """Return the nest with loop variables of its own: TIR defines a variable once."""

    def visit(node: Any) -> Any:
        variable = tir.Var(node.loop_var.name, node.loop_var.dtype)
        body = tir.stmt_functor.substitute(node.body, {node.loop_var: variable})
        return tir.For(
            variable, node.min, node.extent, node.kind, body, node.thread_binding, node.annotations
        )

    return tir.stmt_functor.ir_transform(nest, None, visit, ["tir.For"])
