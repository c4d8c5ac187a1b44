"""Activations in float32 as TIR expressions that vector units compute; NaN stays NaN.

tanh is the rational function of Eigen (`generic_fast_tanh_float` in MathFunctionsImpl.h), which TVM's
`fast_tanh` takes as well: within 1e-6. sigmoid(x) = (1 + tanh(x / 2)) / 2.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tir

_BOUND = 9.0  # beyond, tanh is 1 in float32
# Coefficients of x, x^3, ... in the numerator, and of 1, x^2, ... in the denominator.
_OVER = (4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08,
         -8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16)  # fmt: skip
_UNDER = (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)


def tanh(x: Any) -> Any:
    """Return tanh of a float32 expression, which should be cheap: it occurs often in the result."""
    bounded = tir.max(tir.min(x, _constant(_BOUND)), _constant(-_BOUND))
    square = bounded * bounded
    value = bounded * _polynomial(_OVER, square) / _polynomial(_UNDER, square)
    return tir.Select(tir.isnan(x), x, value)


def sigmoid(x: Any) -> Any:
    """Return the logistic function of a float32 expression; see `tanh`."""
    half = _constant(0.5)
    return half + half * tanh(half * x)


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    terms = [_constant(value) for value in reversed(coefficients)]
    return functools.reduce(lambda total, term: total * x + term, terms)


def _constant(value: float) -> Any:
    return tir.const(value, "float32")
