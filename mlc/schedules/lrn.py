"""Local response normalization across channels, in float32, its power from square roots.

    y[c] = x[c] * (bias + alpha / size * sum of x[c']^2 over the `size` channels around c) ^ -beta

(Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012,
section 3.3.) The library's power costs some fifty cycles for each element. With the beta of all known
networks it is 1 / (r * sqrt(r)), r the square root. In blocks of channels (NCHWc) the squares of
a few pixels are laid out channel by channel, so that the neighbours of a vector are vectors, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import te, tir
from tvm.relay.op import op as relay_op
from tvm.relay.transform.infer_layout_utils import InferCorrectLayoutOutput
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm, operator
from mlc.schedules.elementary import f32
from mlc.schedules.tails import MARK

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "mlc.lrn"
_TAG = "mlc_lrn"
_PIXELS = 16  # whose squares are in the L1 cache, at most
_POWERS: dict[float, Callable[[Any], Any]] = {
    0.5: lambda s: f32(1.0) / tir.sqrt(s),
    0.75: lambda s: f32(1.0) / (tir.sqrt(s) * tir.sqrt(tir.sqrt(s))),
    1.0: lambda s: f32(1.0) / s,
}


def takes(call: Any) -> bool:
    """Return whether a Relay call of `nn.lrn` can be `mlc.lrn`: over channels of NCHW, a known beta."""
    type_, attrs = call.checked_type, call.attrs
    return (
        gemm.takes(type_)
        and len(type_.shape) == 4
        and int(attrs.axis) == 1
        and float(attrs.beta) in _POWERS
    )


def normalized(data: Any, attrs: Any) -> Any:
    """Return the Relay call for the attributes of `nn.lrn`."""
    names = ("alpha", "beta", "bias")
    return operator.call(
        NAME, [data], size=int(attrs.size), **{name: float(attrs[name]) for name in names}
    )


def lrn(data: Any, size: int, alpha: float, beta: float, bias: float) -> Any:
    """Return the normalized tensor, like `data`: [n, c, h, w] or [n, c / block, h, w, block]."""
    shape = get_const_tuple(data.shape)
    around, half = range(size), size // 2

    def scaled(element: Any, squares: list[Any]) -> Any:
        return element * _POWERS[beta](f32(bias) + f32(alpha / size) * sum(squares[1:], squares[0]))

    if len(shape) == 4:

        def plain(n: Any, c: Any, *at: Any) -> Any:
            found = []
            for other in (c + k - half for k in around):
                inside = tir.all(other >= 0, other < shape[1])
                x = tir.if_then_else(inside, data[(n, other, *at)], f32(0.0))
                found.append(x * x)
            return scaled(data[(n, c, *at)], found)

        return te.compute(shape, plain, name="lrn", tag=_TAG)

    batch, blocks, height, width, block = shape
    before = -(-half // block)  # blocks of zeros

    def square(n: Any, y: Any, x: Any, c: Any) -> Any:
        b = c // block - before
        element = data[n, b, y, x, c % block]
        return tir.if_then_else(tir.all(b >= 0, b < blocks), element * element, f32(0.0))

    channels = (blocks + 2 * before) * block
    squares = te.compute((batch, height, width, channels), square, name="squares")

    def blocked(n: Any, b: Any, y: Any, x: Any, lane: Any) -> Any:
        first = (b + before) * block + lane - half
        return scaled(data[n, b, y, x, lane], [squares[n, y, x, first + k] for k in around])

    return te.compute(shape, blocked, name="lrn", tag=_TAG)


def _schedule(s: Any, _config: Any, result: Any, out: Any) -> None:
    if len(out.shape) != len(result.shape):
        out = result
    if out.op != result.op:
        s[result].compute_inline()
    if len(result.shape) == 4:
        n, c, h, w = s[out].op.axis
        s[out].parallel(s[out].fuse(n, c, h))
        _, lane = s[out].split(w, factor=gemm.problem(1, 1, 1).lanes)
        s[out].vectorize(lane)
        s[out].pragma(lane, MARK, True)
        return
    n, b, h, w, lane = s[out].op.axis
    width, block = int(result.shape[3]), int(result.shape[4])
    pixels = next((p for p in range(_PIXELS, 3, -1) if width % p == 0), width)
    tile, w = s[out].split(w, factor=pixels)
    s[out].reorder(n, h, tile, b, w, lane)
    s[out].parallel(s[out].fuse(n, h))
    s[out].vectorize(lane)
    squares = next(t for t in result.op.input_tensors if t.op.name == "squares")
    s[squares].compute_at(s[out], tile)
    s[squares].vectorize(s[squares].split(s[squares].op.axis[-1], factor=block)[1])


def install() -> None:
    """Register the operator, its layouts and its strategy."""
    operator.register(
        NAME,
        "local response normalization across channels",
        {"data": "[n, c, h, w], float32, or in blocks"},
        ("MlcLrn", lambda types, _attrs: types[0]),
    )
    operator.register_strategy(NAME, _compute, _scheduled, NAME)
    relay_op.register_infer_correct_layout(NAME, _layouts)


def _layouts(attrs: Any, new: Any, _old: Any, _types: Any) -> Any:
    """Keep the blocks in which the input comes."""
    layout = new[0] if new and new[0].name.startswith("NCHW") else tvm.tir.layout("NCHW")
    return InferCorrectLayoutOutput([layout], [layout], attrs)


def _compute(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    rest = (float(attrs[name]) for name in ("alpha", "beta", "bias"))
    return [lrn(inputs[0], int(attrs["size"]), *rest)]


def _scheduled(outs: Any) -> Any:
    return gemm.schedule_tagged(_TAG, _schedule, None, outs)
