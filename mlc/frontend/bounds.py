"""Which integers an input may hold, so that random ones index inside their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlc.frontend.onnx_file import OnnxFile

_TRANSPARENT = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose",
                          "Unsqueeze", "Slice", "Concat"})  # fmt: skip


def index_bounds(file: OnnxFile) -> dict[str, int]:
    """Return, for inputs that index a table of known size (Gather), that size, by input name."""
    graph = file.proto.graph
    sizes = {name: array.shape for name, array in file.weights.items()}
    sizes.update({t.name: tuple(t.dims) for t in graph.initializer})
    for info in [*graph.value_info, *graph.input]:
        dims = info.type.tensor_type.shape.dim
        if all(dim.dim_value for dim in dims):
            sizes.setdefault(info.name, tuple(dim.dim_value for dim in dims))
    origin = {info.name: info.name for info in graph.input if info.name not in file.weights}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in origin:
            table = sizes.get(node.input[0])
            if table:
                name = origin[node.input[1]]
                found[name] = min(found.get(name, table[_axis(node)]), table[_axis(node)])
        elif node.op_type in _TRANSPARENT and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
    return found


def _axis(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)
