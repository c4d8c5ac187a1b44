"""Filters in Winograd's domain, as the template `conv2d_winograd_mlc.x86` reads them.

Only numpy is needed: an artifact's filters are transformed when it is opened (`mlc.made`). Not part of
`transforms`, whose source is in the template's hash: records do not depend on how this is computed.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.schedules.transforms import SIZES, TAPS, transform_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]
_CHUNK = 512  # filters' channels transformed at once: so few OpenBLAS does on one thread


def fits(filters: Sequence[int], shape: Sequence[int]) -> bool:
    """Return whether filters of a shape [k, c, 3, 3] have transforms of a shape as in `packed`."""
    positions, panels, channels, columns = shape
    return (
        positions in [(m + TAPS - 1) ** 2 for m in SIZES]
        and tuple(filters[1:]) == (channels, TAPS, TAPS)
        and 0 <= panels * columns - filters[0] < columns
    )


def packed(filters: Array, shape: tuple[int, ...]) -> Array | None:
    """Return filters [k, c, 3, 3] transformed, in panels, zeros behind the last; None if unfit.

    Args:
        filters: float32.
        shape: `winograd.Plan.weights`: positions, panels, c, columns.
    """
    if not fits(filters.shape, shape):
        return None
    out = np.empty(shape, np.float32)
    pack(filters, out)
    return out


def pack(filters: Array, out: Array) -> None:
    """Write filters [k, c, 3, 3], transformed, to `out`, both float32 and as in `packed`.

    Computed in float64, some channels of a panel at a time, which stay in the cache: a product with
    the transforms of the nine filters that have a single 1.
    """
    positions, panels, channels, columns = out.shape
    units = np.eye(TAPS * TAPS).reshape(-1, TAPS, TAPS)
    matrix = transform_weights(math.isqrt(positions) - TAPS + 1, units).reshape(len(units), -1).T
    step = max(1, _CHUNK // columns)
    taps = np.empty((TAPS * TAPS, min(step, channels), columns))
    with np.errstate(all="ignore"):  # of infinities come NaNs
        for panel, first in itertools.product(range(panels), range(0, channels, step)):
            part = filters[panel * columns : (panel + 1) * columns, first : first + step]
            count, here = part.shape[:2]
            taps[:, :here, :count] = part.reshape(count, here, -1).transpose(2, 1, 0)
            taps[:, :here, count:] = 0
            made = matrix @ taps[:, :here].reshape(TAPS * TAPS, -1)
            out[:, panel, first : first + here] = made.reshape(positions, here, columns)
