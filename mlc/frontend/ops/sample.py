"""Sampling between the elements of an image at computed places: GridSample, RoiAlign.

Source: onnx/docs/Operators.md (GridSample-16 to -22, RoiAlign-10 to -22) and their reference
implementations (onnx/reference/ops/op_grid_sample.py, op_roi_align.py).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.arith import round_even
from mlc.frontend.ops.linear import matmul
from mlc.frontend.ops.operands import dtype_of, fixed, integers, number, shape_of, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class _Tap:
    """One element per sample along an axis: where (whole floats), how much, whether inside."""

    index: Any
    weight: Any
    inside: Any


def grid_sample(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """GridSample over any number of axes; the grid's last axis has x first."""
    from tvm import relay

    data, grid = inputs
    batch, channels, *size = shape_of(data)
    out = shape_of(grid)[1:-1]
    count = int(np.prod(out))
    corners = bool(attributes.get("align_corners", 0))
    padding = text(attributes, "padding_mode", "zeros")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
        name := text(attributes, "mode", "linear"), name
    )
    if mode not in _MODES or padding not in _PADDINGS:
        raise ModelError(f"the mode {mode!r} with {padding!r} padding is not known")
    taps = []
    for axis, length in enumerate(size):
        place = relay.take(grid, relay.const(len(size) - 1 - axis), axis=-1)
        place = relay.cast(relay.reshape(place, [batch, count]), "float32")
        one, half = number(1, place), number(0.5, place)
        if corners:
            place = (place + one) * number((length - 1) / 2, place)
        else:
            place = ((place + one) * number(length, place) - one) * half
        low, high = (0.0, length - 1.0) if corners else (-0.5, length - 0.5)
        place = round_even(place) if mode == "nearest" else place
        # Each of the taps needs the place: computed once, not once in every tap's kernel code.
        place = relay.annotation.stop_fusion(_PADDINGS[padding](place, low, high, length))
        taps.append([
            _pixel(tap, low, high, length, padding) for tap in _MODES[mode](place)
        ])  # fmt: skip
    flat = relay.reshape(data, [batch, channels, -1])
    return relay.reshape(_combine(flat, size, taps), [batch, channels, *out])


def affine_grid(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """AffineGrid-20: the places of a regular grid, moved by an affine map per batch entry."""
    from tvm import relay

    theta, (batch, _, *size) = inputs[0], integers(inputs[1])
    corners = bool(attributes.get("align_corners", 0))
    axes = []
    for length in size:
        k = np.arange(length)
        place = 2 * k / max(length - 1, 1) - 1 if corners else (2 * k + 1) / length - 1
        axes.append(place)
    # The last axis of the result has x first, and 1 behind the coordinates.
    grid = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(size)], -1)
    points = fixed(grid.reshape(-1, len(size) + 1).astype(dtype_of(theta)))
    moved = matmul([points, relay.transpose(theta, [0, 2, 1])], attributes)
    return relay.reshape(moved, [batch, *size, len(size)])


def gather_linear(flat: Any, size: Sequence[int], places: Sequence[Any]) -> Any:
    """Return data [N, C, elements of `size`] at places [N, samples] per axis; zeros outside."""
    taps = [
        [_pixel(tap, 0.0, length - 1.0, length, "zeros") for tap in _linear(place)]
        for place, length in zip(places, size, strict=True)
    ]
    return _combine(flat, size, taps)


def _combine(flat: Any, size: Sequence[int], taps: Sequence[Sequence[_Tap]]) -> Any:
    """Return the weighted sum over all combinations of one tap per axis, [N, C, samples]."""
    from tvm import relay

    total = None
    for chosen in itertools.product(*taps):
        index: Any = None
        factor: Any = None
        for tap, length in zip(chosen, size, strict=True):
            index = tap.index if index is None else index * number(length, index) + tap.index
            factor = tap.weight if factor is None else factor * tap.weight
            if tap.inside is not None:
                factor = factor * relay.cast(tap.inside, "float32")
        value = _elements(flat, index)
        part = value * relay.cast(relay.expand_dims(factor, 1), dtype_of(value))
        total = part if total is None else total + part
    return total


def _elements(flat: Any, index: Any) -> Any:
    """Return flat[n, c, index[n, s]] as [N, C, samples]."""
    from tvm import relay

    batch, channels, _ = shape_of(flat)
    rows = [batch, channels, shape_of(index)[1]]
    where = relay.broadcast_to(relay.expand_dims(relay.cast(index, "int32"), 1), rows)
    return relay.gather(flat, 2, where)


def _pixel(tap: _Tap, low: float, high: float, length: int, padding: str) -> _Tap:
    """Return a tap whose index is inside the image, by the rule of the padding."""
    from tvm import relay

    inside = None
    index = tap.index
    if padding == "zeros":
        last = number(length - 1, index)
        inside = relay.logical_and(index >= number(0, index), index <= last)
    elif padding == "reflection":
        index = relay.trunc(_reflect(index, low, high, length))
    return _Tap(relay.clip(index, 0.0, length - 1.0), tap.weight, inside)


