"""A TIR pass: bindings of vectors and floats written out where they are used.

TVM's elimination of common subexpressions binds index arithmetic, which may be a vector of
integers, and constants of pooling, which may be floats, and its code generator declares each binding to
the debugger; LLVM takes only declarations of pointers and integers, and refuses the module. LLVM finds
common subexpressions by itself.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def inline_vector_lets() -> Any:
    """Return the pass; it runs on lowered kernels (TVM has no hook behind the elimination)."""
    from tvm import tir

    @tir.transform.prim_func_pass(opt_level=0, name="mlc.inline_vector_lets")  # type: ignore[untyped-decorator]
    def run(function: Any, _module: Any, _context: Any) -> Any:
        kinds = ["tir.LetStmt", "tir.Let"]
        body = tir.stmt_functor.ir_transform(function.body, None, _visit, kinds)
        return function if body.same_as(function.body) else function.with_body(body)

    return run


def _visit(let: Any) -> Any:
    from tvm import DataType, tir

    dtype = DataType(let.var.dtype)
    if dtype.lanes == 1 and "float" not in str(dtype):
        return None
    return tir.stmt_functor.substitute(let.body, {let.var: let.value})
