"""Operators of com.microsoft against ONNX Runtime, whose they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from mlc import ort_env
from mlc.errors import ModelError, UnsupportedError
from tests import models
from tests.compiler.conftest import assert_same

INT = TensorProto.INT32


def expected(proto: Any, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort_env.onnxruntime().InferenceSession(proto.SerializeToString())
    names = [output.name for output in proto.graph.output]
    return dict(zip(names, session.run(names, feed), strict=True))


def single(
    operator: str, inputs: dict[str, np.ndarray | None], outputs: int = 1, **attributes: Any
) -> tuple[Any, dict[str, np.ndarray]]:
    """Return a model of one node, and what it is fed."""
    given = {name: array for name, array in inputs.items() if array is not None}
    written = helper.make_node(
        operator, [n if a is not None else "" for n, a in inputs.items()],
        [f"y{k}" for k in range(outputs)], domain="com.microsoft", **attributes,
    )  # fmt: skip
    types = {n: int(helper.np_dtype_to_tensor_dtype(a.dtype)) for n, a in given.items()}
    if operator == "EmbedLayerNormalization":
        types["y1"] = INT
    proto = models.model(
        [written], {n: a.shape for n, a in given.items()}, [f"y{k}" for k in range(outputs)],
        types=types,
    )  # fmt: skip
    proto.opset_import.add(domain="com.microsoft", version=1)
    return proto, given


f = models.floats
IDS = np.array([[1, 3, 0], [2, 2, 1]], np.int32)
KEEP = np.array([[1, 1, 0], [1, 0, 0]], np.int32)
EMBED = {
    "ids": IDS, "segments": IDS % 2, "words": f(5, 8), "places": f(6, 8, seed=1),
    "kinds": f(2, 8, seed=2), "g": f(8, seed=3), "b": f(8, seed=4),
}  # fmt: skip
QKV = {"q": f(2, 3, 8), "k": f(2, 5, 8, seed=1), "v": f(2, 5, 8, seed=2)}
CASES = {
    "gelu": single("Gelu", {"x": f(3, 5)}),
    "bias_gelu": single("BiasGelu", {"x": f(3, 5), "b": f(5, seed=1)}),
    "fast_gelu": single("FastGelu", {"x": f(3, 5)}),
    "fast_gelu_bias": single("FastGelu", {"x": f(3, 5), "b": f(5, seed=1)}),
    "quick_gelu": single("QuickGelu", {"x": f(3, 5)}, alpha=1.5),
    "fused_matmul": single("FusedMatMul", {"a": f(2, 5, 3), "b": f(2, 7, 5)},
                           alpha=0.5, transA=1, transB=1),
    "fused_conv": single("FusedConv", {"x": f(1, 3, 5, 5), "w": f(4, 3, 3, 3), "b": f(4)},
                         pads=[1, 1, 1, 1], activation="LeakyRelu", activation_params=[0.2]),
    "skip_layer_norm": single("SkipLayerNormalization", {
        "x": f(2, 3, 8), "s": f(2, 3, 8, seed=1), "g": f(8), "b": f(8, seed=2), "c": f(8, seed=3)}),
    "skip_rms_norm": single("SkipSimplifiedLayerNormalization", {
        "x": f(2, 3, 8), "s": f(2, 3, 8, seed=1), "g": f(8)}, epsilon=1e-5),
    "embed": single("EmbedLayerNormalization", EMBED, 2),
    "embed_mask": single("EmbedLayerNormalization", {**EMBED, "mask": KEEP}, 2),
    "embed_no_segments": single("EmbedLayerNormalization", {**EMBED, "segments": None, "kinds": None}, 2),
    "attention": single("Attention", {"x": f(2, 3, 8), "w": f(8, 24), "b": f(24)}, num_heads=2),
    "attention_causal": single("Attention", {"x": f(2, 3, 8), "w": f(8, 24), "b": f(24)},
                               num_heads=4, unidirectional=1),
    "attention_mask": single("Attention", {
        "x": f(2, 3, 8), "w": f(8, 24), "b": f(24), "m": KEEP}, num_heads=2),
    "attention_lengths": single("Attention", {
        "x": f(2, 3, 8), "w": f(8, 24), "b": f(24), "m": np.array([2, 3], np.int32)}, num_heads=2),
    "attention_past": single("Attention", {
        "x": f(2, 3, 8), "w": f(8, 24), "b": f(24), "m": None, "p": f(2, 2, 2, 4, 4)}, 2,
        num_heads=2, unidirectional=1),
    "multi_head": single("MultiHeadAttention", QKV, num_heads=2),
    "multi_head_bias": single("MultiHeadAttention", {**QKV, "b": f(24)}, num_heads=2, scale=0.3),
    "multi_head_extra": single("MultiHeadAttention", {
        **QKV, "b": None, "m": None, "e": f(2, 2, 3, 5, seed=3)}, num_heads=2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_onnx_runtimes(name: str, compiled: Any) -> None:
    proto, feed = CASES[name]
    (ours,) = compiled(proto).run(feed)
    assert_same(ours, expected(proto, feed))


def test_what_is_not_supported_is_said(compiled: Any) -> None:
    with pytest.raises(ModelError, match="transposed batch axes"):
        compiled(single("FusedMatMul", {"a": f(2, 5, 3), "b": f(2, 3, 5)}, transBatchA=1)[0])
    proto, _ = single("Conv", {"x": f(1, 16, 5, 5), "w": f(16, 16, 1, 1)})
    proto.graph.node[0].domain = "com.microsoft.nchwc"
    proto.opset_import[-1].domain = "com.microsoft.nchwc"
    with pytest.raises(UnsupportedError, match="use the model from before that step"):
        compiled(proto)
