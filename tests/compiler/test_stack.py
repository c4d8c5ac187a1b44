"""Accumulators are no workspace: TVM's default is, from 1024 bytes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlc.codegen.kernels import pass_context
from mlc.schedules import stack

ALLOCATES = "TVMBackendAllocWorkspace"


def kernel(tvm: Any, size: int, *, ours: bool) -> Any:
    """Build y = x + 1 + 1 by way of a buffer of `size` floats."""
    from tvm import te

    x = te.placeholder((3, size), name="x")
    inner = te.compute(x.shape, lambda i, j: x[i, j] + 1, name="inner")
    y = te.compute(x.shape, lambda i, j: inner[i, j] + 1, name="y")
    schedule = te.create_schedule(y.op)
    schedule[inner].compute_at(schedule[y], schedule[y].op.axis[0])
    context = pass_context(3) if ours else tvm.transform.PassContext(opt_level=3)
    with context:
        return tvm.build(schedule, [x, y], "llvm -opt-level=0")


@pytest.mark.parametrize("size", [1, 255, 256, 512])
def test_a_tile_of_registers_is_on_the_stack(tvm: Any, size: int) -> None:
    built = kernel(tvm, size, ours=True)
    assert ALLOCATES not in built.get_source("ll")
    x = np.arange(3 * size, dtype=np.float32).reshape(3, size)
    given, result = tvm.nd.array(x), tvm.nd.array(np.zeros_like(x))
    built(given, result)
    np.testing.assert_array_equal(result.numpy(), x + 2)


def test_what_is_larger_is_not(tvm: Any) -> None:
    assert ALLOCATES in kernel(tvm, stack.REGISTERS_BYTES // 4 + 1, ours=True).get_source("ll")


def test_the_pass_is_still_needed(tvm: Any) -> None:
    assert ALLOCATES in kernel(tvm, 256, ours=False).get_source("ll")
