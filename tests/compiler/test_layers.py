"""Layers that onnx's suite tests thinly, against ONNX Runtime: every direction, odd sizes, groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests import models
from tests.compiler.conftest import assert_same
from tests.compiler.test_microsoft import expected

f = models.floats
node = helper.make_node


def recurrent(operator: str, gates: int, directions: int, **attributes: Any) -> Any:
    """Return a model of a recurrent layer over [4 steps, 2, 3] with hidden size 5, and its inputs."""
    names = ["x", "w", "r", "b", "lengths", "h", *(["c"] if gates == 4 else [])]
    feed = {
        "x": f(4, 2, 3), "w": f(directions, gates * 5, 3, seed=1),
        "r": f(directions, gates * 5, 5, seed=2), "b": f(directions, 2 * gates * 5, seed=3),
        "lengths": np.array([4, 2], np.int32), "h": f(directions, 2, 5, seed=4),
        "c": f(directions, 2, 5, seed=5),
    }  # fmt: skip
    feed = {name: feed[name] for name in names}
    outputs = ["y", "yh", "yc"][: 3 if gates == 4 else 2]
    written = node(operator, names, outputs, hidden_size=5, **attributes)
    proto = models.model(
        [written], {n: a.shape for n, a in feed.items()}, outputs,
        types={"lengths": TensorProto.INT32},
    )  # fmt: skip
    return proto, feed


LAYERS = {"RNN": 1, "GRU": 3, "LSTM": 4}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", LAYERS)
def test_recurrent_layers_in_every_direction(operator: str, direction: str, compiled: Any) -> None:
    """TVM's own converters run a backwards layer forwards."""
    count = 2 if direction == "bidirectional" else 1
    more = {"linear_before_reset": 1} if operator == "GRU" else {}
    proto, feed = recurrent(operator, LAYERS[operator], count, direction=direction, **more)
    (ours,) = compiled(proto).run(feed)
    assert_same(ours, expected(proto, feed))


def test_recurrent_layers_take_other_activations(compiled: Any) -> None:
    names = ["HardSigmoid", "LeakyRelu", "Softsign"]
    proto, feed = recurrent(
        "LSTM",
        4,
        1,
        activations=names,
        activation_alpha=[0.3, 0.1],
        activation_beta=[0.4],
        clip=1.5,
    )
    (ours,) = compiled(proto).run(feed)
    assert_same(ours, expected(proto, feed))


CONVOLUTIONS = {
    "groups of one axis": (node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 2]),
                           f(1, 4, 9), f(6, 2, 3)),
    "groups of three axes": (node("Conv", ["x", "w"], ["y"], group=3), f(1, 3, 4, 5, 6), f(6, 1, 2, 3, 2)),
    "same lower": (node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2]),
                   f(1, 2, 7, 6), f(3, 2, 3, 4)),
    "transposed, groups": (node("ConvTranspose", ["x", "w"], ["y"], group=2, strides=[2, 1]),
                           f(1, 4, 5, 3), f(4, 3, 3, 2)),
    "transposed, dilated": (node("ConvTranspose", ["x", "w"], ["y"], dilations=[2, 2], pads=[1, 0, 1, 1]),
                            f(1, 2, 5, 4), f(2, 3, 3, 2)),
    "transposed, output shape": (node("ConvTranspose", ["x", "w"], ["y"], output_shape=[10, 9],
                                      strides=[2, 2]), f(1, 2, 5, 4), f(2, 3, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, compiled: Any) -> None:
    written, x, w = CONVOLUTIONS[name]
    proto = models.model([written], {"x": x.shape}, ["y"], {"w": w})
    (ours,) = compiled(proto).run({"x": x})
    assert_same(ours, expected(proto, {"x": x}))


@pytest.mark.parametrize("include", [0, 1])
def test_average_pooling_counts_what_onnx_counts(include: int, compiled: Any) -> None:
    written = node(
        "AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 0],
        ceil_mode=1, count_include_pad=include,
    )  # fmt: skip
    proto = models.model([written], {"x": [1, 2, 6, 7]}, ["y"], opset=19)
    feed = {"x": f(1, 2, 6, 7)}
    (ours,) = compiled(proto).run(feed)
    assert_same(ours, expected(proto, feed))


def test_the_largest_of_infinities_is_infinite(compiled: Any) -> None:
    """TVM's reduction starts from the lowest finite number."""
    proto = models.model(
        [node("ReduceMax", ["x"], ["a"], axes=[1], keepdims=0),
         node("ReduceMin", ["x"], ["b"], axes=[1], keepdims=0)], {"x": [2, 3]}, ["a", "b"],
    )  # fmt: skip
    x = np.float32([[-np.inf] * 3, [np.inf] * 3])
    (ours,) = compiled(proto).run({"x": x})
    np.testing.assert_array_equal(ours["a"], [-np.inf, np.inf])
    np.testing.assert_array_equal(ours["b"], [-np.inf, np.inf])


def test_double_becomes_half(compiled: Any) -> None:
    """LLVM's code for this one conversion gives zeros."""
    types = {"x": TensorProto.DOUBLE, "y": TensorProto.FLOAT16}
    proto = models.model(
        [node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], {"x": [5]}, ["y"], types=types
    )
    x = np.array([0.1, -2.5, 70000.0, np.nan, 1e-7])
    with np.errstate(over="ignore"):
        wanted = x.astype(np.float16)
    np.testing.assert_array_equal(compiled(proto).run({"x": x})[0]["y"], wanted)


def test_a_group_normalisation_between_convolutions(check: Any) -> None:
    """Its reshapes between blocked layouts index by vectors that are used twice: without
    `tir.disable_cse_tir` TVM binds these, and LLVM refuses the module."""
    weights = {"w1": f(16, 3, 3, 3, scale=0.2), "w2": f(10, 16, 1, 1, seed=1), "s": f(16, seed=2),
               "b": f(16, seed=3)}  # fmt: skip
    nodes = [
        node("Conv", ["x", "w1"], ["c"], pads=[1, 1, 1, 1]),
        node("GroupNormalization", ["c", "s", "b"], ["n"], num_groups=4),
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "w2"], ["y"]),
    ]
    check(models.model(nodes, {"x": [1, 3, 17, 24]}, ["y"], weights, opset=21))
