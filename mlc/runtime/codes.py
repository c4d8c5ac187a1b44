"""Verification of quantised networks, whose results are not one but a few neighbouring codes.

Such a network rounds to 8-bit codes after every layer. A value that lies between two codes is rounded to
either, by rounding errors of float32 that are allowed to anybody, and moves what follows by a
whole step, far more than a tolerance of floats. ONNX Runtime itself computes it in two ways: as it
stands, and by integer operators with its optimizer on. Their difference is what is uncertain in the
reference; a compiled network may differ from it by a small multiple of that, and no more.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mlc.errors import ModelError, RunError
from mlc.runtime.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mlc.runtime.verify import OutputCheck

Array = np.ndarray[Any, Any]
_ROUNDS = re.compile("(Dynamic)?Quantize|Q[A-Z]")  # operators whose results are codes
_KINDS = ("float16", "float32", "float64", "int8", "uint8")
# Of the reference's own spread. Two errors as large as that, independent of each other, are 1.4 times as
# large together in the mean; the largest of them is a whole number of steps, and may be the next one.
_MEAN, _LARGEST = 2.0, 3.0
_CREDIBLE = (
    0.1  # of the outputs' own variation: a reference that differs more from itself proves nothing
)


class Spread:
    """How far ONNX Runtime's two ways of computing a network are apart; loads it when first asked."""

    def __init__(self, model: Path):
        self.model = model
        self._rounds: bool | None = None
        self._other: Reference | None = None

    def judged(
        self,
        checks: Sequence[OutputCheck],
        ours: Mapping[str, Array],
        plain: Mapping[str, Array],
        feed: Mapping[str, Array],
    ) -> list[OutputCheck]:
        """Return the checks of one run; those that failed pass if the reference differs as much from itself.

        `ours` and `plain`, what the reference gave, are outputs for `feed`.
        They say so in `spread`. Networks that do not round to codes: unchanged.
        """
        if all(check.passed for check in checks) or not self._does_round():
            return list(checks)
        try:
            if self._other is None:
                self._other = Reference(self.model, optimize=True, saturates=False)
            other = self._other.run(feed)
        except (ModelError, RunError):  # it knows the network in one way only
            return list(checks)
        return [
            check
            if check.passed
            else _judged(check, ours[check.name], plain[check.name], other[check.name])
            for check in checks
        ]

    def _does_round(self) -> bool:
        if self._rounds is None:
            graph = onnx.load(self.model, load_external_data=False).graph
            self._rounds = any(_ROUNDS.match(node.op_type) for node in graph.node)
        return self._rounds


def _judged(check: OutputCheck, ours: Array, first: Array, second: Array) -> OutputCheck:
    alike = first.shape == second.shape == ours.shape and first.dtype == second.dtype == ours.dtype
    if not alike or ours.dtype.name not in _KINDS:
        return check
    error, spread = (np.abs(a.astype(np.float64) - first) for a in (ours, second))
    if not (np.isfinite(error).all() and np.isfinite(spread).all()):
        return check
    passed = (
        error.max(initial=0.0) <= _LARGEST * spread.max(initial=0.0)
        and _rms(error) <= _MEAN * _rms(spread)
        and _rms(spread) <= _CREDIBLE * float(np.std(first, dtype=np.float64))
    )
    return replace(check, passed=bool(passed), spread=float(spread.max(initial=0.0)))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
