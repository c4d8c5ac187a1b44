"""Operators of com.microsoft against ONNX Runtime, whose they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

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
    for zero in {"yz", "iz"} & set(given):
        types["y0"] = types[zero]
    if operator == "MatMulInteger16":
        types["y0"] = INT
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
COSINES, SINES = np.cos(f(9, 2, seed=5)), np.sin(f(9, 2, seed=5))
TURN = {"c": COSINES, "s": SINES}
PLACES = np.array([[3, 0, 8], [1, 1, 2]])


def nbits(bits: int, n: int, k: int, block: int, *, zeros: str = "", bias: bool = False) -> Any:
    """MatMulNBits of random weights; its operands are weights of the model."""
    rng, blocks = models.rng(bits), -(-k // block)
    values = {"w": rng.integers(0, 256, (n, blocks, block * bits // 8), np.uint8),
              "s": np.abs(f(n, blocks)) * np.float32(0.1), "z": None, "g": None, "b": None}  # fmt: skip
    if zeros == "packed":
        values["z"] = rng.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8)
    elif zeros:
        values["z"] = f(n, blocks, seed=3)
    values["b"] = f(n) if bias else None
    proto, feed = single(
        "MatMulNBits", {"x": f(2, 3, k), **values}, bits=bits, N=n, K=k, block_size=block
    )
    return fixed(proto, feed, "x")


def fixed(proto: Any, feed: dict[str, np.ndarray], *inputs: str) -> Any:
    """Make weights of the inputs of a model that are not named."""
    kept = [info for info in proto.graph.input if info.name in inputs]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    weights = [numpy_helper.from_array(a, n) for n, a in feed.items() if n not in inputs]
    proto.graph.initializer.extend(weights)
    return proto, {name: feed[name] for name in inputs}


def scale(value: float, zero: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array(value, np.float32), np.array(zero, np.uint8)


QA, QB, QY = scale(0.02, 120), scale(0.03, 99), scale(0.05, 128)
IMAGE = models.rng(2).integers(0, 256, (1, 3, 5, 7), np.uint8)
U8 = models.rng().integers(0, 256, (3, 5), np.uint8)
I8 = models.rng(1).integers(-128, 128, (5, 4), np.int8)
WIDE = models.rng(3).integers(0, 256, (2, 3, 8), np.uint8)
WEIGHTS = models.rng(4).integers(-128, 128, (8, 24), np.int8)
CASES = {
    **{
        name: fixed(*single(name, {
            "a": U8, "as": QA[0], "az": QA[1], "b": U8[::-1].copy(), "bs": QB[0], "bz": QB[1],
            "ys": QY[0], "yz": QY[1]}), "a", "b")
        for name in ("QLinearAdd", "QLinearMul")
    },
    **{
        name: fixed(*single(name, {
            "a": U8, "as": QA[0], "az": QA[1], "ys": QY[0], "yz": QY[1]}, **more), "a")
        for name, more in {"QLinearSigmoid": {}, "QLinearLeakyRelu": {"alpha": 0.2},
                           "QLinearSoftmax": {"axis": -1, "opset": 13}}.items()
    },
    **{
        name: fixed(*single(name, {
            "a": IMAGE, "as": QA[0], "az": QA[1], "ys": QY[0], "yz": QY[1]}, **more), "a")
        for name, more in {"QLinearGlobalAveragePool": {}, "QLinearAveragePool": {
            "kernel_shape": [2, 3], "strides": [1, 2], "pads": [1, 0, 0, 1]}}.items()
    },
    "QLinearConcat": fixed(*single("QLinearConcat", {
        "ys": QY[0], "yz": QY[1], "a": U8, "as": QA[0], "az": QA[1], "b": U8, "bs": QB[0], "bz": QB[1]},
        axis=1), "a", "b"),
    "QLinearWhere": fixed(*single("QLinearWhere", {
        "c": U8 > 99, "a": U8, "as": QA[0], "az": QA[1], "b": U8 + 7, "bs": QB[0], "bz": QB[1],
        "ys": QY[0], "yz": QY[1]}), "c", "a", "b"),
    "QLinearConv": fixed(*single("QLinearConv", {
        "a": IMAGE, "as": QA[0], "az": QA[1], "w": models.rng().integers(-99, 99, (4, 3, 2, 2), np.int8),
        "ws": np.abs(f(4)), "wz": np.zeros(4, np.int8), "ys": QY[0], "yz": QY[1]}), "a"),
    "QGemm_floats": fixed(*single("QGemm", {
        "a": U8, "as": QA[0], "az": QA[1], "b": I8.T.copy(), "bs": np.abs(f(4)), "bz": I8[0],
        "c": np.arange(4, dtype=np.int32)}, transB=1, alpha=0.5), "a"),
    "QAttention": single("QAttention", {
        "x": WIDE, "w": WEIGHTS, "b": f(24), "xs": QA[0], "ws": QB[0], "m": KEEP, "xz": QA[1],
        "wz": np.array(3, np.int8)}, num_heads=2),
    "QAttention_past": single("QAttention", {
        "x": WIDE, "w": WEIGHTS, "b": f(24), "xs": QA[0], "ws": QB[0], "m": None, "xz": QA[1],
        "wz": np.array(3, np.int8), "p": f(2, 2, 2, 4, 4)}, 2, num_heads=2, unidirectional=1),
    "MatMulInteger16": single("MatMulInteger16", {
        "a": (f(3, 5) * 999).astype(np.int16), "b": (f(5, 4) * 999).astype(np.int16)}),
    "quantise_16": single("QuantizeLinear", {
        "x": f(3, 5) * 9, "s": np.array(0.01, np.float32), "iz": np.array(-70, np.int16)}),
    "dequantise_16": single("DequantizeLinear", {
        "x": (f(3, 5) * 999).astype(np.int16), "s": np.abs(f(5)), "z": np.arange(5, dtype=np.int16)}, axis=1),
    "QGemm": fixed(*single("QGemm", {
        "a": U8, "as": QA[0], "az": QA[1], "b": I8, "bs": QB[0], "bz": np.array(3, np.int8),
        "c": np.arange(4, dtype=np.int32), "ys": QY[0], "yz": QY[1]}), "a"),
    "rotary": single("RotaryEmbedding", {"x": f(2, 3, 8), "p": PLACES, **TURN}),
    "rotary_heads": single("RotaryEmbedding", {"x": f(2, 5, 3, 4), "p": np.array([4]), **TURN}),
    "rotary_interleaved": single("RotaryEmbedding", {"x": f(2, 3, 8), "p": PLACES, **TURN}, interleaved=1),
    "rotary_partial": single("RotaryEmbedding", {"x": f(2, 3, 18), "p": PLACES, **TURN},
                             num_heads=3, rotary_embedding_dim=4),
    "four_bits": nbits(4, 5, 48, 16),
    "four_bits_odd": nbits(4, 7, 40, 16, zeros="packed", bias=True),
    "four_bits_floats": nbits(4, 5, 64, 32, zeros="floats"),
    "eight_bits": nbits(8, 5, 48, 16, zeros="packed"),
    "two_bits": nbits(2, 5, 64, 16, zeros="packed"),
    "dynamic_quantised": single("DynamicQuantizeMatMul", {
        "a": f(3, 5), "b": I8, "s": np.array(0.02, np.float32), "z": np.array(3, np.int8), "c": f(4)}),
    "dynamic_quantised_columns": single("DynamicQuantizeMatMul", {
        "a": np.abs(f(3, 5)), "b": I8, "s": np.abs(f(4)), "z": I8[0]}),
    "integers_to_floats": single("MatMulIntegerToFloat", {
        "a": U8, "b": I8, "as": np.array(0.1, np.float32), "bs": np.abs(f(4)), "az": np.array(100, np.uint8), "bz": I8[1],
        "c": f(4)}),
    "gelu": single("Gelu", {"x": f(3, 5)}),
    "bias_gelu": single("BiasGelu", {"x": f(3, 5), "b": f(5, seed=1)}),
    "fast_gelu": single("FastGelu", {"x": f(3, 5)}),
    "fast_gelu_bias": single("FastGelu", {"x": f(3, 5), "b": f(5, seed=1)}),
    "quick_gelu": single("QuickGelu", {"x": f(3, 5)}, alpha=1.5),
    "fused_matmul": single("FusedMatMul", {"a": f(2, 5, 3), "b": f(2, 7, 5)},
                           alpha=0.5, transA=1, transB=1),
    "fused_gemm": single("FusedGemm", {"a": f(5, 3), "b": f(7, 5), "c": f(7, seed=2)}, transA=1, transB=1,
                         alpha=0.5, beta=2.0, activation="LeakyRelu", activation_alpha=0.2),
    "fused_gemm_relu": single("FusedGemm", {"a": f(3, 5), "b": f(5, 7)}, activation="Relu"),
    "transpose_matmul": single("TransposeMatMul", {"a": f(2, 3, 5), "b": f(2, 7, 5)}, transB=1),
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
    with pytest.raises(ModelError, match="few bits must be constants"):
        compiled(single("MatMulNBits", {
            "x": f(2, 16), "w": np.zeros((3, 1, 8), np.uint8), "s": f(3, 1)},
            bits=4, N=3, K=16, block_size=16)[0])  # fmt: skip
    proto, _ = single("Conv", {"x": f(1, 16, 5, 5), "w": f(16, 16, 1, 1)})
    proto.graph.node[0].domain = "com.microsoft.nchwc"
    proto.opset_import[-1].domain = "com.microsoft.nchwc"
    with pytest.raises(UnsupportedError, match="use the model from before that step"):
        compiled(proto)
