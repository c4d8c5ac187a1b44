"""What `mlc logs` does: list, show, pick the best, merge, prune, export, explain.

Every operation takes a `Store` and returns plain objects; a task is named by its id
(`conv2d_NCHWc.x86-3f9a1c02`) or by its workload's key.
"""

from __future__ import annotations

import contextlib
import difflib
import heapq
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mlc.errors import TuningError, UsageError
from mlc.tune.index import Damage, Group, Index, log_files, workload_digest
from mlc.tune.record import FALLBACK, REASONS, TVM_VERSION, Record, encode, workload_key
from mlc.tune.store import Level, Store, level_of, read_log, sync_folder, usable_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_BATCH = 4096  # records that merging holds in memory


@dataclass(frozen=True, kw_only=True)
class LogFile:
    """The records of one device in one file; times are Unix times of the first and last record."""

    file: str
    device: str
    records: int
    failed: int
    tasks: int
    since: float
    until: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which records are meant: those whose device, template and task contain these texts."""

    device: str = ""
    template: str = ""
    task: str = ""

    def fits(self, group: Group) -> bool:
        """Return whether the records of a group are meant."""
        return (
            self.device in group.device
            and self.template in group.template
            and self.task in group.task
        )


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best record of one task on one device under one version of the code."""

    task: str
    records: int
    failed: int
    record: Record


@dataclass(kw_only=True)
class Merged:
    """What merging did; `nameless` of the `added` records name no device (plain AutoTVM ones)."""

    added: int = 0
    nameless: int = 0
    duplicates: int = 0
    damage: Damage = field(default_factory=Damage)


@dataclass(kw_only=True)
class Pruned:
    """What pruning did: records kept and dropped, lines without a record, bytes saved."""

    kept: int = 0
    dropped: int = 0
    damaged: int = 0
    files: int = 0
    saved_bytes: int = 0


def list_files(store: Store) -> list[LogFile]:
    """Return what lies in the store, a row per file and device."""
    rows: dict[tuple[str, str], list[Group]] = {}
    for group in store.ask(lambda index: index.groups()):
        rows.setdefault((group.file, group.device), []).append(group)
    return [
        LogFile(
            file=file,
            device=device,
            records=sum(group.records for group in groups),
            failed=sum(group.failed for group in groups),
            tasks=len({group.digest for group in groups}),
            since=min(group.since for group in groups),
            until=max(group.until for group in groups),
        )
        for (file, device), groups in sorted(rows.items())
    ]


def damage(store: Store) -> Damage:
    """Return how many lines of the store hold no record, and how many are of another TVM version."""

    def question(index: Index) -> Damage:
        counts = index.damage()
        for group in index.groups():
            counts.other_version += group.records if group.tvm_version != TVM_VERSION else 0
        return counts

    return store.ask(question)


def newest(store: Store, choice: Choice, limit: int) -> list[Record]:
    """Return the newest records that are meant, the newest first."""

    def question(index: Index) -> list[Record]:
        rows = index.rows(filter(choice.fits, index.groups()))
        chosen = heapq.nlargest(limit, rows, key=lambda item: item[1].time)
        return list(index.records((group, row.offset) for group, row in chosen))

    return store.ask(question)


def best(store: Store, choice: Choice) -> list[Best]:
    """Return the best record of each task and device, template hash and TVM version, by task."""

    def question(index: Index) -> list[Best]:
        keys: dict[tuple[str, str, str, str, str], list[Group]] = {}
        for group in filter(choice.fits, index.groups()):
            key = (group.task, group.digest, group.device, group.template_hash, group.tvm_version)
            keys.setdefault(key, []).append(group)
        found = []
        for key, groups in sorted(keys.items()):
            winner = min(groups, key=lambda group: group.rank)
            if winner.best_cost < math.inf:
                found.append(
                    Best(
                        task=key[0],
                        records=sum(group.records for group in groups),
                        failed=sum(group.failed for group in groups),
                        record=index.record(winner, winner.best_offset),
                    )
                )
        return found

    return store.ask(question)


def merge(store: Store, source: Path) -> Merged:
    """Add the records of another folder of logs, or of one file (plain AutoTVM's too).

    Skipped are those that the store has: same workload, config, device, template hash and time.
    Interrupted, it can simply be run again.

    Raises:
        UsageError: `source` is missing, or not one line of it is a record.
        TuningError: it cannot be read, or the store cannot be written.
    """
    if not source.exists():
        raise UsageError(f"there is no {source}", "give a log file or a folder of logs")
    done = Merged()
    if source.is_dir():
        records = Store(source).read(damage=done.damage)
    else:
        records = read_log(source, done.damage)
    while batch := list(islice(records, _BATCH)):
        fresh = store.ask(_unknown(batch))
        store.append(fresh)
        done.added += len(fresh)
        done.nameless += sum(not record.device for record in fresh)
        done.duplicates += len(batch) - len(fresh)
    if not done.added + done.duplicates:
        others = done.damage.torn + done.damage.foreign
        raise UsageError(f"{source} holds no tuning records ({others} other lines)")
    return done


