"""Random changes of a model's fields: wrong, but so near to a model that they get far."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper

from tests import models

INTEGERS = (0, 1, 2, 3, 5, 16, -1, -2, 255, 1 << 31, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -1.0, 1e30, float("nan"), float("inf"), -float("inf"))
OPERATORS = tuple(sorted({schema.name for schema in onnx.defs.get_all_schemas()}))
TEXTS = ("", "x", "y", "w", "SAME_UPPER", "linear", "\x1b[2J", "../x", "ai.onnx", "com.microsoft")
node = helper.make_node


def seeds() -> list[onnx.ModelProto]:
    """Return small models of many kinds, all of which compile."""
    w, f = {"w": models.floats(1, 8, 4), "r": models.floats(1, 8, 2)}, models.floats
    body = helper.make_graph(
        [node("Add", ["in", "x"], ["out"]), node("Identity", ["go"], ["on"])], "body",
        [helper.make_tensor_value_info(n, k, s) for n, k, s in
         (("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("in", 1, [2, 3]))],
        [helper.make_tensor_value_info(n, k, s) for n, k, s in
         (("on", TensorProto.BOOL, []), ("out", 1, [2, 3]))],
    )  # fmt: skip
    chains = [
        ([node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2)], {"x": [3, 1, 4]}, w),
        ([node("Loop", ["n", "", "x"], ["y"], body=body)], {"x": [2, 3]}, {"n": np.array(3)}),
        ([node("Shape", ["x"], ["s"]), node("Slice", ["s", "a", "b"], ["t"]),
          node("Concat", ["t", "m"], ["u"], axis=0), node("Reshape", ["x", "u"], ["y"])],
         {"x": [2, 3, 4]}, {"a": np.array([0]), "b": np.array([1]), "m": np.array([-1])}),
        ([node("Resize", ["x", "", "s"], ["r"], mode="linear"),
          node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
          node("ConvTranspose", ["p", "w"], ["y"], strides=[2, 2])],
         {"x": [1, 2, 5, 5]}, {"s": np.float32([1, 1, 2, 2]), "w": f(2, 3, 3, 3)}),
        ([node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]),
          node("MatMul", ["d", "w"], ["m"]), node("Softmax", ["m"], ["y"])],
         {"x": [3, 4]}, {"s": np.float32(0.1), "z": np.uint8(3), "w": f(4, 5)}),
        ([node("Split", ["x"], ["a", "b"], axis=1), node("Einsum", ["a", "b"], ["e"], equation="ij,kj->ik"),
          node("TopK", ["e", "k"], ["v", "at"]), node("Gather", ["v", "g"], ["y"], axis=1)],
         {"x": [3, 4]}, {"k": np.array([2]), "g": np.array([1, 0])}),
        ([node("SequenceConstruct", ["x", "x"], ["s"]), node("ConcatFromSequence", ["s"], ["c"], axis=0),
          node("Pad", ["c", "p"], ["d"]), node("ReduceMean", ["d"], ["y"], axes=[1])],
         {"x": [2, 3]}, {"p": np.array([0, 1, 1, 0])}),
    ]  # fmt: skip
    return [models.conv_net(), *(models.model(n, i, ["y"], c) for n, i, c in chains)]


def mutated(proto: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """Return a copy with one to four fields changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for _ in range(rng.randint(1, 4)):
        _change(rng.choice(list(_fields(copy))), rng)
    return copy


def _fields(message: Message) -> Iterator[tuple[Message, Any]]:
    """Yield (message, field) of all fields that are set, at any depth."""
    for field, value in message.ListFields():
        yield message, field
        for inner in value if field.is_repeated else [value]:
            if isinstance(inner, Message):
                yield from _fields(inner)


def _change(place: tuple[Message, Any], rng: random.Random) -> None:
    message, field = place
    if rng.random() < 0.1:
        message.ClearField(field.name)
        return
    if not field.is_repeated:
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            setattr(message, field.name, _value(field, getattr(message, field.name), rng))
        return
    values = getattr(message, field.name)
    at = rng.randrange(len(values))
    how = rng.choice(("remove", "repeat", "change", "change", "move"))
    if how == "remove":
        del values[at]
    elif how == "repeat":
        values.extend([values[at]])
    elif field.type != FieldDescriptor.TYPE_MESSAGE:
        values[at] = _value(field, values[at], rng)
    elif how == "move":
        values[at].CopyFrom(rng.choice(list(values)))


def _value(field: Any, old: Any, rng: random.Random) -> Any:
    if field.name == "op_type":
        return rng.choice(OPERATORS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        data = bytearray(old or b"\0")
        data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data[: rng.choice((len(data), rng.randrange(len(data) + 1)))])
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(TEXTS)
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    small = field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice(list(field.enum_type.values_by_number))
    limit = 1 << (31 if small else 63)
    return rng.choice(
        [n for n in INTEGERS if -limit <= n < limit and (n >= 0 or "uint" not in str(field.type))]
    )
