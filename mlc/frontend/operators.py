"""Which ONNX operators can be converted, and by what.

TVM's stock converters serve many operators. The rows of `OWN` replace the ones that are wrong or
missing; their functions stand in `mlc.frontend.ops`, by family. Operators with neither are expanded
to their function bodies where ONNX defines one (`expand`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from mlc import tvm_env
from mlc.frontend.ops import (
    arith,
    conv,
    deform,
    index,
    linear,
    microsoft,
    ms_matmul,
    ms_quant,
    ngram,
    nn,
    pool,
    quant,
    recurrent,
    reduce,
    resize,
    sample,
    signal,
    tensor,
)
from mlc.frontend.stock import STOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.frontend.ops.operands import Converter

# TVM looks operators up by name alone: some names mean Microsoft's operator there, not ONNX's. Those
# of training, random and legacy operators no inference graph needs, nor were they checked.
_EXCLUDED = frozenset(
    {"Adagrad", "Adam", "Affine", "ATen", "Attention", "Bernoulli", "BiasGelu",
     "EmbedLayerNormalization", "FC", "FastGelu", "ImageScaler", "Momentum",
     "Multinomial", "ParametricSoftplus", "RandomNormal", "RandomNormalLike", "RandomUniform",
     "RandomUniformLike", "Scale", "ScaledTanh", "SkipLayerNormalization",
     "SpatialBN", "MatMulInteger16", "QAttention", "QGemm", "QLinearAdd", "QLinearAveragePool",
     "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul",
     "QLinearSigmoid", "QLinearSoftmax",
     # ONNX's function body is right where TVM's converter overflows.
     "Mish"}
)  # fmt: skip


def supported(domain: str, name: str, opset: int) -> bool:
    """Return whether an operator of the given domain has a conversion."""
    return converter(domain, name, opset) is not None


def converter(domain: str, name: str, opset: int) -> Converter | None:
    """Return what converts an operator: ours, else TVM's; None where there is neither."""
    domain = "" if domain == "ai.onnx" else domain
    own = OWN.get(domain, {}).get(name)
    if own is not None:
        return own
    if domain == "" and name in STOCK and name not in _EXCLUDED:
        return _stock(name, opset)
    return None