def _reflect(place: Any, low: float, high: float, _length: int) -> Any:
    """Fold back and forth between the borders: a triangle wave."""
    from tvm import relay

    span = high - low
    if span <= 0:
        return place * number(0, place) + number(low, place)
    turn = relay.mod(relay.abs(place - number(low, place)), number(2 * span, place))
    return number(high, place) - relay.abs(turn - number(span, place))


def _clamp(place: Any, _low: float, _high: float, length: int) -> Any:
    from tvm import relay

    return relay.clip(place, 0.0, length - 1.0)


def _nearest(place: Any) -> list[_Tap]:
    return [_Tap(place, number(1, place), None)]


def _linear(place: Any) -> list[_Tap]:
    from tvm import relay

    first = relay.floor(place)
    rest, one = place - first, number(1, place)
    return [_Tap(first, one - rest, None), _Tap(first + one, rest, None)]


def _cubic(place: Any) -> list[_Tap]:
    """Keys' kernel, a = -0.75, over the four nearest elements."""
    from tvm import relay

    first = relay.floor(place)
    a = -0.75

    def n(value: float) -> Any:
        return number(value, place)

    def near(d: Any) -> Any:
        return ((d * n(a + 2)) - n(a + 3)) * d * d + n(1)

    def far(d: Any) -> Any:
        return ((d * n(a) - n(5 * a)) * d + n(8 * a)) * d - n(4 * a)

    t = place - first
    weights = [far(t + n(1)), near(t), near(n(1) - t), far(n(2) - t)]
    return [_Tap(first + n(k - 1), weight, None) for k, weight in enumerate(weights)]


_MODES: dict[str, Callable[[Any], list[_Tap]]] = {
    "cubic": _cubic,
    "linear": _linear,
    "nearest": _nearest,
}
_PADDINGS: dict[str, Callable[[Any, float, float, int], Any]] = {
    "border": _clamp,
    "reflection": _reflect,
    "zeros": lambda place, _low, _high, _length: place,
}


def roi_align(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """RoiAlign with a fixed number of samples per bin.

    "max" takes the largest weighted corner, as the reference does (and ONNX Runtime).
    """
    from tvm import relay

    data, rois, batch = inputs
    samples = attributes.get("sampling_ratio", 0)
    if samples <= 0:
        raise ModelError("a number of samples that follows the region's size is not supported")
    default = "half_pixel" if attributes["opset"] >= 16 else "output_half_pixel"
    half = text(attributes, "coordinate_transformation_mode", default) == "half_pixel"
    count, (channels, *size) = shape_of(rois)[0], shape_of(data)[1:]
    scale = attributes.get("spatial_scale", 1.0)
    bins = [attributes.get("output_height", 1), attributes.get("output_width", 1)]
    axes = []
    for axis, length in enumerate(size):
        shift = 0.5 if half else 0.0
        start, end = (
            relay.take(rois, relay.const(k), axis=1) * number(scale, rois) - number(shift, rois)
            for k in (1 - axis, 3 - axis)
        )
        extent = end - start if half else relay.maximum(end - start, number(1, rois))
        steps = (np.arange(bins[axis] * samples) + 0.5) / (bins[axis] * samples)
        place = relay.expand_dims(start, 1) + relay.expand_dims(extent, 1) * fixed(
            steps.astype(dtype_of(rois))[None]
        )
        inside = relay.logical_and(place >= number(-1, place), place <= number(length, place))
        place = relay.clip(place, 0.0, length - 1.0)
        low = relay.minimum(relay.floor(place), number(max(length - 2, 0), place))
        rest = place - low if length > 1 else place * number(0, place)
        high = relay.minimum(low + number(1, low), number(length - 1, low))
        weights = [(number(1, rest) - rest), rest]
        axes.append([(low, weights[0], inside), (high, weights[1], inside)])
    flat = relay.reshape(
        relay.take(data, relay.cast(batch, "int32"), axis=0), [count, channels, -1]
    )
    corners = []
    for (y, wy, in_y), (x, wx, in_x) in itertools.product(*axes):
        index = relay.expand_dims(y, 2) * number(size[1], y) + relay.expand_dims(x, 1)
        factor = relay.expand_dims(wy * relay.cast(in_y, dtype_of(wy)), 2) * relay.expand_dims(
            wx * relay.cast(in_x, dtype_of(wx)), 1
        )
        value = _elements(flat, relay.reshape(index, [count, -1]))
        corners.append(value * relay.reshape(factor, [count, 1, -1]))
    grouped = [count, channels, bins[0], samples, bins[1], samples]
    if text(attributes, "mode", "avg") == "max":
        largest = corners[0]
        for corner in corners[1:]:
            largest = relay.maximum(largest, corner)
        return relay.max(relay.reshape(largest, grouped), [3, 5])
    return relay.mean(relay.reshape(sum(corners[1:], corners[0]), grouped), [3, 5])
