"""The store of tuning records: a folder of logs that is appended to and never half-read.

`<target id>/<device id>.jsonl`, a record per line as `mlc.tune.record` writes it; records that name
no device (plain AutoTVM ones) lie in `<target id>/imported.jsonl`. What holds at any moment:

1. A batch is one write under a lock, followed by fsync. A killed writer loses at most its batch; a
   failed write (full disk) leaves the file as it was.
2. A torn last line stays a damaged line of its own: the next batch begins on a new line.
3. Reading takes no lock, never fails on content, and counts what it leaves out (`Damage`).
4. A record applies on its own device, or on another one of the same vector class; only with the
   template hash and the TVM version that are current. All others are hints for the cost model.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import heapq
import math
import os
import re
import shutil
import sqlite3
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from mlc.cache import default_directory
from mlc.errors import TargetError, TuningError
from mlc.target import resolve
from mlc.tune.device import Device, isa_of
from mlc.tune.index import Group, Index, Row, StaleError, log_files
from mlc.tune.lines import Damage, can_keep, judge, lines, workload_digest
from mlc.tune.record import MAX_LINE, TVM_VERSION, Record, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

IMPORTED = "imported"
Level = Literal["exact", "same-isa", "hint"]
_LEVELS: tuple[Level, ...] = ("exact", "same-isa", "hint")
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A record that applies, and how well: measured on this device, or on one of the same class."""

    record: Record
    level: Level


