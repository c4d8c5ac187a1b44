"""The lines of a tuning log, judged: whatever stands in a file, reading it never raises."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from mlc.tune.record import MAX_LINE, REASONS, Record, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_BRACKETS = 500  # in a line: far beyond any template's arguments, far below Python's stack
_LATEST = 2.5e11  # Unix time: what Python's calendar still knows
_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@dataclass(kw_only=True)
class Damage:
    """What reading left out, counted: lines that hold no record, records that may not be used.

    `torn` lines were cut off while being written; `foreign` ones are something else, or of a newer
    mlc; the last two are records of another TVM version or of another version of the schedule.
    """

    torn: int = 0
    foreign: int = 0
    other_version: int = 0
    other_template: int = 0

    def add(self, other: Damage) -> None:
        """Count what `other` counted, too."""
        self.torn += other.torn
        self.foreign += other.foreign
        self.other_version += other.other_version
        self.other_template += other.other_template


class Line(NamedTuple):
    """A line of a log: where it begins and ends, and whether a line break closes it."""

    offset: int
    text: bytes
    end: int
    whole: bool


def lines(file: BinaryIO, start: int = 0) -> Iterator[Line]:
    """Yield the lines from `start` on; an endless one is skipped in pieces, its head is yielded."""
    file.seek(start)
    offset = start
    while text := file.readline(MAX_LINE + 2):
        end, last = offset + len(text), text
        while not last.endswith(b"\n") and (more := file.readline(MAX_LINE)):
            end, last = end + len(more), more
        yield Line(offset, text, end, last.endswith(b"\n"))
        offset = end


def understand(text: bytes) -> Record | None:
    """Return the record in a line, or None when it holds none that can be kept."""
    if max(text.count(b"["), text.count(b"{")) > _MAX_BRACKETS:
        return None
    try:
        record = decode(text.decode())
    except (UnicodeDecodeError, RecursionError, OverflowError):
        return None
    return record if record is not None and can_keep(record) else None


def can_keep(record: Record) -> bool:
    """Return whether a record has an outcome, and names that are safe in paths and on terminals."""
    names = (workload_digest(record.workload)[1], record.template_hash, record.tvm_version)
    return (
        (record.ok or bool(record.reason))
        and record.reason in REASONS
        and (not record.device or _DEVICE.fullmatch(record.device) is not None)
        and all(len(name) <= 200 and name.isprintable() for name in names)
        and 0 <= record.timestamp <= _LATEST
        and -(2**63) <= record.index < 2**63
    )


def judge(line: Line, damage: Damage) -> Record | None:
    """Return the record in a line, or None after counting the line; blanks and comments are free."""
    record = understand(line.text)
    if record is None and line.text.strip() and not line.text.startswith(b"#"):
        if _is_torn(line.text):
            damage.torn += 1
        else:
            damage.foreign += 1
    return record


def _is_torn(text: bytes) -> bool:
    if not text.startswith((b"{", b"\0")) or len(text) > MAX_LINE:
        return False
    try:
        json.loads(text)
    except RecursionError:
        return False
    except ValueError:
        return True
    return False


@functools.lru_cache(4096)
def workload_digest(key: str) -> tuple[str, str]:
    """Return the sha256 of a workload's key, and the name of its template."""
    return hashlib.sha256(key.encode()).hexdigest(), str(json.loads(key)[0])
