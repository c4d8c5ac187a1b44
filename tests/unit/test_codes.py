"""Quantised networks are compared with what the reference differs from itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from mlc.runtime.codes import Spread
from mlc.runtime.reference import Reference
from mlc.runtime.verify import compare
from tests import models

STEP = 0.05


class Scripted:
    """A reference that always returns the same."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def run(self, _feed: Any) -> dict[str, np.ndarray]:
        return {"y": self.values}


def codes(flips: int = 0, by: float = STEP, seed: int = 0) -> np.ndarray:
    """Return 1,000 codes times their step, some of them moved."""
    random = np.random.default_rng(0)
    values = random.integers(-100, 100, 1000).astype(np.float32) * np.float32(STEP)
    moved = np.random.default_rng(seed).choice(1000, flips, replace=False)
    values[moved] += np.float32(by)
    return values


def judged(
    tmp_path: Path, ours: np.ndarray, other: np.ndarray, *, quantised: bool = True
) -> tuple[bool, float | None]:
    """Return whether an output passes, beside the reference `codes()` and its other way, and the spread."""
    scale = {"s": np.float32(STEP), "z": np.uint8(128)}
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]  # fmt: skip
    if not quantised:
        nodes, scale = [helper.make_node("Relu", ["x"], ["y"])], {}
    path = models.save(models.model(nodes, {"x": [1000]}, ["y"], scale), tmp_path)
    spread = Spread(path)
    spread._other = Scripted(other)  # type: ignore[assignment]
    (check,) = spread.judged([compare("y", ours, codes())], {"y": ours}, {"y": codes()}, {})
    return check.passed, check.spread


def test_it_may_differ_as_the_reference_does_from_itself(tmp_path: Path) -> None:
    passed, spread = judged(tmp_path, codes(200, seed=1), codes(180, seed=2))
    assert passed
    assert spread == pytest.approx(STEP, rel=1e-4)


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (codes(200, seed=1), codes()),  # the reference agrees with itself
        (codes(900, seed=1), codes(100, seed=2)),  # many more
        (codes(3, by=4 * STEP, seed=1), codes(180, seed=2)),  # a few by far more
        (codes(1, by=np.nan, seed=1), codes(180, seed=2)),
        (-codes(), codes(180, seed=2)),
        (
            codes(600, by=20.0, seed=1),
            codes(600, by=20.0, seed=2),
        ),  # a reference that knows nothing
    ],
)
def test_more_is_a_mismatch(tmp_path: Path, ours: np.ndarray, other: np.ndarray) -> None:
    assert not judged(tmp_path, ours, other)[0]


def test_networks_of_floats_get_no_more_room(tmp_path: Path) -> None:
    ours, other = codes(200, seed=1), codes(180, seed=2)
    assert judged(tmp_path, ours, other, quantised=False) == (False, None)


def test_within_the_tolerance_nothing_is_asked(tmp_path: Path) -> None:
    assert judged(tmp_path, codes(), codes(999, by=9.0)) == (True, None)


def test_integers_that_are_no_codes_stay_exact(tmp_path: Path) -> None:
    """An index that argmax returns may not be another one."""
    proto = models.model(
        [helper.make_node("QuantizeLinear", ["x", "s"], ["q"]), helper.make_node("ArgMax", ["q"], ["y"])],
        {"x": [4, 4]}, ["y"], {"s": np.float32(1)},
    )  # fmt: skip
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    path = models.save(proto, tmp_path)
    spread = Spread(path)
    feed = {"x": models.floats(4, 4)}
    right = Reference(path).run(feed)["y"]
    (check,) = spread.judged([compare("y", right + 1, right)], {"y": right + 1}, {"y": right}, feed)
    assert not check.passed
