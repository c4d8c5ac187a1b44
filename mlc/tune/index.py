"""The index over a folder of tuning logs: where each record lies, so that nothing is parsed twice.

A SQLite file in the cache folder, never beside the logs, and never the truth: it may be deleted at
any time. `Index.refresh` compares every log with what was indexed: a file that grew is read on from
where indexing stopped; one that shrank, was replaced, or whose indexed part has other ends than
before, is indexed anew. Records of one file with the same workload, device, template hash and TVM
version form a `Group`, which knows its best record: finding the best touches nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from mlc.tune.device import isa_of
from mlc.tune.lines import Damage, judge, lines, understand, workload_digest
from mlc.tune.record import MAX_LINE, REASONS, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LOCK_SECONDS = 60.0  # how long to wait while another process indexes the same folder
_LAYOUT = 1  # user_version in _TABLES
_BATCH = 20_000  # records that indexing holds in memory
_END = 4096  # bytes at a file's ends that tell growing from replacing
_TABLES = """
CREATE TABLE files (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE, inode TEXT, size INTEGER, mtime_ns INTEGER,
    offset INTEGER, ends TEXT, torn INTEGER, other INTEGER);
CREATE TABLE groups (
    id INTEGER PRIMARY KEY, file INTEGER, digest TEXT, device TEXT, template_hash TEXT,
    tvm_version TEXT, template TEXT, isa TEXT, records INTEGER DEFAULT 0, failed INTEGER DEFAULT 0,
    since REAL DEFAULT 9e999, until REAL DEFAULT -9e999, best_order REAL DEFAULT 9e999,
    best_time REAL DEFAULT 9e999, best_offset INTEGER DEFAULT -1, best_cost REAL DEFAULT 9e999,
    UNIQUE (digest, file, device, template_hash, tvm_version));
CREATE TABLE rows (
    grp INTEGER, config INTEGER, time REAL, offset INTEGER, cost REAL, error INTEGER, chosen INTEGER,
    PRIMARY KEY (grp, config, time, offset)) WITHOUT ROWID;
PRAGMA user_version = 1
"""
_GROUPS = (
    "SELECT groups.id, files.path, digest, device, template_hash, tvm_version, template, isa, "
    "records, failed, since, until, best_order, best_time, best_offset, best_cost "
    "FROM groups JOIN files ON files.id = groups.file WHERE digest >= ? AND digest < ?"
)


class StaleError(Exception):
    """The index names a place in a log where that record is not: it must be built anew."""


class Row(NamedTuple):
    """One record in the index; `cost` is infinite and `error` AutoTVM's number when it failed."""

    config: int
    time: float
    offset: int
    cost: float
    error: int
    chosen: bool

    @property
    def rank(self) -> tuple[float, float, int]:
        """What orders records of one key: chosen ones first, the newest before; then by cost.

        Times and costs are positive, so one number serves for both.
        """
        return -self.time if self.chosen else self.cost, self.time, self.offset


class _Key(NamedTuple):
    digest: str
    device: str
    template_hash: str
    tvm_version: str
    template: str


@dataclass(frozen=True)
class Group:
    """Records with one key in one file, and the best of them (`best_cost` infinite: all failed).

    `best_order`, `best_time` and `best_offset` are the best record's `Row.rank`.
    """

    id: int
    file: str
    digest: str
    device: str
    template_hash: str
    tvm_version: str
    template: str
    isa: str
    records: int
    failed: int
    since: float
    until: float
    best_order: float
    best_time: float
    best_offset: int
    best_cost: float

    @property
    def rank(self) -> tuple[float, float, str, int]:
        """What orders groups of one key that lie in several files."""
        return self.best_order, self.best_time, self.file, self.best_offset

    @property
    def task(self) -> str:
        """The id under which users see the workload, as `mlc.tune.record.workload_id` gives it."""
        return f"{self.template}-{self.digest[:8]}"


def log_files(root: Path) -> list[Path]:
    """Return the logs below `root`, sorted; a missing folder has none."""
    return sorted(path for pattern in ("*.jsonl", "*/*.jsonl") for path in root.glob(pattern))


