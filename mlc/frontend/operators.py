"""Which ONNX operators can be converted, and the converters that are ours.

TVM's stock converters serve most operators. The rows of `OWN` replace the ones that are wrong or
missing: each is a function `(inputs, attributes) -> relay expression(s)` over typed variables and
constants, with the operator's specification as its source (onnx/docs/Operators.md, by version).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlc import tvm_env
from mlc.errors import ModelError

# What TVM's kernels can hold on a CPU; others would be silently reinterpreted.
DTYPES = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64",
     "uint8", "uint16", "uint32", "uint64", "bool"}
)  # fmt: skip
Converter = Callable[[Sequence[Any], dict[str, Any]], Any]

# TVM looks operators up by name alone. These names mean Microsoft's operator there, not ONNX's.
MICROSOFT = frozenset(
    {"Attention", "BiasGelu", "EmbedLayerNormalization", "FastGelu", "Gelu", "QAttention", "QGemm",
     "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool",
     "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax", "MatMulInteger16",
     "SkipLayerNormalization"}
)  # fmt: skip
# Training, random and legacy entries of TVM's table: no inference graph needs them and none has
# been checked against its specification.
_EXCLUDED = frozenset(
    {"Adagrad", "Adam", "Affine", "ATen", "Bernoulli", "FC", "ImageScaler", "Momentum",
     "Multinomial", "ParametricSoftplus", "RandomNormal", "RandomNormalLike", "RandomUniform",
     "RandomUniformLike", "Scale", "ScaledTanh", "SpatialBN"}
)  # fmt: skip


def supported(domain: str, name: str, opset: int) -> bool:
    """Return whether an operator of the given domain has a conversion."""
    if domain in ("", "ai.onnx"):
        known = name in stock_table(opset) and name not in MICROSOFT | _EXCLUDED
        return known or name in OWN or name == "Constant"
    return domain == "com.microsoft" and name in MICROSOFT


@functools.cache
def stock_table(opset: int) -> dict[str, Any]:
    """Return TVM's converters for an opset by operator name."""
    tvm_env.tvm()
    from tvm.relay.frontend import onnx as frontend

    table: dict[str, Any] = frontend._get_convert_map(opset)
    return table


def constant(value: Any) -> np.ndarray[Any, Any]:
    """Return the value of an input that must be known at compile time.

    Raises:
        ModelError: it is computed at run time.
    """
    from tvm import relay

    if not isinstance(value, relay.Constant):
        raise ModelError("an operand that decides a shape is not a constant")
    return np.asarray(value.data.numpy())


def _optional(inputs: Sequence[Any], position: int) -> Any:
    return inputs[position] if position < len(inputs) else None


def _rank(value: Any) -> int:
    from tvm.relay.frontend.common import infer_shape

    return len(infer_shape(value))


