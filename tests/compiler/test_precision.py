"""Outputs are as precise as the values behind them, and are verified as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from mlc.frontend import onnx_file
from mlc.frontend.precision import precisions
from mlc.runtime.verify import compare
from tests import models

node = helper.make_node
HALF, FLOAT, DOUBLE = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE


def cast(source: str, target: str, to: int) -> Any:
    return node("Cast", [source], [target], to=to)


NETS = {
    "no cast": ([node("Sqrt", ["x"], ["y"])], FLOAT, FLOAT, {}),
    "half to single": ([node("Exp", ["x"], ["h"]), cast("h", "y", FLOAT)], HALF, FLOAT,
                       {"y": "float16"}),
    "through half": ([cast("x", "h", HALF), node("Exp", ["h"], ["e"]), cast("e", "s", FLOAT),
                      node("Add", ["s", "x"], ["y"])], FLOAT, FLOAT, {"y": "float16"}),
    "single to double": ([cast("x", "d", DOUBLE), node("Exp", ["d"], ["y"])], FLOAT, DOUBLE,
                         {"y": "float32"}),
    "to half is half": ([cast("x", "y", HALF)], FLOAT, HALF, {}),
    "half constants are exact": ([cast("c", "s", FLOAT), node("Mul", ["x", "s"], ["y"])], FLOAT,
                                 FLOAT, {}),
    "a truth has no rounding": ([cast("x", "h", HALF), cast("h", "b", TensorProto.BOOL),
                                 cast("b", "y", FLOAT)], FLOAT, FLOAT, {}),
    "parts of a tuple": ([node("Split", ["x"], ["h", "g"], num_outputs=2), cast("h", "y", FLOAT)],
                         HALF, FLOAT, {"y": "float16"}),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_coarsest_float_on_the_way_counts(name: str, tmp_path: Path) -> None:
    nodes, given, made, expected = NETS[name]
    proto = models.model(
        nodes, {"x": [4]}, ["y"], {"c": np.float16([0.1])}, types={"x": given, "y": made}, opset=18
    )
    assert precisions(onnx_file.read(models.save(proto, tmp_path))) == expected


def test_an_output_is_compared_at_its_precision() -> None:
    exact, rough = np.float32([1, -2]), np.float32([1.004, -2.008])
    assert not compare("y", rough, exact).passed
    assert compare("y", rough, exact, "float16").passed
    assert not compare("y", rough, exact, "float64").passed
    assert not compare("y", exact * np.float32(1.02), exact, "float16").passed


def test_a_half_network_with_a_float_result_is_verified(compiled: Any) -> None:
    w = models.floats(24, 40, scale=0.3).astype(np.float16)
    nodes = [cast("x", "h", HALF), node("MatMul", ["h", "w"], ["m"]), node("Tanh", ["m"], ["t"]),
             cast("t", "y", FLOAT)]  # fmt: skip
    made = compiled(models.model(nodes, {"x": [3, 24]}, ["y"], {"w": w}), verify=True)
    assert made.manifest["precision"] == {"y": "float16"}
    assert made.manifest["verification"]["passed"]
