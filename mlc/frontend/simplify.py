"""Fold constants and remove what does nothing, on the ONNX graph, before TVM sees it.

TVM folds constants one by one with its interpreter (DenseNet-121 with computed weights: minutes).
ONNX Runtime's basic level, the standard-ONNX part of its optimizer, does the same in a fraction of
a second, and is installed anyway. Large weights are inputs at this point (see `onnx_file`), so
neither memory nor time depend on their size. Verification later runs the original file with that
optimizer switched off, so an error in it would be seen.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from mlc import ort_env
from mlc.events import Notice, OnEvent
from mlc.frontend.onnx_file import KEEP_BYTES, OnnxFile, check_size, take_weights


def simplify(file: OnnxFile, on_event: OnEvent) -> OnnxFile:
    """Return the file with constants folded; unchanged, with a notice, where that fails.

    Raises:
        ModelError: a tensor would be larger than the limits (see `options`), as far as can be told.
    """
    typed = _infer_types(file)  # before: folding would make such a tensor
    try:
        simplified = _optimized(file)
    except Exception as error:  # noqa: BLE001 - ORT raises its own types; folding is optional
        first = str(error).strip().splitlines()[0][:200]
        on_event(Notice(text=f"the graph is not simplified: {first}"))
        return typed
    if _domains(simplified.proto) - _domains(file.proto):
        return typed
    return _infer_types(simplified)


def _optimized(file: OnnxFile) -> OnnxFile:
    ort = ort_env.onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Weights that the model computes become large constants: beside the proto, to be mapped.
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(prefix + "file_name", "simplified.bin")
    options.add_session_config_entry(prefix + "min_size_in_bytes", str(KEEP_BYTES))
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        target = Path(folder) / "simplified.onnx"
        options.optimized_model_filepath = str(target)
        ort.InferenceSession(
            file.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        proto, weights = take_weights(onnx.load(str(target), load_external_data=False), target)
    return replace(file, proto=proto, weights={**file.weights, **weights})


def _domains(proto: Any) -> set[str]:
    return {node.domain if node.domain != "ai.onnx" else "" for node in proto.graph.node}


def _infer_types(file: OnnxFile) -> OnnxFile:
    """Let onnx fill in the shapes of intermediate values; what it cannot infer stays open."""
    with contextlib.suppress(Exception):  # the converter reports a wrong model, with the node
        file = replace(file, proto=onnx.shape_inference.infer_shapes(file.proto))
    for info in [*file.proto.graph.input, *file.proto.graph.value_info, *file.proto.graph.output]:
        kind = info.type.tensor_type
        check_size(info.name, [dim.dim_value or 1 for dim in kind.shape.dim], kind.elem_type)
    return file
