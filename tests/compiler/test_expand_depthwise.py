"""A 1x1 convolution and the depthwise one behind it as one operator: numbers, what is taken."""

from __future__ import annotations

from itertools import pairwise
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
from mlc.passes.run import optimize
from mlc.tune.dispatch import dispatch_context
from mlc.tune.place import Here
from mlc.tune.trial import shape_of
from tests import models
from tests.compiler.conftest import Array, Compile, calls_of

NAME, TEMPLATE = "mlc.expand_depthwise", "expand_depthwise_mlc.x86"
node = helper.make_node

ACTIVATIONS: dict[str, list[Any]] = {
    "": [],
    "relu": [node("Relu", ["a"], ["r"])],
    "relu6": [node("Clip", ["a", "zero", "six"], ["r"])],
    "hard-swish": [node("HardSwish", ["a"], ["r"])],
    "silu": [node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["r"])],
    "gelu": [node("Gelu", ["a"], ["r"])],
    "mish": [node("Mish", ["a"], ["r"])],
}
# c, k, (h, w), attributes of the depthwise convolution, activation
CASES: dict[str, tuple[int, int, tuple[int, int], dict[str, Any], str]] = {
    "plain": (16, 32, (14, 14), {"pads": [1] * 4}, ""),
    "tails": (8, 48, (9, 29), {"pads": [1] * 4}, "relu"),
    "stride-2": (24, 144, (15, 16), {"pads": [1] * 4, "strides": [2, 2]}, "relu6"),
    "blocks-of-8": (24, 88, (13, 13), {"pads": [1] * 4}, "relu"),
    "blocks-of-12": (12, 36, (7, 31), {"pads": [1] * 4}, "relu6"),
    "5x5-stride-2": (16, 96, (13, 13), {"pads": [2] * 4, "strides": [2, 2]}, "hard-swish"),
    "padding-asymmetric": (16, 64, (10, 7), {"pads": [0, 0, 1, 1], "strides": [2, 2]}, "silu"),
    "padding-wide": (16, 16, (5, 6), {"pads": [3, 4, 2, 5]}, "gelu"),
    "no-padding": (16, 32, (8, 10), {}, "relu"),
    "oblong": (7, 16, (6, 17), {"kernel_shape": [1, 7], "strides": [1, 3], "pads": [0, 3, 0, 3]}, "relu6"),
    "one-pixel": (32, 64, (1, 1), {"pads": [1] * 4}, "hard-swish"),
    "many-chunks": (4, 16, (67, 33), {"pads": [1] * 4}, "relu"),
}  # fmt: skip