def _stock(name: str, opset: int) -> Converter:
    """Return TVM's converter in the form of ours; TVM is imported when it is called."""

    def convert(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        from tvm.relay.expr import TupleWrapper
        from tvm.relay.frontend.onnx import GraphProto, onnx_input

        given = {k: v for k, v in attributes.items() if k not in ("opset", "outputs")}
        given["tvm_custom"] = {"name": "", "num_outputs": attributes["outputs"]}
        graph = GraphProto({}, {}, freeze_params=True)
        graph.opset = opset
        with graph:
            local = stock_table(opset)[name](onnx_input(inputs), given, {})
        return local.astuple() if isinstance(local, TupleWrapper) else local

    return convert


@functools.cache
def stock_table(opset: int) -> dict[str, Any]:
    """Return TVM's converters for an opset by operator name."""
    tvm_env.tvm()
    from tvm.relay.frontend import onnx as frontend

    table: dict[str, Any] = frontend._get_convert_map(opset)
    return table


INF = float("inf")
_ONNX: dict[str, Converter] = {
    "AffineGrid": sample.affine_grid,
    "AveragePool": pool.average_pool,
    "BatchNormalization": nn.batch_norm,
    "BitCast": tensor.bit_cast,
    "BitShift": arith.bit_shift,
    "Cast": tensor.cast,
    "CastLike": tensor.cast_like,
    "Clip": arith.clip,
    "Col2Im": conv.col2im,
    "Concat": tensor.concat,
    "Conv": conv.conv,
    "ConvInteger": quant.conv_integer,
    "ConvTranspose": conv.conv_transpose,
    "CumProd": arith.cumulative("cumprod"),
    "CumSum": arith.cumulative("cumsum"),
    "DFT": signal.dft,
    "DeformConv": deform.deform_conv,
    "DequantizeLinear": quant.dequantize,
    "Det": arith.det,
    "Dropout": nn.dropout,
    "EyeLike": index.eye_like,
    "Flatten": index.flatten,
    "GRU": recurrent.gru,
    "Gelu": nn.gelu,
    "GlobalLpPool": pool.global_lp_pool,
    "GridSample": sample.grid_sample,
    "Identity": tensor.identity,
    "LSTM": recurrent.lstm,
    "LayerNormalization": nn.layer_norm,
    "LpNormalization": arith.lp_normalization,
    "LpPool": pool.lp_pool,
    "MatMul": linear.matmul,
    "MatMulInteger": quant.matmul_integer,
    "MaxPool": pool.max_pool,
    "MaxUnpool": pool.max_unpool,
    "Mod": arith.mod,
    "OneHot": index.one_hot,
    "PRelu": nn.prelu,
    "Pad": tensor.pad,
    "QLinearConv": quant.qlinear_conv,
    "QLinearMatMul": quant.qlinear_matmul,
    "QuantizeLinear": quant.quantize,
    "RNN": recurrent.rnn,
    "Range": tensor.arange,
    "ReduceL1": reduce.reduce(reduce.composed("abs", "sum"), 0),
    "ReduceL2": reduce.reduce(reduce.composed("square", "sum", "sqrt"), 0, floating=True),
    "ReduceLogSum": reduce.reduce(reduce.composed("", "sum", "log"), -INF, floating=True),
    "ReduceLogSumExp": reduce.reduce(reduce.log_sum_exp, -INF, floating=True),
    "ReduceMax": reduce.reduce(reduce.extreme("max"), -INF),
    "ReduceMean": reduce.reduce(reduce.plain("mean"), float("nan")),
    "ReduceMin": reduce.reduce(reduce.extreme("min"), INF),
    "ReduceProd": reduce.reduce(reduce.plain("prod"), 1),
    "ReduceSum": reduce.reduce(reduce.plain("sum"), 0),
    "ReduceSumSquare": reduce.reduce(reduce.composed("square", "sum"), 0),
    "Resize": resize.resize,
    "RoiAlign": sample.roi_align,
    "STFT": signal.stft,
    "SimplifiedLayerNormalization": microsoft.rms_norm,
    "Scatter": index.scatter_elements,
    "ScatterElements": index.scatter_elements,
    "ScatterND": index.scatter_nd,
    "Softplus": arith.softplus,
    "SpaceToDepth": tensor.space_to_depth,
    "Split": tensor.split,
    "Squeeze": tensor.squeeze,
    "SwiGLU": nn.swiglu,
    "Swish": nn.swish,
    "TensorScatter": index.tensor_scatter,
    "TfIdfVectorizer": ngram.tf_idf,
    "TopK": index.top_k,
    "Trilu": tensor.trilu,
    "Unsqueeze": tensor.unsqueeze,
    "Upsample": resize.upsample,
}
_ML: dict[str, Converter] = {
    "ArrayFeatureExtractor": index.array_feature_extractor,
    "Binarizer": arith.binarizer,
}
_MICROSOFT: dict[str, Converter] = {
    "Attention": microsoft.attention,
    "BiasGelu": microsoft.bias_gelu,
    "DequantizeLinear": quant.dequantize,
    "DynamicQuantizeMatMul": ms_matmul.dynamic_quantize_matmul,
    "EmbedLayerNormalization": microsoft.embed_layer_norm,
    "FastGelu": microsoft.ms_fast_gelu,
    "FusedConv": microsoft.fused_conv,
    "FusedGemm": microsoft.fused_gemm,
    "FusedMatMul": microsoft.fused_matmul,
    "Gelu": nn.gelu,
    "MatMulInteger16": quant.matmul_integer,
    "MatMulIntegerToFloat": ms_matmul.matmul_integer_to_float,
    "MatMulNBits": ms_matmul.matmul_nbits,
    "MultiHeadAttention": microsoft.multi_head_attention,
    "QAttention": microsoft.quantised_attention,
    "QGemm": ms_quant.gemm,
    "QLinearAdd": ms_quant.binary("add"),
    "QLinearAveragePool": ms_quant.average,
    "QLinearConcat": ms_quant.concat,
    "QLinearConv": ms_quant.conv,
    "QLinearGlobalAveragePool": ms_quant.global_average,
    "QLinearLeakyRelu": ms_quant.leaky_relu,
    "QLinearMul": ms_quant.binary("multiply"),
    "QLinearSigmoid": ms_quant.sigmoid,
    "QLinearSoftmax": ms_quant.softmax,
    "QLinearWhere": ms_quant.where,
    "QuantizeLinear": quant.quantize,
    "QuickGelu": microsoft.quick_gelu,
    "RotaryEmbedding": microsoft.rotary_embedding,
    "SkipLayerNormalization": microsoft.skip_layer_norm,
    "SkipSimplifiedLayerNormalization": microsoft.skip_rms_norm,
    "TransposeMatMul": microsoft.fused_matmul,
}
_CONTROL: dict[str, Converter] = {"Select": tensor.select}
OWN: dict[str, dict[str, Converter]] = {
    "": _ONNX,
    "ai.onnx.ml": _ML,
    "com.microsoft": _MICROSOFT,
    "mlc": _CONTROL,
}
