"""Which dimensions can stay open, as far as names, types and shapes tell: without TVM.

Compiling computes with expressions of the dimensions (`frontend.open_convert`). Here is what is certain
before: nodes that it refuses for the shapes of their operands, which onnx infers with names in the place
of sizes. What hangs on an expression (whether it divides, how large it may get) only compiling tells.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx

from mlc.frontend import shapes
from mlc.frontend.open_values import RULES
from mlc.frontend.support import BY_VALUES
from mlc.inspection.static import Problem, counted, of_inference, of_types, shaping

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.frontend.onnx_file import OnnxFile

_INTEGERS = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
_ADVICE = "a compiled graph is static but for its open dimensions: compute this outside the network"


@dataclass(frozen=True, kw_only=True)
class OpenDim:
    """A dimension that was asked to stay open: whether it can, None where only compiling tells.

    `why` holds the operators that refuse it, or may refuse it; not those that no model may have.
    """

    name: str
    stays: bool | None
    why: tuple[str, ...] = ()


class Refusal(NamedTuple):
    """Why a node does not convert, and the dimensions that it is for (none: not these alone)."""

    why: str
    dims: tuple[str, ...] = ()
    certain: bool = True


def open_dims(file: OnnxFile) -> tuple[list[OpenDim], list[Problem]]:
    """Return each open dimension of a flat file with its verdict, and what compiling would refuse."""
    names = shapes.open_names(file)
    found = _Graph(file, names).refusals()
    lines = [
        (refusal, f"{counted(operator, nodes)}: {refusal.why}")
        for (operator, refusal), nodes in found.items()
    ]
    dims = [_verdict(name, lines) for name in names]
    kept = [dim.name for dim in dims if dim.stays is not False]
    hint = _hint([dim.name for dim in dims if dim.stays is False], kept)
    refused = [
        Problem(kind="open size", message=line, hint=hint)
        if refusal.dims
        else Problem(kind="dynamic shape", message=line, hint=_ADVICE)
        for refusal, line in lines
        if refusal.certain
    ]
    return dims, [*of_types(file.proto), *refused, *of_inference(file.proto)]


def _verdict(name: str, lines: list[tuple[Refusal, str]]) -> OpenDim:
    refused = tuple(line for refusal, line in lines if name in refusal.dims)
    if refused:
        return OpenDim(name=name, stays=False, why=refused)
    unsure = tuple(line for refusal, line in lines if not refusal.certain)
    return OpenDim(name=name, stays=None if unsure else True, why=unsure)


def _hint(refused: list[str], kept: list[str]) -> str:
    words = [shapes.option(shapes.example(name)) for name in refused]
    words += [shapes.option(name).replace("--shape", "--dynamic", 1) for name in kept]
    return f"fix the size{'s' * (len(refused) > 1)}, for example: {' '.join(words)}"


class _Graph:
    """What is known of a graph's values while its nodes are looked at in order."""

    def __init__(self, file: OnnxFile, names: tuple[str, ...]):
        self.names = names
        self.nodes = file.proto.graph.node
        graph = file.proto.graph
        self.known = {t.name for t in graph.initializer} | set(file.weights) | {""}
        self.integers = {
            t.name: onnx.numpy_helper.to_array(t)
            for t in graph.initializer
            if t.data_type == onnx.TensorProto.INT64 and not t.external_data
        }
        self.sized: set[str] = set()  # integers that are made of sizes
        self.failed: set[str] = set()
        self.shapes = _shapes(file)

    def refusals(self) -> dict[tuple[str, Refusal], list[str]]:
        """Return the labels of the nodes that are refused, or may be, by operator and reason."""
        found: dict[tuple[str, Refusal], list[str]] = {}
        for position, node in enumerate(self.nodes):
            if not self.failed.isdisjoint(node.input):
                self.failed.update(node.output)
            elif node.op_type == "Constant" or self.known.issuperset(node.input):
                self.known.update(node.output)
            elif self._is_sized(node):
                self.sized.update(node.output)
            elif refusal := self._refusal(node):
                label = node.name or f"#{position}"
                found.setdefault((node.op_type, refusal), []).append(label)
                self.failed.update(node.output if refusal.certain else ())
        return found

    def _is_sized(self, node: Any) -> bool:
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in ("Shape", "Size"):
            return True
        if node.op_type == "Cast" and _attribute(node, "to", 0) not in _INTEGERS:
            return False
        return node.op_type in RULES and (self.known | self.sized).issuperset(node.input)

    def _refusal(self, node: Any) -> Refusal | None:
        if node.domain not in ("", "ai.onnx"):
            return None
        return self._of_operands(node) or self._of_shapes(node)

    def _of_operands(self, node: Any) -> Refusal | None:
        if node.op_type in BY_VALUES:
            return Refusal("the shape of its result depends on the input's values")
        operands = [name for name in shaping(node) if name not in self.known]
        if any(name not in self.sized for name in operands):
            return Refusal("an operand that decides a shape depends on the input's values")
        if operands:
            return Refusal("an operand that decides a shape is made of sizes", certain=False)
        return None

    def _of_shapes(self, node: Any) -> Refusal | None:
        shape = self.shapes.get(node.input[0]) if node.input else None
        rule = _RULES.get(node.op_type)
        if rule is None:
            return None
        if shape is None:
            return Refusal("the shape of what it takes is not known here", certain=False)
        return rule(self, node, shape)

    def open_axes(self, shape: list[int | str | None], why: str) -> Refusal | None:
        """Refuse axes that are open; those of which nothing is known may be."""
        named = tuple(name for name in self.names if name in shape)
        if named:
            return Refusal(why, named)
        unsure = any(not isinstance(size, int) for size in shape)
        return Refusal(f"{why}, if they are open", certain=False) if unsure else None


