"""Lists of tensors, of known length, become plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from mlc.errors import MlcError
from tests import models
from tests.compiler.conftest import assert_same
from tests.compiler.test_microsoft import expected

node = helper.make_node
POSITIONS = {
    name: np.array(at)
    for name, at in {"first": 0, "last": -1, "far": 7, "two": 2, "sizes": [2, 1]}.items()
}


def sequence_model(*nodes: Any, outputs: tuple[str, ...] = ("y",)) -> Any:
    shapes = {"a": [2, 3], "b": [2, 3], "c": [2, 3]}
    return models.model([*nodes], shapes, outputs, POSITIONS)


BUILDS = {
    "joined": [
        node("SequenceEmpty", [], ["s0"]), node("SequenceInsert", ["s0", "a"], ["s1"]),
        node("SequenceInsert", ["s1", "b", "first"], ["s2"]), node("Identity", ["s2"], ["s3"]),
        node("SequenceInsert", ["s3", "c", "last"], ["s4"]),
        node("ConcatFromSequence", ["s4"], ["y"], axis=1),
    ],
    "stacked": [
        node("SequenceConstruct", ["a", "b", "c"], ["s"]),
        node("ConcatFromSequence", ["s"], ["y"], axis=1, new_axis=1),
    ],
    "taken out": [
        node("SequenceConstruct", ["a", "b", "c"], ["s"]), node("SequenceErase", ["s"], ["t"]),
        node("SequenceErase", ["t", "first"], ["u"]), node("SequenceAt", ["u", "last"], ["v"]),
        node("SequenceAt", ["s", "last"], ["w"]), node("Sub", ["v", "w"], ["y"]),
    ],
    "split by sizes": [
        node("SplitToSequence", ["a", "sizes"], ["s"], axis=1), node("SequenceAt", ["s", "last"], ["y"]),
    ],
    "split by a size": [
        node("SplitToSequence", ["a", "two"], ["s"], axis=-1), node("SequenceErase", ["s", "first"], ["t"]),
        node("SequenceInsert", ["t", "b"], ["u"]), node("ConcatFromSequence", ["u"], ["y"], axis=-1),
    ],
    "split in rows": [
        node("SplitToSequence", ["a"], ["s"], axis=1, keepdims=0), node("SequenceLength", ["s"], ["n"]),
        node("Cast", ["n"], ["m"], to=TensorProto.FLOAT),
        node("ConcatFromSequence", ["s"], ["t"], axis=0, new_axis=1), node("Mul", ["t", "m"], ["y"]),
    ],
    "split in slices": [
        node("SplitToSequence", ["a"], ["s"]), node("SequenceAt", ["s", "last"], ["y"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BUILDS)
def test_sequences(name: str, check: Any) -> None:
    check(sequence_model(*BUILDS[name]))


def test_a_list_that_a_loop_fills(compiled: Any) -> None:
    """What exporters make of an embedding bag: each step appends a row."""
    value = helper.make_tensor_value_info
    rows = helper.make_tensor_sequence_value_info
    body = helper.make_graph(
        [node("Unsqueeze", ["i", "zero"], ["begin"]), node("Add", ["begin", "one"], ["end"]),
         node("Slice", ["a", "begin", "end"], ["row"]), node("ReduceSum", ["row"], ["sum"]),
         node("SequenceInsert", ["list", "sum"], ["longer"]), node("Identity", ["go"], ["on"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []),
         rows("list", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), rows("longer", TensorProto.FLOAT, None)],
    )  # fmt: skip
    constants = {"zero": np.array([0]), "one": np.array([1]), "count": np.array(4)}
    nodes = [
        node("SequenceEmpty", [], ["none"]),
        node("Loop", ["count", "", "none"], ["all"], body=body),
        node("ConcatFromSequence", ["all"], ["y"], axis=0),
    ]
    proto, feed = models.model(nodes, {"a": [4, 3]}, ["y"], constants), {"a": models.floats(4, 3)}
    (ours,) = compiled(proto).run(feed)
    assert_same(ours, expected(proto, feed))  # onnx's reference hands out an empty list


REFUSED = {
    "outside": [node("SequenceConstruct", ["a"], ["s"]), node("SequenceAt", ["s", "far"], ["y"])],
    "empty": [node("SequenceEmpty", [], ["s"]), node("ConcatFromSequence", ["s"], ["y"], axis=0)],
    "split": [
        node("ReduceSum", ["a"], ["t"], keepdims=0), node("Cast", ["t"], ["i"], to=TensorProto.INT64),
        node("SplitToSequence", ["a", "i"], ["s"]), node("SequenceAt", ["s", "first"], ["y"]),
    ],
    "unknown": [
        node("SequenceConstruct", ["a", "b"], ["s"]), node("ReduceSum", ["a"], ["t"], keepdims=0),
        node("Cast", ["t"], ["i"], to=TensorProto.INT64), node("SequenceAt", ["s", "i"], ["y"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_the_run_knows_is_refused(name: str, compiled: Any) -> None:
    words = {
        "outside": "position 7",
        "empty": "without members",
        "unknown": "depends on",
        "split": "how many parts",
    }
    with pytest.raises(MlcError, match=words[name]):
        compiled(sequence_model(*REFUSED[name]))
