"""The transforms of Winograd's minimal filtering F(m x m, 3 x 3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308), equation 8:

    Y = A^T [ (G g G^T) * (B^T d B) ] A

d is a tile of (m + 2) x (m + 2) inputs, g a 3 x 3 filter, * goes element by element, Y is m x m
outputs. The matrices follow from m + 1 points and the one at infinity (Toom and Cook). For m = 2 they
are 0 and +-1, the paper's. For m = 4 the paper has 0, +-1, +-2; we take 0, +-5/8, +-3/2, found by trying
small fractions: half of the paper's rounding error for as many operations. All points are pairs +-p,
so that two rows of a transform share their work, and A and B are exact in float32.
"""

from __future__ import annotations

import functools
import math
import operator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TAPS = 3
SIZES = (2, 4)  # m
_PAIRS = {2: (Fraction(1),), 4: (Fraction(5, 8), Fraction(3, 2))}  # the p of each pair +-p

Array = np.ndarray[Any, Any]


def transform_input(m: int, d: Callable[[int], Any]) -> list[Any]:
    """Return the m + 2 elements of B^T d, as expressions of the elements of d (one dimension).

    Row i has the coefficients of the polynomial that is zero at every point but the i-th (the last
    row's, at infinity, at all of them): a polynomial in x^2 times 1, x, or x (x + p).
    """
    every = _zero_at(_PAIRS[m])
    rows = [_sum(every, d, 0)]
    for p in _PAIRS[m]:
        others = _zero_at([q for q in _PAIRS[m] if q != p])
        odd, even = _scaled(p, _sum(others, d, 1)), _sum(others, d, 2)
        rows += [even + odd, even - odd]
    return [*rows, _sum(every, d, 1)]


def transform_output(m: int, product: Callable[[int], Any]) -> list[Any]:
    """Return the m elements of A^T product: row i has the i-th powers of the points."""
    rows = []
    for power in range(m):
        terms = [product(0)] if power == 0 else []
        for k, p in enumerate(_PAIRS[m]):
            plus, minus = product(1 + 2 * k), product(2 + 2 * k)
            terms.append(_scaled(p**power, plus - minus if power % 2 else plus + minus))
        rows.append(functools.reduce(operator.add, terms))
    return [*rows[:-1], rows[-1] + product(m + 1)]


def transform_weights(m: int, weights: Array) -> Array:
    """Return G g G^T of filters [..., 3, 3] as [..., m + 2, m + 2] in float64.

    A row of G has the powers of a point, over the product of its distances to the others.
    """
    points = [Fraction(0), *(sign * p for p in _PAIRS[m] for sign in (1, -1))]
    rows = [
        [
            point**k / math.prod(point - other for other in points if other != point)
            for k in range(3)
        ]
        for point in points
    ]
    g = np.array([*rows, [0, 0, 1]], np.float64)
    return np.asarray(g @ weights.astype(np.float64) @ g.T)


def _zero_at(points: Sequence[Fraction]) -> list[Fraction]:
    """Return the coefficients of the polynomial in x^2 that is zero at +-points, lowest first."""
    found = [Fraction(1)]
    for p in points:
        found = [
            a - p * p * b for a, b in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)
        ]
    return found


def _sum(coefficients: Sequence[Fraction], d: Callable[[int], Any], first: int) -> Any:
    """Return the sum of every second element of d, from `first` on, times its coefficient."""
    terms = [_scaled(c, d(first + 2 * k)) for k, c in enumerate(coefficients)]
    return functools.reduce(operator.add, terms)


def _scaled(factor: Fraction, value: Any) -> Any:
    return value if factor == 1 else value * float(factor)
