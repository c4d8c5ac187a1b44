"""Offer the best known configs to TVM's schedules while a model is compiled.

AutoTVM's own `ApplyHistoryBest` takes any record of target key `cpu`, whatever its `-mcpu`. Here a
record applies only when it was measured for the CPU that is compiled for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlc import tvm_env
from mlc.errors import UsageError
from mlc.tune.record import Record, decode, mcpu

if TYPE_CHECKING:
    from pathlib import Path

    from mlc.tune.dispatcher import Dispatch

Lookup = Callable[[str], Record | None]


@dataclass(frozen=True, kw_only=True)
class BestRecords:
    """The fastest record by workload, and what was left out of the file and why."""

    records: dict[str, Record] = field(repr=False, default_factory=dict)
    other_cpu: int = 0
    failed: int = 0
    damaged: int = 0


def read_best(path: Path, cpu: str) -> BestRecords:
    """Return the fastest record of each workload in an AutoTVM log, measured for `-mcpu=cpu`.

    Raises:
        UsageError: the file is missing or unreadable, or not one line of it is a record.
    """
    best: dict[str, Record] = {}
    counts = {"other_cpu": 0, "failed": 0, "damaged": 0}
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                record = decode(line)
                verdict = _verdict(record, cpu) if line.strip() else "blank"
                if verdict in counts:
                    counts[verdict] += 1
                elif record is not None and (
                    record.workload not in best or record.cost < best[record.workload].cost
                ):
                    best[record.workload] = record
    except OSError as error:
        raise UsageError(
            f"cannot read tuning records {path}: {error.strerror}", "check `--records`"
        ) from None
    if not best and counts["damaged"] and not counts["other_cpu"] and not counts["failed"]:
        raise UsageError(f"{path} holds no AutoTVM records ({counts['damaged']} other lines)")
    return BestRecords(records=best, **counts)


def _verdict(record: Record | None, cpu: str) -> str:
    if record is None:
        return "damaged"
    if not record.ok:
        return "failed"
    return "" if mcpu(record.target) == cpu else "other_cpu"


def dispatch_context(lookup: Lookup, fallback: Callable[[], Any] | None = None) -> Dispatch:
    """Return an AutoTVM dispatch context that offers the records of `lookup`, by workload key.

    Workloads without a record get the template's fallback config, or what `fallback` makes.
    """
    tvm_env.tvm()
    from tvm.autotvm.task.space import FallbackConfigEntity

    from mlc.tune.dispatcher import Dispatch

    return Dispatch(lookup, fallback or FallbackConfigEntity)
