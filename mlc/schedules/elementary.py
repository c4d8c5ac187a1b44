"""exp, tanh, erf and sigmoid in float32 as arithmetic, which LLVM turns into vectors; NaN stays NaN.

TVM calls the C library for each element. TVM's `fast_exp` clamps its argument to -88: it loses NaN, and
exp(-inf), what a mask in attention asks for, is not 0.

In a schedule they are intrinsics (`tir.mlc.exp`), whose formula stands for them when vectors are made:
TVM's passes walk an expression once per use, and a formula uses its argument up to fifty times. So
much for each of two nested functions multiplies, and sigmoid behind softplus took a minute to compile.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm import tir
from tvm.ir import _ffi_api, register_intrin_lowering, register_op_attr

from mlc.schedules import operator

if TYPE_CHECKING:
    from collections.abc import Callable

EXP = "mlc.exp"
_INTRINSIC = "tir.mlc."

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

# erf(x) likewise: Eigen, `generic_fast_erf_float`, and TVM's `fast_erf`.
_ERF_OVER = (
    -1.60960333262415e-02, -2.95459980854025e-03, -7.34990630326855e-04, -5.69250639462346e-05,
    -2.10102402082508e-06, 2.77068142495902e-08, -2.72614225801306e-10,
)  # fmt: skip
_ERF_UNDER = (
    -1.42647390514189e-02, -7.37332916720468e-03, -1.68282697438203e-03, -2.13374055278905e-04,
    -1.45660718464996e-05,
)  # fmt: skip
_ERF_BOUND = 4.0


def exp(x: Any) -> Any:
    """Return e to the power of a float32 expression, within 2 units in the last place.

    NaN stays NaN, what is below -86.6 gives exactly 0, what overflows infinity.
    """
    return tir.call_intrin(x.dtype, _INTRINSIC + "exp", x)


def tanh(x: Any) -> Any:
    """Return tanh of a float32 expression, within 1e-6; NaN stays NaN."""
    return tir.call_intrin(x.dtype, _INTRINSIC + "tanh", x)


def erf(x: Any) -> Any:
    """Return the error function of a float32 expression, within 1e-6; NaN stays NaN."""
    return tir.call_intrin(x.dtype, _INTRINSIC + "erf", x)


def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + exp(-x)) of a float32 expression."""
    return f32(1.0) / (f32(1.0) + exp(-x))


def f32(value: float) -> Any:
    """Return a float32 constant."""
    return tir.const(value, "float32")


def _exp(x: Any) -> Any:
    const = partial(tir.const, dtype=x.dtype)
    below = tir.Select(x > const(_HIGHEST), const(_HIGHEST), x)
    n = tir.floor(below * const(_LOG2_E) + const(0.5))
    f = below - n * const(_LN2_HIGH) - n * const(_LN2_LOW)
    series = _polynomial(_P, f) * f * f + f + const(1.0)
    # 2^(n - 1), then twice that: 2^128 is no float32.
    kind = x.dtype.replace("float", "int")
    integer = tir.reinterpret(kind, n + const(_SHIFT)) + tir.const(126, kind)
    power = tir.reinterpret(x.dtype, integer << tir.const(23, kind))
    return tir.Select(x < const(_LOWEST), const(0.0), series * power * const(2.0))


def _rational(bound: float, over: tuple[float, ...], under: tuple[float, ...], x: Any) -> Any:
    """Return y N(y^2) / D(y^2), y being x within a bound; coefficients lowest power first."""
    y = tir.max(tir.min(x, tir.const(bound, x.dtype)), tir.const(-bound, x.dtype))
    quotient = _polynomial(over[::-1], y * y) / _polynomial(under[::-1], y * y)
    return tir.Select(tir.isnan(x), x, y * quotient)


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """Return a polynomial of x by Horner's rule, highest power first."""
    terms = (tir.const(value, x.dtype) for value in coefficients)
    return functools.reduce(lambda total, term: total * x + term, terms)


#: by intrinsic: its formula, from an expression of float32 or vectors of it
FORMULAS: dict[str, Callable[[Any], Any]] = {
    _INTRINSIC + "exp": _exp,
    _INTRINSIC + "tanh": partial(_rational, _TANH_BOUND, _TANH_OVER, _TANH_UNDER),
    _INTRINSIC + "erf": partial(_rational, _ERF_BOUND, _ERF_OVER, _ERF_UNDER),
}


def install() -> None:
    """Register the intrinsics, and the element-wise operators `mlc.exp`, `mlc.tanh` and `mlc.erf`."""
    for name, formula in FORMULAS.items():
        _ffi_api.RegisterOp(name, "an elementary function of float32")
        register_op_attr(name, "TCallEffectKind", tir.expr.CallEffectKind.Pure)
        register_op_attr(name, "TVectorizable", True)
        # Where `registers` has not written it out (in a branch, or without our passes).
        register_intrin_lowering(name, target="default", f=partial(_written_out, formula))
    for function, what in _OPERATORS:
        operator.register_elementwise(
            f"mlc.{function.__name__}",
            f"{what} of each element, on vectors",
            f"Mlc{function.__name__.title()}",
            function,
        )


def _written_out(formula: Callable[[Any], Any], call: Any) -> Any:
    return formula(call.args[0])


_OPERATORS = (
    (exp, "e to the power"),
    (tanh, "the hyperbolic tangent"),
    (erf, "the error function"),
)
