"""A TIR pass: a vector whose lanes come from one block of memory is one load and a shuffle.

TVM loads each lane by itself unless the lanes lie side by side, and LLVM puts them together one by one:
some thirty instructions for a vector of 16, where one permutes it. Here a load

    x[base + pattern], the pattern constant, base a multiple of the vector's length

becomes `shuffle(x[base : base + lanes], pattern)`, if the pattern stays within that block.
"""

from __future__ import annotations

import functools
from typing import Any

import tvm
from tvm import arith, tir

_ARITHMETIC = (tir.Add, tir.Sub, tir.Mul, tir.FloorDiv, tir.FloorMod)


@functools.cache
def shuffle_loads() -> Any:
    """Return the pass. It runs when vectors are made and loops unrolled (`tir.add_lower_pass`, phase 2)."""

    @tir.transform.prim_func_pass(opt_level=0, name="mlc.shuffle_loads")  # type: ignore[untyped-decorator]
    def run(function: Any, _module: Any, _context: Any) -> Any:
        if not _has_divided_lanes(function.body):
            return function
        body = tir.stmt_functor.ir_transform(function.body, None, _visit, ["tir.BufferLoad"])
        return function if body.same_as(function.body) else function.with_body(body)

    return run


def _has_divided_lanes(body: Any) -> bool:
    """Return whether lanes are divided anywhere, as patterns are: to look at all loads takes long."""
    found = []

    def note(node: Any) -> None:
        if tvm.DataType(node.dtype).lanes > 1:
            found.append(node)

    tir.stmt_functor.ir_transform(body, note, None, ["tir.FloorDiv", "tir.FloorMod"])
    return bool(found)


def _visit(load: Any) -> Any:
    index = load.indices[-1]
    if not isinstance(index, _ARITHMETIC):  # most are ramps: this is what the pass's time goes to
        return None
    lanes = tvm.DataType(index.dtype).lanes
    if lanes == 1 or tvm.DataType(load.dtype).lanes != lanes or len(load.indices) > 1:
        return None
    places = [_lane(index, lane) for lane in range(lanes)]
    if None in places:
        return None
    analyzer = arith.Analyzer()
    first = analyzer.simplify(tir.floormod(places[0], lanes))
    base = analyzer.simplify(places[0] - first)
    pattern = [analyzer.simplify(place - base) for place in places]
    if not all(isinstance(at, tir.IntImm) and 0 <= int(at) < lanes for at in pattern):
        return None
    block = tir.BufferLoad(load.buffer, [tir.Ramp(base, tir.const(1, base.dtype), lanes)])
    return tir.Shuffle([block], pattern)


def _lane(index: Any, lane: int) -> Any:
    """Return the scalar index of one lane; None if it is more than arithmetic on ramps."""
    if isinstance(index, tir.Broadcast):
        return index.value
    if isinstance(index, tir.Ramp):
        return index.base + index.stride * lane
    if not isinstance(index, _ARITHMETIC):
        return None
    a, b = _lane(index.a, lane), _lane(index.b, lane)
    return None if a is None or b is None else type(index)(a, b)
