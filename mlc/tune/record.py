"""`Record`: one measurement of one config of one workload, as a line that AutoTVM can read.

A line is AutoTVM's JSON (`input`, `config`, `result`, `version`, `tvm_version`) with one key more,
`mlc`, that says where and under which code it was measured. Nothing here needs TVM.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
AUTOTVM_VERSION = 0.2
TVM_VERSION = "0.19.0"
MAX_LINE = 1 << 20
FALLBACK = -1  # config index of the template's default

# AutoTVM's error numbers (tvm.autotvm.measure.MeasureErrorNo) by the reason that we write.
REASONS = {
    "": 0,
    "instantiation": 1,
    "compile": 2,
    "runtime": 4,
    "wrong answer": 5,
    "build timeout": 6,
    "run timeout": 7,
    "crash": 8,
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement; `costs` in seconds per call (empty when it failed, for `reason`).

    `workload` is the canonical JSON of [template, args...]; `config` AutoTVM's JSON of the config
    (`index`, `code_hash`, `entity`); `target` the TVM target string; `device` the id of the machine;
    `template_hash` the digest of the schedule's source (`mlc.tune.template`). A `chosen` record is the
    outcome of a final comparison: it goes before all others of its workload and device, the newest
    first; its config may be `FALLBACK`.
    """

    workload: str
    config: dict[str, Any] = field(hash=False)
    target: str
    device: str
    template_hash: str
    costs: tuple[float, ...] = ()
    reason: str = ""
    message: str = ""
    timestamp: float = 0.0
    run: str = ""
    chosen: bool = False
    tvm_version: str = TVM_VERSION

    @property
    def ok(self) -> bool:
        """Whether the config ran and gave a cost."""
        return not self.reason and bool(self.costs)

    @property
    def cost(self) -> float:
        """The mean cost in seconds; infinite for a failure."""
        return sum(self.costs) / len(self.costs) if self.ok else math.inf

    @property
    def template(self) -> str:
        """The name of the template."""
        return str(json.loads(self.workload)[0])

    @property
    def index(self) -> int:
        """The position of the config in the template's space."""
        return int(self.config["index"])


def workload_key(workload: Any) -> str:
    """Return the canonical text of a workload (template name and arguments)."""
    return json.dumps(workload, separators=(",", ":"), default=list)


def workload_id(key: str) -> str:
    """Return the short id under which users see a workload: `conv2d_NCHWc.x86-3f9a1c02`."""
    return f"{json.loads(key)[0]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def mcpu(target: str) -> str:
    """Return the `-mcpu` of a TVM target string ("" without one)."""
    found = re.search(r"-mcpu=(\S+)", target)
    return found.group(1) if found else ""


def encode(record: Record) -> str:
    """Return the record as one line, without the line break.

    Raises:
        ValueError: it has neither costs nor a reason.
    """
    if not record.ok and not record.reason:
        raise ValueError("a record needs costs, or the reason why there are none")
    template, *args = json.loads(record.workload)
    failed = [1e9] if not record.ok else list(record.costs)
    return json.dumps(
        {
            "input": [record.target, template, args, {}],
            "config": record.config,
            "result": [failed, REASONS[record.reason], record.cost if record.ok else 1e9,
                       record.timestamp],
            "version": AUTOTVM_VERSION,
            "tvm_version": record.tvm_version,
            "mlc": {
                "format": FORMAT,
                "device": record.device,
                "template_hash": record.template_hash,
                "run": record.run,
                "reason": record.reason,
                "message": record.message[:200],
                **({"chosen": True} if record.chosen else {}),
            },
        },
        separators=(",", ":"),
    )  # fmt: skip


def decode(line: str) -> Record | None:
    """Return the record in a line, plain AutoTVM lines included; None when it holds none.

    A plain line has no `mlc` key: its device and template hash are empty, so that it never counts
    as measured here.
    """
    if len(line) > MAX_LINE:
        return None
    try:
        row = json.loads(line)
        target, template, args, _ = row["input"]
        costs, error_no, _, timestamp = row["result"]
        config = row["config"]
        ours = row.get("mlc", {})
        if not isinstance(ours, dict) or ours.get("format", FORMAT) > FORMAT:
            return None
        known = {number: reason for reason, number in REASONS.items()} | {3: "compile"}
        reason = str(ours.get("reason") or known.get(int(error_no), "runtime"))
        record = Record(
            workload=workload_key([str(template), *args]),
            config={
                "index": int(config["index"]),
                "code_hash": config.get("code_hash"),
                "entity": [list(entity) for entity in config["entity"]],
            },
            target=str(target),
            device=str(ours.get("device", "")),
            template_hash=str(ours.get("template_hash", "")),
            costs=() if error_no else tuple(float(cost) for cost in costs),
            reason=reason,
            message=str(ours.get("message", "")),
            timestamp=float(timestamp),
            run=str(ours.get("run", "")),
            chosen=ours.get("chosen") is True,
            tvm_version=str(row.get("tvm_version", "")),
        )
    except (
        ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError,
    ):  # fmt: skip
        return None
    if reason not in REASONS or any(not math.isfinite(c) or c <= 0 for c in record.costs):
        return None
    return record
