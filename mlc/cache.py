"""A content-addressed cache of compiled kernels and whole artifacts, bounded in size.

Keys are sha256 over everything that decides the content. An entry is a file that begins with the
digest of the rest, is written under a temporary name and then renamed: parallel jobs may share the
folder, and a damaged entry counts as missing. The least recently used entries go first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.options import CacheOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIGEST = 32
_DEPTH = 2  # folders above an entry: its kind, the first two digits of its key


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """What the cache holds: entries and bytes by kind, and its bound in bytes."""

    directory: str
    entries: dict[str, int]
    bytes: dict[str, int]
    max_bytes: int


class Cache:
    """The cache folder; `Cache(None)` never holds anything."""

    def __init__(self, directory: Path | None, max_bytes: int = CacheOptions().max_bytes):
        self.directory = directory
        self.max_bytes = max_bytes

    def get(self, kind: str, key: str) -> bytes | None:
        """Return the content of an entry, or None where it is missing or damaged."""
        path = self._path(kind, key)
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        content = data[_DIGEST:]
        if hashlib.sha256(content).digest() != data[:_DIGEST]:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def put(self, kind: str, key: str, content: bytes) -> None:
        """Store an entry; a full disk or a read-only folder only costs the saving."""
        path = self._path(kind, key)
        if path is None or len(content) > self.max_bytes // 4:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(hashlib.sha256(content).digest())
                    file.write(content)
                Path(temporary).replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
                raise

    def prune(self) -> int:
        """Delete the least recently used entries until the bound holds; return how many went."""
        entries = sorted(self._entries(), key=lambda entry: entry[1].st_mtime)
        total = sum(status.st_size for _, status in entries)
        removed = 0
        for path, status in entries:
            if total <= self.max_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= status.st_size
                removed += 1
        return removed

    def clear(self) -> int:
        """Delete every entry; return how many there were."""
        entries = list(self._entries())
        if self.directory is not None:
            for kind in self.directory.iterdir() if self.directory.is_dir() else ():
                if kind.is_dir() and not kind.is_symlink():
                    shutil.rmtree(kind, ignore_errors=True)
        return len(entries)

    def stats(self) -> CacheStats:
        """Return what the cache holds."""
        entries: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for path, status in self._entries():
            kind = path.parent.parent.name
            entries[kind] = entries.get(kind, 0) + 1
            sizes[kind] = sizes.get(kind, 0) + status.st_size
        return CacheStats(
            directory=str(self.directory), entries=entries, bytes=sizes, max_bytes=self.max_bytes
        )

    def _path(self, kind: str, key: str) -> Path | None:
        return self.directory / kind / key[:2] / key if self.directory else None

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        if self.directory is None:
            return
        # Not `glob`: it raises when another job clears a folder under it; `walk` passes on.
        for folder, _, names in os.walk(self.directory):
            if len(Path(folder).relative_to(self.directory).parts) != _DEPTH:
                continue
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    yield path, path.stat()


def default_directory() -> Path:
    """Return `$MLC_CACHE_DIR`, else `mlc` in the user's cache folder."""
    chosen = os.environ.get("MLC_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlc"


def open_cache(options: CacheOptions | None = None) -> Cache:
    """Return the cache that the options (or their defaults) name."""
    options = options or CacheOptions()
    directory = Path(options.directory) if options.directory else default_directory()
    return Cache(directory, options.max_bytes)


def key_of(*parts: Any) -> str:
    """Return the cache key over JSON data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def source_digest() -> str:
    """Return a digest of mlc's own code and target data: a new version shares nothing old."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
