"""What `mlc logs` does: list, show, pick the best, merge, prune, export.

Every operation takes a `Store` and returns plain objects; a task is named by its id
(`conv2d_NCHWc.x86-3f9a1c02`) or by its workload's key.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mlc.errors import TuningError, UsageError
from mlc.tune.index import Group, Index, log_files
from mlc.tune.lines import Damage, workload_digest
from mlc.tune.record import FALLBACK, TVM_VERSION, Record, encode
from mlc.tune.store import Store, read_log, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