def _shapes(file: OnnxFile) -> dict[str, list[int | str | None]]:
    """Return the shapes that onnx infers: sizes, names, and None where it does not know."""
    try:
        proto = onnx.shape_inference.infer_shapes(file.proto, data_prop=True)
    except Exception:  # noqa: BLE001 - onnx raises types of its own; then nothing is known
        proto = file.proto
    return {
        info.name: [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in info.type.tensor_type.shape.dim
        ]
        for info in [*proto.graph.input, *proto.graph.value_info]
        if info.type.tensor_type.HasField("shape")
    }


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next(
        (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default
    )


def _convolution(graph: _Graph, _node: Any, shape: list[Any]) -> Refusal | None:
    return graph.open_axes(shape[1:], "a convolution over axes of open size has no schedule")


def _recurrent(graph: _Graph, _node: Any, shape: list[Any]) -> Refusal | None:
    return graph.open_axes(shape, "recurrent layers need sizes that are known")


def _split(graph: _Graph, node: Any, shape: list[Any]) -> Refusal | None:
    axis = _attribute(node, "axis", 0)
    axes = shape[axis : axis + 1 or None]
    return graph.open_axes(axes, "it splits an axis of open size") if len(node.output) > 1 else None


def _reshape(graph: _Graph, node: Any, shape: list[Any]) -> Refusal | None:
    """Refuse a shape of plain numbers for what has an open size, as exporters write an example's."""
    wanted = graph.integers.get(node.input[1])
    if wanted is None or -1 in wanted or None in shape:
        return None
    keeps = not _attribute(node, "allowzero", 0)
    after = [
        shape[k] if keeps and size == 0 and k < len(shape) else int(size)
        for k, size in enumerate(wanted)
    ]
    left = Counter(s for s in shape if isinstance(s, str))
    left -= Counter(s for s in after if isinstance(s, str))
    lost = tuple(name for name in graph.names if name in left)
    number = int(np.prod([size for size in after if isinstance(size, int)]))
    return Refusal(f"it makes a fixed number of elements, {number}", lost) if lost else None


_RULES: dict[str, Callable[[_Graph, Any, list[Any]], Refusal | None]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    "Reshape": _reshape,
    "Split": _split,
}
