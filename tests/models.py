"""Small ONNX models, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT = onnx.TensorProto.FLOAT


def model(
    nodes: Sequence[Any],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    types: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """Return a model; inputs map names to shapes (a string is a symbolic dimension)."""
    types = types or {}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(name, types.get(name, FLOAT), list(shape))
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (rng(seed).standard_normal(shape) * scale).astype(np.float32)


def conv_net(channels: int = 8, size: int = 9, batch: int | str = 1) -> onnx.ModelProto:
    """conv, batch norm, relu, conv, add, global pool, flatten, dense: odd sizes on purpose."""
    weights = {
        "w1": floats(channels, 3, 3, 3, seed=1, scale=0.2),
        "scale": np.abs(floats(channels, seed=2)) + 0.5,
        "bias": floats(channels, seed=3),
        "mean": floats(channels, seed=4),
        "var": np.abs(floats(channels, seed=5)) + 0.5,
        "w2": floats(channels, channels, 3, 3, seed=6, scale=0.2),
        "w3": floats(5, channels, seed=7),
        "b3": floats(5, seed=8),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["c1", "scale", "bias", "mean", "var"], ["n1"], "bn"
        ),
        helper.make_node("Relu", ["n1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a1"], "add"),
        helper.make_node("GlobalAveragePool", ["a1"], ["g1"], "pool"),
        helper.make_node("Flatten", ["g1"], ["f1"], "flatten"),
        helper.make_node("Gemm", ["f1", "w3", "b3"], ["y"], "dense", transB=1),
    ]
    return model(nodes, {"x": [batch, 3, size, size]}, ["y"], weights)


def save(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(proto, str(path))
    return path


def quantised(proto: onnx.ModelProto, folder: Path, **options: Any) -> onnx.ModelProto:
    """Return what ONNX Runtime's quantizer makes of a model with the input x."""
    from mlc import ort_env

    ort_env.onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            dims = proto.graph.input[0].type.tensor_type.shape.dim
            shape = [dim.dim_value for dim in dims]
            self.feeds = iter([{"x": floats(*shape, seed=k)} for k in range(4)])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    source, target = save(proto, folder, "float.onnx"), folder / "int8.onnx"
    quantize_static(str(source), str(target), Reader(), **options)
    return onnx.load(target)
