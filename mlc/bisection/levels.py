"""Which level shows the fault first, and which row of the pass table brings it in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlc.bisection.search import BAD, GOOD, boundary
from mlc.passes.table import UNFUSED, Pass

Probe = Callable[[tuple[str, ...]], str]  # names of rows left out -> GOOD, BAD or UNCLEAR


@dataclass(frozen=True, kw_only=True)
class Blame:
    """The row that brings the fault in, or `rows` of which one does; `why` in words.

    No rows at all: no graph pass does.
    """

    rows: tuple[str, ...]
    why: str


def lowest(asked: int, probe: Callable[[int], str]) -> int:
    """Return the lowest level that is bad; `asked` is known to be. Not monotonic, so in order."""
    return next((level for level in range(asked) if probe(level) == BAD), asked)


def blame(rows: tuple[Pass, ...], probe: Probe) -> Blame:
    """Return which of a level's rows brings the fault in; with all of them it is bad.

    The rows of `-O0` and the last one make every graph compilable, so first the others are added
    in their order, by bisection. If none of them is needed for the fault, those of `-O0` and
    fusion are left out one by one.
    """
    base = [row.name for row in rows if row.level == 0 or row is rows[-1]]
    optional = [row.name for row in rows if row.name not in base]
    if not optional or probe(tuple(optional)) == BAD:
        return _of_base(base, optional, probe)
    good, bad = boundary(0, len(optional), lambda count: probe(tuple(optional[count:])))
    found = tuple(optional[good:bad])
    before = f"right with the passes before {found[0]!r}, "
    if len(found) == 1:
        return Blame(rows=found, why=before + "wrong once it runs")
    return Blame(
        rows=found, why=before + f"wrong after {found[-1]!r}; between them nothing compiles"
    )


def _of_base(base: list[str], optional: list[str], probe: Probe) -> Blame:
    removable = [name for name in base if name != UNFUSED]
    for name in reversed(removable):  # fusion first
        if probe((*optional, name)) == GOOD:
            return Blame(rows=(name,), why=f"right without {name!r}, wrong with it")
    where = "conversion from ONNX, schedules or code generation"
    if UNFUSED not in base:
        where += " (from -O1 on loops are vectorised, and LLVM optimises)"
    return Blame(rows=(), why=f"wrong whichever graph pass is left out: {where}")
