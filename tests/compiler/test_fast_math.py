"""erf, tanh, exp, sigmoid on vectors: as near as float32 needs, everywhere, and refused by `--exact`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from mlc.passes.fast_math import take_fast_math
from mlc.passes.run import optimize
from mlc.tune.dispatch import dispatch_context
from tests import models
from tests.compiler.conftest import calls_of

OPERATORS = {"Erf": (math.erf, "mlc.erf"), "Tanh": (math.tanh, "mlc.tanh")}
ATOL = 1e-6  # float32; both functions lie within -1 and 1

EDGES = [0.0, -0.0, 1e-40, 1e-20, 3.9, 4.0, 4.1, 7.9, 9.1, 88.0, 1e30, np.inf]


def values() -> np.ndarray:
    edges = np.array([*EDGES, *(-v for v in EDGES)])
    return np.concatenate([edges, np.linspace(-10, 10, 4001)]).astype(np.float32)


def network(operator: str, size: int, kind: int = TensorProto.FLOAT) -> Any:
    node = helper.make_node(operator, ["x"], ["y"], "only")
    return models.model([node], {"x": [size]}, ["y"], types={"x": kind, "y": kind})


@pytest.mark.parametrize("operator", OPERATORS)
def test_values(converted: Any, execute: Any, operator: str) -> None:
    exact, name = OPERATORS[operator]
    x = values()
    model = converted(network(operator, len(x)))
    assert calls_of(take_fast_math(model.module), name)
    y = execute(model, {"x": x}, 3)["y"]
    expected = np.array([exact(float(v)) for v in x])
    np.testing.assert_allclose(y, expected, rtol=0, atol=ATOL)
    assert np.all(np.abs(y) <= 1 + ATOL)


def test_exp(converted: Any, execute: Any) -> None:
    x = np.concatenate([values(), np.linspace(-104, 90, 4001, dtype=np.float32)])
    model = converted(network("Exp", len(x)))
    assert calls_of(take_fast_math(model.module), "mlc.exp")
    y = execute(model, {"x": x}, 3)["y"]
    with np.errstate(over="ignore"):
        expected = np.exp(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(y, expected, rtol=3e-7, atol=3e-38)
    np.testing.assert_array_equal(y[np.isinf(x)], np.where(x[np.isinf(x)] < 0, 0, np.inf))


def test_sigmoid(converted: Any, execute: Any) -> None:
    x = np.concatenate([values(), np.linspace(-100, 100, 401, dtype=np.float32)])
    y = execute(converted(network("Sigmoid", len(x))), {"x": x}, 3)["y"]
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(y, expected, rtol=5e-7, atol=3e-38)


@pytest.mark.parametrize("operator", [*OPERATORS, "Exp", "Sigmoid"])
def test_nan_stays_nan(converted: Any, execute: Any, operator: str) -> None:
    x = np.array([np.nan, 0.5, np.nan, -0.5] * 9, np.float32)  # in vectors and in the tail
    y = execute(converted(network(operator, len(x))), {"x": x}, 3)["y"]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


def test_other_types_are_left_alone(converted: Any) -> None:
    model = converted(network("Tanh", 8, TensorProto.DOUBLE))
    assert take_fast_math(model.module) is model.module


def test_exact_refuses_it(compiled: Any) -> None:
    proto = network("Erf", 64)
    assert "fast-math" in compiled(proto).manifest["passes"]
    assert "fast-math" not in compiled(proto, exact=True).manifest["passes"]
    assert "fast-math" not in compiled(proto, opt_level=2).manifest["passes"]


@pytest.mark.parametrize("operator", ["Exp", "Tanh", "Erf", "Sigmoid"])
def test_blocks_of_channels_go_through(
    converted: Any, tvm: Any, quick_target: str, operator: str
) -> None:
    """A convolution takes the function into its kernel, in the layout that it has."""
    weights = {name: models.floats(16, 16, 1, 1, seed=k) for k, name in enumerate("vw")}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"]), helper.make_node(operator, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"]),
    ]  # fmt: skip
    model = converted(models.model(nodes, {"x": [1, 16, 7, 7]}, ["y"], weights))
    with dispatch_context(lambda _key: None):
        module = optimize(model, tvm.target.Target(quick_target), 3).module
    assert len(calls_of(module, "layout_transform")) == 2  # of the model's input and output
