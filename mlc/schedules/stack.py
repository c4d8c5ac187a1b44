"""A TIR pass: accumulators on the stack, from where LLVM takes them into registers.

TVM asks its workspace pool for a buffer of 1024 bytes or more, at run time, in each iteration that
uses it: a call to allocate, one to free, and memory between that LLVM cannot see through. A register
tile of AVX-512 is that large from 16 accumulators on.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import tvm
from tvm import tir

REGISTERS_BYTES = 32 * 64  # AVX-512's: what is larger stays in memory anyway
ON_STACK = {"disable_lower_builtin": tir.const(True, "bool")}  # TVM's word for it


@functools.cache
def keep_on_stack() -> Any:
    """Return the pass. It runs last (`tir.add_lower_pass`, phase 3)."""

    @tir.transform.prim_func_pass(opt_level=0, name="mlc.keep_on_stack")  # type: ignore[untyped-decorator]
    def run(function: Any, _module: Any, _context: Any) -> Any:
        body = tir.stmt_functor.ir_transform(function.body, None, _visit, ["tir.Allocate"])
        return function if body.same_as(function.body) else function.with_body(body)

    return run


def _visit(node: Any) -> Any:
    constant = all(isinstance(size, tir.IntImm) for size in node.extents)
    if not constant or node.buffer_var.type_annotation.storage_scope != "global":
        return None
    elements = math.prod(int(size) for size in node.extents)
    if elements * tvm.DataType(node.dtype).itemsize() > REGISTERS_BYTES:
        return None
    annotations = {**node.annotations, **ON_STACK}
    return tir.Allocate(
        node.buffer_var, node.dtype, node.extents, node.condition, node.body, annotations
    )
