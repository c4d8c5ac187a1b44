"""Why a task hits or misses in the tuning logs, in plain sentences (`mlc logs explain`)."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import re
from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mlc.errors import MlcError, UsageError
from mlc.tune.lines import Damage, workload_digest
from mlc.tune.record import FALLBACK, REASONS, TVM_VERSION, workload_id, workload_key
from mlc.tune.store import Level, Store, level_of, usable_group

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from mlc.tune.index import Group, Index


def answer(store: Store, task: str, device: str) -> dict[str, Any]:
    """Return what `mlc logs explain` says of a task: its id, how it hits, and why.

    The records that come with mlc count where the store's own do not hit exactly.

    Raises:
        UsageError: `task` is neither a task's id nor a workload as JSON.
    """
    from mlc.tune import applied

    shipped = Store(applied.shipped())
    hashes = template_hashes(templates(store, task) | templates(shipped, task))
    level = applies(store, task, device, hashes)
    why = explain(store, task, device, hashes)
    if level != "exact" and (found := applies(shipped, task, device, hashes)):
        level = level or found
        why.append(
            f"among the records that come with mlc: {explain(shipped, task, device, hashes)[0]}"
        )
    name = workload_id(workload_key(json.loads(task))) if task.startswith("[") else task
    return {"task": name, "level": level, "why": why}


def template_hashes(names: Iterable[str]) -> Mapping[str, str]:
    """Return the current hash of each template that the installed TVM has."""
    from mlc.tune.template import template_hash

    found = {}
    for name in names:
        with contextlib.suppress(
            MlcError
        ):  # without TVM, hashes are not compared: `explain` says so
            found[name] = template_hash(name)
    return found


def task_digest(task: str) -> str:
    """Return the digest (or its beginning) of the workload that an id or a key names.

    Raises:
        UsageError: it is neither.
    """
    if task.startswith("["):
        with contextlib.suppress(ValueError, IndexError, RecursionError):
            return workload_digest(workload_key(json.loads(task)))[0]
        raise UsageError("the workload is not valid JSON", "give [template, arguments...]")
    found = re.fullmatch(r".+-([0-9a-f]{8})", task)
    if not found:
        raise UsageError(
            f"{task!r} is no task id", "they look like conv2d_NCHWc.x86-3f9a1c02: `mlc logs best`"
        )
    return found.group(1)


def applies(store: Store, task: str, device: str, hashes: Mapping[str, str]) -> Level | None:
    """Return how well the store knows a task on a device, None when nothing applies."""
    groups = store.ask(lambda index: index.groups(task_digest(task)))
    usable = usable_group(groups, device, _compared(groups, hashes), Damage())
    return usable[1] if usable else None


def templates(store: Store, task: str) -> set[str]:
    """Return the template of a task that the store knows (empty when it does not)."""
    return {group.template for group in store.ask(lambda index: index.groups(task_digest(task)))}


def explain(store: Store, task: str, device: str, hashes: Mapping[str, str]) -> list[str]:
    """Return plain sentences that say why a task hits or misses on a device (its id).

    `hashes` is the current template hash by template; one that is not in it is not compared.

    Raises:
        UsageError: `task` is neither an id nor a workload's key.
    """
    digest = task_digest(task)

    def question(index: Index) -> list[str]:
        groups = index.groups(digest)
        if not groups:
            return _unheard_of(index, store.root, task)
        compared = _compared(groups, hashes)
        hit = usable_group(groups, device, compared, Damage())
        near = [group for group in groups if level_of(group, device) != "hint"]
        current = [g for g in near if _is_current(g, compared)]
        said = [_hit(index, *hit) if hit else f"miss: no record of {task} applies on {device}"]
        said += _failures(index, [group for group in current if group.device == device])
        said += _outdated([group for group in near if group not in current], compared)
        said += _elsewhere([group for group in groups if group not in near])
        if unknown := sorted({group.template for group in near} - hashes.keys()):
            said.append(f"the current template hash of {', '.join(unknown)} was not compared")
        if not hit or hit[1] != "exact":
            said.append(f"`mlc tune MODEL --tasks {groups[0].task}` measures it on this device")
        return said

    return store.ask(question)


def _compared(groups: list[Group], hashes: Mapping[str, str]) -> dict[str, str]:
    """Return the hash to compare with by template: where it is not known, the newest one."""
    newest_last = sorted(groups, key=lambda group: group.until)
    return {**{group.template: group.template_hash for group in newest_last}, **hashes}


def _is_current(group: Group, hashes: Mapping[str, str]) -> bool:
    return (group.tvm_version, group.template_hash) == (TVM_VERSION, hashes[group.template])


def _unheard_of(index: Index, root: Path, task: str) -> list[str]:
    known = {group.task for group in index.groups()}
    near = difflib.get_close_matches(task, known, n=3)
    said = [f"miss: there is no record of {task} in {root}"]
    if near:
        said.append(f"there are records of {', '.join(near)}")
    return [*said, "`mlc tune MODEL` measures the tasks of a model; `mlc tune --list` names them"]


def _hit(index: Index, group: Group, level: Level) -> str:
    record = index.record(group, group.best_offset)
    config = "the default config" if record.index == FALLBACK else f"config {record.index}"
    what = f"{config}, {group.best_cost * 1e3:.4g} ms, measured {day(record.timestamp)}"
    what += ", chosen in a final comparison" if record.chosen else ""
    of = f"the best of {group.records} records, {group.failed} of them failures"
    if level == "exact":
        return f"hit: {what} on this device; {of}"
    return (
        f"hit from another device of the same class ({group.isa}), {group.device}: {what}; {of}; "
        "it applies until this device has a record of its own"
    )


def _failures(index: Index, groups: list[Group]) -> list[str]:
    """Return what there is to say when this device has records but only failures."""
    if not groups or any(group.best_cost < math.inf for group in groups):
        return []
    names = {number: name for name, number in REASONS.items()}
    counts = Counter(names[row.error] for _, row in index.rows(groups))
    listing = ", ".join(f"{count}x {reason}" for reason, count in counts.most_common())
    return [f"all {counts.total()} records of this device are failures: {listing}"]


def _outdated(groups: list[Group], hashes: Mapping[str, str]) -> list[str]:
    """Return why records that the machine would allow are ignored all the same."""
    versions, templates = Counter[str](), Counter[tuple[str, str]]()
    for group in groups:
        if group.tvm_version != TVM_VERSION:
            versions[group.tvm_version or "an unknown version"] += group.records
        else:
            templates[group.template, group.template_hash] += group.records
    said = [
        f"{count} records are of TVM {version}, this is {TVM_VERSION}: ignored"
        for version, count in versions.items()
    ]
    return said + [
        f"{count} records are of another version of the schedule {name} (template hash "
        f"{old or 'none'}, now {hashes[name]}): ignored"
        for (name, old), count in templates.items()
    ]


def _elsewhere(groups: list[Group]) -> list[str]:
    devices = Counter[tuple[str, str]]()
    for group in groups:
        devices[group.device, group.isa] += group.records
    said = []
    if nameless := devices.pop(("", ""), 0):
        said.append(f"{nameless} imported records name no device: hints for the cost model only")
    if devices:
        listing = ", ".join(f"{name} ({isa or 'no class'}): {count}"
                            for (name, isa), count in devices.most_common())  # fmt: skip
        said.append(f"records of other kinds of machines, hints for the cost model only: {listing}")
    return said


def day(time: float) -> str:
    """Return the day of a Unix time, in UTC."""
    return datetime.fromtimestamp(time, tz=timezone.utc).strftime("%Y-%m-%d")
