"""A TIR pass: elementary functions are written out, their arguments and results kept in registers.

`y[i] = f(g(x[i]))` becomes `a[0] = x[i]; b[0] = G(a[0]); c[0] = F(b[0]); y[i] = c[0]`, G and F being
the formulas of `elementary`, with buffers of one element on the stack, which LLVM takes into registers.
(A `tir.Let` would say the same, but TVM declares its variable to the debugger, and LLVM refuses declarations of
floats and vectors.) Equal calls of a statement are one.
"""

from __future__ import annotations

import functools
from typing import Any

import tvm
from tvm import tir
from tvm.tir import stmt_functor

from mlc.schedules.elementary import FORMULAS
from mlc.schedules.stack import ON_STACK


@functools.cache
def write_out_functions() -> Any:
    """Return the pass. It runs when vectors are made and loops unrolled (`tir.add_lower_pass`, phase 2)."""

    @tir.transform.prim_func_pass(opt_level=0, name="mlc.write_out_functions")  # type: ignore[untyped-decorator]
    def run(function: Any, _module: Any, _context: Any) -> Any:
        if not _has_functions(function.body):
            return function
        body = stmt_functor.ir_transform(function.body, None, _store, ["tir.BufferStore"])
        return function if body.same_as(function.body) else function.with_body(body)

    return run


def _has_functions(body: Any) -> bool:
    """Return whether anything is to be written out: to look at all stores takes long."""
    found = []

    def note(call: Any) -> None:
        if getattr(call.op, "name", "") in FORMULAS:
            found.append(call)

    stmt_functor.ir_transform(body, note, None, ["tir.Call"])
    return bool(found)


def _store(store: Any) -> Any:
    """Return a store without calls, behind the stores of what they give."""
    steps = _Steps()
    value = stmt_functor.ir_transform(
        tir.Evaluate(store.value), _stays, steps.take, ["tir.Call"]
    ).value
    if not steps.stores:
        return None
    last = tir.BufferStore(store.buffer, value, store.indices)
    found: Any = tir.SeqStmt([*steps.stores, last])
    for buffer in steps.buffers:
        found = tir.Allocate(
            buffer.data, buffer.dtype, buffer.shape, tir.const(True, "bool"),
            tir.DeclBuffer(buffer, found), ON_STACK,
        )  # fmt: skip
    return found


def _stays(call: Any) -> Any:
    """Return a call that is computed in part only: what it does not compute may load what is not there."""
    return call if call.op.same_as(tvm.ir.Op.get("tir.if_then_else")) else None


class _Steps:
    """What is stored before a statement, in order."""

    def __init__(self) -> None:
        self.stores: list[Any] = []
        self.buffers: list[Any] = []
        self._known: list[tuple[Any, Any]] = []  # calls, and where their results are

    def take(self, call: Any) -> Any:
        """Return the load of a function's result; None for other calls. Its argument has no functions left."""
        formula = FORMULAS.get(getattr(call.op, "name", ""))
        if formula is None:
            return None
        for known, result in self._known:
            if _equal(known, call):
                return result
        result = self._keep(formula(self._keep(call.args[0])))
        self._known.append((call, result))
        return result

    def _keep(self, value: Any) -> Any:
        """Store a value in a new buffer, and return its load."""
        element, _, lanes = value.dtype.partition("x")
        count = int(lanes or 1)
        buffer = tir.decl_buffer((count,), element, "kept", scope="local")
        zero, one = tir.const(0, "int32"), tir.const(1, "int32")
        at = [tir.Ramp(zero, one, count) if lanes else zero]
        self.buffers.append(buffer)
        self.stores.append(tir.BufferStore(buffer, value, at))
        return tir.BufferLoad(buffer, at)


def _equal(a: Any, b: Any) -> bool:
    """Return whether two expressions are the same; TVM's comparison takes one buffer for any like it."""
    if not tvm.ir.structural_equal(a, b):
        return False
    return all(x.same_as(y) for x, y in zip(_loaded(a), _loaded(b), strict=True))


def _loaded(value: Any) -> list[Any]:
    """Return the buffers that an expression loads from, in order."""
    found: list[Any] = []

    def note(load: Any) -> None:
        found.append(load.buffer.data)

    stmt_functor.ir_transform(tir.Evaluate(value), None, note, ["tir.BufferLoad"])
    return found