class Index:
    """One index, open; use it as a context manager.

    Its methods raise sqlite3.DatabaseError when the file is damaged, sqlite3.OperationalError when
    it cannot be used, OSError when a log cannot be read.
    """

    def __init__(self, root: Path, path: Path):
        self.root = root
        self.db = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
        try:
            self.db.execute("PRAGMA cache_size = -32768")  # KiB: what indexing may hold in memory
            self._create()
        except BaseException:
            self.db.close()
            raise

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()

    def _create(self) -> None:
        if self._layout() == 0:
            with self._transaction():
                if self._layout() == 0:  # still: another process may have been first
                    for statement in _TABLES.split(";"):
                        self.db.execute(statement)
        if self._layout() != _LAYOUT:
            raise sqlite3.DatabaseError("the index has another layout")

    def _layout(self) -> int:
        return int(self.db.execute("PRAGMA user_version").fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        self.db.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def snapshot(self) -> contextlib.AbstractContextManager[None]:
        """Keep what is read in this context from changing."""
        return self._transaction("DEFERRED")

    def refresh(self) -> None:
        """Bring the index up to date with the logs; nothing is written when they did not change."""
        if self._known() == self._found():
            return
        with self._transaction():
            known, found = self._known(), self._found()
            for path in known.keys() - found.keys():
                self._forget(path)
            for path in sorted(path for path in found if found[path] != known.get(path)):
                self._update(path)

    def _known(self) -> dict[str, tuple[str, int, int]]:
        rows = self.db.execute("SELECT path, inode, size, mtime_ns FROM files")
        return {path: (inode, size, mtime_ns) for path, inode, size, mtime_ns in rows}

    def _found(self) -> dict[str, tuple[str, int, int]]:
        paths = (path for path in log_files(self.root) if path.name.isprintable())
        return {path.relative_to(self.root).as_posix(): _stamp(path.stat()) for path in paths}

    def _forget(self, path: str) -> None:
        for (file,) in self.db.execute("SELECT id FROM files WHERE path = ?", (path,)).fetchall():
            rows = "DELETE FROM rows WHERE grp IN (SELECT id FROM groups WHERE file = ?)"
            self.db.execute(rows, (file,))
            self.db.execute("DELETE FROM groups WHERE file = ?", (file,))
            self.db.execute("DELETE FROM files WHERE id = ?", (file,))

    def _update(self, path: str) -> None:
        """Index what is new in a file, or all of it unless it has only grown."""
        with (self.root / path).open("rb", buffering=1 << 20) as log:
            inode, size, mtime_ns = _stamp(os.fstat(log.fileno()))
            select = "SELECT id, inode, size, offset, ends, torn, other FROM files WHERE path = ?"
            entry = self.db.execute(select, (path,)).fetchone()
            if entry and entry[1] == inode and entry[2] < size and entry[4] == _ends(log, entry[3]):
                file, offset, damage = entry[0], entry[3], Damage(torn=entry[5], foreign=entry[6])
            else:
                self._forget(path)
                new = self.db.execute("INSERT INTO files (path) VALUES (?)", (path,))
                file, offset, damage = new.lastrowid, 0, Damage()
            offset = self._ingest(file, log, offset, damage)
            self.db.execute(
                "UPDATE files SET inode = ?, size = ?, mtime_ns = ?, offset = ?, ends = ?, "
                "torn = ?, other = ? WHERE id = ?",
                (inode, size, mtime_ns, offset, _ends(log, offset), damage.torn, damage.foreign,
                 file),
            )  # fmt: skip

    def _ingest(self, file: int, log: BinaryIO, offset: int, damage: Damage) -> int:
        """Index the lines from `offset` on; return where the last one that is known ends."""
        groups: dict[_Key, list[Row]] = {}
        held = 0
        for line in lines(log, offset):
            record = judge(line, damage) if line.whole else understand(line.text)
            if record is None and not line.whole:
                break  # still being written, or torn: the next line will tell
            offset = line.end
            if record is not None:
                groups.setdefault(_key(record), []).append(_row(record, line.offset))
                held += 1
            if held == _BATCH:
                self._flush(file, groups)
                groups, held = {}, 0
        self._flush(file, groups)
        return offset

    def _flush(self, file: int, groups: dict[_Key, list[Row]]) -> None:
        for key, rows in groups.items():
            self.db.execute(
                "INSERT OR IGNORE INTO groups (digest, device, template_hash, tvm_version, "
                "template, file, isa) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*key, file, isa_of(key.device)),
            )
            select = (
                "SELECT id FROM groups WHERE digest = ? AND device = ? AND template_hash = ? "
                "AND tvm_version = ? AND file = ?"
            )
            (group,) = self.db.execute(select, (*key[:4], file)).fetchone()
            self.db.executemany(
                "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(group, *row) for row in sorted(rows)],
            )
            times = [row.time for row in rows]
            self.db.execute(
                "UPDATE groups SET records = records + ?, failed = failed + ?, "
                "since = min(since, ?), until = max(until, ?) WHERE id = ?",
                (len(rows), sum(row.cost == math.inf for row in rows), min(times), max(times),
                 group),
            )  # fmt: skip
            working = [row for row in rows if row.cost < math.inf]
            if working:
                best = min(working, key=lambda row: row.rank)
                self.db.execute(
                    "UPDATE groups SET best_order = ?, best_time = ?, best_offset = ?, "
                    "best_cost = ? WHERE id = ? AND (best_order, best_time, best_offset) > (?, ?, ?)",
                    (*best.rank, best.cost, group, *best.rank),
                )

    def damage(self, file: str | None = None) -> Damage:
        """Return how many lines of all logs (of one) hold no record."""
        select = (
            "SELECT total(torn + (size > offset)), total(other) FROM files "
            "WHERE path = coalesce(?, path)"
        )
        torn, foreign = self.db.execute(select, (file,)).fetchone()
        return Damage(torn=int(torn), foreign=int(foreign))

    def groups(self, digest: str = "") -> list[Group]:
        """Return the groups whose workload's digest begins with `digest`, all of them without."""
        return [Group(*row) for row in self.db.execute(_GROUPS, (digest, digest + "g"))]

    def rows(self, groups: Iterable[Group]) -> Iterator[tuple[Group, Row]]:
        """Yield the records of groups."""
        select = "SELECT config, time, offset, cost, error, chosen FROM rows WHERE grp = ?"
        for group in groups:
            for row in self.db.execute(select, (group.id,)):
                yield group, Row(*row)

    def holds(self, record: Record) -> bool:
        """Return whether a record of this workload, config, device, hash and time is there."""
        select = (
            "SELECT 1 FROM groups JOIN rows ON rows.grp = groups.id WHERE digest = ? "
            "AND device = ? AND template_hash = ? AND config = ? AND time = ?"
        )
        key = (workload_digest(record.workload)[0], record.device, record.template_hash)
        found = self.db.execute(select, (*key, record.index, record.timestamp))
        return found.fetchone() is not None

    def record(self, group: Group, offset: int) -> Record:
        """Read a record from its log; StaleError when it is not there."""
        return next(self.records([(group, offset)]))

    def records(self, places: Iterable[tuple[Group, int]]) -> Iterator[Record]:
        """Yield the records at these places in the logs.

        Raises:
            StaleError: one is not there.
        """
        with contextlib.ExitStack() as stack:
            name, log = "", None
            for group, offset in places:
                if log is None or group.file != name:
                    stack.close()
                    name, log = group.file, stack.enter_context(self._open(group.file))
                log.seek(offset)
                found = understand(log.readline(MAX_LINE + 2))
                if found is None or workload_digest(found.workload)[0] != group.digest:
                    raise StaleError(group.file)
                yield found

    def _open(self, file: str) -> BinaryIO:
        try:
            return (self.root / file).open("rb")
        except FileNotFoundError as error:
            raise StaleError(file) from error


def _key(record: Record) -> _Key:
    digest, template = workload_digest(record.workload)
    return _Key(digest, record.device, record.template_hash, record.tvm_version, template)


def _row(record: Record, offset: int) -> Row:
    error = REASONS[record.reason]
    return Row(record.index, record.timestamp, offset, record.cost, error, record.chosen)


def _stamp(status: os.stat_result) -> tuple[str, int, int]:
    """Return what changes with a file; the inode as text, since it may exceed SQLite's integers."""
    return str(status.st_ino), status.st_size, status.st_mtime_ns


def _ends(log: BinaryIO, offset: int) -> str:
    """Return a digest of the first and the last bytes before `offset`."""
    digest = hashlib.sha256()
    for start in (0, max(0, offset - _END)):
        log.seek(start)
        digest.update(log.read(min(_END, offset)))
    return digest.hexdigest()