def net(case: str, batch: int = 1, *, bias: bool = True) -> Any:
    """1x1 convolution, activation, depthwise convolution, bias."""
    c, k, size, attributes, activation = CASES[case]
    taps = attributes.get("kernel_shape", [5, 5] if "5x5" in case else [3, 3])
    weights = {
        "e": models.floats(k, c, 1, 1, seed=1, scale=2 / c**0.5), "b": models.floats(k, seed=2),
        "d": models.floats(k, 1, *taps, seed=3), "f": models.floats(k, seed=4),
        "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    between = ACTIVATIONS[activation]
    nodes = [
        node("Conv", ["x", "e", "b"] if bias else ["x", "e"], ["a"]), *between,
        node("Conv", ["r" if between else "a", "d", "f"], ["y"], group=k, **attributes),
    ]  # fmt: skip
    used = {name for one in nodes for name in one.input}
    weights = {name: value for name, value in weights.items() if name in used}
    return models.model(nodes, {"x": [batch, c, *size]}, ["y"], weights, opset=22)


@pytest.fixture(params=["llvm", "x86-64-v3"])
def cpu(request: pytest.FixtureRequest, tvm: Any) -> str:
    """This machine and 256-bit vectors."""
    if not targets.runs_on(targets.resolve(request.param), host_cpu()):
        pytest.skip(f"this machine cannot run {request.param}")
    return str(request.param)


@pytest.mark.parametrize("case", CASES)
def test_numbers(check: Compile, operator_calls: Any, case: str) -> None:
    proto = net(case)
    assert operator_calls(proto) == 1
    check(proto)


@pytest.mark.parametrize("case", ["tails", "stride-2", "5x5-stride-2", "many-chunks"])
def test_every_config_computes_the_same(tvm: Any, cpu: str, case: str) -> None:
    """The first, the last and some configs between, beside a product in float64."""
    from tvm import autotvm

    c, k, (h, w), attributes, _ = CASES[case]
    taps = (5, 5) if "5x5" in case else (3, 3)
    strides, pads = attributes.get("strides", [1, 1]), attributes["pads"]
    shapes = [
        (2, c // 8, h, w, 8),
        (k // 16, c // 8, 1, 1, 8, 16),
        (k // 16, 16),
        (k // 16, 1, *taps, 1, 16),
    ]
    arrays = [models.floats(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    window = (tuple(strides), tuple(pads))
    tensors = [("TENSOR", shape, "float32") for shape in shapes]
    on = tvm.target.Target(f"{targets.resolve(cpu).tvm} -opt-level=0")
    task = autotvm.task.create(TEMPLATE, [*tensors, window, "clip x 0.0 1.5"], on)
    exact = expected(arrays, window)
    for index in np.linspace(0, len(task.config_space) - 1, 5, dtype=int):
        found = run(task, task.config_space.get(int(index)), arrays)
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def expected(arrays: list[Array], window: Any) -> Array:
    """Return the result in blocks, computed in float64."""
    data, expand, bias, filters = (array.astype(np.float64) for array in arrays)
    (down, across), (top, left, bottom, right) = window
    between = np.einsum("nohwi,koil->nkhwl", data, expand[:, :, 0, 0])
    between = np.clip(between + bias[:, None, None], 0, 1.5)
    padded = np.pad(between, ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0)))
    taps = filters.shape[2:4]
    views = np.lib.stride_tricks.sliding_window_view(padded, taps, (2, 3))
    return np.einsum("nkhwlij,kijl->nkhwl", views[:, :, ::down, ::across], filters[:, 0, :, :, 0])


def run(task: Any, config: Any, arrays: list[Array]) -> Array:
    with task.target:
        schedule, tensors = task.instantiate(config)
    function = Here().compile(schedule, tensors, task.target).get_function("candidate")
    given = {array.shape: array for array in arrays}
    assert len(given) == len(arrays)
    values = [given.get(shape_of(tensor)) for tensor in tensors]
    placed = [
        Here().tensor(np.full(shape_of(tensor), np.nan, np.float32) if value is None else value)
        for tensor, value in zip(tensors, values, strict=True)
    ]
    function(*placed)
    (found,) = (one for one, value in zip(placed, values, strict=True) if value is None)
    return np.asarray(found.numpy())


@pytest.fixture
def operator_calls(tvm: Any, tmp_path: Path, quick_target: str) -> Any:
    """Return how often a model has the operator after all passes."""

    def count(proto: Any, level: int = 3) -> int:
        model = load(onnx_file.read(models.save(proto, tmp_path)), (), ignore)
        with dispatch_context(lambda _key: None):
            module = optimize(model, tvm.target.Target(quick_target), level).module
        return len(calls_of(module, NAME))

    return count


def test_without_a_bias_and_with_a_batch(check: Compile, operator_calls: Any) -> None:
    proto = net("stride-2", batch=3, bias=False)
    assert operator_calls(proto) == 1
    check(proto)


def test_lower_levels_keep_the_two_apart(check: Compile, operator_calls: Any) -> None:
    proto = net("blocks-of-8")
    assert operator_calls(proto, level=2) == 0
    check(proto, opt_level=1)


def two_readers(proto: Any) -> Any:
    """What lies between is read by an addition, too."""
    proto.graph.node.append(node("Add", ["r", "r"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", 1, None))
    return proto


def an_output(proto: Any) -> Any:
    proto.graph.output.append(helper.make_tensor_value_info("r", 1, None))
    return proto


def another_operand(proto: Any) -> Any:
    """The activation is times a tensor that is no number."""
    proto.graph.node.insert(2, node("Mul", ["r", "scale"], ["m"]))
    proto.graph.node[-1].input[0] = "m"
    values = models.floats(1, 32, 8, 10, seed=9)
    proto.graph.initializer.append(helper.make_tensor("scale", 1, values.shape, values.ravel()))
    return proto


def a_stride(proto: Any) -> Any:
    proto.graph.node[0].attribute.append(helper.make_attribute("strides", [2, 2]))
    return proto


def a_long_activation(proto: Any) -> Any:
    """More operators than an activation has, and than Python has frames."""
    names = ["r", *(f"r{k}" for k in range(600))]
    steps = [node("Relu" if k % 2 else "Neg", [a], [b]) for k, (a, b) in enumerate(pairwise(names))]
    proto.graph.node[-1].input[0] = names[-1]
    for step in reversed(steps):
        proto.graph.node.insert(2, step)
    return proto


def many_taps(proto: Any) -> Any:
    """8x8: too many to write out."""
    filters = helper.make_tensor("d", 1, (32, 1, 8, 8), models.floats(32, 1, 8, 8, seed=3).ravel())
    (old,) = (tensor for tensor in proto.graph.initializer if tensor.name == "d")
    old.CopyFrom(filters)
    return proto


@pytest.mark.parametrize(
    "change",
    [two_readers, an_output, another_operand, a_stride, a_long_activation, many_taps],
)
def test_what_is_left_alone(check: Compile, operator_calls: Any, change: Any) -> None:
    proto = change(net("no-padding"))
    assert operator_calls(proto) == 0
    check(proto)


def test_flops_are_those_of_both(tvm: Any, tmp_path: Path, quick_target: str) -> None:
    from mlc.codegen import flops

    model = load(onnx_file.read(models.save(net("no-padding"), tmp_path)), (), ignore)
    with dispatch_context(lambda _key: None):
        module = optimize(model, tvm.target.Target(quick_target), 3).module
    (kernel,) = calls_of(module, NAME)
    assert flops._expand_depthwise(kernel) == 2 * 16 * 32 * 80 + 2 * 9 * 32 * 6 * 8
