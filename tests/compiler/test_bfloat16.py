"""bfloat16 at the borders of a model: widened, computed in float32, rounded as onnx's Cast does."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from tests import models

BF16 = TensorProto.BFLOAT16
EDGES = [0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan, 3.4e38, 1e-40, 1.00390625, 1.01171875]


def test_rounding_is_to_the_nearest_halves_to_even(compiled: Any) -> None:
    values = np.concatenate([np.float32(EDGES), models.floats(2000, scale=50)])
    proto = models.model(
        [helper.make_node("Cast", ["x"], ["y"], to=BF16)], {"x": list(values.shape)}, ["y"],
        opset=19, types={"y": BF16},
    )  # fmt: skip
    (ours,) = compiled(proto).run({"x": values})
    assert ours["y"].dtype.name == "bfloat16"
    wanted = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(ours["y"].astype(np.float32), wanted)


def test_inputs_are_widened_and_results_rounded_once(compiled: Any) -> None:
    x = models.floats(3, 5).astype(ml_dtypes.bfloat16)
    weight = models.floats(5, seed=1).astype(ml_dtypes.bfloat16)
    proto = models.model(
        [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "x"], ["y"])],
        {"x": [3, 5]}, ["y"], {"w": weight}, opset=17, types={"x": BF16, "y": BF16},
    )  # fmt: skip
    made = compiled(proto)
    assert [entry["dtype"] for entry in made.manifest["signature"]["inputs"]] == ["bfloat16"]
    (ours,) = made.run({"x": x})
    wide = x.astype(np.float32) * weight.astype(np.float32) + x.astype(np.float32)
    wanted = wide.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(ours["y"].view(np.uint16), wanted.view(np.uint16))
    assert made.feed()["x"].dtype.name == "bfloat16"
