"""Which float type the values behind an output have: no result is more precise than its operands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from mlc.frontend.onnx_file import OnnxFile

_COARSEST_FIRST = ("float16", "float32", "float64")
_RANKS = {onnx.TensorProto.FLOAT16: 0, onnx.TensorProto.FLOAT: 1, onnx.TensorProto.DOUBLE: 2}


def precisions(file: OnnxFile) -> dict[str, str]:
    """Return {output: float type} where an output's own type is finer than what it is made of.

    A model in float16 that casts its result to float32 computes no float32 result, whatever it is
    compiled to. Counted are floats that reach the output through floats; constants are exact,
    integers and booleans start anew. `file` is the model as written: optimizers may drop a rounding
    that the reference does.
    """
    graph = file.proto.graph
    own = _own_ranks(file)
    constants = {*file.weights, *(t.name for t in graph.initializer), ""}
    coarsest = {info.name: own.get(info.name) for info in graph.input}
    for node in graph.node:
        if constants.issuperset(node.input):
            constants.update(node.output)
            continue
        operands = [coarsest.get(name) for name in node.input if name not in constants]
        floats = [rank for rank in operands if rank is not None]
        for name in node.output:
            rank = own.get(name)
            coarsest[name] = None if rank is None else min([rank, *floats])
    return {
        info.name: _COARSEST_FIRST[rank]
        for info in graph.output
        if (rank := coarsest.get(info.name)) is not None and rank < (own[info.name] or 0)
    }


def _own_ranks(file: OnnxFile) -> dict[str, int | None]:
    """Return the place of each value's own type among the floats; None for other types."""
    try:
        graph = onnx.shape_inference.infer_shapes(file.proto).graph
    except Exception:  # noqa: BLE001 - a wrong model is reported by the converter, with the node
        graph = file.proto.graph
    infos = [*graph.input, *graph.value_info, *graph.output]
    return {info.name: _RANKS.get(info.type.tensor_type.elem_type) for info in infos}
