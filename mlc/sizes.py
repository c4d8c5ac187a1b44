"""Sizes that only the run knows: expressions of named dimensions, as plain JSON data.

A size is a number, the name of a dimension, or `[operator, left, right]` of two sizes. Artifacts hold
them; nothing here needs TVM.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Size: TypeAlias = "int | str | list[Any]"
EVERY = "*"  # in the place of names: all open dimensions
MAX_SIZE = 1 << 20  # of an open dimension without a smaller bound
MAX_ELEMENTS = (1 << 30) - 1  # of a tensor: kernels count in 32 bits, and round up to tiles
_MAX_DEPTH = 40

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "min": min,
    "max": max,
}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The least and the largest size that an open dimension may have, both included."""

    least: int = 1
    most: int = MAX_SIZE

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"


def open_names(asked: bool | str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of dimensions to keep open: True means all (`EVERY`), a string one of them."""
    if isinstance(asked, bool):
        return (EVERY,) if asked else ()
    return (asked,) if isinstance(asked, str) else tuple(asked)


def evaluate(size: Size, sizes: Mapping[str, int]) -> int:
    """Return the number that a size is, given those of its dimensions."""
    if isinstance(size, str):
        return sizes[size]
    if isinstance(size, list):
        name, left, right = size
        return OPERATORS[name](evaluate(left, sizes), evaluate(right, sizes))
    return size


def text(size: Size) -> str:
    """Return a size for people, such as `2*seq + 1`."""
    if not isinstance(size, list):
        return str(size)
    name, left, right = size
    if name in ("min", "max"):
        return f"{name}({text(left)}, {text(right)})"
    inner = [f"({text(s)})" if _is_sum(s) and name != "+" else text(s) for s in (left, right)]
    return f" {name} ".join(inner) if name in "+-" else name.join(inner)


def _is_sum(size: Size) -> bool:
    return isinstance(size, list) and size[0] not in ("min", "max", "*")


def is_size(data: Any, dims: Iterable[str], depth: int = _MAX_DEPTH) -> bool:
    """Return whether untrusted JSON data is a size of these dimensions."""
    if isinstance(data, list):
        return (
            depth > 0
            and len(data) == 3
            and isinstance(data[0], str)
            and data[0] in OPERATORS
            and all(is_size(part, dims, depth - 1) for part in data[1:])
        )
    if isinstance(data, str):
        return data in dims
    return isinstance(data, int) and not isinstance(data, bool)


def samples(dims: Mapping[str, Bounds]) -> list[dict[str, int]]:
    """Return the sizes at which an artifact is compared: all least, odd and unequal, larger.

    Each is a size for every dimension. The last has the largest size of each dimension that
    is bound by the model (and not large), one dimension at a time at most.
    """
    odd, large = (3, 5, 7, 9, 11), (8, 33, 20, 18, 24)
    chosen = [
        {name: bounds.least for name, bounds in dims.items()},
        _near(dims, odd),
        _near(dims, large),
    ]
    for name, bounds in dims.items():
        if bounds.most <= 512:
            chosen.append({**chosen[0], name: bounds.most})
    return [sizes for k, sizes in enumerate(chosen) if sizes not in chosen[:k]]


def _near(dims: Mapping[str, Bounds], wanted: Sequence[int]) -> dict[str, int]:
    """Return for each dimension a wanted size, above its least one, within its bounds."""
    return {
        name: min(bounds.most, bounds.least - 1 + wanted[k % len(wanted)])
        for k, (name, bounds) in enumerate(dims.items())
    }


def variable_name(name: str) -> str:
    """Return an identifier that reminds of a dimension's name, which is untrusted text."""
    return "n_" + re.sub(r"\W", "_", name, flags=re.ASCII)[:30]
