"""Weights that an artifact stores smaller than kernels read them: they are made when it is opened.

Filters in Winograd's domain are 1.8 or 4 times as large as the filters, and follow from them. In the
manifest's table of weights an entry with `"made": {"by": "winograd", "shape": [positions, panels, c,
columns]}` stands for filters [k, c, 3, 3], float32, that are stored plainly; k follows from their size.
Recipes come out of a manifest: they are untrusted.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.schedules import winograd_weights
from mlc.schedules.transforms import TAPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Array = np.ndarray[Any, Any]
FORM = {"by": str, "shape": [int]}
ALIGNMENT = 64  # bytes, of every weight: what kernels rely on
WINOGRAD = "winograd"
_TYPE = np.dtype(np.float32)
_MOST_GROWTH = 64  # all that is made, over all that is stored


def recipes(manifest: Mapping[str, Any]) -> list[Any]:
    """Return all recipes of a manifest, those of its buckets too."""
    tables = [entry["weights"] for entry in (manifest, *manifest.get("buckets", []))]
    return [entry["made"] for table in tables for entry in table if "made" in entry]


def nbytes(recipe: Mapping[str, Any]) -> int:
    """Return the bytes of what a recipe makes.

    Raises:
        ValueError: it is none that we know.
    """
    shape: list[int] = recipe["shape"]
    if recipe["by"] != WINOGRAD or len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{recipe['by']!r} of shape {shape} is not known")
    return math.prod(shape) * _TYPE.itemsize


def require_bounded(entries: Iterable[Mapping[str, Any]], stored: int) -> None:
    """Raise ValueError if what entries make is far more than the `stored` bytes can be good for."""
    total = sum(nbytes(entry["made"]) for entry in entries if "made" in entry)
    if total > _MOST_GROWTH * stored:
        raise ValueError(f"{total} bytes of {stored}")


def make(recipe: Mapping[str, Any], stored: Array) -> Array:
    """Return what a recipe makes of stored bytes: both are flat uint8; aligned as kernels expect.

    Raises:
        ValueError: the recipe does not fit the bytes.
    """
    size, shape = nbytes(recipe), tuple(recipe["shape"])
    one = (shape[2], TAPS, TAPS)
    count, rest = divmod(stored.nbytes, math.prod(one) * _TYPE.itemsize)
    if rest or not winograd_weights.fits((count, *one), shape):
        raise ValueError(f"{stored.nbytes} bytes are no filters for the shape {list(shape)}")
    made = aligned(size)
    filters = stored.view(_TYPE).reshape(count, *one)
    winograd_weights.pack(filters, made.view(_TYPE).reshape(shape))
    return made


def aligned(size: int) -> Array:
    """Return so many bytes of new memory, flat uint8, that begin where kernels may expect them to."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def release(stored: Array, member: memoryview) -> None:
    """Give pages of a mapped file back that hold nothing but `stored`, a part of `member`.

    They are read from the file again where somebody needs them. Does nothing where `member` is not
    mapped, or the system cannot.
    """
    mapped = member.obj
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = stored.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    first = start + -start % mmap.PAGESIZE
    size = (start + stored.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if size > 0:
        with contextlib.suppress(OSError):  # pages that the process has locked
            mapped.madvise(mmap.MADV_DONTNEED, first, size)
