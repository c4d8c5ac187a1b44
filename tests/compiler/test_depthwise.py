"""Depthwise convolution and blocks of channels: numbers, what is taken, layouts, defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlc import target as targets
from mlc.cpu import host_cpu
from mlc.events import ignore
from mlc.frontend import onnx_file
from mlc.frontend.load import load
from mlc.passes.fold import relayout
from mlc.passes.run import optimize
from mlc.tune.dispatch import dispatch_context
from mlc.tune.place import Here
from mlc.tune.trial import shape_of
from tests import models
from tests.compiler.conftest import Array, Compile, calls_of

TEMPLATE = "depthwise_conv2d_mlc.x86"
node = helper.make_node

# [n, c, h, w], taps, strides, padding (top, left, bottom, right), dilation
CASES = {
    "3x3": ((1, 32, 14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "tails": ((1, 16, 9, 29), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "stride-2": ((1, 24, 15, 16), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "5x5-stride-2": ((1, 16, 13, 13), (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    "padding-asymmetric": ((1, 8, 10, 7), (3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
    "no-padding": ((1, 16, 8, 10), (3, 3), (1, 1), (0, 0, 0, 0), (1, 1)),
    "odd-channels": ((2, 7, 6, 5), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "88-channels": ((1, 88, 5, 5), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    "oblong": ((1, 4, 6, 17), (1, 7), (1, 3), (0, 3, 0, 3), (1, 1)),
    "dilation": ((1, 12, 12, 11), (3, 3), (1, 2), (2, 3, 2, 3), (2, 3)),
    "one-output": ((1, 16, 3, 3), (3, 3), (1, 1), (0, 0, 0, 0), (1, 1)),
    "only-padding-below": ((1, 3, 4, 4), (2, 2), (1, 1), (0, 0, 3, 0), (1, 1)),
}  # fmt: skip
Case = tuple[tuple[int, ...], ...]


def arrays(case: Case) -> tuple[Array, Array]:
    shape, taps, *_ = case
    return models.floats(*shape, seed=1), models.floats(shape[1], 1, *taps, seed=2)


def expected(case: Case) -> Array:
    """Return the convolution in float64."""
    _, taps, (down, across), (top, left, bottom, right), (far, wide) = case
    data, weight = (array.astype(np.float64) for array in arrays(case))
    data = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
    h = (data.shape[2] - (taps[0] - 1) * far - 1) // down + 1
    w = (data.shape[3] - (taps[1] - 1) * wide - 1) // across + 1
    total = np.zeros((*data.shape[:2], h, w))
    for i, j in np.ndindex(*taps):
        y, x = i * far, j * wide
        part = data[:, :, y : y + (h - 1) * down + 1 : down, x : x + (w - 1) * across + 1 : across]
        total += part * weight[:, 0, i, j][:, None, None]
    return total


@pytest.fixture(scope="module", params=["llvm", "x86-64-v3"])
def target(request: pytest.FixtureRequest, tvm: Any) -> Any:
    """This machine and 256-bit vectors; LLVM told to hurry."""
    chosen = targets.resolve(request.param)
    if not targets.runs_on(chosen, host_cpu()):
        pytest.skip(f"this machine cannot run {request.param}")
    return tvm.target.Target(f"{chosen.tvm} -opt-level=0")


def task_of(case: Case, target: Any) -> Any:
    from tvm import autotvm

    shape, taps, *rest = case
    tensors = [("TENSOR", s, "float32") for s in (shape, (shape[1], 1, *taps))]
    return autotvm.task.create(TEMPLATE, [*tensors, *rest], target)


def run(task: Any, config: Any, case: Case, *, tuning: bool) -> Array:
    """Build a candidate and run it: in blocks while tuning, else on plain tensors."""
    return run_on(arrays(case), task, config, tuning=tuning)


def run_on(inputs: tuple[Array, Array], task: Any, config: Any, *, tuning: bool) -> Array:
    """Build a convolution and run it on NCHW and OIHW: in blocks while tuning, else as they are."""
    from tvm.autotvm.env import GLOBAL_SCOPE

    before, GLOBAL_SCOPE.in_tuning = GLOBAL_SCOPE.in_tuning, tuning
    try:
        with task.target:
            schedule, tensors = task.instantiate(config)
    finally:
        GLOBAL_SCOPE.in_tuning = before
    module = Here().compile(schedule, tensors, task.target)
    given = [type(tensor.op).__name__ == "PlaceholderOp" for tensor in tensors]
    result = shape_of(tensors[given.index(False)])
    outputs = Here().tensor(np.full(result, np.nan, np.float32))
    packed = {array.shape: array for array in inputs}
    for shape in (
        shape_of(tensor) for tensor, is_input in zip(tensors, given, strict=True) if is_input
    ):
        if len(shape) == 5:
            packed[shape] = relayout(inputs[0], "NCHW", f"NCHW{shape[4]}c")
        if len(shape) == 6:
            packed[shape] = relayout(inputs[1], "OIHW", f"OIHW{shape[4]}i{shape[5]}o")
    module.get_function("candidate")(
        *(
            Here().tensor(packed[shape_of(tensor)]) if is_input else outputs
            for tensor, is_input in zip(tensors, given, strict=True)
        )
    )
    found = outputs.numpy()
    return relayout(found, f"NCHW{result[-1]}c", "NCHW") if len(result) == 5 else found


def close(ours: Array, exact: Array, terms: int) -> None:
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=4e-7 * terms)


@pytest.mark.parametrize("name", CASES)
def test_numbers(target: Any, name: str) -> None:
    from tvm.autotvm.task.space import FallbackConfigEntity

    case = CASES[name]
    task, exact = task_of(case, target), expected(case)
    last = len(task.config_space) - 1
    for config in (FallbackConfigEntity(), task.config_space.get(last // 2)):
        close(run(task, config, case, tuning=True), exact, case[1][0] * case[1][1])
    plain = run(task, FallbackConfigEntity(), case, tuning=False)
    close(plain, exact, case[1][0] * case[1][1])


# --- in a model ----------------------------------------------------------------------------------


def net(channels: int, size: int, *, per_channel: int = 1, **conv: Any) -> Any:
    """Depthwise with bias and hard-swish, then a 1x1 convolution."""
    wide = channels * per_channel
    weights = {
        "w": models.floats(wide, 1, 3, 3, seed=1, scale=0.3), "b": models.floats(wide, seed=2),
        "v": models.floats(channels, wide, 1, 1, seed=3, scale=0.3),
    }  # fmt: skip
    return models.model(
        [
            node("Conv", ["x", "w", "b"], ["c"], group=channels, pads=[1, 1, 1, 1], **conv),
            node("HardSwish", ["c"], ["h"]), node("Conv", ["h", "v"], ["y"]),
        ],
        {"x": [1, channels, size, size]}, ["y"], weights,
    )  # fmt: skip


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("channels", [24, 7])
def test_what_is_fused_behind_it(check: Compile, level: int, channels: int) -> None:
    check(net(channels, 9, strides=[2, 2]), opt_level=level)


@pytest.mark.parametrize("options", [{"dilations": [2, 2]}, {"per_channel": 2}])
def test_what_is_not_plain_stays_right(check: Compile, options: dict[str, Any]) -> None:
    check(net(8, 9, **options))


@pytest.mark.parametrize(
    ("shape", "filters", "options", "ours"),
    [
        ((1, 8, 9, 9), (8, 1, 3, 3), {"groups": 8}, True),
        ((1, 8, 9, 9), (8, 1, 3, 3), {"groups": 8, "dilation": (2, 1)}, True),
        ((1, 8, 9, 9), (16, 1, 3, 3), {"groups": 8}, False),  # two filters for a channel
        ((1, 8, 9, 9), (8, 2, 3, 3), {"groups": 4}, False),
        ((1, 8, 9, 9), (8, 8, 3, 3), {}, False),
        ((1, 8, 31, 9), (8, 1, 9, 9), {"groups": 8}, False),  # too many taps to write out
        ((1, 1, 9, 9), (1, 1, 3, 3), {"groups": 1}, False),
        ((1, 8, 9, 9), (8, 1, 3, 3), {"groups": 8, "dtype": "float64"}, False),
    ],
)
def test_what_it_takes(
    tvm: Any, quick_target: str, shape: Any, filters: Any, options: dict[str, Any], ours: bool
) -> None:
    assert (chosen(tvm, quick_target, shape, filters, options) == TEMPLATE) == ours


def chosen(tvm: Any, target: str, shape: Any, filters: Any, options: dict[str, Any]) -> str:
    """Return the implementation that TVM takes for a convolution without records."""
    from tvm import relay, te
    from tvm.relay.backend import te_compiler

    rest = dict(options)
    dtype = rest.pop("dtype", "float32")
    x, w = relay.var("x", shape=shape, dtype=dtype), relay.var("w", shape=filters, dtype=dtype)
    expr = relay.nn.conv2d(x, w, channels=filters[0], kernel_size=filters[2:], **rest)
    call = relay.transform.InferType()(tvm.IRModule.from_expr(expr))["main"].body
    tensors = [te.placeholder(arg.checked_type.shape, dtype) for arg in call.args]
    with tvm.target.Target(target) as on, dispatch_context(lambda _key: None):
        found, _ = te_compiler.select_implementation(
            relay.op.get("nn.conv2d"), call.attrs, tensors, call.checked_type, on
        )
    return str(found.name)


@pytest.mark.parametrize("channels", [24, 40, 88, 7, 32])
def test_no_layout_changes_between_layers(
    tvm: Any, tmp_path: Path, channels: int, quick_target: str
) -> None:
    """1x1 convolutions, depthwise ones and both as one want equal channels in equal blocks."""
    weights = {
        "a": models.floats(channels, 3, 1, 1, seed=1), "d": models.floats(channels, 1, 3, 3, seed=2),
        "b": models.floats(16, channels, 1, 1, seed=3), "c": models.floats(channels, 16, 1, 1, seed=4),
    }  # fmt: skip
    proto = models.model(
        [
            node("Conv", ["x", "a"], ["p"]), node("Conv", ["p", "d"], ["q"], group=channels, pads=[1] * 4),
            node("Conv", ["q", "d"], ["t"], group=channels, pads=[1] * 4),
            node("Conv", ["t", "b"], ["r"]), node("Conv", ["r", "c"], ["s"]), node("Add", ["s", "q"], ["y"]),
        ],
        {"x": [1, 3, 9, 9]}, ["y"], weights,
    )  # fmt: skip
    model = load(onnx_file.read(models.save(proto, tmp_path)), (), ignore)
    with dispatch_context(lambda _key: None):
        module = optimize(model, tvm.target.Target(quick_target), 3).module
    assert len(calls_of(module, "nn.contrib_depthwise_conv2d_NCHWc")) == 1
    assert len(calls_of(module, "mlc.expand_depthwise")) == 1
    assert len(calls_of(module, "layout_transform")) == 2  # of the model's input and output


# --- defaults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "on_16", "on_8"),
    [
        (64, 16, 8),
        (24, 8, 8),
        (40, 8, 8),
        (88, 8, 8),
        (120, 8, 8),
        (36, 12, 4),
        (7, 7, 7),
        (3, 3, 3),
    ],
)
def test_blocks(tvm: Any, channels: int, on_16: int, on_8: int) -> None:
    from mlc.schedules.blocks import block

    assert (block(channels, 16), block(channels, 8)) == (on_16, on_8)


def test_defaults_know_the_registers(tvm: Any) -> None:
    from tvm import autotvm
    from tvm.autotvm.task.space import FallbackConfigEntity

    tensors = [("TENSOR", shape, "float32") for shape in ((1, 64, 28, 28), (64, 64, 3, 3))]
    rest = [(1, 1), (1, 1, 1, 1), (1, 1), "NCHW", "NCHW", "float32"]
    tiles = {}
    for cpu in ("x86-64-v4", "x86-64-v3"):
        on = tvm.target.Target(f"llvm -mtriple=x86_64-linux-gnu -mcpu={cpu}")
        task, config = (
            autotvm.task.create("conv2d_NCHWc.x86", [*tensors, *rest], on),
            FallbackConfigEntity(),
        )
        with on:
            task.instantiate(config)
        tiles[cpu] = (
            config["tile_ow"].size[-1],
            config["tile_oc"].size[-1],
        )
    assert tiles == {"x86-64-v4": (28, 16), "x86-64-v3": (14, 8)}
