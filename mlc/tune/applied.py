"""How compiling uses the tuning logs: look records up, say what they cover, gate on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.buckets import manifests
from mlc.cpu import host_cpu, physical_cores
from mlc.errors import GateError, UsageError
from mlc.project import LOGS
from mlc.target import data_dir
from mlc.tune.device import Device, device_for
from mlc.tune.record import Record, workload_id
from mlc.tune.store import Store, best_in
from mlc.tune.template import template_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlc.codegen.kernels import Kernel
    from mlc.target import Target
    from mlc.tune.dispatch import Lookup
    from mlc.tune.dispatcher import Dispatch

LEVELS = ("tuned", "other_device", "fallback")


def root_of(logs: str | None) -> Path | None:
    """Return the folder of tuning logs: the one named, else `tuning_logs` here if it exists.

    Raises:
        UsageError: the named folder does not exist.
    """
    if logs is None:
        return Path(LOGS) if Path(LOGS).is_dir() else None
    if not Path(logs).is_dir():
        raise UsageError(
            f"there is no folder of tuning logs {logs}", "`mlc tune` makes one; check `--logs`"
        )
    return Path(logs)


def device_of(chosen: Target) -> Device:
    """Return this machine as a device for a target, with the threads that runs use by default.

    For a GPU, any of its architecture.
    """
    return device_for(chosen, host_cpu(), physical_cores())


def from_logs(logs: str | None, chosen: Target) -> Lookup:
    """Return what finds the best record of a workload for a target, on this machine or its like.

    For a GPU, on any of its architecture.

    It looks in the user's logs first, then in those that come with mlc.
    """
    stores, device = [Store(root) for root in _roots(logs)], device_of(chosen)

    def lookup(key: str) -> Record | None:
        template = key[2 : key.index('"', 2)]
        hit = best_in(stores, [key], device, {template: template_hash(template)}).get(key)
        return hit.record if hit else None

    return lookup


def state(logs: str | None) -> list[tuple[str, str]]:
    """Return what changes whenever the logs do, and only then: name and sha256 of each file."""
    files = [(root, file) for root in _roots(logs) for file in sorted(root.glob("*/*.jsonl"))]
    return [
        (str(file.relative_to(root)), hashlib.sha256(file.read_bytes()).hexdigest())
        for root, file in files
    ]


def shipped() -> Path:
    """Return the folder with the records that come with mlc."""
    return data_dir(LOGS)


def _roots(logs: str | None) -> list[Path]:
    named = root_of(logs)
    own = [] if named is None or named.resolve() == shipped().resolve() else [named]
    return [*own, shipped()]


def coverage(
    kernels: Iterable[Kernel], calls: Mapping[str, int], dispatch: Dispatch, chosen: Target
) -> dict[str, Any]:
    """Return how much of a model's work is tuned, by share of its FLOPs in tunable kernels.

    The level of each such kernel: `tuned` by records of this very device (or of a named log),
    `other_device` by records of another machine of the same vector class, `fallback` by no record.
    """
    here = device_of(chosen)
    work = dict.fromkeys(LEVELS, 0.0)
    levels = {}
    behind: set[str] = set()
    for kernel in kernels:
        if not kernel.workloads:
            continue
        keys = dispatch.tuned(kernel.workloads)[-1:]
        behind.update(keys)
        record = next((dispatch.used[key] for key in keys if key in dispatch.used), None)
        level = "fallback" if record is None else "other_device"
        if record is not None and here.is_measured_by(record.device):
            level = "tuned"
        work[level] += kernel.flops * calls[kernel.symbol]
        levels[kernel.symbol] = level
    return {
        "kernels": {level: list(levels.values()).count(level) for level in LEVELS},
        "levels": levels,
        "share_of_flops": _shares(work),
        "records": [
            {"task": workload_id(key), "device": record.device, "config": record.index,
             "seconds": record.cost}
            for key, record in sorted(dispatch.used.items()) if key in behind
        ],
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of the work in tunable kernels, by level; `by` says of what: "time" or "FLOPs"."""

    by: str
    tuned: float
    other_device: float
    fallback: float


def by_flops(tuning: Mapping[str, Any]) -> Coverage:
    """Return the coverage in an artifact's manifest (its `tuning`), which holds no times."""
    return Coverage(by="FLOPs", **tuning["share_of_flops"])


def least(manifest: Mapping[str, Any]) -> Coverage:
    """Return the coverage by FLOPs of an artifact; of several buckets that of the least tuned."""
    found = [by_flops(entry["tuning"]) for entry in manifests(manifest)]
    return min(found, key=lambda coverage: coverage.tuned)


def is_mixed(tuning: Mapping[str, Any]) -> bool:
    """Whether tunable kernels differ in level: only then do times say more than FLOPs do."""
    return len(set(tuning["levels"].values())) > 1


def by_time(tuning: Mapping[str, Any], seconds: Mapping[str, float]) -> Coverage:
    """Return the coverage by the seconds that each kernel takes in a run, by symbol.

    By FLOPs where no tunable kernel takes long enough to be timed.
    """
    work = dict.fromkeys(LEVELS, 0.0)
    for symbol, level in tuning["levels"].items():
        work[level] += seconds.get(symbol, 0.0)
    return Coverage(by="time", **_shares(work)) if any(work.values()) else by_flops(tuning)


def _shares(work: Mapping[str, float]) -> dict[str, float]:
    total = sum(work.values()) or 1.0
    return {level: round(part / total, 4) for level, part in work.items()}


def require(found: Coverage, share: float | None) -> None:
    """Raise GateError when records of this device cover less than `share` of the work.

    Where nothing can be tuned, nothing is missing.
    """
    if share is None or not any((found.tuned, found.other_device, found.fallback)):
        return
    if found.tuned < share:
        raise GateError(
            f"{found.tuned:.1%} of the model's work is tuned on this device, {share:.1%} was required "
            f"(by {found.by}; {found.other_device:.1%} by records of other devices)",
            "`mlc tune` measures what is missing; `mlc logs explain MODEL` says why records miss",
        )
