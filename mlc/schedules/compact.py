"""A TIR pass: tensors of unknown size lie in memory without gaps.

TVM gives a tensor with a symbolic axis strides of its own, zero where the axis turns out to be 1, so
that it broadcasts at run time. Loads with an unknown stride cannot be vector loads. Here equal axes
are one variable, so nothing broadcasts unseen, and the strides are products of the sizes.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tir


@functools.cache
def compact() -> Any:
    """Return the pass. It runs before vectors are made (`tir.add_lower_pass`, phase 1)."""

    @tir.transform.prim_func_pass(opt_level=0, name="mlc.compact")  # type: ignore[untyped-decorator]
    def run(function: Any, _module: Any, _context: Any) -> Any:
        if not any(len(buffer.strides) for buffer in function.buffer_map.values()):
            return function
        known: dict[Any, Any] = {}
        buffers = {}
        for param, buffer in function.buffer_map.items():
            size: Any = tir.const(1, "int32")
            for stride, axis in reversed(list(zip(buffer.strides, buffer.shape, strict=False))):
                known[stride] = size
                size = size * axis
            buffers[param] = tir.decl_buffer(
                buffer.shape, buffer.dtype, buffer.name, data=buffer.data, scope=buffer.scope()
            )
        body = tir.stmt_functor.substitute(function.body, known)
        return tir.PrimFunc(function.params, body, function.ret_type, buffers, function.attrs)

    return run
