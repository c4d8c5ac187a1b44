"""Offer the best known configs to TVM's schedules while a model is compiled.

AutoTVM's own `ApplyHistoryBest` takes any record of target key `cpu`, whatever its `-mcpu`. Here a
record applies only when it was measured for the CPU that is compiled for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlc import tvm_env
from mlc.errors import UsageError
from mlc.tune.record import Record, decode, mcpu, workload_key

if TYPE_CHECKING:
    from pathlib import Path

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


def dispatch_context(  # noqa: C901 - of the methods of a class in it
    lookup: Lookup, fallback: Callable[[], Any] | None = None
) -> Any:
    """Return an AutoTVM dispatch context that offers the records of `lookup`, by workload key.

    Workloads without a record get the template's fallback config, or what `fallback` makes. `asked` lists the keys that
    schedules asked for since it was last cleared; `origin` maps the workload of an altered layout
    to the one that was tuned for it; `used` holds the records that were found; `rivals` maps a
    workload to another that computes the same.
    """
    tvm_env.tvm()
    from tvm.autotvm.task.dispatcher import DispatchContext
    from tvm.autotvm.task.space import FallbackConfigEntity

    make = fallback or FallbackConfigEntity

    class Dispatch(DispatchContext):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []
            self.origin: dict[str, str] = {}
            self.used: dict[str, Record] = {}
            self.rivals: dict[str, str] = {}
            self.known: dict[str, Any] = {}
            self.fallbacks: dict[str, Any] = {}

        def _query_inside(self, _target: Any, workload: Any) -> Any:
            if has_open_sizes(workload):  # no record can be of it
                return self.fallbacks.setdefault(str(workload), make())
            key = workload_key(workload)
            self.asked.append(key)
            config = self._find(key)
            # One fallback object per workload: a template writes its default into it.
            return config or self.fallbacks.setdefault(key, make())

        def _find(self, key: str) -> Any:
            if key not in self.known:
                record = lookup(key)
                # A record may say that the default is best: that is no config of its own.
                self.known[key] = config_of(record) if record and record.index >= 0 else None
                if record:
                    self.used[key] = record
            return self.known[key]

        def update(self, _target: Any, workload: Any, config: Any) -> None:
            # Layout alteration: it asked for the logical workload just before.
            key = workload_key(workload)
            self.known[key] = config
            self.origin[key] = self.asked[-1]

        def compete(self, *workloads: Any) -> tuple[Record | None, Record | None]:
            """Note that two workloads compute the same, and return their records."""
            one, other = map(workload_key, workloads)
            self.rivals |= {one: other, other: one}
            return lookup(one), lookup(other)

        def tuned(self, keys: Sequence[str]) -> list[str]:
            """Return the tuned workloads behind the ones that a kernel asked for."""
            return list(dict.fromkeys(self.origin.get(key, key) for key in keys))

        def fingerprint(self, keys: Sequence[str]) -> list[Any]:
            """Return what decides the code of a kernel that asks for these workloads."""
            return [(key, _text(self._find(key))) for key in keys]

    return Dispatch()


def has_open_sizes(workload: Any) -> bool:
    """Return whether a size in a workload is no number (`frontend.open_dims`)."""
    from tvm import tir

    if isinstance(workload, (tuple, list)):
        return any(has_open_sizes(part) for part in workload)
    return isinstance(workload, tir.PrimExpr) and not isinstance(workload, tir.IntImm)


def config_of(record: Record) -> Any:
    """Return AutoTVM's config entity of a record."""
    from tvm.autotvm.task.space import ConfigEntity

    config = ConfigEntity.from_json_dict(record.config)
    config.cost = record.cost
    return config


def _text(config: Any) -> Any:
    if config is None or (config.is_fallback and not config._entity_map):
        return "fallback"
    return [(name, repr(entity)) for name, entity in sorted(config._entity_map.items())]