def _reduce(calculate: Callable[..., Any]) -> Converter:
    """Reduce*, versions 1 to 18: axes as attribute or input, none meaning all (or no-op)."""

    def convert(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        axes = attributes.get("axes")
        given = _optional(inputs, 1)
        if given is not None:
            axes = [int(axis) for axis in constant(given).reshape(-1)]
        rank = _rank(inputs[0])
        if not axes:
            axes = [] if attributes.get("noop_with_empty_axes", 0) else list(range(rank))
        keep = bool(attributes.get("keepdims", 1))
        if rank == 0:
            return _reduce_scalar(calculate, inputs[0])
        return calculate(inputs[0], [axis % rank for axis in axes], keep)

    return convert


def _reduce_scalar(calculate: Callable[..., Any], value: Any) -> Any:
    from tvm import relay

    return calculate(relay.expand_dims(value, 0), [0], False)


def _relay_reduce(name: str) -> Callable[..., Any]:
    def calculate(data: Any, axes: list[int], keep: bool) -> Any:
        from tvm import relay

        return getattr(relay, name)(data, axes, keep) if axes else data

    return calculate


def _reduce_of(inner: str, name: str, outer: str = "") -> Callable[..., Any]:
    """outer(reduce(inner(x))): for instance sqrt(sum(x * x)) is ReduceL2."""

    def calculate(data: Any, axes: list[int], keep: bool) -> Any:
        from tvm import relay

        value = data * data if inner == "square" else getattr(relay, inner)(data)
        value = getattr(relay, name)(value, axes, keep) if axes else value
        return getattr(relay, outer)(value) if outer else value

    return calculate


def _log_sum(data: Any, axes: list[int], keep: bool) -> Any:
    from tvm import relay

    return relay.log(relay.sum(data, axes, keep) if axes else data)


def _log_sum_exp(data: Any, axes: list[int], keep: bool) -> Any:
    from tvm import relay

    return relay.op.logsumexp(data, axes, keep) if axes else data


def _gelu(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Gelu-20: 0.5 x (1 + erf(x / sqrt(2))), or its tanh approximation."""
    from tvm import relay
    from tvm.relay.frontend.common import infer_type

    data = inputs[0]
    dtype = infer_type(data).checked_type.dtype

    def number(value: float) -> Any:
        return relay.const(value, dtype)

    if attributes.get("approximate", b"none") == b"tanh":
        cubed = data * data * data * number(0.044715)
        inner = relay.tanh((data + cubed) * number(float(np.sqrt(2 / np.pi))))
    else:
        inner = relay.erf(data * number(float(np.sqrt(0.5))))
    return data * number(0.5) * (inner + number(1.0))


def _layer_norm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """LayerNormalization-17 over the axes from `axis` on; Y, and Mean and InvStdDev behind it."""
    from tvm import relay
    from tvm.relay.frontend.common import infer_type

    data, scale, bias = inputs[0], inputs[1], _optional(inputs, 2)
    kind = infer_type(data).checked_type
    rank = len(kind.shape)
    axes = list(range(attributes.get("axis", -1) % rank, rank))
    epsilon = relay.const(attributes.get("epsilon", 1e-5), kind.dtype)
    mean = relay.mean(data, axes, True)
    centred = data - mean
    inverse = relay.rsqrt(relay.mean(centred * centred, axes, True) + epsilon)
    out = centred * inverse * scale
    return relay.Tuple([out if bias is None else out + bias, mean, inverse])


def _split(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Split-1 to -18: sizes as attribute or input, or `num_outputs` parts, the last smaller."""
    from tvm import relay
    from tvm.relay.frontend.common import infer_shape

    shape = infer_shape(inputs[0])
    axis = attributes.get("axis", 0) % len(shape)
    given = _optional(inputs, 1)
    sizes = attributes.get("split")
    if given is not None:
        sizes = [int(size) for size in constant(given)]
    count = attributes.get("num_outputs", attributes["outputs"])
    if sizes is None:
        part = -(-shape[axis] // count)
        sizes = [min(part, shape[axis] - k * part) for k in range(count)]
    if sum(sizes) != shape[axis] or min(sizes) < 0:
        raise ModelError(f"split sizes {list(sizes)} do not add up to {shape[axis]}")
    if len(sizes) == 1:
        return inputs[0]
    ends = np.cumsum(sizes)[:-1]
    return relay.split(inputs[0], [int(end) for end in ends], axis).astuple()


def _matmul(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """MatMul-13 (numpy.matmul): a product with a weight becomes one dense over all rows."""
    from tvm import relay
    from tvm.relay.frontend.common import infer_type

    del attributes
    left, right = inputs
    kind = infer_type(left).checked_type
    a = [int(size) for size in kind.shape]
    b = [int(size) for size in infer_type(right).checked_type.shape]
    rows, columns = ([] if len(a) == 1 else a[-2:-1]), ([] if len(b) == 1 else b[-1:])
    lead = list(np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2])))
    if len(a) == 1:
        left, a = relay.reshape(left, [1, *a]), [1, *a]
    if len(b) == 1:
        right, b = relay.reshape(right, [*b, 1]), [*b, 1]
    if len(b) == 2:
        flat = relay.reshape(left, [-1, a[-1]]) if len(a) != 2 else left
        out = relay.nn.dense(flat, relay.transpose(right), units=b[1], out_dtype=kind.dtype)
        whole = [*a[:-1], b[1]]
    else:
        left3 = relay.reshape(_broadcast_lead(left, a, lead), [-1, *a[-2:]])
        right3 = relay.reshape(_broadcast_lead(right, b, lead), [-1, *b[-2:]])
        # Our template reads [k, n] as it lies; TVM's x86 schedule, for other types, wants [n, k].
        turned = kind.dtype != "float32"
        if turned:
            right3 = relay.transpose(right3, [0, 2, 1])
        out = relay.nn.batch_matmul(left3, right3, out_dtype=kind.dtype, transpose_b=turned)
        whole = [*lead, a[-2], b[-1]]
    final = [*lead, *rows, *columns]
    return out if whole == final and len(whole) == len(a) == 2 else relay.reshape(out, final)


def _broadcast_lead(value: Any, shape: list[int], lead: list[int]) -> Any:
    from tvm import relay

    wanted = [*lead, *shape[-2:]]
    return value if wanted == shape else relay.broadcast_to(value, wanted)


def _cast(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Cast-1 to -19; `saturate` concerns 8-bit floats only, which are not supported anyway."""
    import onnx
    from tvm import relay

    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])).name
    if dtype not in DTYPES:
        raise ModelError(f"the element type {dtype} is not supported")
    return relay.cast(inputs[0], dtype)


def _identity(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Hand on the input."""
    del attributes
    return inputs[0]


def _dropout(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Dropout-1 to -22 at inference: the input, and a mask that keeps all of it."""
    from tvm import relay
    from tvm.relay.frontend.common import infer_shape

    if attributes["outputs"] == 1:
        return inputs[0]
    return relay.Tuple([inputs[0], relay.ones(infer_shape(inputs[0]), "bool")])


OWN: dict[str, Converter] = {
    "Cast": _cast,
    "Dropout": _dropout,
    "Gelu": _gelu,
    "Identity": _identity,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "ReduceL1": _reduce(_reduce_of("abs", "sum")),
    "ReduceL2": _reduce(_reduce_of("square", "sum", "sqrt")),
    "ReduceLogSum": _reduce(_log_sum),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_relay_reduce("max")),
    "ReduceMean": _reduce(_relay_reduce("mean")),
    "ReduceMin": _reduce(_relay_reduce("min")),
    "ReduceProd": _reduce(_relay_reduce("prod")),
    "ReduceSum": _reduce(_relay_reduce("sum")),
    "ReduceSumSquare": _reduce(_reduce_of("square", "sum")),
    "Split": _split,
}
