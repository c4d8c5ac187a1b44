"""Sequences of tensors to plain tensors, where their lengths are known at compile time.

Exporters write a list that a loop fills as SequenceEmpty, SequenceInsert, ConcatFromSequence. Once
the loops are unrolled (`control`) a sequence is a list of names, and nothing of it is left at run
time. A sequence that is an input, an output, or chosen by a condition stays, and is refused later.

Source: Sequence*, SplitToSequence and ConcatFromSequence in onnx/docs/Operators.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper, numpy_helper

from mlc.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.frontend.onnx_file import OnnxFile


def resolve(file: OnnxFile) -> OnnxFile:
    """Return the file, free of control flow, without the sequences whose members are known.

    Raises:
        ModelError: a position lies outside of its sequence, or depends on the input's values.
    """
    if not any(node.op_type in _RULES for node in file.proto.graph.node):
        return file
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    resolver = _Resolver(proto)
    for node in file.proto.graph.node:
        resolver.visit(node)
    del proto.graph.node[:]
    proto.graph.node.extend(resolver.nodes)
    proto.graph.initializer.extend(resolver.constants)
    return replace(file, proto=proto)


class _Resolver:
    def __init__(self, proto: Any):
        self.tensors = {t.name: t for t in proto.graph.initializer}
        self.members: dict[str, list[str]] = {}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def visit(self, node: Any) -> None:
        domain = node.domain in ("", "ai.onnx")
        if domain and node.op_type in _SOURCES:
            self.members[node.output[0]] = list(node.input)
        elif domain and node.op_type == "Identity" and node.input[0] in self.members:
            self.members[node.output[0]] = self.members[node.input[0]]
        elif domain and node.op_type in _RULES and node.input[0] in self.members:
            _RULES[node.op_type](self, node, list(self.members[node.input[0]]))
        else:
            self.nodes.append(node)

    def position(self, node: Any, at: int, length: int) -> int | None:
        """Return the position that an input holds, within `length`; None if it is left out."""
        if at >= len(node.input) or not node.input[at]:
            return None
        tensor = self.tensors.get(node.input[at])
        if tensor is None:
            raise ModelError("a position in a sequence depends on the input's values")
        value = int(numpy_helper.to_array(tensor).reshape(-1)[0])
        if not -length <= value < length:
            raise ModelError(f"position {value} lies outside of a sequence of {length}")
        return value


def _insert(to: _Resolver, node: Any, members: list[str]) -> None:
    at = to.position(node, 2, len(members) + 1)
    members.insert(len(members) if at is None else at, node.input[1])
    to.members[node.output[0]] = members


def _erase(to: _Resolver, node: Any, members: list[str]) -> None:
    at = to.position(node, 1, len(members))
    del members[-1 if at is None else at]
    to.members[node.output[0]] = members


def _at(to: _Resolver, node: Any, members: list[str]) -> None:
    at = to.position(node, 1, len(members))
    assert at is not None  # it is not optional
    to.nodes.append(helper.make_node("Identity", [members[at]], node.output))


def _concat(to: _Resolver, node: Any, members: list[str]) -> None:
    if not members:
        raise ModelError("a sequence without members is joined to one tensor")
    attributes = {a.name: a.i for a in node.attribute}
    axis = attributes["axis"]
    if attributes.get("new_axis", 0):
        axes = f"{node.output[0]}/mlc.axes"
        to.constants.append(helper.make_tensor(axes, onnx.TensorProto.INT64, [1], [axis]))
        rows = [f"{node.output[0]}/mlc.{k}" for k in range(len(members))]
        for member, row in zip(members, rows, strict=True):
            to.nodes.append(helper.make_node("Unsqueeze", [member, axes], [row]))
        members = rows
    to.nodes.append(helper.make_node("Concat", members, node.output, axis=axis))


_SOURCES = frozenset({"SequenceConstruct", "SequenceEmpty"})
_RULES: dict[str, Callable[[_Resolver, Any, list[str]], None]] = {
    "ConcatFromSequence": _concat,
    "SequenceAt": _at,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
}
