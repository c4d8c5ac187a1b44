"""What schedules and TIR passes do to the loops of a kernel, counted while it is lowered.

A schedule only marks loops (blocked, vectorised, unrolled, parallel); TIR passes then turn the
marks into code. An instrument in TVM's pass context sees the TIR before and after every pass. The
counts are of loops and accesses in the code, not of how often they run, and a subtree that TVM
shares between two places counts once.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mlc.codegen.kernels import Job, Settings, lower
from mlc.passes.table import PASSES

VECTORIZE = "tir.VectorizeLoop"
WATCHED = frozenset(row.name for row in PASSES if row.stage == "tir")
_LANES = re.compile(r"x(\d+)$")


@dataclass(kw_only=True)
class Loops:
    """Counts over TIR code.

    `counts` has `serial`, `parallel`, `vectorized` and `unrolled` (loops by kind), `blocked` (loops
    of any kind that a split made), `vector_loads`, `vector_stores`, `buffers` and `conditions`;
    `blocks` counts the inner loops of splits by their size, `lanes` vector accesses by lanes.
    """

    counts: Counter[str] = field(default_factory=Counter)
    blocks: Counter[int] = field(default_factory=Counter)
    lanes: Counter[int] = field(default_factory=Counter)

    def add(self, other: Loops) -> None:
        """Add another kernel's counts to these."""
        self.counts.update(other.counts)
        self.blocks.update(other.blocks)
        self.lanes.update(other.lanes)

    @property
    def loops(self) -> int:
        """The number of loops of all kinds."""
        return sum(self.counts[kind] for kind in ("serial", "parallel", "vectorized", "unrolled"))


@dataclass(kw_only=True)
class PassEffect:
    """What one TIR pass did, over one kernel or several: wall seconds, counts on both sides."""

    seconds: float = 0.0
    changed: int = 0  # kernels that it changed
    before: Loops = field(default_factory=Loops)
    after: Loops = field(default_factory=Loops)

    @property
    def vectorized(self) -> int:
        """The marked loops that became vector code; the others are written as serial loops."""
        before, after = self.before.counts, self.after.counts
        kept = max(0, after["serial"] - before["serial"]) + after["vectorized"]
        return max(0, before["vectorized"] - kept)


@dataclass(kw_only=True)
class Lowering:
    """How one kernel was lowered, or (after `add`) several.

    `scheduled` counts what the schedule left, `lowered` what code generation starts from; `effects`
    holds the watched passes, `seconds` all of them; `script` is the TIR as scheduled.
    """

    scheduled: Loops = field(default_factory=Loops)
    lowered: Loops = field(default_factory=Loops)
    effects: dict[str, PassEffect] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)
    script: str = ""

    def add(self, other: Lowering) -> None:
        """Add another kernel's counts and times to these."""
        self.scheduled.add(other.scheduled)
        self.lowered.add(other.lowered)
        self.seconds.update(other.seconds)
        for name, effect in other.effects.items():
            mine = self.effects.setdefault(name, PassEffect())
            mine.seconds += effect.seconds
            mine.changed += effect.changed
            mine.before.add(effect.before)
            mine.after.add(effect.after)


def observe(job: Job, settings: Settings) -> tuple[Any, Lowering]:
    """Return a kernel's TIR, and how it came about.

    Raises:
        BuildError: there is no schedule for it, or lowering failed.
    """
    record = Lowering()
    with settings.dispatch:
        tir = lower(job, settings, [_instrument(record)])
    record.lowered = survey(tir)
    return tir, record


def _instrument(record: Lowering) -> Any:
    """Return a TVM pass instrument that fills `record`; its own work is not timed."""
    from tvm import ir
    from tvm.ir.instrument import pass_instrument

    @pass_instrument
    class Watch:
        def __init__(self) -> None:
            self.open: list[tuple[Any, float]] = []

        def run_before_pass(self, module: Any, info: Any) -> None:
            if not record.script and info.name.startswith("tir."):
                record.script = module.script(show_meta=False)
                record.scheduled = survey(module)
            if info.name in WATCHED:
                record.effects.setdefault(info.name, PassEffect()).before.add(survey(module))
            self.open.append((module, time.perf_counter()))

        def run_after_pass(self, module: Any, info: Any) -> None:
            before, started = self.open.pop()
            spent = time.perf_counter() - started
            if info.name.startswith("tir."):
                record.seconds[info.name] += spent  # type: ignore[assignment]
            if info.name in WATCHED:
                effect = record.effects[info.name]
                effect.seconds += spent
                effect.changed += not ir.structural_equal(before, module)
                effect.after.add(survey(module))

    return Watch()


def survey(module: Any) -> Loops:
    """Return the counts over all functions of a TIR module."""
    from tvm import tir

    found = Loops()
    kinds = {
        tir.ForKind.SERIAL: "serial",
        tir.ForKind.PARALLEL: "parallel",
        tir.ForKind.VECTORIZED: "vectorized",
        tir.ForKind.UNROLLED: "unrolled",
    }

    def visit(node: Any) -> None:
        if isinstance(node, tir.For):
            found.counts[kinds.get(node.kind, "serial")] += 1
            _note_block(found, str(node.loop_var.name), node.extent)
        elif isinstance(node, tir.BufferLoad):
            _note_access(found, "vector_loads", str(node.dtype))
        elif isinstance(node, tir.BufferStore):
            _note_access(found, "vector_stores", str(node.value.dtype))
        elif isinstance(node, tir.Allocate):
            found.counts["buffers"] += 1
        elif isinstance(node, tir.IfThenElse):
            found.counts["conditions"] += 1

    for function in module.functions.values():
        if isinstance(function, tir.PrimFunc):
            tir.stmt_functor.post_order_visit(function.body, visit)
    return found


def _note_block(found: Loops, name: str, extent: Any) -> None:
    """Note a loop that a split made: TE names the halves of `x` `x.outer` and `x.inner`."""
    if ".outer" in name or ".inner" in name:
        found.counts["blocked"] += 1
    if name.endswith(".inner"):
        size = getattr(extent, "value", None)
        if size is not None:
            found.blocks[int(size)] += 1


def _note_access(found: Loops, what: str, dtype: str) -> None:
    lanes = _LANES.search(dtype)
    if lanes:
        found.counts[what] += 1
        found.lanes[int(lanes.group(1))] += 1
