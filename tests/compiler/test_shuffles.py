"""Loads with a constant pattern of lanes become a shuffle; others stay, and all stay right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlc.codegen.kernels import pass_context

LANES, ROWS = 8, 5
# From (row, lane) to the element of x, [ROWS + 1, LANES] flat, and whether a block holds the pattern.
PATTERNS: dict[str, tuple[Callable[[Any, Any], Any], bool]] = {
    "groups of 4": (lambda i, k: i * 8 + k // 4 * 4 + 3, True),
    "reversed": (lambda i, k: i * 8 + (7 - k), False),  # a ramp: TVM's own
    "pairs behind a row": (lambda i, k: 8 + i * 8 + k // 2, True),
    "over two blocks": (lambda i, k: i * 8 + k // 2 * 2 + 3, False),
    "base between blocks": (lambda i, k: i * 4 + k // 4 * 4, False),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_values_stay(tvm: Any, name: str) -> None:
    from tvm import te

    element, shuffled = PATTERNS[name]
    x = te.placeholder(((ROWS + 1) * LANES,), name="x")
    y = te.compute((ROWS, LANES), lambda i, k: x[element(i, k)] * 2.0, name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].vectorize(y.op.axis[1])
    with pass_context(3):
        lowered = tvm.lower(schedule, [x, y])
        built = tvm.build(schedule, [x, y], "llvm -opt-level=0")
    assert ("Shuffle" in lowered.script()) == shuffled
    data = np.random.default_rng(0).random((ROWS + 1) * LANES, np.float32)
    found = tvm.nd.array(np.zeros((ROWS, LANES), np.float32))
    built(tvm.nd.array(data), found)
    rows, lanes = np.meshgrid(np.arange(ROWS), np.arange(LANES), indexing="ij")
    np.testing.assert_array_equal(found.numpy(), data[element(rows, lanes)] * 2)
