"""Read AutoTVM records, and offer the best of them while kernels are scheduled.

AutoTVM's own `ApplyHistoryBest` takes any record of target key `cpu`, whatever its `-mcpu`. Here a
record applies only when it was measured for the CPU that is compiled for.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import tvm_env
from mlc.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_LINE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BestConfigs:
    """The best config by workload, and what was left out of the file and why."""

    configs: dict[str, Any] = field(repr=False, default_factory=dict)
    other_cpu: int = 0
    failed: int = 0
    damaged: int = 0


def workload_key(workload: Any) -> str:
    """Return the text by which a workload (template name and arguments) is known."""
    return json.dumps(workload, separators=(",", ":"), default=list)


def read_best(path: Path, mcpu: str) -> BestConfigs:
    """Return the fastest measured config of each workload in an AutoTVM log.

    Raises:
        UsageError: the file is missing or unreadable, or not one line of it is a record.
    """
    tvm_env.tvm()
    best: dict[str, tuple[float, Any]] = {}
    counts = {"other_cpu": 0, "failed": 0, "damaged": 0}
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    verdict = _take(line, mcpu, best)
                    if verdict:
                        counts[verdict] += 1
    except OSError as error:
        raise UsageError(
            f"cannot read tuning records {path}: {error.strerror}", "check `--records`"
        ) from None
    if not best and counts["damaged"] and not counts["other_cpu"] and not counts["failed"]:
        raise UsageError(f"{path} holds no AutoTVM records ({counts['damaged']} other lines)")
    return BestConfigs(configs={key: config for key, (_, config) in best.items()}, **counts)


def _take(line: str, mcpu: str, best: dict[str, tuple[float, Any]]) -> str:
    """Keep the record in `line` if it is the best so far; return why it does not count, if so."""
    from tvm import autotvm

    if len(line) > _MAX_LINE:
        return "damaged"
    try:
        row = json.loads(line)
        costs, error_no = row["result"][0], row["result"][1]
        target = str(row["input"][0])
        record = autotvm.record.decode(line)
        measured = record[0] if record else None
        cost = float(np.mean(costs))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "damaged"
    if measured is None:
        return "damaged"
    if error_no != 0 or not np.isfinite(cost) or cost <= 0:
        return "failed"
    named = re.search(r"-mcpu=(\S+)", target)
    if named is None or named.group(1) != mcpu:
        return "other_cpu"
    key = workload_key(measured.task.workload)
    if key not in best or cost < best[key][0]:
        config = measured.config
        config.cost = cost
        best[key] = (cost, config)
    return ""


def dispatch_context(best: BestConfigs) -> Any:
    """Return an AutoTVM dispatch context that offers `best`, else the template's fallback.

    `asked` lists the workloads that schedules asked for since it was last cleared.
    """
    tvm_env.tvm()
    from tvm.autotvm.task.dispatcher import DispatchContext
    from tvm.autotvm.task.space import FallbackConfigEntity

    class Dispatch(DispatchContext):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []
            self.known: dict[str, Any] = dict(best.configs)
            self.fallbacks: dict[str, Any] = {}

        def _query_inside(self, _target: Any, workload: Any) -> Any:
            key = workload_key(workload)
            self.asked.append(key)
            if key in self.known:
                return self.known[key]
            # One object per workload: a template writes its default into it.
            return self.fallbacks.setdefault(key, FallbackConfigEntity())

        def update(self, _target: Any, workload: Any, config: Any) -> None:
            self.known[workload_key(workload)] = config

        def fingerprint(self, keys: list[str]) -> list[Any]:
            """Return what decides the code of a kernel that asks for these workloads."""
            return [(key, _config_text(self.known.get(key))) for key in keys]

    return Dispatch()


def _config_text(config: Any) -> Any:
    if config is None:
        return "fallback"
    return [(name, repr(entity)) for name, entity in sorted(config._entity_map.items())]
