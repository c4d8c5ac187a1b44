"""Elementary functions in kernels: written out late, each once, and right wherever they stand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlc.codegen.kernels import pass_context
from tests import models

ROWS, LANES = 5, 8


def nested(x: Any) -> Any:
    from mlc.schedules.elementary import exp, tanh

    return tanh(exp(x * 0.5) * 0.5)


def lazily(x: Any) -> Any:
    """In a branch it is left to code generation."""
    from tvm import tir

    from mlc.schedules.elementary import exp

    return tir.if_then_else(x > 0.5, exp(x), x)


def repeated(x: Any) -> Any:
    from mlc.schedules.elementary import erf

    return erf(x) * 3.0 + erf(x) * erf(x + 1.0)


def alike(x: Any) -> Any:
    """Equal but for what the inner ones are given."""
    from mlc.schedules.elementary import exp, tanh

    return tanh(exp(x)) + tanh(exp(x * 0.5)) * 2.0


erf = np.vectorize(math.erf)
FUNCTIONS: dict[Any, Callable[[Any], Any]] = {
    nested: lambda x: np.tanh(np.exp(x / 2) / 2),
    lazily: lambda x: np.where(x > 0.5, np.exp(x), x),
    alike: lambda x: np.tanh(np.exp(x)) + 2 * np.tanh(np.exp(x / 2)),
    repeated: lambda x: 3 * erf(x) + erf(x) * erf(x + 1),
}


def scheduled(tvm: Any, function: Any) -> tuple[Any, list[Any]]:
    """Return a schedule over [ROWS, LANES] with vectors, its rows unrolled in part."""
    from tvm import te

    x = te.placeholder((ROWS, LANES), name="x")
    y = te.compute((ROWS, LANES), lambda i, k: function(x[i, k]), name="y")
    schedule = te.create_schedule(y.op)
    outer, inner = schedule[y].split(y.op.axis[0], 2)
    schedule[y].reorder(outer, inner, y.op.axis[1])
    schedule[y].unroll(inner)
    schedule[y].vectorize(y.op.axis[1])
    return schedule, [x, y]


def run(tvm: Any, built: Any) -> tuple[np.ndarray, np.ndarray]:
    data = np.random.default_rng(0).random((ROWS, LANES), np.float32)
    found = tvm.nd.array(np.zeros((ROWS, LANES), np.float32))
    built(tvm.nd.array(data), found)
    return data, found.numpy()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values(tvm: Any, function: Any) -> None:
    schedule, arguments = scheduled(tvm, function)
    with pass_context(3):
        lowered = tvm.lower(schedule, arguments)
        built = tvm.build(schedule, arguments, "llvm")
    assert ("mlc.exp" in lowered.script()) == (function is lazily)
    data, found = run(tvm, built)
    np.testing.assert_allclose(found, FUNCTIONS[function](data), rtol=2e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_without_our_passes_too(tvm: Any, function: Any) -> None:
    """As where TVM folds constants."""
    schedule, arguments = scheduled(tvm, function)
    data, found = run(tvm, tvm.build(schedule, arguments, "llvm"))
    np.testing.assert_allclose(found, FUNCTIONS[function](data), rtol=2e-6)


def test_equal_calls_are_one(tvm: Any) -> None:
    schedule, arguments = scheduled(tvm, repeated)
    with pass_context(3):
        text = tvm.lower(schedule, arguments).script()
    copies = 2 + 2  # two unrolled rows, the second one under a condition; or in two versions
    assert 0 < text.count("isnan") <= 2 * copies


def test_registers_are_not_allocated_at_run_time(tvm: Any) -> None:
    """A call for each vector made attention three times as slow."""
    schedule, arguments = scheduled(tvm, nested)
    with pass_context(3):
        (function,) = tvm.lower(schedule, arguments).functions.values()
    found: list[Any] = []
    tvm.tir.stmt_functor.ir_transform(function.body, found.append, None, ["tir.Allocate"])
    assert found
    assert all("disable_lower_builtin" in node.annotations for node in found)


def test_nested_activations_are_no_large_kernels(compiled: Any) -> None:
    """Sigmoid, then Softplus took 40 s, one more function some minutes."""
    operators = ["Sigmoid", "Softplus", "Tanh", "Erf", "Sigmoid", "Softplus", "Tanh"]
    names = ["x", *(f"v{k}" for k in range(len(operators)))]
    nodes = [
        helper.make_node(operator, [names[k]], [names[k + 1]])
        for k, operator in enumerate(operators)
    ]
    made = compiled(models.model(nodes, {"x": [3, 37]}, [names[-1]]), verify=True, cache=False)
    assert made.manifest["verification"]["passed"]
    assert len(made.manifest["kernels"]) == 1
