"""Operators of the domain com.microsoft that exporters and ONNX Runtime's optimizer write.

Source: onnxruntime/docs/ContribOperators.md; compared with ONNX Runtime in the tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops import conv, ms_quant
from mlc.frontend.ops.linear import matmul
from mlc.frontend.ops.nn import fast_gelu, gelu
from mlc.frontend.ops.operands import dtype_of, fixed, number, optional, shape_of, text

if TYPE_CHECKING:
    from collections.abc import Sequence


def fused_matmul(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """FusedMatMul: alpha times the product, either side transposed first."""
    from tvm import relay

    sides = []
    for value, name in zip(inputs[:2], "AB", strict=True):
        if attributes.get(f"transBatch{name}", 0):
            raise ModelError("transposed batch axes are not supported")
        rank = len(shape_of(value))
        swap = attributes.get(f"trans{name}", 0) and rank > 1
        order = [*range(rank - 2), rank - 1, rank - 2]
        sides.append(relay.transpose(value, order) if swap else value)
    out = matmul(sides, attributes)
    return out * number(attributes.get("alpha", 1.0), out)


def bias_gelu(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """BiasGelu: Gelu of the sum, by the error function."""
    del attributes
    return gelu([inputs[0] + inputs[1]], {})


def ms_fast_gelu(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """FastGelu: Gelu by tanh, of the sum with a bias where there is one."""
    del attributes
    bias = optional(inputs, 1)
    return fast_gelu(inputs[0] if bias is None else inputs[0] + bias)


def quick_gelu(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QuickGelu: x sigmoid(alpha x)."""
    from tvm import relay

    return inputs[0] * relay.sigmoid(inputs[0] * number(attributes.get("alpha", 1.702), inputs[0]))


def fused_gemm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """FusedGemm: activation(alpha a b + beta c), either side transposed first."""
    out = fused_matmul(inputs, attributes)
    if optional(inputs, 2) is not None:
        out = out + inputs[2] * number(attributes.get("beta", 1.0), out)
    names = ("activation_alpha", "activation_beta")
    return _activated(out, attributes, [attributes.get(name, 0.0) for name in names])