class Store:
    """The records below `root`, which need not exist yet.

    `index` overrides where the index lies (a SQLite file); one that cannot be written there is kept
    in a temporary folder for the life of the store. Any number of stores, threads and processes may
    use one root. Every method raises TuningError when the logs cannot be read or written.
    """

    def __init__(self, root: Path, index: Path | None = None):
        self.root = root
        name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
        self._index = index or default_directory() / "logs-index" / f"{name[:32]}.sqlite"

    def append(self, records: Iterable[Record]) -> None:
        """Write records durably: those of one device all or none.

        Raises:
            TuningError: a record cannot be kept (no outcome, unsafe device id), or the folder
                cannot be written; what could not be written whole is not there at all.
        """
        batches: dict[Path, list[str]] = {}
        for record in records:
            batches.setdefault(self.path_of(record), []).append(_line(record))
        for path, batch in batches.items():
            with self.locked(path):
                _append(path, "".join(batch).encode())

    def path_of(self, record: Record) -> Path:
        """Return the log that a record belongs in."""
        if not record.device:
            return self.root / _target_id(record.target) / f"{IMPORTED}.jsonl"
        return self.root / record.device.partition(".")[0] / f"{record.device}.jsonl"

    @contextlib.contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of a log's folder, which is made if need be; OSError as TuningError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path.parent / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise TuningError(
                f"cannot write the tuning log {path}: {error.strerror or error}",
                "free space, or name a folder that can be written with --logs DIR; "
                "nothing of this batch was kept",
            ) from error

    def read(self, device: str | None = None, damage: Damage | None = None) -> Iterator[Record]:
        """Yield all records (those of one device), file by file, in the order of measuring.

        What holds no record is counted in `damage`; records of another TVM version are counted and
        yielded. Memory does not grow with the logs.
        """
        paths = log_files(self.root)
        if device:
            paths = [path for path in paths if path.stem == device]
        for path in paths:
            for record in read_log(path, damage):
                if device is None or record.device == device:
                    yield record

    def measured(self, workload: str, device: Device | str, template_hash: str) -> set[int]:
        """Return the configs of a workload that are known on a device, failures included."""
        digest = workload_digest(workload)[0]
        wanted = (_id(device), template_hash, TVM_VERSION)

        def question(index: Index) -> set[int]:
            groups = [
                group
                for group in index.groups(digest)
                if (group.device, group.template_hash, group.tvm_version) == wanted
            ]
            return {row.config for _, row in index.rows(groups)}

        return self.ask(question)

    def best(
        self,
        workloads: Iterable[str],
        device: Device | str,
        template_hashes: Mapping[str, str],
        damage: Damage | None = None,
    ) -> dict[str, Hit]:
        """Return the record that applies, by workload; workloads without one are left out.

        Args:
            workloads: keys as `mlc.tune.record.workload_key` gives them.
            device: the machine that is compiled for (or its id).
            template_hashes: the current hash by template; records of other templates do not apply.
            damage: takes the count of damaged lines of all logs, and of records of these workloads
                that only their TVM version or their template hash keeps from applying.

        The exact device goes before others of its class. Of one device, the newest chosen record
        goes before all others, then the lowest mean cost, then the record that was measured first;
        of several devices the one with the lowest cost.
        """
        keys = list(dict.fromkeys(workloads))

        def question(index: Index) -> tuple[dict[str, Hit], Damage]:
            hits, counts = {}, index.damage()
            for key in keys:
                groups = index.groups(workload_digest(key)[0])
                usable = usable_group(groups, _id(device), template_hashes, counts)
                if usable:
                    record = index.record(usable[0], usable[0].best_offset)
                    hits[key] = Hit(record=record, level=usable[1])
            return hits, counts

        hits, counts = self.ask(question)
        if damage:
            damage.add(counts)
        return hits

    def history(
        self,
        template: str,
        device: Device | str,
        level: Level = "exact",
        limit: int | None = None,
    ) -> list[Record]:
        """Return what a cost model may learn from: the records of a template, oldest first.

        Failures and other template hashes are included, other TVM versions are not. With "exact"
        they are of this device, with "same-isa" also of others of its class, with "hint" of any.
        `limit` keeps only the newest; without it the list may be as long as the logs.
        """
        wanted = _LEVELS[: _LEVELS.index(level) + 1]

        def question(index: Index) -> list[Record]:
            groups = [
                group
                for group in index.groups()
                if (group.template, group.tvm_version) == (template, TVM_VERSION)
                and level_of(group, _id(device)) in wanted
            ]
            rows = index.rows(groups)
            if limit is None:
                newest = sorted(rows, key=_time)
            else:
                newest = heapq.nlargest(limit, rows, key=_time)[::-1]
            return list(index.records((group, row.offset) for group, row in newest))

        return self.ask(question)

    def ask(self, question: Callable[[Index], _T]) -> _T:
        """Return the answer of an up-to-date index, built anew where it is damaged or stale."""
        for attempt in range(4):
            try:
                self._index.parent.mkdir(parents=True, exist_ok=True)
            except OSError:
                self._index = self._private()
            try:
                with Index(self.root, self._index) as index:
                    index.refresh()
                    with index.snapshot():
                        return question(index)
            except sqlite3.OperationalError as error:
                if attempt or "locked" in str(error):
                    self._index = self._private()  # full disk, read-only, or in use for minutes
                else:
                    _discard(self._index)
            except (sqlite3.DatabaseError, StaleError):
                _discard(self._index)
            except OSError as error:
                raise TuningError(
                    f"cannot read the tuning logs in {self.root}: {error}",
                    "make them readable, or name another folder with --logs DIR",
                ) from error
        raise TuningError(
            f"the tuning logs in {self.root} keep changing, or their index cannot be kept",
            "make room in the temporary folder; `mlc logs list` shows whether it works again",
        )

    def _private(self) -> Path:
        """Return a place for an index of this store alone, deleted with it."""
        folder = tempfile.mkdtemp(prefix="mlc-logs-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder) / "index.sqlite"


def best_in(
    stores: Iterable[Store],
    workloads: Iterable[str],
    device: Device | str,
    template_hashes: Mapping[str, str],
) -> dict[str, Hit]:
    """Return the record that applies, by workload, out of several stores (see `Store.best`).

    The exact device goes before others of its class; within that, earlier stores before later ones.
    """
    keys = list(workloads)
    found: dict[str, Hit] = {}
    for store in stores:
        for key, hit in store.best(keys, device, template_hashes).items():
            if key not in found or _LEVELS.index(hit.level) < _LEVELS.index(found[key].level):
                found[key] = hit
    return found


def read_log(path: Path, damage: Damage | None = None) -> Iterator[Record]:
    """Yield the records of one log or AutoTVM file; count in `damage` what holds none.

    Raises:
        TuningError: it cannot be read.
    """
    counts = damage or Damage()
    try:
        with path.open("rb") as log:
            for line in lines(log):
                record = judge(line, counts)
                if record is not None:
                    counts.other_version += record.tvm_version != TVM_VERSION
                    yield record
    except OSError as error:
        raise TuningError(f"cannot read the tuning log {path}: {error.strerror}") from error


def level_of(group: Group, device: str) -> Level:
    """Return what records of a group are worth on a device (its id), by the machine alone.

    Machines without vector units ("scalar") and those without a class have nothing in common but
    their target.
    """
    if group.device == device:
        return "exact"
    isa = isa_of(device)
    same_target = group.device.partition(".")[0] == device.partition(".")[0]
    if group.device and group.isa == isa and (isa not in {"", "scalar"} or same_target):
        return "same-isa"
    return "hint"


def usable_group(
    groups: list[Group], device: str, template_hashes: Mapping[str, str], counts: Damage
) -> tuple[Group, Level] | None:
    """Return the group whose best record applies; count what only its code version forbids."""
    usable: list[tuple[Group, Level]] = []
    for group in groups:
        level = level_of(group, device)
        if level == "hint":
            continue
        if group.tvm_version != TVM_VERSION:
            counts.other_version += group.records
        elif group.template_hash != template_hashes.get(group.template):
            counts.other_template += group.records
        elif group.best_cost < math.inf:
            usable.append((group, level))
    winners: dict[str, tuple[Group, Level]] = {}
    for group, level in sorted(usable, key=lambda found: found[0].rank):
        winners.setdefault(group.device, (group, level))
    return min(winners.values(), key=_merit, default=None)


def _time(found: tuple[Group, Row]) -> float:
    return found[1].time


def _merit(winner: tuple[Group, Level]) -> tuple[int, float, float, str]:
    group, level = winner
    return _LEVELS.index(level), group.best_cost, group.best_time, group.file


def _id(device: Device | str) -> str:
    return device if isinstance(device, str) else device.id


def _line(record: Record) -> str:
    line = encode(record) if can_keep(record) else ""
    if not line or len(line) > MAX_LINE:
        raise TuningError(
            f"a record of device {record.device[:80]!r} cannot be kept: it has no outcome, is too "
            "long, or its device id is not safe as a file name"
        )
    return line + "\n"


def _append(path: Path, data: bytes) -> None:
    """Append `data` and make it durable; on failure the file is as before."""
    log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(log).st_size
        if size and os.pread(log, 1, size - 1) != b"\n":
            data = b"\n" + data  # what is torn stays a line of its own
        written = 0
        try:
            while written < len(data):
                written += os.write(log, data[written:])
            os.fsync(log)
        except BaseException as error:
            if isinstance(error, OSError) or written < len(data):
                os.ftruncate(log, size)
            raise
    finally:
        os.close(log)
    if not size:
        sync_folder(path.parent)
        sync_folder(path.parent.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(index: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            index.with_name(index.name + suffix).unlink()


@functools.lru_cache(256)
def _target_id(text: str) -> str:
    """Return the folder for a TVM target string as AutoTVM writes it (`-keys` is redundant)."""
    words = [word for word in text.split() if not word.startswith("-keys=")]
    with contextlib.suppress(TargetError):
        if any(word.startswith("-mcpu") for word in words):
            return resolve(" ".join(words)).id.partition(".")[0] or IMPORTED
    kind = re.sub(r"[^a-z0-9]+", "-", words[0].lower() if words else "")[:20].strip("-")
    return f"{kind}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:12]}"
