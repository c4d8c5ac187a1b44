"""Softmax and layer norm of rows: right for odd lengths and strange numbers, fused, recognised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlc import target as targets
from mlc.codegen.kernels import pass_context
from mlc.cpu import host_cpu
from mlc.passes.norm import take_layer_norm
from mlc.tune.place import Here
from tests import models
from tests.compiler.conftest import calls_of

node = helper.make_node
Array = np.ndarray
Run = Callable[..., Array]

# Rows and columns: one, less than a vector, whole vectors, tails; more axes than two.
SHAPES = [(1, 1), (3, 7), (197, 197), (2, 1000), (5, 64), (2, 3, 5, 33), (3, 512), (2, 272)]


@pytest.fixture(scope="module", params=["llvm", "x86-64-v3", "x86-64-v2"])
def run(request: pytest.FixtureRequest, tvm: Any) -> Run:
    """Build a kernel for this machine, for 256-bit or for 128-bit vectors, and run it."""
    chosen = targets.resolve(request.param)
    if not targets.runs_on(chosen, host_cpu()):
        pytest.skip(f"this machine cannot run {request.param}")
    target = tvm.target.Target(f"{chosen.tvm} -opt-level=0")

    def run(compute: Callable[..., Any], *arrays: Array) -> Array:
        from tvm import te

        from mlc.schedules import rows

        given = [te.placeholder(array.shape, "float32") for array in arrays]
        with target, pass_context(3):
            out = compute(*given)
            kernel = tvm.build(rows.schedule(out), [*given, out], target)
        result = Here().tensor(np.full(arrays[0].shape, np.nan, np.float32))
        kernel(*(Here().tensor(array) for array in arrays), result)
        return np.asarray(result.numpy())

    return run


def softmax(x: Array) -> Array:
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def layer_norm(x: Array, scale: Array, shift: Array, epsilon: float) -> Array:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt(wide.var(-1, keepdims=True) + epsilon) * scale + shift)


@pytest.mark.parametrize("shape", SHAPES)
def test_softmax(run: Run, shape: tuple[int, ...]) -> None:
    from mlc.schedules import rows

    x = models.floats(*shape, seed=1, scale=3)
    np.testing.assert_allclose(run(rows.softmax, x), softmax(x), rtol=1e-5, atol=1e-7)


def test_softmax_of_masked_and_strange_rows(run: Run) -> None:
    from mlc.schedules import rows

    lowest = np.finfo(np.float32).min
    x = models.floats(6, 37, seed=2)
    x[0, ::3] = -np.inf
    x[1, 36] = np.nan
    x[2] = -np.inf
    x[3] = lowest
    x[4, 5] = 300.0
    y = run(rows.softmax, x)
    np.testing.assert_array_equal(y[0, ::3], 0.0)
    np.testing.assert_allclose(y[0].sum(), 1.0, rtol=1e-6)
    assert np.isnan(y[1:3]).all()  # as with TVM's softmax
    np.testing.assert_allclose(y[3], 1 / 37, rtol=1e-6)
    assert y[4, 5] == 1.0
    np.testing.assert_allclose(y[5], softmax(x[5]), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(run: Run, shape: tuple[int, ...]) -> None:
    from mlc.schedules import rows

    x = models.floats(*shape, seed=3) + 10  # a mean far from 0: one pass would lose digits
    scale, shift = models.floats(shape[-1], seed=4), models.floats(shape[-1], seed=5)
    y = run(lambda *given: rows.layer_norm(*given, 1e-5), x, scale, shift)
    np.testing.assert_allclose(y, layer_norm(x, scale, shift, 1e-5), rtol=1e-4, atol=2e-5)


def test_layer_norm_keeps_nan_in_its_row(run: Run) -> None:
    from mlc.schedules import rows

    x = models.floats(3, 21, seed=6)
    x[1, 20] = np.nan
    y = run(lambda *given: rows.layer_norm(*given, 1e-5), x, x[0], x[2])
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), [False, True, False])
    assert not np.isnan(y[[0, 2]]).any()


# -- in a graph --


def spelled_out(style: str, shape: tuple[int, ...]) -> Any:
    """Layer norm as exporters wrote it before opset 17, then a residual."""
    n = shape[-1]
    weights = {
        "two": np.array(2, np.float32), "epsilon": np.array(1e-5, np.float32),
        "scale": models.floats(n, seed=1), "shift": models.floats(n, seed=2),
    }  # fmt: skip
    square = node("Pow", ["c", "two"], ["s"]) if style == "pow" else node("Mul", ["c", "c"], ["s"])
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[-1]), node("Sub", ["x", "m"], ["c"]), square,
        node("ReduceMean", ["s"], ["v"], axes=[-1]), node("Add", ["v", "epsilon"], ["e"]),
        node("Sqrt", ["e"], ["d"]), node("Div", ["c", "d"], ["n"]),
        node("Mul", ["scale", "n"], ["g"]), node("Add", ["g", "shift"], ["b"]),
        node("Add", ["b", "x"], ["y"]),
    ]  # fmt: skip
    return models.model(nodes, {"x": list(shape)}, ["y"], weights, opset=13)


@pytest.mark.parametrize("style", ["pow", "multiply"])
def test_layer_norm_spelled_out(check: Any, style: str) -> None:
    made = check(spelled_out(style, (2, 5, 19)))
    (kernel,) = made.manifest["kernels"]
    assert kernel.startswith("mlc_layer_norm_add_")  # the residual fused behind it


@pytest.mark.parametrize("axis", [1, 2])
def test_layer_norm_over_the_last_axis_only(converted: Any, check: Any, axis: int) -> None:
    from mlc.passes.table import PASSES

    weights = {"scale": models.floats(*(4, 6)[axis - 1 :], seed=1)}
    proto = models.model(
        [node("LayerNormalization", ["x", "scale"], ["y"], axis=axis)], {"x": [3, 4, 6]}, ["y"], weights
    )  # fmt: skip
    (simplify,) = (row.run for row in PASSES if row.name == "simplify-inference")
    assert simplify is not None
    found = calls_of(take_layer_norm(simplify(converted(proto).module)), "mlc.layer_norm")
    assert len(found) == (axis == 2)
    check(proto)


def test_other_variances_are_left_alone(load: Any) -> None:
    """The variance of one tensor, the difference of another: no layer norm."""
    proto = spelled_out("multiply", (2, 5, 19))
    proto.graph.node[2].input[1] = "x"
    model = load(proto)
    assert take_layer_norm(model.module) is model.module