def fused_conv(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """FusedConv: activation(conv + bias + addend)."""
    out = conv.conv(inputs[:3], attributes)
    if optional(inputs, 3) is not None:
        out = out + inputs[3]
    return _activated(out, attributes, attributes.get("activation_params", []))


def _activated(value: Any, attributes: dict[str, Any], parameters: Sequence[float]) -> Any:
    from tvm import relay

    name = text(attributes, "activation", "")
    a, b = [*parameters, 0.0, 0.0][:2]
    rules = {
        "": lambda x: x,
        "Clip": lambda x: relay.clip(x, a, b),
        "HardSigmoid": lambda x: relay.clip(x * number(a, x) + number(b, x), 0.0, 1.0),
        "LeakyRelu": lambda x: relay.nn.leaky_relu(x, a),
        "Relu": relay.nn.relu,
        "Sigmoid": relay.sigmoid,
        "Tanh": relay.tanh,
    }
    if name not in rules:
        raise ModelError(f"the activation {name!r} is not supported")
    return rules[name](value)


def _normalized(value: Any, scale: Any, bias: Any, epsilon: float, *, centre: bool = True) -> Any:
    """Return (the normalised value, mean, inverse deviation) over the last axis."""
    from tvm import relay

    mean = relay.mean(value, [-1], True)
    centred = value - mean if centre else value
    variance = relay.mean(centred * centred, [-1], True)
    inverse = relay.rsqrt(variance + number(epsilon, value))
    out = centred * inverse * scale
    return out if bias is None else out + bias, mean, inverse


def skip_layer_norm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """SkipLayerNormalization: output, mean, inverse deviation, and the sum that was normalised."""
    from tvm import relay

    data, skip, gamma = inputs[:3]
    bias = optional(inputs, 4)
    total = data + skip if bias is None else data + skip + bias
    epsilon = attributes.get("epsilon", 1e-12)
    return relay.Tuple([*_normalized(total, gamma, optional(inputs, 3), epsilon), total])


def skip_rms_norm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """SkipSimplifiedLayerNormalization: the same without mean and beta."""
    from tvm import relay

    data, skip, gamma = inputs[:3]
    bias = optional(inputs, 3)
    total = data + skip if bias is None else data + skip + bias
    epsilon = attributes.get("epsilon", 1e-12)
    return relay.Tuple([*_normalized(total, gamma, None, epsilon, centre=False), total])


def rms_norm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """SimplifiedLayerNormalization over the last axis: output and inverse deviation."""
    from tvm import relay

    rank = len(shape_of(inputs[0]))
    if attributes.get("axis", -1) % rank != rank - 1:
        raise ModelError("only the last axis is supported")
    epsilon = attributes.get("epsilon", 1e-5)
    out, _, inverse = _normalized(inputs[0], inputs[1], None, epsilon, centre=False)
    return relay.Tuple([out, inverse])


def embed_layer_norm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """EmbedLayerNormalization: output, how long each text is, and the sum of the embeddings."""
    from tvm import relay

    ids, segments, words, places, kinds, gamma, beta = inputs[:7]
    mask, positions = optional(inputs, 7), optional(inputs, 8)
    batch, length = shape_of(ids)
    total = relay.take(words, ids, axis=0)
    if positions is None:
        positions = fixed(np.arange(length, dtype=np.int32))
    total = total + relay.take(places, positions, axis=0)
    if segments is not None:
        total = total + relay.take(kinds, segments, axis=0)
    out, _, _ = _normalized(total, gamma, beta, attributes.get("epsilon", 1e-12))
    lengths = relay.zeros([batch], "int32")
    if mask is not None:
        lengths = relay.sum(relay.cast(mask, "int32"), [1])
    return relay.Tuple([out, lengths, total])


def attention(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Attention: input times packed weights gives query, key and value; output and present."""
    data, weights, bias = inputs[:3]
    mask, past, extra = (optional(inputs, k) for k in (3, 4, 5))
    if optional(inputs, 6) is not None:
        raise ModelError("a past that shares its buffer with the present is not supported")
    packed = matmul([data, weights], attributes)
    packed = packed if bias is None else packed + bias
    return _packed_attention(packed, mask, past, extra, attributes)


def quantised_attention(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """QAttention: Attention whose first product is one of integers."""
    packed = ms_quant.attention_projection(inputs, attributes)
    return _packed_attention(packed, optional(inputs, 5), optional(inputs, 8), None, attributes)


def _packed_attention(
    packed: Any, mask: Any, past: Any, extra: Any, attributes: dict[str, Any]
) -> Any:
    from tvm import relay

    heads, width = attributes["num_heads"], shape_of(packed)[2]
    sizes = list(attributes.get("qkv_hidden_sizes", [])) or [width // 3] * 3
    parts = relay.split(packed, [int(n) for n in np.cumsum(sizes)[:-1]], axis=2)
    query, key, value = (_by_head(part, heads) for part in parts)
    if past is not None:
        old_key, old_value = (relay.take(past, relay.const(k), axis=0) for k in (0, 1))
        key = relay.concatenate([old_key, key], 2)
        value = relay.concatenate([old_value, value], 2)
    out = _attend(query, key, value, _masks(query, key, mask, extra, attributes), attributes)
    return relay.Tuple([out, relay.stack([key, value], 0)])


def multi_head_attention(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """MultiHeadAttention of separate query, key and value, [batch, length, heads * size] each."""
    from tvm import relay

    query, key, value = inputs[0], optional(inputs, 1), optional(inputs, 2)
    bias, mask, extra, old_key, old_value = (optional(inputs, k) for k in (3, 4, 5, 6, 7))
    if key is None or value is None or {len(shape_of(v)) for v in (query, key, value)} != {3}:
        raise ModelError("packed or pre-computed keys and values are not supported")
    if bias is not None:
        ends = np.cumsum([shape_of(v)[2] for v in (query, key)])
        biases = relay.split(bias, [int(n) for n in ends], 0)
        query, key, value = (v + b for v, b in zip((query, key, value), biases, strict=True))
    heads = attributes["num_heads"]
    query, key, value = (_by_head(part, heads) for part in (query, key, value))
    if old_key is not None:
        key = relay.concatenate([old_key, key], 2)
        value = relay.concatenate([old_value, value], 2)
    out = _attend(query, key, value, _masks(query, key, mask, extra, attributes), attributes)
    return relay.Tuple([out, key, value])


def _by_head(value: Any, heads: int) -> Any:
    """[batch, length, heads * size] -> [batch, heads, length, size]."""
    from tvm import relay

    batch, length, width = shape_of(value)
    split = relay.reshape(value, [batch, length, heads, width // heads])
    return relay.transpose(split, [0, 2, 1, 3])


def _masks(query: Any, key: Any, mask: Any, extra: Any, attributes: dict[str, Any]) -> list[Any]:
    """Return what is added to the scores [batch, heads, length, total]."""
    from tvm import relay

    dtype, filtered = dtype_of(query), attributes.get("mask_filter_value", -10000.0)
    batch, _, length, _ = shape_of(query)
    total = shape_of(key)[2]
    added = [] if extra is None else [extra]
    if mask is not None:
        shape = shape_of(mask)
        if shape == [batch]:  # how many keys count, the rest is padding behind them
            keep = fixed(np.arange(total, dtype=np.int32)) < relay.expand_dims(mask, 1)
            shape = [batch, total]
        else:
            keep = relay.not_equal(mask, number(0, mask))
        sides = {2: [batch, 1, 1, total], 3: [batch, 1, length, total]}
        if len(shape) not in sides or shape[-1] != total:
            raise ModelError(f"a mask of shape {shape} is not supported")
        keep = relay.reshape(keep, sides[len(shape)])
        added.append(relay.where(keep, relay.const(0.0, dtype), relay.const(filtered, dtype)))
    if attributes.get("unidirectional", 0):
        future = np.tri(length, total, total - length) == 0
        added.append(fixed(np.where(future, np.finfo(dtype).min, 0).astype(dtype)))
    return added


def _attend(
    query: Any, key: Any, value: Any, added: Sequence[Any], attributes: dict[str, Any]
) -> Any:
    from tvm import relay

    batch, heads, length, size = shape_of(query)
    scale = attributes.get("scale", 0.0) or 1 / np.sqrt(size)
    scores = matmul([query, relay.transpose(key, [0, 1, 3, 2])], attributes)
    scores = scores * number(float(scale), scores)
    for term in added:
        scores = scores + term
    out = matmul([relay.nn.softmax(scores, -1), value], attributes)
    return relay.reshape(
        relay.transpose(out, [0, 2, 1, 3]), [batch, length, heads * shape_of(value)[3]]
    )


def rotary_embedding(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """RotaryEmbedding of [batch, length, heads * size] or [batch, heads, length, size].

    Positions are [batch, length], or [1]: the first of each text. What lies behind the first
    `rotary_embedding_dim` elements of a head is left alone.
    """
    from tvm import relay

    data, positions, cosines, sines = inputs[:4]
    if attributes.get("is_packed_batching", 0):
        raise ModelError("packed batches are not supported")
    shape, half = shape_of(data), shape_of(cosines)[1]
    heads = attributes.get("num_heads", 0)
    partial = attributes.get("rotary_embedding_dim", 0)
    if len(shape) == 3:
        size = shape[2] // heads if partial else 2 * half
        data = _by_head(data, shape[2] // size)
    batch, _, length, size = shape_of(data)
    if shape_of(positions) == [1]:
        steps = fixed(np.arange(length, dtype=np.int64))
        positions = relay.broadcast_to(positions + steps, [batch, length])
    tables = [relay.take(table, positions, axis=0) for table in (cosines, sines)]
    cosine, sine = (relay.expand_dims(table, 1) for table in tables)
    turned, *rest = relay.split(data, [2 * half], axis=3) if 2 * half < size else [data]
    turned = _turned(turned, cosine, sine, interleaved=bool(attributes.get("interleaved", 0)))
    out = relay.concatenate([turned, *rest], 3) if rest else turned
    return out if len(shape) == 4 else relay.reshape(relay.transpose(out, [0, 2, 1, 3]), shape)


def _turned(value: Any, cosine: Any, sine: Any, *, interleaved: bool) -> Any:
    """Turn pairs of the last axis: neighbours, or an element and the one half the axis further."""
    from tvm import relay

    shape = shape_of(value)
    pairs = [*shape[:-1], shape[-1] // 2, 2] if interleaved else [*shape[:-1], 2, shape[-1] // 2]
    axis = len(shape) if interleaved else len(shape) - 1
    split = relay.reshape(value, pairs)
    x, y = (relay.take(split, relay.const(k), axis=axis) for k in (0, 1))
    turned = relay.stack([x * cosine - y * sine, x * sine + y * cosine], axis)
    return relay.reshape(turned, shape)
