"""Concatenation of channels row by row: numbers at odd shapes, what it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from onnx import helper

from tests import models
from tests.compiler.conftest import Compile

node = helper.make_node


@pytest.mark.parametrize(
    ("channels", "size"),
    [((5, 3), (7, 801)), ((16, 32, 48), (9, 55)), ((8, 8), (2, 960)), ((24, 1), (65, 801))],
)
@pytest.mark.parametrize("images", [1, 3])
def test_numbers(
    check: Compile, channels: tuple[int, ...], size: tuple[int, int], images: int
) -> None:
    inputs = {f"x{k}": [images, count, *size] for k, count in enumerate(channels)}
    nodes = [node("Concat", list(inputs), ["c"], axis=1), node("Relu", ["c"], ["y"])]
    check(models.model(nodes, inputs, ["y"], {}))


def test_between_convolutions_in_blocks(check: Compile) -> None:
    weights = {
        "v": models.floats(32, 16, 1, 1, seed=1, scale=0.3),
        "w": models.floats(48, 16, 3, 3, seed=2, scale=0.1),
        "u": models.floats(16, 80, 1, 1, seed=3, scale=0.1),
    }
    nodes = [
        node("Conv", ["x", "v"], ["a"]), node("Conv", ["x", "w"], ["b"], pads=[1, 1, 1, 1]),
        node("Concat", ["a", "b"], ["c"], axis=1), node("Conv", ["c", "u"], ["y"]),
    ]  # fmt: skip
    check(models.model(nodes, {"x": [1, 16, 5, 55]}, ["y"], weights))


@pytest.mark.parametrize(
    ("shape", "axis", "ours"),
    [
        ((1, 2, 8, 56, 16), 1, True),
        ((1, 2, 8, 56, 16), -4, True),
        ((1, 32, 8, 800), 1, True),
        ((1, 2, 8, 56, 16), 2, False),
        ((1, 2, 8, 28, 16), 1, False),  # rows are short
        ((1, 32, 1, 960), 1, False),  # one row
        ((1, 16, 192), 1, False),
    ],
)
def test_what_it_takes(tvm: Any, shape: tuple[int, ...], axis: int, ours: bool) -> None:
    from mlc.schedules import concat

    tensors = [tvm.te.placeholder(shape) for _ in range(2)]
    assert concat.takes(SimpleNamespace(axis=axis), tensors) == ours


def test_open_sizes_stay_with_tvm(tvm: Any) -> None:
    from mlc.schedules import concat

    tensors = [tvm.te.placeholder((1, 2, tvm.te.var("h"), 8, 16)) for _ in range(2)]
    assert not concat.takes(SimpleNamespace(axis=1), tensors)
