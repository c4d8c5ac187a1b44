"""The loop level of the pass table as rows: what schedules and TIR passes did over all kernels.

Levels of the table say what a level is for; the rows here say what was seen. At `-O0` TVM's
schedules still block loops and mark them parallel, and only vector code is switched off.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from mlc.inspection.graph import difference
from mlc.inspection.loops import VECTORIZE, Loops, Lowering, PassEffect
from mlc.passes.table import PASSES, Pass

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN_SIZES = 4


def loop_rows(total: Lowering) -> list[dict[str, Any]]:
    """Return a row per `schedule` and `tir` row of the table; `total` covers all kernels.

    `loops` is how many loops a schedule row decided on; `kernels_changed` how many kernels a TIR
    row changed; `seconds` is its wall time over all of them.
    """
    return [
        _schedule_row(row, total) if row.stage == "schedule" else _tir_row(row, total)
        for row in PASSES
        if row.stage != "relay"
    ]


def loop_totals(total: Lowering) -> dict[str, Any]:
    """Return the counts behind the rows as JSON data, with the seconds of every TIR pass."""
    return {
        **loop_counts(total),
        "tir_pass_seconds": {name: total.seconds[name] for name in sorted(total.seconds)},
    }


def loop_counts(lowering: Lowering) -> dict[str, Any]:
    """Return what became of the loops of one kernel, or of several, as JSON data."""
    return {
        "scheduled": _counts(lowering.scheduled, ("vector_loads", "vector_stores", "buffers")),
        "lowered": _counts(lowering.lowered, ()),
        "vectorized": _vectorized(lowering),
        "widest_vector_lanes": max(lowering.lowered.lanes, default=0),
    }


_KEYS = ("serial", "parallel", "vectorized", "unrolled", "blocked", "conditions", "buffers",
         "vector_loads", "vector_stores")  # fmt: skip


def _counts(loops: Loops, without: tuple[str, ...]) -> dict[str, int]:
    return {key: loops.counts[key] for key in _KEYS if key not in without}


def _vectorized(lowering: Lowering) -> int:
    return lowering.effects.get(VECTORIZE, PassEffect()).vectorized


def _schedule_row(row: Pass, total: Lowering) -> dict[str, Any]:
    loops, what = _SCHEDULE[row.name](total)
    return {
        **_row(row),
        "ran": loops > 0,
        "changed": loops > 0,
        "loops": loops,
        "what": what,
        "knobs": row.knobs,
    }


def _tile(total: Lowering) -> tuple[int, str]:
    found = total.scheduled
    sizes = ", ".join(f"{size} ({n}x)" for size, n in found.blocks.most_common(_SHOWN_SIZES))
    what = f"{found.counts['blocked']} of {found.loops} loops come from splits"
    return found.counts["blocked"], what + (f"; commonest inner sizes {sizes}" if sizes else "")


def _vectorize(total: Lowering) -> tuple[int, str]:
    marked, done = total.scheduled.counts["vectorized"], _vectorized(total)
    if marked and not done:
        return 0, f"switched off: {marked} marked loops stay scalar"
    return done, f"{done} of {marked} marked loops became vector code"


def _unroll(total: Lowering) -> tuple[int, str]:
    return total.scheduled.counts["unrolled"], f"{total.scheduled.counts['unrolled']} loops marked"


def _parallelize(total: Lowering) -> tuple[int, str]:
    count = total.scheduled.counts["parallel"]
    return count, f"{count} loops run on the thread pool"


_SCHEDULE: dict[str, Callable[[Lowering], tuple[int, str]]] = {
    "tile": _tile,
    "vectorize": _vectorize,
    "unroll": _unroll,
    "parallelize": _parallelize,
}


def _tir_row(row: Pass, total: Lowering) -> dict[str, Any]:
    effect = total.effects.get(row.name)
    if effect is None:
        return {**_row(row), "what": "not part of this lowering"}
    ran = row.name != VECTORIZE or not effect.before.counts["vectorized"] or effect.vectorized > 0
    return {
        **_row(row),
        "ran": ran,
        "seconds": effect.seconds,
        "changed": effect.changed > 0,
        "kernels_changed": effect.changed,
        "what": _effect(effect) if ran else "switched off: " + _effect(effect),
    }


def _row(row: Pass) -> dict[str, Any]:
    return {
        "name": row.name,
        "stage": row.stage,
        "level": row.level,
        "help": row.help,
        "ran": False,
        "seconds": None,
        "changed": False,
        "loops": None,
        "kernels_changed": None,
        "what": "",
    }


def _effect(effect: PassEffect) -> str:
    if not effect.changed:
        return "nothing to do"
    changes = difference(_named(effect.before.counts), _named(effect.after.counts))
    parts = [f"{name} {count:+d}" for name, count in changes.items()]
    text = ", ".join(parts) or "same loops and accesses; indices or conditions changed"
    if effect.after.lanes and not effect.before.lanes:
        text += f" (up to {max(effect.after.lanes)} lanes)"
    return text


def _named(counts: Counter[str]) -> Counter[str]:
    """Return the counts under the words that a row shows."""
    kinds = ("serial", "parallel", "vectorized", "unrolled")
    return Counter(
        {
            f"{key} loops" if key in kinds else key.replace("_", " "): counts[key]
            for key in _KEYS
            if key != "blocked"
        }
    )
