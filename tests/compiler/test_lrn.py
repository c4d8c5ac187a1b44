"""LRN with its power from square roots: numbers, layouts, what is left to TVM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlc.events import ignore
from mlc.frontend import onnx_file
from mlc.frontend.load import load
from mlc.passes.run import optimize
from mlc.tune.dispatch import dispatch_context
from tests import models
from tests.compiler.conftest import Array, Compile, calls_of

node = helper.make_node


def net(filters: int, size: int, *, conv: bool = True, **attributes: Any) -> Any:
    """LRN, with large inputs, behind a convolution or alone, and relu."""
    weights = {"w": models.floats(filters, 5, 1, 1, seed=1, scale=9.0)}
    first = [node("Conv", ["x", "w"], ["c"])] if conv else []
    return models.model(
        [
            *first,
            node("LRN", ["c" if conv else "x"], ["l"], size=size, **attributes),
            node("Relu", ["l"], ["y"]),
        ],
        {"x": [2, 5 if conv else filters, 5, 11]}, ["y"], weights if conv else {},
    )  # fmt: skip


def expected(x: Array, size: int, alpha: float, beta: float, bias: float) -> Array:
    """Return what ONNX defines, in float64 (onnx's own reference takes the batch for the channels)."""
    squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (size // 2, size // 2), (0, 0), (0, 0)))
    total = sum(squares[:, k : k + x.shape[1]] for k in range(size))
    return np.maximum(x / (bias + alpha / size * total) ** beta, 0)


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize(
    ("filters", "size", "beta"), [(32, 5, 0.75), (7, 3, 0.75), (4, 11, 0.5), (24, 1, 1.0)]
)
def test_numbers(
    compiled: Compile, level: int, filters: int, size: int, beta: float, conv: bool
) -> None:
    values = {"alpha": 0.3, "beta": beta, "bias": 1.5}
    made = compiled(net(filters, size, conv=conv, **values), opt_level=level)
    x = models.floats(2, 5 if conv else filters, 5, 11, seed=4, scale=3.0)
    w = models.floats(filters, 5, 1, 1, seed=1, scale=9.0)[:, :, 0, 0]
    features = np.einsum("kc,nchw->nkhw", w, x) if conv else x
    (found,) = made.run({"x": x})
    np.testing.assert_allclose(found["y"], expected(features, size, **values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("beta", "exact", "name"), [(0.75, False, "mlc.lrn"), (0.6, False, "nn.lrn"), (0.75, True, "nn.lrn")]
)  # fmt: skip
def test_where_it_is_taken(
    tvm: Any, tmp_path: Path, quick_target: str, beta: float, exact: bool, name: str
) -> None:
    """It stays in the blocks of the convolution before it."""
    model = load(onnx_file.read(models.save(net(32, 5, beta=beta), tmp_path)), (), ignore)
    with dispatch_context(lambda _key: None):
        module = optimize(model, tvm.target.Target(quick_target), 3, exact=exact).module
    (call,) = calls_of(module, name)
    assert len(call.checked_type.shape) == (5 if name == "mlc.lrn" else 4)
