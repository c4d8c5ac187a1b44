"""Find where good turns bad among ordered candidates, some of which cannot be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

GOOD, BAD, UNCLEAR = "good", "bad", "unclear"


def boundary(good: int, bad: int, probe: Callable[[int], str]) -> tuple[int, int]:
    """Return neighbours (good, bad) between a good and a bad candidate, as `git bisect` does.

    `probe` says GOOD, BAD or UNCLEAR. The two are more than 1 apart only where every candidate
    between them is unclear. Each candidate is probed once at most; without unclear ones there are
    log2(bad - good) probes.
    """
    unclear: set[int] = set()
    while True:
        between = [k for k in range(good + 1, bad) if k not in unclear]
        if not between:
            return good, bad
        middle = min(between, key=lambda k: abs(2 * k - good - bad))
        verdict = probe(middle)
        if verdict == GOOD:
            good = middle
        elif verdict == BAD:
            bad = middle
        else:
            unclear.add(middle)


def smallest(largest: int, probe: Callable[[int], str]) -> int | None:
    """Return the smallest size from 1 to `largest` that is bad, tried by doubling, then between.

    None where `largest` itself is not bad. Small sizes are the cheap ones, and the likely ones.
    """
    good, size = 0, 1
    while True:
        size = min(size, largest)
        verdict = probe(size)
        if verdict == BAD:
            return boundary(good, size, probe)[1]
        if size == largest:
            return None
        if verdict == GOOD:
            good = size
        size *= 2
