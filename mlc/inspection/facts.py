"""What an ONNX file itself says: for `mlc inspect` and `mlc check`, without TVM."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import onnx

from mlc.frontend.onnx_file import nodes_of
from mlc.frontend.support import unsupported

if TYPE_CHECKING:
    from mlc.frontend.onnx_file import OnnxFile


def facts(file: OnnxFile) -> dict[str, Any]:
    """Return what the ONNX file itself says, as JSON data.

    `bytes`, `sha256`, `ir_version`, `opset`, `opsets`, `producer`, `inputs` and `outputs`
    (dimensions as the file has them: a number, a name, or null), `nodes`, `operators` (ONNX, with
    counts), `parameters` (tensors, elements, bytes), `unsupported`.
    """
    proto = file.proto
    nodes = list(nodes_of(proto.graph))
    return {
        "kind": "model",
        "bytes": file.size,
        "sha256": file.sha256,
        "ir_version": file.ir_version,
        "opset": file.opset,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "producer": f"{proto.producer_name} {proto.producer_version}".strip() or None,
        "inputs": [_tensor(i) for i in proto.graph.input if i.name not in file.weights],
        "outputs": [_tensor(info) for info in proto.graph.output],
        "nodes": len(nodes),
        "operators": dict(Counter(map(_operator, nodes)).most_common()),
        "parameters": _parameters(file),
        "unsupported": [asdict(entry) for entry in unsupported(proto)],
    }


def _operator(node: Any) -> str:
    standard = node.domain in ("", "ai.onnx")
    return str(node.op_type) if standard else f"{node.domain}::{node.op_type}"


def _tensor(info: Any) -> dict[str, Any]:
    """Return an input or output; `shape` is null where the file gives not even a rank."""
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        return {"name": info.name, "dtype": kind or "unknown", "shape": None}
    tensor = info.type.tensor_type
    names = {value: name.lower() for name, value in onnx.TensorProto.DataType.items()}
    names |= {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.DOUBLE: "float64"}
    shape = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in tensor.shape.dim
    ]
    return {
        "name": info.name,
        "dtype": names.get(tensor.elem_type, f"type {tensor.elem_type}"),
        "shape": shape if tensor.HasField("shape") else None,
    }


def _parameters(file: Any) -> dict[str, int]:
    """Return how many initializers there are, of how many elements and bytes."""
    small = [onnx.numpy_helper.to_array(tensor) for tensor in file.proto.graph.initializer]
    arrays = [*file.weights.values(), *small]
    return {
        "tensors": len(arrays),
        "elements": sum(int(array.size) for array in arrays),
        "bytes": sum(int(array.nbytes) for array in arrays),
    }
