"""The template of 1x1 convolutions: numbers at odd shapes, in models, what it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlc import target as targets
from mlc.cpu import host_cpu
from tests import models
from tests.compiler.conftest import Compile
from tests.compiler.test_depthwise import chosen
from tests.compiler.test_schedules import run

TEMPLATE = "conv2d_1x1_mlc.x86"
node = helper.make_node

# [n, c, h, w], filters, strides
CASES = {
    "whole": ((1, 32, 14, 14), 64, (1, 1)),
    "7x7": ((1, 16, 7, 7), 48, (1, 1)),
    "many-filters": ((1, 16, 9, 9), 96, (1, 1)),
    "tails": ((1, 24, 13, 9), 40, (1, 1)),
    "odd-channels": ((2, 7, 5, 11), 13, (1, 1)),
    "stride-2": ((1, 16, 15, 16), 20, (2, 2)),
    "strides": ((1, 3, 9, 10), 32, (3, 1)),
    "one-position": ((1, 40, 1, 1), 24, (1, 1)),
    "one-row": ((1, 8, 1, 37), 1, (1, 1)),
    "no-tile-in-a-row": ((2, 24, 4, 37), 40, (1, 1)),
    "two-rows": ((2, 24, 6, 10), 96, (1, 1)),
    "two-rows-strided": ((1, 24, 11, 19), 96, (2, 2)),
    "only-tiles-in-two-rows": ((1, 256, 2, 2), 16, (1, 1)),
    "only-tiles-in-two-rows-half": ((1, 256, 2, 2), 8, (1, 1)),
    "small-filters-first": ((1, 320, 14, 14), 256, (1, 1)),
    "few-channels": ((1, 16, 14, 28), 96, (1, 1)),
    "chunks": ((1, 8, 12, 40), 16, (1, 1)),
    "blocks-over-the-end": ((1, 8, 13, 13), 328, (1, 1)),
    "filters-first": ((1, 96, 5, 5), 80, (1, 1)),
}


def net(name: str) -> Any:
    """Conv with bias, a residual and ReLU6."""
    (n, c, h, w), filters, (down, across) = CASES[name]
    weights = {
        "w": models.floats(filters, c, 1, 1, seed=1, scale=0.3), "b": models.floats(filters, seed=2),
        "low": np.array(0, np.float32), "high": np.array(6, np.float32),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], strides=[down, across]), node("Add", ["c", "r"], ["s"]),
        node("Clip", ["s", "low", "high"], ["y"]),
    ]  # fmt: skip
    residual = [n, filters, (h - 1) // down + 1, (w - 1) // across + 1]
    return models.model(nodes, {"x": [n, c, h, w], "r": residual}, ["y"], weights)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cpu", ["llvm", "x86-64-v3"])
def test_numbers(check: Compile, cpu: str, name: str) -> None:
    target = targets.resolve(cpu)
    if not targets.runs_on(target, host_cpu()):
        pytest.skip(f"this machine cannot run {cpu}")
    check(net(name), target=f"{target.tvm} -opt-level=0")


@pytest.mark.parametrize("name", ["tails", "odd-channels", "stride-2"])
@pytest.mark.parametrize("level", [0, 2])
def test_without_altered_layouts(check: Compile, level: int, name: str) -> None:
    check(net(name), opt_level=level)


@pytest.mark.parametrize(
    ("shape", "filters", "options", "ours"),
    [
        ((1, 8, 9, 9), (16, 8, 1, 1), {}, True),
        ((1, 8, 9, 9), (16, 8, 1, 1), {"strides": (2, 2)}, True),
        ((1, 8, 9, 9), (16, 8, 1, 1), {"padding": (1, 1)}, False),
        ((1, 8, 9, 9), (16, 4, 1, 1), {"groups": 2}, False),
        ((1, 8, 9, 9), (16, 8, 3, 3), {"padding": (1, 1)}, False),
        ((1, 8, 9, 9), (16, 8, 1, 1), {"dtype": "float64"}, False),
    ],
)
def test_what_it_takes(
    tvm: Any, quick_target: str, shape: Any, filters: Any, options: dict[str, Any], ours: bool
) -> None:
    assert (chosen(tvm, quick_target, shape, filters, options) == TEMPLATE) == ours


def test_the_default_knows_the_registers(tvm: Any) -> None:
    from tvm import autotvm
    from tvm.autotvm.task.space import FallbackConfigEntity

    tensors = [("TENSOR", shape, "float32") for shape in ((1, 128, 28, 28), (192, 128, 1, 1))]
    for cpu, registers in (("x86-64-v4", 32), ("x86-64-v3", 16)):
        on = tvm.target.Target(f"llvm -mtriple=x86_64-linux-gnu -mcpu={cpu}")
        task = autotvm.task.create(TEMPLATE, [*tensors, (1, 1)], on)
        config = FallbackConfigEntity()
        with on:
            task.instantiate(config)
        positions, blocks = config["tile"].val
        assert registers / 2 < positions * blocks + blocks + 1 <= registers


@pytest.mark.parametrize("cpu", ["llvm", "x86-64-v3"])
def test_tiles_in_rows_and_over_their_ends_agree(tvm: Any, cpu: str) -> None:
    """Sums are stored out of the registers, or kept until a chunk is whole: equal to the last bit.

    Tiles lie in a row of ten, go over its end, or lie in two rows.
    """
    from tvm import autotvm

    chosen_one = targets.resolve(cpu)
    if not targets.runs_on(chosen_one, host_cpu()):
        pytest.skip(f"this machine cannot run {cpu}")
    on = tvm.target.Target(chosen_one.tvm)
    data, weight = models.floats(2, 24, 6, 10, seed=1), models.floats(40, 24, 1, 1, seed=2)
    tensors = [("TENSOR", array.shape, "float32") for array in (data, weight)]
    task = autotvm.task.create(TEMPLATE, [*tensors, (1, 1)], on)
    knobs = [
        ([5, 1], 3),
        ([2, 3], 3),
        ([4, 1], 3),
        ([3, 2], 3),
        ([4, 1], 2),
        ([4, 3], 6),
        ([6, 1], 2),
    ]
    found = [run(task, config(tile, rows), data, weight) for tile, rows in knobs]
    expected = np.einsum("nchw,kcij->nkhw", data, weight)
    for result in found:
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=24 * 4e-7)
        np.testing.assert_array_equal(result, found[0])


def config(tile: list[int], rows: int) -> Any:
    from tvm.autotvm.task.space import ConfigEntity, OtherOptionEntity

    knobs = {"tile": tile, "unroll": 1, "rows": rows}
    return ConfigEntity(0, None, {k: OtherOptionEntity(v) for k, v in knobs.items()}, [])


@pytest.mark.parametrize("channels", [24, 128])
def test_the_default_stores_out_of_the_registers(tvm: Any, channels: int) -> None:
    """A tile that divides a row, of one block where channels are few; none divides rows of 37."""
    from mlc.schedules import pointwise

    with tvm.target.Target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v4"):
        for width in (56, 28, 14, 13, 37):
            shapes = (1, channels, width, width), (128, channels, 1, 1)
            data, weight = (tvm.te.placeholder(shape) for shape in shapes)
            layer = pointwise.layer_of(data, weight, (1, 1))
            (positions, blocks), _ = pointwise._default(layer)
            assert (width % positions == 0) == (width != 37)
            assert (blocks == 1) == (channels == 24 and width != 37)


@pytest.mark.parametrize(
    ("cpu", "tile", "rows"), [("x86-64-v4", [4, 6], 13), ("x86-64-v3", [4, 3], 13)]
)
def test_blocks_over_the_end_where_they_pay(tvm: Any, cpu: str, tile: list[int], rows: int) -> None:
    """1000 filters are 125 blocks of eight: of tiles that divide them only narrow ones."""
    from mlc.schedules import pointwise

    on = tvm.target.Target(f"llvm -mtriple=x86_64-linux-gnu -mcpu={cpu}")
    with on:
        data, weight = (
            tvm.te.placeholder(shape) for shape in ((1, 512, 13, 13), (1000, 512, 1, 1))
        )
        layer = pointwise.layer_of(data, weight, (1, 1))
        assert pointwise._default(layer) == (tile, rows)


@pytest.mark.parametrize(
    ("channels", "filters", "tile", "rows"),
    [(64, 384, [4, 3], 2), (1024, 256, [6, 2], 14), (256, 128, [5, 2], 7)],
)
def test_rows_of_14_with_16_registers(
    tvm: Any, channels: int, filters: int, tile: list[int], rows: int
) -> None:
    """Two rows for few channels; the whole image where threads share filters; else half of it."""
    from mlc.schedules import pointwise

    with tvm.target.Target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v3"):
        shapes = (1, channels, 14, 14), (filters, channels, 1, 1)
        layer = pointwise.layer_of(*map(tvm.te.placeholder, shapes), (1, 1))
        assert pointwise._default(layer) == (tile, rows)


@pytest.mark.parametrize(
    ("channels", "size", "filters", "order"),
    [(16, 56, 32, "rows first"), (256, 7, 256, "filters first")],
)
def test_which_loop_the_threads_share(
    tvm: Any, quick_target: str, channels: int, size: int, filters: int, order: str
) -> None:
    from tvm import autotvm
    from tvm.autotvm.task.space import FallbackConfigEntity

    shapes = ((1, channels, size, size), (filters, channels, 1, 1))
    on = tvm.target.Target(quick_target)
    task = autotvm.task.create(TEMPLATE, [*(("TENSOR", s, "float32") for s in shapes), (1, 1)], on)
    with on:
        s, _ = task.instantiate(FallbackConfigEntity())
    (out,) = s.outputs
    fused = [r for r in s[out].relations if type(r).__name__ == "Fuse"][-1]
    assert fused.inner.var.name.startswith("k" if order == "rows first" else "h")
