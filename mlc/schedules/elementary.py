"""exp, tanh and sigmoid in float32 as arithmetic, which LLVM turns into vectors; NaN stays NaN.

TVM calls the C library for each element. TVM's `fast_exp` clamps its argument to -88: it loses NaN, and
exp(-inf), what a mask in attention asks for, is not 0.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import te, tir
from tvm.relay.op import op as relay_op

from mlc.schedules import operator

EXP = "mlc.exp"

_LOG2_E = 1.44269504088896341
# ln 2 in two parts: a multiple of the first by an integer below 2^8 is exact in float32.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# exp(f) = 1 + f + f^2 P(f) for |f| <= ln 2 / 2, highest power first: S. L. Moshier, Cephes, expf.
_P = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
)  # fmt: skip
_SHIFT = 12582912.0  # 1.5 * 2^23: added to an integer, its low bits hold that (a cast of NaN is undefined)
_LOWEST = -86.6  # below it the result, at most 2.5e-38, becomes 0
_HIGHEST = 89.0  # from here on the result is infinite anyway

# tanh(x) = x N(x^2) / D(x^2), lowest power first: Eigen, `generic_fast_tanh_float`, which TVM's
# `fast_tanh` takes as well. Beyond the bound it is 1 in float32.
_TANH_OVER = (
    4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08,
    -8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16,
)  # fmt: skip
_TANH_UNDER = (
    4.89352518554385e-03,
    2.26843463243900e-03,
    1.18534705686654e-04,
    1.19825839466702e-06,
)
_TANH_BOUND = 9.0


def exp(x: Any) -> Any:
    """Return e to the power of a float32 expression, within 2 units in the last place.

    NaN stays NaN, what is below -86.6 gives exactly 0, what overflows infinity.
    """
    below = tir.Select(x > f32(_HIGHEST), f32(_HIGHEST), x)
    n = tir.floor(below * f32(_LOG2_E) + f32(0.5))
    f = below - n * f32(_LN2_HIGH) - n * f32(_LN2_LOW)
    series = _polynomial(_P, f)
    series = series * f * f + f + f32(1.0)
    # 2^(n - 1), then twice that: 2^128 is no float32.
    integer = tir.reinterpret("int32", n + f32(_SHIFT))
    power = tir.reinterpret("float32", (integer + tir.const(126, "int32")) << 23)
    return tir.Select(x < f32(_LOWEST), f32(0.0), series * power * f32(2.0))


def tanh(x: Any) -> Any:
    """Return tanh of a float32 expression, within 1e-6; it should be cheap, it occurs often."""
    bounded = tir.max(tir.min(x, f32(_TANH_BOUND)), f32(-_TANH_BOUND))
    square = bounded * bounded
    over, under = (_polynomial(row[::-1], square) for row in (_TANH_OVER, _TANH_UNDER))
    return tir.Select(tir.isnan(x), x, bounded * over / under)


def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + exp(-x)) of a float32 expression."""
    return f32(1.0) / (f32(1.0) + exp(-x))


def f32(value: float) -> Any:
    """Return a float32 constant."""
    return tir.const(value, "float32")


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """Return a polynomial of x by Horner's rule, highest power first."""
    return functools.reduce(lambda total, term: total * x + term, map(f32, coefficients))


def install() -> None:
    """Register the element-wise operator `mlc.exp`."""
    operator.register(
        EXP,
        "e to the power of each element, on vectors",
        {"data": "float32"},
        ("MlcExp", lambda types, _attrs: types[0]),
        relay_op.OpPattern.ELEMWISE,
    )
    relay_op.register_compute(EXP, _compute)
    relay_op.register_injective_schedule(EXP)


def _compute(_attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    (data,) = inputs
    return [te.compute(data.shape, lambda *axes: exp(data(*axes)), name="exp", tag="elemwise")]
