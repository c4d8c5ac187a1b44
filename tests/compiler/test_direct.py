"""Grouped convolutions and those of images with few channels: numbers, what is taken, layouts."""

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
from tests.compiler.test_depthwise import chosen, close, run_on, target

__all__ = ["target"]  # a fixture

TEMPLATE = "conv2d_direct_mlc.x86"
node = helper.make_node

# [n, c, h, w], filters, taps, strides, padding (top, left, bottom, right), dilation, groups
CASES = {
    "4-to-4": ((1, 32, 9, 11), 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 8),
    "8-to-8": ((1, 64, 7, 7), 64, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 8),
    "16-to-16": ((2, 32, 6, 5), 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    "2-to-8": ((1, 8, 6, 29), 32, (3, 1), (1, 2), (0, 1, 2, 0), (1, 1), 4),
    "8-to-2": ((1, 64, 5, 6), 16, (3, 3), (1, 1), (1, 1, 1, 1), (2, 1), 8),
    "3-to-16": ((1, 6, 8, 7), 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 2), 2),
    "6-to-48": ((1, 18, 5, 5), 144, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 3),
    "odd": ((1, 10, 5, 4), 5, (2, 3), (1, 1), (1, 0, 0, 1), (1, 1), 5),
    "multiplier": ((1, 8, 9, 9), 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 8),
    "image": ((1, 3, 19, 37), 32, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    "image-7x7": ((1, 3, 23, 21), 24, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    "image-same-lower": ((2, 3, 16, 16), 8, (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), 1),
    "grey": ((1, 1, 12, 13), 6, (5, 5), (1, 1), (0, 0, 0, 0), (1, 1), 1),
}  # fmt: skip
Case = tuple[Any, ...]


def arrays(case: Case) -> tuple[Array, Array]:
    shape, filters, taps, *_, groups = case
    return models.floats(*shape, seed=1), models.floats(filters, shape[1] // groups, *taps, seed=2)


def expected(case: Case) -> Array:
    """Return the convolution in float64."""
    shape, filters, taps, (down, across), (top, left, bottom, right), (far, wide), groups = case
    data, weight = (array.astype(np.float64) for array in arrays(case))
    data = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
    h = (data.shape[2] - (taps[0] - 1) * far - 1) // down + 1
    w = (data.shape[3] - (taps[1] - 1) * wide - 1) // across + 1
    weight = weight.reshape(groups, filters // groups, -1, *taps)
    total = np.zeros((shape[0], groups, filters // groups, h, w))
    for i, j in np.ndindex(*taps):
        y, x = i * far, j * wide
        part = data[:, :, y : y + (h - 1) * down + 1 : down, x : x + (w - 1) * across + 1 : across]
        part = part.reshape(shape[0], groups, -1, h, w)
        total += np.einsum("ngchw,gkc->ngkhw", part, weight[..., i, j])
    return total.reshape(shape[0], filters, h, w)


def task_of(case: Case, on: Any) -> Any:
    from tvm import autotvm

    tensors = [("TENSOR", array.shape, "float32") for array in arrays(case)]
    return autotvm.task.create(TEMPLATE, [*tensors, *case[3:]], on)


@pytest.mark.parametrize("name", CASES)
def test_numbers(target: Any, name: str) -> None:
    from tvm.autotvm.task.space import FallbackConfigEntity

    case = CASES[name]
    task, exact = task_of(case, target), expected(case)
    terms = int(np.prod(arrays(case)[1].shape[1:]))
    last = len(task.config_space) - 1
    for config in (FallbackConfigEntity(), task.config_space.get(last // 2)):
        close(run_on(arrays(case), task, config, tuning=True), exact, terms)


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize(
    ("channels", "filters", "groups"), [(32, 32, 8), (3, 24, 1), (6, 48, 3), (8, 20, 4)]
)
def test_what_is_fused_around_it(
    check: Compile, level: int, channels: int, filters: int, groups: int
) -> None:
    """Bias, a residual and hard-swish behind it; the last case is TVM's."""
    weights = {
        "w": models.floats(filters, channels // groups, 3, 3, seed=1, scale=0.3),
        "b": models.floats(filters, seed=2),
        "v": models.floats(filters, filters, 1, 1, seed=3, scale=0.3),
    }
    proto = models.model(
        [
            node("Conv", ["x", "w", "b"], ["c"], group=groups, pads=[1, 1, 1, 1]),
            node("Add", ["c", "r"], ["d"]), node("HardSwish", ["d"], ["h"]),
            node("Conv", ["h", "v"], ["y"]),
        ],
        {"x": [1, channels, 9, 7], "r": [1, filters, 9, 7]}, ["y"], weights,
    )  # fmt: skip
    check(proto, opt_level=level)


@pytest.mark.parametrize(
    ("shape", "filters", "options", "ours"),
    [
        ((1, 32, 9, 9), (32, 4, 3, 3), {"groups": 8}, True),
        ((1, 32, 9, 9), (16, 4, 3, 3), {"groups": 8}, True),
        ((1, 48, 9, 9), (48, 24, 3, 3), {"groups": 2, "dilation": (2, 1)}, False),  # blocks of 16
        ((1, 48, 9, 9), (64, 24, 1, 1), {"groups": 2}, True),
        ((1, 3, 9, 9), (64, 3, 3, 3), {}, True),
        ((1, 3, 9, 9), (64, 3, 1, 1), {}, False),  # a 1x1 convolution
        ((1, 8, 9, 9), (64, 8, 3, 3), {}, False),
        ((1, 8, 9, 9), (8, 1, 3, 3), {"groups": 8}, False),  # depthwise
        ((1, 32, 9, 9), (32, 4, 3, 3), {"groups": 8, "dtype": "float64"}, False),
    ],
)
def test_what_it_takes(
    tvm: Any, quick_target: str, shape: Any, filters: Any, options: dict[str, Any], ours: bool
) -> None:
    assert (chosen(tvm, quick_target, shape, filters, options) == TEMPLATE) == ours


def test_layouts_agree_with_the_layers_around(tvm: Any, tmp_path: Path, quick_target: str) -> None:
    """The image is read as it is; only the output of the model changes its layout."""
    weights = {
        "a": models.floats(64, 3, 3, 3, seed=1), "b": models.floats(64, 64, 1, 1, seed=2),
        "g": models.floats(64, 4, 3, 3, seed=3), "c": models.floats(32, 64, 1, 1, seed=4),
    }  # fmt: skip
    proto = models.model(
        [
            node("Conv", ["x", "a"], ["p"]), node("Conv", ["p", "b"], ["q"]),
            node("Conv", ["q", "g"], ["r"], group=16, pads=[1] * 4), node("Add", ["r", "q"], ["s"]),
            node("Conv", ["s", "c"], ["y"]),
        ],
        {"x": [1, 3, 9, 9]}, ["y"], weights,
    )  # fmt: skip
    model = load(onnx_file.read(models.save(proto, tmp_path)), (), ignore)
    with dispatch_context(lambda _key: None):
        module = optimize(model, tvm.target.Target(quick_target), 3).module
    assert len(calls_of(module, "layout_transform")) == 1
