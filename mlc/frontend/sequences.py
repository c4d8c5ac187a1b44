"""Sequences of tensors to plain tensors, where their lengths are known at compile time.

Exporters write a list that a loop fills as SequenceEmpty, SequenceInsert, ConcatFromSequence. Once
the loops are unrolled (`control`) a sequence is a list of names, and nothing of it is left at run
time. A sequence that is an input, an output, or chosen by a condition stays, and is refused later.

Source: Sequence*, SplitToSequence and ConcatFromSequence in onnx/docs/Operators.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlc.errors import ModelError
from mlc.options import MAX_MODEL_NODES

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.frontend.onnx_file import OnnxFile


def resolve(file: OnnxFile) -> OnnxFile:
    """Return the file, free of control flow, without the sequences whose members are known.

    Raises:
        ModelError: a position lies outside of its sequence, or depends on the input's values.
    """
    if not any(is_sequence(node.domain, node.op_type) for node in file.proto.graph.node):
        return file
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    resolver = _Resolver(proto)
    for node in file.proto.graph.node:
        resolver.visit(node)
    del proto.graph.node[:]
    proto.graph.node.extend(resolver.nodes)
    proto.graph.initializer.extend(resolver.constants)
    left = [info for info in proto.graph.value_info if info.name not in resolver.members]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(left)
    return replace(file, proto=proto)


def is_sequence(domain: str, name: str) -> bool:
    """Return whether an operator makes, changes or reads a sequence, which `resolve` writes out."""
    return domain in ("", "ai.onnx") and name in {*_SOURCES, *_RULES, "SplitToSequence"}


class _Resolver:
    def __init__(self, proto: Any):
        self.tensors = {t.name: t for t in proto.graph.initializer}
        infos = [*proto.graph.input, *proto.graph.value_info]
        self.dims = {info.name: info.type.tensor_type.shape.dim for info in infos}
        self.members: dict[str, list[str]] = {}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def visit(self, node: Any) -> None:
        domain = node.domain in ("", "ai.onnx")
        if domain and node.op_type in _SOURCES:
            self.members[node.output[0]] = list(node.input)
        elif domain and node.op_type == "SplitToSequence":
            _split(self, node)
        elif domain and node.op_type == "Identity" and node.input[0] in self.members:
            self.members[node.output[0]] = self.members[node.input[0]]
        elif domain and node.op_type in _RULES and node.input[0] in self.members:
            _RULES[node.op_type](self, node, list(self.members[node.input[0]]))
        else:
            self.nodes.append(node)

    def constant(self, name: str, values: list[int]) -> str:
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

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


def _split(to: _Resolver, node: Any) -> None:
    """Parts of the sizes given, of one size (the last may be smaller), or slices of size 1."""
    attributes = {a.name: a.i for a in node.attribute}
    axis, slices = attributes.get("axis", 0), len(node.input) < 2 or not node.input[1]
    dims = to.dims.get(node.input[0], ())
    extent = dims[axis].dim_value if -len(dims) <= axis < len(dims) else 0
    sizes = _parts(None if slices else to.tensors.get(node.input[1]), extent, slices=slices)
    parts = [f"{node.output[0]}/mlc.part{k}" for k in range(len(sizes))]
    operand = to.constant(f"{node.output[0]}/mlc.sizes", sizes)
    to.nodes.append(helper.make_node("Split", [node.input[0], operand], parts, axis=axis))
    if slices and not attributes.get("keepdims", 1):
        axes = to.constant(f"{node.output[0]}/mlc.axes", [axis])
        rows = [f"{part}/row" for part in parts]
        for part, row in zip(parts, rows, strict=True):
            to.nodes.append(helper.make_node("Squeeze", [part, axes], [row]))
        parts = rows
    to.members[node.output[0]] = parts


def _parts(given: Any, extent: int, *, slices: bool) -> list[int]:
    """Return the sizes of the parts of an axis; `given` is the constant that says them, or one for all."""
    listed, size = given is not None and bool(given.dims), 1 if slices else 0
    if given is not None and not listed:
        size = int(numpy_helper.to_array(given))
        if size < 1:
            raise ModelError(f"a tensor cannot be split into parts of {size}")
    count = math.prod(given.dims) if listed else -(-extent // size) if size else 0
    if not 0 < count <= MAX_MODEL_NODES:
        raise ModelError(
            "how many parts a tensor is split into is not known at compile time",
            "fix its size with --shape, or export the split with constant sizes",
        )
    if listed:
        return [int(one) for one in numpy_helper.to_array(given)]
    return [min(size, extent - start) for start in range(0, extent, size)]


def _length(to: _Resolver, node: Any, members: list[str]) -> None:
    count = numpy_helper.from_array(np.array(len(members)), node.output[0])
    to.constants.append(count)
    to.tensors[count.name] = count


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
        axes = to.constant(f"{node.output[0]}/mlc.axes", [axis])
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
    "SequenceLength": _length,
}
