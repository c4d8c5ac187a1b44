"""What the graph passes did: a row for each row of the pass table, whether it ran or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.passes.run import PassRun, count_kernels, count_operators
from mlc.passes.table import PASSES, Pass, pipeline

if TYPE_CHECKING:
    from collections import Counter

_ONLY_O0 = "wrap-operators"


class GraphRows:
    """An observer of `passes.run.optimize` that keeps counts, not modules.

    Call it with each `PassRun`; `rows` then holds JSON data.
    """

    def __init__(self, level: int, *, gpu: bool = False):
        self.level, self.gpu = level, gpu
        self.seen: dict[str, dict[str, Any]] = {}

    def __call__(self, run: PassRun) -> None:
        """Compare the module on both sides of a pass."""
        before, after = count_operators(run.before), count_operators(run.after)
        kernels = count_kernels(run.before), count_kernels(run.after)
        changed = not _equal(run.before, run.after)
        differences = difference(before, after)
        self.seen[run.row.name] = {
            **_row(run.row, ran=True),
            "seconds": run.seconds,
            "operators_before": before.total(),
            "operators_after": after.total(),
            "kernels_after": kernels[1],
            "changed": changed,
            "differences": differences,
            "what": _what(differences, kernels) if changed else "nothing to do",
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per graph pass of the table, in table order.

        Times are wall seconds; `differences` maps an operator to how many calls came or went.
        """
        return [
            self.seen.get(row.name) or {**_row(row, ran=False), "what": self._why_not(row)}
            for row in PASSES
            if row.stage == "relay"
        ]

    def _why_not(self, row: Pass) -> str:
        if self.gpu and row.for_cpu:
            return "for CPUs only"
        if row.for_gpu and not self.gpu:
            return "for GPUs only"
        if row not in pipeline(self.level):
            return "-O0 only" if row.name == _ONLY_O0 else f"from -O{row.level} on"
        wanted = " or ".join(need + "*" * need.endswith(".") for need in row.needs)
        return f"the model has no {wanted}" if wanted else ""


def difference(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """Return by how much each count changed; what went first, equal counts left out."""
    changes = {name: after[name] - before[name] for name in sorted(before | after)}
    return dict(sorted(((n, c) for n, c in changes.items() if c), key=lambda item: item[1] > 0))


def _row(row: Pass, *, ran: bool) -> dict[str, Any]:
    return {
        "name": row.name,
        "stage": row.stage,
        "level": row.level,
        "help": row.help,
        "ran": ran,
        "seconds": None,
        "operators_before": None,
        "operators_after": None,
        "kernels_after": None,
        "changed": False,
        "differences": {},
        "what": "",
    }


def _equal(before: Any, after: Any) -> bool:
    from tvm import ir

    return bool(after.same_as(before)) or bool(ir.structural_equal(before, after))


def _what(differences: dict[str, int], kernels: tuple[int, int]) -> str:
    parts = [f"{name} {count:+d}" for name, count in differences.items()]
    if kernels[0] != kernels[1]:
        parts.append(f"kernel calls {kernels[0]} -> {kernels[1]}")
    return ", ".join(parts) or "same operators; their order, attributes or constants changed"
