"""Products of com.microsoft whose operands are integers of few bits.

Source: onnxruntime/docs/ContribOperators.md; compared with ONNX Runtime in the tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.linear import matmul
from mlc.frontend.ops.operands import constant, dtype_of, fixed, number, optional
from mlc.frontend.ops.quant import matmul_integer

if TYPE_CHECKING:
    from collections.abc import Sequence


def matmul_nbits(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """MatMulNBits: a times weights in blocks of 2, 4 or 8 bits along K, which become floats here.

    a: [..., K]; weights: uint8[N, K / block, block * bits / 8], low bits first; scales: [N, K / block];
    zero points: packed like the weights along the blocks, or floats; the middle where left out.
    """
    from tvm import relay

    data, packed, scales = inputs[:3]
    bits, block = attributes.get("bits", 4), attributes["block_size"]
    rows, depth = attributes["N"], attributes["K"]
    if bits not in (2, 4, 8):
        raise ModelError(f"weights of {bits} bits are not supported")
    if optional(inputs, 4) is not None or attributes.get("weight_prepacked", 0):
        raise ModelError("weights in another order (g_idx, weight_prepacked) are not supported")
    if any(isinstance(v, relay.Expr) and not isinstance(v, relay.Constant) for v in inputs[1:4]):
        raise ModelError("weights of few bits must be constants")
    blocks = -(-depth // block)
    values = _unpacked(constant(packed).reshape(rows, blocks, -1), bits)[:, :, :block]
    zeros = _zero_points(optional(inputs, 3), (rows, blocks), bits)
    scale = constant(scales).reshape(rows, blocks, 1).astype(np.float32)
    weights = ((values - zeros) * scale).reshape(rows, -1)[:, :depth]
    out = matmul([data, fixed(np.ascontiguousarray(weights.T).astype(dtype_of(data)))], attributes)
    bias = optional(inputs, 5)
    return out if bias is None else out + bias


def _unpacked(array: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """uint8[..., n] -> float32[..., n * 8 / bits], the low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (array[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(*array.shape[:-1], -1).astype(np.float32)


def _zero_points(value: Any, shape: tuple[int, int], bits: int) -> np.ndarray[Any, Any]:
    """Return float32[N, blocks, 1]."""
    if value is None:
        return np.full((*shape, 1), 1 << (bits - 1), np.float32)
    array = constant(value).reshape(shape[0], -1)
    array = _unpacked(array, bits) if array.dtype == np.uint8 else array.astype(np.float32)
    return array[:, : shape[1], None]


def matmul_integer_to_float(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """MatMulIntegerToFloat: the product in 32-bit integers, times both scales, plus a bias."""
    from tvm import relay

    a, b, a_scale, b_scale = inputs[:4]
    zeros = [optional(inputs, 4), optional(inputs, 5)]
    total = relay.cast(matmul_integer([a, b, *zeros], attributes), dtype_of(a_scale))
    out = total * (a_scale * b_scale)
    bias = optional(inputs, 6)
    return out if bias is None else out + bias


def dynamic_quantize_matmul(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """DynamicQuantizeMatMul: a is quantised to 8 bits by its own range first (DynamicQuantizeLinear)."""
    from tvm import relay

    from mlc.frontend.ops.quant import quantize

    a, b, b_scale = inputs[:3]
    zero = number(0, a)
    low = relay.minimum(relay.min(a), zero)
    high = relay.maximum(relay.max(a), zero)
    scale = (high - low) / number(255, a)
    scale = relay.where(relay.equal(scale, zero), number(1, a), scale)
    start = quantize([zero - low, scale], {})
    quantised = quantize([a, scale, start], {})
    operands = [quantised, b, scale, b_scale, start, optional(inputs, 3), optional(inputs, 4)]
    return matmul_integer_to_float(operands, attributes)
