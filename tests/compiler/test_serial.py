"""Short loops run on one thread, long ones on all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlc.codegen.kernels import pass_context

LAUNCH = "__tvm_parallel_lambda"


def kernel(tvm: Any, rows: int, columns: int, *, ours: bool = True, steps: int = 1) -> Any:
    """Build y = sum over steps of exp(x), its rows in parallel and columns in vectors."""
    from tvm import te

    x = te.placeholder((rows, columns), name="x")
    k = te.reduce_axis((0, steps), "k")
    y = te.compute(x.shape, lambda i, j: te.sum(te.exp(x[i, j]) + k, axis=k), name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].parallel(schedule[y].op.axis[0])
    schedule[y].vectorize(schedule[y].split(schedule[y].op.axis[1], factor=8)[1])
    context = pass_context(3) if ours else tvm.transform.PassContext(opt_level=3)
    with context:
        return tvm.build(schedule, [x, y], "llvm -opt-level=0")


@pytest.mark.parametrize(
    ("shape", "parallel"), [((4, 8), False), ((4, 64), False), ((64, 4096), True)]
)
def test_work_decides(tvm: Any, shape: tuple[int, int], parallel: bool) -> None:
    built = kernel(tvm, *shape)
    assert (LAUNCH in built.get_source("ll")) == parallel
    x = np.random.default_rng(0).random(shape, np.float32)
    result = tvm.nd.array(np.zeros_like(x))
    built(tvm.nd.array(x), result)
    np.testing.assert_allclose(result.numpy(), np.exp(x), rtol=1e-6)


def test_loops_inside_count(tvm: Any) -> None:
    assert LAUNCH in kernel(tvm, 4, 64, steps=10_000).get_source("ll")


def test_the_pass_is_still_needed(tvm: Any) -> None:
    assert LAUNCH in kernel(tvm, 4, 8, ours=False).get_source("ll")