def _unknown(batch: list[Record]) -> Callable[[Index], list[Record]]:
    """Return the question which records of a batch are new, each once."""
    keys = {
        (record.workload, record.index, record.device, record.template_hash, record.timestamp):
        record for record in reversed(batch)
    }  # fmt: skip
    unique = list(reversed(keys.values()))
    return lambda index: [record for record in unique if not index.holds(record)]


def prune(store: Store, *, keep: int, dry_run: bool = False) -> Pruned:
    """Keep the best `keep` records of each task and device, drop all others, and damaged lines.

    Records under another template hash or TVM version count as another task: they would apply
    again if that version came back. Failures go, so a later run may measure them again. Each file is
    replaced whole, under its lock.

    Raises:
        UsageError: `keep` is not positive.
        TuningError: a file cannot be read or written.
    """
    if keep < 1:
        raise UsageError("--keep needs at least 1")
    done = Pruned()
    for path in log_files(store.root):
        with contextlib.nullcontext() if dry_run else store.locked(path):
            offsets, records, damaged = store.ask(_keepers(path, store.root, keep))
            done.kept += len(offsets)
            done.dropped += records - len(offsets)
            done.damaged += damaged
            if records - len(offsets) + damaged:
                done.files += 1
                done.saved_bytes += 0 if dry_run else _rewrite(path, offsets)
    return done


def _keepers(path: Path, root: Path, keep: int) -> Callable[[Index], tuple[list[int], int, int]]:
    """Return the question which records of a file stay: offsets, number of all, damaged lines."""
    name = path.relative_to(root).as_posix()

    def question(index: Index) -> tuple[list[int], int, int]:
        groups = [group for group in index.groups() if group.file == name]
        offsets = []
        for group in groups:
            working = (row for _, row in index.rows([group]) if row.cost < math.inf)
            best = heapq.nsmallest(keep, working, key=lambda row: row.rank)
            offsets += [row.offset for row in best]
        lost = index.damage(name)
        records = sum(group.records for group in groups)
        return sorted(offsets), records, lost.torn + lost.foreign

    return question


def _rewrite(path: Path, offsets: list[int]) -> int:
    """Replace a log by those of its lines, or delete it without any; return the bytes saved."""
    before = path.stat().st_size
    if not offsets:
        path.unlink()
        return before
    with path.open("rb") as log:

        def lines() -> Iterator[bytes]:
            for offset in offsets:
                log.seek(offset)
                yield log.readline().rstrip(b"\n") + b"\n"

        _write_whole(path, lines())
    return before - path.stat().st_size


def _write_whole(path: Path, lines: Iterable[bytes]) -> int:
    """Write a file whole or not at all, durably, its mode kept; return the number of lines."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    count = 0
    try:
        with os.fdopen(handle, "wb") as file:
            for line in lines:
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, name)
        else:
            Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    sync_folder(path.parent)
    return count


def export(store: Store, path: Path, choice: Choice, *, everything: bool = False) -> int:
    """Write the best records (or all) to one file that AutoTVM reads; return how many.

    Each line keeps mlc's own key, which AutoTVM skips. Left out are records of a template's default
    config: AutoTVM cannot apply them, and takes the default where it finds none.

    Raises:
        UsageError: there is nothing to write.
        TuningError: the file cannot be written.
    """
    groups = [group for group in store.ask(lambda index: index.groups()) if choice.fits(group)]
    if not any(everything or group.best_cost < math.inf for group in groups):
        raise UsageError(f"no record in {store.root} fits", "see `mlc logs list`")
    if everything:
        devices = {group.device for group in groups}
        tasks = {group.digest for group in groups}
        records: Iterable[Record] = (
            record
            for record in store.read()
            if record.device in devices and workload_digest(record.workload)[0] in tasks
        )
    else:
        records = (found.record for found in best(store, choice))
    lines = (encode(r).encode() + b"\n" for r in records if r.index != FALLBACK)
    try:
        return _write_whole(path, lines)
    except OSError as error:
        raise TuningError(f"cannot write {path}: {error.strerror}", "name another file") from error


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
