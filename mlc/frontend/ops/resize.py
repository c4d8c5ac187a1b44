"""Resize and Upsample, all modes, over any axes.

Interpolation is separable: along one axis every result is a weighted sum of a few elements whose
positions and weights depend on sizes only. So an axis is resized by a few gathers with constant
indices, times constant weights; the compiler fuses them into one kernel.

Source: onnx/docs/Operators.md (Resize-10 to -19, Upsample-7 to -9) and its reference implementation
(onnx/reference/ops/op_resize.py); cubic weights after Keys, "Cubic convolution interpolation for
digital image processing", 1981.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.operands import constant, dtype_of, fixed, optional, shape_of, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """How one axis is resized: sizes, the scale as given, and the region of interest."""

    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0

    @property
    def span(self) -> float:
        """The size that the scale asks for, before it was rounded."""
        return self.scale * self.size


def resize(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Resize-10 to -19: scales or sizes, known at compile time."""
    data = inputs[0]
    shape = shape_of(data)
    if len(inputs) == 2:  # version 10 has (X, scales), and no choice of coordinates
        attributes = {
            "coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor", **attributes,
        }  # fmt: skip
        inputs = [data, None, inputs[1]]
    names = attributes.get("axes", range(len(shape)))
    axes = [axis % len(shape) for axis in names]
    rows = _axes(inputs, attributes, [shape[axis] for axis in axes])
    # Smaller axes first: the intermediate results stay small.
    for axis, row in sorted(zip(axes, rows, strict=True), key=lambda pair: pair[1].scale):
        if row.out != row.size or row.scale != 1 or (row.start, row.end) != (0, 1):
            data = _resize_axis(data, axis, row, attributes)
    return data


def upsample(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Upsample-7 to -9: scales as attribute or input, coordinates from the upper left corner."""
    scales = optional(inputs, 1)
    if scales is None:
        scales = fixed(np.array(attributes["scales"], np.float32))
    return resize([inputs[0], scales], {"mode": attributes.get("mode", b"nearest")})


def _axes(inputs: Sequence[Any], attributes: dict[str, Any], shape: list[int]) -> list[_Axis]:
    count = len(shape)
    roi = _floats(optional(inputs, 1)) or [0.0] * count + [1.0] * count
    if text(attributes, "coordinate_transformation_mode", "") != "tf_crop_and_resize":
        roi = [0.0] * count + [1.0] * count
    scales = _floats(optional(inputs, 2))
    if scales:
        outs = [math.floor(size * scale) for size, scale in zip(shape, scales, strict=True)]
    elif optional(inputs, 3) is not None:
        outs = [int(size) for size in constant(inputs[3]).reshape(-1)]
        scales = [out / size for out, size in zip(outs, shape, strict=True)]
        policy = text(attributes, "keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            scale = min(scales) if policy == "not_larger" else max(scales)
            scales = [scale] * count
            outs = [math.floor(scale * size + 0.5) for size in shape]
    else:
        raise ModelError("it has neither scales nor sizes")
    return [
        _Axis(size=shape[k], out=outs[k], scale=scales[k], start=roi[k], end=roi[count + k])
        for k in range(count)
    ]


def _floats(value: Any) -> list[float]:
    return [] if value is None else [float(v) for v in constant(value).reshape(-1)]


def _resize_axis(data: Any, axis: int, row: _Axis, attributes: dict[str, Any]) -> Any:
    from tvm import relay

    rank, dtype = len(shape_of(data)), dtype_of(data)
    indices, weights, outside = _taps(row, attributes)
    mixed = text(attributes, "mode", "nearest") != "nearest"
    # Interpolated integers are rounded once, at the end of the axis, as the reference does.
    value = relay.cast(data, "float32") if mixed and "float" not in dtype else data
    side = [-1 if k == axis else 1 for k in range(rank)]
    total = None
    for index, weight in zip(indices.T, weights.T, strict=True):
        part = relay.take(value, fixed(index.astype(np.int32)), axis=axis, mode="clip")
        if mixed:
            part = part * fixed(weight.reshape(side).astype(dtype_of(value)))
        total = part if total is None else total + part
    if outside is not None and outside.any():
        fill = relay.const(attributes.get("extrapolation_value", 0.0), dtype_of(value))
        total = relay.where(fixed(outside.reshape(side)), fill, total)
    return total if dtype_of(value) == dtype else relay.cast(total, dtype)


def _taps(row: _Axis, attributes: dict[str, Any]) -> tuple[Array, Array, Array | None]:
    """Return for each result: the elements it takes, their weights; and which lie outside."""
    mode = text(attributes, "coordinate_transformation_mode", "half_pixel")
    if mode not in _COORDINATES:
        raise ModelError(f"the coordinate transformation {mode!r} is not known")
    where = np.asarray(_COORDINATES[mode](np.arange(row.out, dtype=np.float64), row))
    outside = None
    if mode == "tf_crop_and_resize":
        outside = (where < 0) | (where > row.size - 1)
    kind = text(attributes, "mode", "nearest")
    if kind == "nearest":
        index = _ROUNDINGS[text(attributes, "nearest_mode", "round_prefer_floor")](where)
        return np.clip(index, 0, row.size - 1)[:, None], np.ones((row.out, 1)), outside
    if kind not in _KERNELS:
        raise ModelError(f"the interpolation {kind!r} is not known")
    kernel, reach = _KERNELS[kind]
    squeeze = min(row.scale, 1.0) if attributes.get("antialias", 0) else 1.0
    coefficient = attributes.get("cubic_coeff_a", -0.75)
    span = math.ceil(reach / squeeze)
    offsets = np.arange(1 - span, 1 + span)
    index = np.floor(where)[:, None] + offsets
    weights = kernel(np.abs(index - where[:, None]) * squeeze, coefficient)
    if attributes.get("exclude_outside", 0):
        weights = np.where((index >= 0) & (index < row.size), weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    used = np.flatnonzero(np.any(weights != 0, axis=0))
    return np.clip(index, 0, row.size - 1)[:, used], weights[:, used], outside


def _align_corners(k: Array, row: _Axis) -> Array:
    return k * 0 if row.span == 1 else k * (row.size - 1) / (row.span - 1)


def _half_pixel(k: Array, row: _Axis) -> Array:
    return (k + 0.5) / row.scale - 0.5


def _half_pixel_symmetric(k: Array, row: _Axis) -> Array:
    offset: float = row.size / 2 * (1 - row.out / row.span)
    return np.asarray(offset + _half_pixel(k, row))


def _crop(k: Array, row: _Axis) -> Array:
    if row.span == 1:
        return 0.5 * (row.start + row.end) * (row.size - 1) + k * 0
    step = (row.end - row.start) * (row.size - 1) / (row.span - 1)
    return row.start * (row.size - 1) + k * step


def _linear(distance: Array, _coefficient: float) -> Array:
    return np.asarray(np.clip(1 - distance, 0, 1))


def _cubic(d: Array, a: float) -> Array:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


_COORDINATES: dict[str, Callable[[Array, _Axis], Array]] = {
    "align_corners": _align_corners,
    "asymmetric": lambda k, row: k / row.scale,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda k, row: k * 0 if row.span == 1 else _half_pixel(k, row),
    "tf_crop_and_resize": _crop,
    "tf_half_pixel_for_nn": lambda k, row: (k + 0.5) / row.scale,
}
_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}
_KERNELS: dict[str, tuple[Callable[[Array, float], Array], int]] = {
    "cubic": (_cubic, 2),
    "linear": (_linear, 1),
}
