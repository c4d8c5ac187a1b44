"""Fourier transforms of short, fixed length: products with constant matrices.

Source: onnx/docs/Operators.md (DFT-17 and -20, STFT-17). Computed in double precision: a transform
cancels most of what it adds up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.linear import dense
from mlc.frontend.ops.operands import dtype_of, fixed, integers, optional, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_LENGTH = 8192  # the matrix has the square of it


def dft(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """DFT: real or complex input, whole or one-sided, forward or inverse."""
    data = inputs[0]
    shape = shape_of(data)
    inverse, onesided = bool(attributes.get("inverse", 0)), bool(attributes.get("onesided", 0))
    if attributes["opset"] < 20:
        axis = attributes.get("axis", 1)
    else:
        axis = integers(inputs[2])[0] if optional(inputs, 2) is not None else -2
    axis %= len(shape)
    length = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    if optional(inputs, 1) is not None:
        length = integers(inputs[1])[0]
    return _transform(data, axis, length, inverse=inverse, onesided=onesided)


def stft(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """STFT: frames of the signal, times the window, transformed; [batch, frames, bins, 2]."""
    from tvm import relay

    data, window = inputs[0], optional(inputs, 2)
    step = integers(inputs[1])[0]
    size = shape_of(data)[1]
    length = shape_of(window)[0] if window is not None else size
    if optional(inputs, 3) is not None:
        length = integers(inputs[3])[0]
    starts = np.arange(1 + (size - length) // step) * step
    where = starts[:, None] + np.arange(length)
    frames = relay.take(data, fixed(where), axis=1)
    if window is not None:
        frames = frames * relay.reshape(window, [1, 1, length, 1])
    onesided = bool(attributes.get("onesided", 1)) and shape_of(data)[2] == 1
    return _transform(frames, 2, length, inverse=False, onesided=onesided)


def _transform(data: Any, axis: int, length: int, *, inverse: bool, onesided: bool) -> Any:
    from tvm import relay

    if not 0 < length <= _MAX_LENGTH:
        raise ModelError(f"a transform of length {length} is not supported (up to {_MAX_LENGTH})")
    shape, dtype = shape_of(data), dtype_of(data)
    half = length // 2 + 1
    taken = min(shape[axis], half if inverse and onesided else length)
    results = half if onesided and not inverse else length
    cosine, sine = _matrices(taken, results, length, inverse=inverse, onesided=onesided)
    # The axis becomes the last one, its elements beyond the length are cut off.
    order = [k for k in range(len(shape) - 1) if k != axis] + [axis]
    rows = [shape[k] for k in order[:-1]]

    def part(index: int) -> Any:
        value = relay.transpose(relay.take(data, relay.const(index), axis=-1), order)
        value = relay.strided_slice(value, [0], [taken], axes=[len(rows)])
        return relay.reshape(relay.cast(value, "float64"), [-1, taken])

    def times(value: Any, matrix: Any) -> Any:
        return dense(value, fixed(matrix))

    real, imaginary = times(part(0), cosine), times(part(0), sine)
    if shape[-1] == 2:
        real = real - times(part(1), sine)
        imaginary = imaginary + times(part(1), cosine)
    parts = [real] if inverse and onesided else [real, imaginary]
    back = list(np.argsort(order))
    outs = [
        relay.transpose(relay.cast(relay.reshape(p, [*rows, results]), dtype), back) for p in parts
    ]
    return relay.stack(outs, -1)


def _matrices(
    taken: int, results: int, length: int, *, inverse: bool, onesided: bool
) -> tuple[Any, Any]:
    """Return the real and imaginary part of the transform, [results, taken]."""
    turns = np.outer(np.arange(results), np.arange(taken)) % length
    angle = 2 * np.pi * turns / length * (1 if inverse else -1)
    scale = np.full(taken, 1 / length if inverse else 1.0)
    if inverse and onesided:
        # Each bin stands for its mirror image too, but for the first and the middle one.
        k = np.arange(taken)
        scale = np.where((k == 0) | (2 * k == length), scale, 2 * scale)
    return np.cos(angle) * scale, np.sin(angle) * scale
