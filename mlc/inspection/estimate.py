"""What a run of an ONNX graph costs, from its shapes alone: FLOPs and bytes.

Rough figures, in milliseconds and without TVM. FLOPs count a multiply-add as two and an
element-wise operator as one per output element, as `codegen.flops` does for compiled kernels.
Buffers are planned as for compiled kernels, too; that an operator is fused is guessed: a result of
its operand's shape lies where that was, a reshape moves nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mlc.codegen.storage import allocate

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.frontend.onnx_file import OnnxFile

Shape = tuple[int, ...]

_FREE = frozenset(
    {"Cast", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand",
     "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Shape",
     "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)  # fmt: skip
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Dropout"})
_FILTERS = {  # the operand that holds the filter
    "Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "DeformConv": 1, "FusedConv": 1,
    "QLinearConv": 3,
}  # fmt: skip
_PRODUCTS = ("FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul")
_OWN_BUFFER = frozenset({*_FILTERS, *_PRODUCTS, "Transpose", "AveragePool", "MaxPool"})
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """FLOPs of a run; bytes of weights, inputs, outputs, and of buffers for intermediate results.

    `open_values` counts intermediate results without a known shape: they are missing in both sums.
    """

    flops: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    activation_bytes: int
    open_values: int


def estimate(file: OnnxFile) -> Estimate:
    """Return what a run costs; shapes are fixed and inferred (`simplify`, `control.flatten`)."""
    graph = file.proto.graph
    sizes = _Sizes(file)
    weights = {t.name for t in graph.initializer} | set(file.weights)
    inputs = [i.name for i in graph.input if i.name not in weights]
    outputs = [o.name for o in graph.output]
    made = [name for node in graph.node for name in node.output if name]
    return Estimate(
        flops=sum(_flops(node, sizes.shapes) for node in graph.node),
        weight_bytes=sum(map(sizes.bytes, weights)),
        input_bytes=sum(map(sizes.bytes, inputs)),
        output_bytes=sum(map(sizes.bytes, outputs)),
        activation_bytes=_buffers(graph, sizes),
        open_values=sum(name not in sizes.shapes for name in made),
    )


class _Sizes:
    """Shapes and element sizes of the values of a graph, where they are known."""

    def __init__(self, file: OnnxFile):
        graph = file.proto.graph
        self.shapes: dict[str, Shape] = {}
        self.widths: dict[str, int] = {}
        for info in [*graph.input, *graph.value_info, *graph.output]:
            tensor = info.type.tensor_type
            dims = tensor.shape.dim
            if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                self._add(info.name, tuple(d.dim_value for d in dims), tensor.elem_type)
        for initializer in graph.initializer:
            self._add(initializer.name, tuple(initializer.dims), initializer.data_type)
        for name, array in file.weights.items():
            self.shapes[name], self.widths[name] = array.shape, array.itemsize

    def _add(self, name: str, shape: Shape, kind: int) -> None:
        try:
            width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize
        except (KeyError, ValueError):
            return
        self.shapes[name], self.widths[name] = shape, width

    def bytes(self, name: str) -> int:
        """Return the bytes of a value; 0 where its shape is not known."""
        return math.prod(self.shapes[name]) * self.widths[name] if name in self.shapes else 0


def _flops(node: Any, shapes: dict[str, Shape]) -> int:
    name = node.op_type
    made = sum(math.prod(shapes.get(output, (0,))) for output in node.output if output)
    first = shapes.get(node.input[0]) if node.input else None
    rule = _RULES.get("Reduce" if name.startswith("Reduce") else name)
    if rule is None or first is None:
        return 0 if name in _FREE else made
    return rule(node, made, [shapes.get(operand, ()) for operand in node.input])


def _convolution(node: Any, made: int, operands: list[Shape]) -> int:
    """Count by the filter, [outputs, inputs / group, ...]; transposed ones spread each input."""
    each = 2 * math.prod(operands[_FILTERS[node.op_type]][1:])
    return each * (math.prod(operands[0]) if node.op_type == "ConvTranspose" else made)


def _product(node: Any, made: int, operands: list[Shape]) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    left = operands[0] or (1,)
    return 2 * made * left[-2 if transposed else -1]


def _recurrence(node: Any, made: int, operands: list[Shape]) -> int:
    """X is [steps, batch, inputs], W [directions, gates * hidden, inputs] (onnx, LSTM)."""
    del made
    x, w = operands[:2]
    if len(x) != 3 or len(w) != 3:
        return 0
    hidden = w[1] // _GATES[node.op_type]
    return 2 * x[0] * x[1] * w[0] * w[1] * (w[2] + hidden)


def _reduction(node: Any, made: int, operands: list[Shape]) -> int:
    del node, made
    return math.prod(operands[0])


def _window(node: Any, made: int, operands: list[Shape]) -> int:
    del operands
    return made * next((math.prod(a.ints) for a in node.attribute if a.name == "kernel_shape"), 1)


_RULES: dict[str, Callable[[Any, int, list[Shape]], int]] = {
    **dict.fromkeys(_FILTERS, _convolution),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_GATES, _recurrence),
    **dict.fromkeys(("Reduce", "GlobalAveragePool", "GlobalMaxPool", "ArgMax", "ArgMin"), _reduction),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _window),
}  # fmt: skip


def _buffers(graph: Any, sizes: _Sizes) -> int:
    """Return the bytes of all buffers, given out and taken back as the code generator does."""
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(info.name for info in graph.output)
    held: dict[str, int] = {}  # a value made by a node, and its buffer
    left: Counter[int] = Counter()  # reads of a buffer that are still to come
    buffers: list[int] = []
    free: list[int] = []
    for node in graph.node:
        made = [name for name in node.output if name]
        shared = _shared(node, sizes, held, left)
        for name in made:
            held[name] = allocate(sizes.bytes(name), buffers, free) if shared is None else shared
            left[held[name]] += readers[name]
        read = Counter(held[name] for name in node.input if name in held)
        left.subtract(read)
        done = [k for k in {*read, *(held[name] for name in made)} if left[k] == 0]
        free.extend(sorted(done))
    return sum(buffers)


def _shared(node: Any, sizes: _Sizes, held: dict[str, int], left: Counter[int]) -> int | None:
    """Return the buffer that a result takes over: a view's, or of an equal operand read last here."""
    if len(node.output) != 1 or node.op_type in _OWN_BUFFER:
        return None
    wanted = sizes.shapes.get(node.output[0]), sizes.bytes(node.output[0])
    for name in node.input:
        if name not in held:
            continue
        last = left[held[name]] == list(node.input).count(name)
        if node.op_type in _VIEWS or (
            last and (sizes.shapes.get(name), sizes.bytes(name)) == wanted
        ):
            return held[name]
    return None
