"""How compiling uses the tuning logs: look records up, say what they cover, gate on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.cpu import host_cpu, physical_cores
from mlc.errors import GateError, UsageError
from mlc.project import LOGS
from mlc.tune.device import Device, device_for
from mlc.tune.record import Record, workload_id
from mlc.tune.store import Store
from mlc.tune.tasks import template_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlc.codegen.kernels import Kernel
    from mlc.target import Target
    from mlc.tune.dispatch import Lookup


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
    """Return this machine as a device for a target, with the threads that runs use by default."""
    return device_for(chosen, host_cpu(), physical_cores())


def from_logs(logs: str | None, chosen: Target) -> Lookup:
    """Return what finds the best record of a workload for a target, on this machine or its like."""
    root = root_of(logs)
    if root is None:
        return lambda _key: None
    store, device = Store(root), device_of(chosen)

    def lookup(key: str) -> Record | None:
        template = key[2 : key.index('"', 2)]
        hit = store.best([key], device, {template: template_hash(template)}).get(key)
        return hit.record if hit else None

    return lookup


def state(logs: str | None) -> list[tuple[str, int, int]]:
    """Return what changes whenever the logs do: name, size and time of each file."""
    root = root_of(logs)
    if root is None:
        return []
    files = sorted(root.glob("*/*.jsonl"))
    return [(str(f.relative_to(root)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def coverage(
    kernels: Iterable[Kernel], calls: Mapping[str, int], dispatch: Any, chosen: Target
) -> dict[str, Any]:
    """Return how much of a model's work is tuned, by share of its FLOPs in tunable kernels.

    `tuned`: by records of this very device (or of a named log); `other_device`: by records of
    another machine of the same vector class; `fallback`: by no record.
    """
    here = device_of(chosen).id
    shares = {"tuned": 0.0, "other_device": 0.0, "fallback": 0.0}
    counts = dict.fromkeys(shares, 0)
    behind: set[str] = set()
    for kernel in kernels:
        if not kernel.workloads:
            continue
        keys = dispatch.tuned(kernel.workloads)[-1:]
        behind.update(keys)
        record = next((dispatch.used[key] for key in keys if key in dispatch.used), None)
        level = "fallback" if record is None else "other_device"
        if record is not None and record.device in ("", here):
            level = "tuned"
        shares[level] += kernel.flops * calls[kernel.symbol]
        counts[level] += 1
    total = sum(shares.values()) or 1.0
    return {
        "kernels": counts,
        "share_of_flops": {level: round(work / total, 4) for level, work in shares.items()},
        "records": [
            {"task": workload_id(key), "device": record.device, "config": record.index,
             "seconds": record.cost}
            for key, record in sorted(dispatch.used.items()) if key in behind
        ],
    }  # fmt: skip


def require(found: Mapping[str, Any], share: float | None) -> None:
    """Raise GateError when records of this device cover less than `share` of the work.

    Where nothing can be tuned, nothing is missing.
    """
    if share is None or not any(found["kernels"].values()):
        return
    have = found["share_of_flops"]["tuned"]
    if have < share:
        raise GateError(
            f"{have:.1%} of the model's work is tuned on this device, {share:.1%} was required "
            f"({found['share_of_flops']['other_device']:.1%} by records of other devices)",
            "`mlc tune` measures what is missing; `mlc logs explain MODEL` says why records miss",
        )
