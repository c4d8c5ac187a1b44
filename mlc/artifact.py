"""The artifact: one file that users ship.

A plain zip, members stored, in this order: `manifest.json`, `library.so` (for a GPU its programs,
`programs.json`, see `mlc.gpu.device`), `graph.json`, `weights.bin` (each weight, and the member
itself, at a multiple of 64 bytes in the file, so that it can be mapped; some are stored smaller
than kernels read them, see `mlc.made`). Equal inputs give equal bytes: fixed dates, modes and order.
The manifest holds size and sha256 of the other members; nothing is loaded before they were compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import stat
import struct
import weakref
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mlc import form, made
from mlc.cpu import HostCpu, host_cpu
from mlc.errors import ArtifactError
from mlc.fit import check_cpu, check_gpu, is_for_gpu
from mlc.made import ALIGNMENT
from mlc.new_file import new_file
from mlc.options import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

FORMAT = 1  # what newer versions of mlc need has a newer number, and only that
SHAPES = 2  # several shapes (`mlc.buckets`) or open ones (`mlc.sizes`)
MADE = NEWEST = 3  # weights that are made when it is opened (`mlc.made`)
MANIFEST, LIBRARY, GRAPH, WEIGHTS = "manifest.json", "library.so", "graph.json", "weights.bin"
PROGRAMS = "programs.json"
_DATE = (1980, 1, 1, 0, 0, 0)
_CHUNK = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What goes into an artifact: the manifest without its members, and the members.

    `made` says by position which `weights` are stored smaller than kernels read them (`mlc.made`).
    """

    manifest: dict[str, Any]
    library: bytes = field(repr=False)
    graph: bytes = field(repr=False)
    weights: Sequence[tuple[int, np.ndarray[Any, Any]]] = field(repr=False)  # (storage, array)
    made: Mapping[int, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An opened and checked artifact: its manifest, and views of its members in mapped memory.

    `made` holds what `weights` made for as long as somebody uses it: buckets share it.
    """

    path: Path
    manifest: dict[str, Any]
    members: dict[str, memoryview] = field(repr=False)
    made: weakref.WeakValueDictionary[Any, np.ndarray[Any, Any]] = field(
        default_factory=weakref.WeakValueDictionary, repr=False
    )

    def weights(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Yield each weight as (storage, flat uint8 array), in mapped memory unless it is made.

        Raises:
            ArtifactError: one lies outside its member, or its recipe does not fit it.
        """
        data = self.members[WEIGHTS]
        try:
            made.require_bounded(self.manifest["weights"], len(data))
            for entry in self.manifest["weights"]:
                start, size = entry["offset"], entry["nbytes"]
                if not 0 <= start <= start + size <= len(data) or start % ALIGNMENT:
                    raise ArtifactError(f"{self.path}: a weight lies outside its member")
                stored = np.frombuffer(data, np.uint8, size, start)
                yield entry["storage"], self._made(entry, stored) if "made" in entry else stored
        except ValueError as error:
            raise ArtifactError(
                f"{self.path}: a weight cannot be made: {error}",
                "copy it again, or compile it again",
            ) from None

    def _made(self, entry: dict[str, Any], stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        key = entry["offset"], entry["nbytes"], tuple(entry["made"]["shape"])
        found = self.made.get(key)
        if found is None:
            found = self.made[key] = made.make(entry["made"], stored)
            made.release(stored, self.members[WEIGHTS])
        return found


def save(contents: Contents, path: Path) -> dict[str, Any]:
    """Write the artifact whole or not at all; return its manifest.

    Raises:
        UsageError: the place cannot be written, or the disk is full.
    """
    table, digest, total = _weight_table(contents.weights)
    code = code_member(contents.manifest)
    members = {
        code: _facts(contents.library),
        GRAPH: _facts(contents.graph),
        WEIGHTS: {"sha256": digest, "size": total},
    }
    for position, recipe in contents.made.items():
        table[position]["made"] = recipe
    manifest = {**contents.manifest, "weights": table, "members": members}
    manifest["format"] = _version(manifest)
    with new_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        add_member(archive, file, MANIFEST, encode(manifest))
        add_member(archive, file, code, contents.library)
        add_member(archive, file, GRAPH, contents.graph)
        with archive.open(member_info(file, WEIGHTS), "w", force_zip64=True) as member:
            for chunk in _weight_bytes(contents.weights):
                member.write(chunk)
    return manifest


def rewrite_manifest(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Replace entries of an artifact's manifest (the verification result, for one)."""
    with contextlib.closing(Mapped(path)) as mapped:
        manifest = {**mapped.manifest(), **changes}
        with new_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            add_member(archive, file, MANIFEST, encode(manifest))
            for name in (code_member(manifest), GRAPH):
                add_member(archive, file, name, mapped.member(name))
            with archive.open(member_info(file, WEIGHTS), "w", force_zip64=True) as member:
                view = mapped.member(WEIGHTS)
                for start in range(0, len(view), _CHUNK):
                    member.write(view[start : start + _CHUNK])
                view.release()
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of an artifact; nothing else is read.

    Raises:
        ArtifactError: no artifact, damaged, or of a newer format.
    """
    with contextlib.closing(Mapped(path)) as mapped:
        return mapped.manifest()


def is_layout(names: tuple[str, ...]) -> bool:
    """Return whether these are the members of an artifact, in order."""
    return names in [(MANIFEST, code, GRAPH, WEIGHTS) for code in (LIBRARY, PROGRAMS)]


def code_member(manifest: Mapping[str, Any]) -> str:
    """Return the name of the member that holds the code."""
    return PROGRAMS if is_for_gpu(manifest["target"]) else LIBRARY


def load(path: Path, cpu: HostCpu | None = None, *, for_gpu: bool = False) -> Artifact:
    """Return the artifact, checked: format, fit for this machine's CPU, size and hash of members.

    With `for_gpu` it must be for a GPU instead; for which one, whoever loads the code must check.

    Raises:
        ArtifactError: a check failed; the message says which, and what to do.
    """
    return load_from(Mapped(path), cpu, for_gpu=for_gpu)


def load_from(mapped: Mapped, cpu: HostCpu | None = None, *, for_gpu: bool = False) -> Artifact:
    """Return the artifact in a mapped file, checked as `load` says."""
    path, manifest = mapped.path, mapped.manifest()
    if for_gpu:
        check_gpu(path, manifest)
    else:
        check_cpu(path, manifest, cpu or host_cpu())
    members = {}
    for name in (code_member(manifest), GRAPH, WEIGHTS):
        view = mapped.member(name)
        if not _matches(mapped.chunks(name), manifest["members"][name]):
            raise ArtifactError(
                f"{path} was altered or damaged: {name} does not match its hash",
                "copy it again, or compile it again; it was not loaded",
            )
        members[name] = view
    return Artifact(path=path, manifest=manifest, members=members)


def encode(manifest: dict[str, Any]) -> bytes:
    """Return a manifest in the bytes that are stored."""
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"


class Mapped:
    """An artifact file mapped privately (copy on write), its zip directory checked."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ArtifactError(f"{path} is not a file")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                file.seek(0)
                self.entries = self._directory(file)
        except FileNotFoundError:
            raise ArtifactError(
                f"no such artifact: {path}", "`mlc compile MODEL` writes one"
            ) from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is empty"
            raise ArtifactError(f"cannot read {path}: {reason}") from None

    def close(self) -> None:
        """Unmap the file, unless views of it are still in use."""
        with contextlib.suppress(BufferError):
            self.map.close()

    def _directory(self, file: IO[bytes]) -> dict[str, zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError):
            raise self.damaged("it is no mlc artifact, or was cut short") from None
        names = tuple(entry.filename for entry in entries)
        if not self.expects(names) or any(
            entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size
            for entry in entries
        ):
            raise self.damaged("its members are not those of an artifact")
        return {entry.filename: entry for entry in entries}

    def expects(self, names: tuple[str, ...]) -> bool:
        """Return whether these are the members of such a file, in order."""
        return is_layout(names)

    def chunks(self, name: str) -> Iterable[memoryview | bytes]:
        """Yield a member's bytes piece by piece, as they are hashed."""
        yield self.member(name)

    def member(self, name: str) -> memoryview:
        """Return a member's bytes in the map."""
        entry = self.entries[name]
        header = self.map[entry.header_offset : entry.header_offset + 30]
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise self.damaged(f"the header of {name} is broken")
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        start = entry.header_offset + 30 + name_size + extra_size
        if start + entry.file_size > len(self.map):
            raise self.damaged(f"{name} is cut short")
        return memoryview(self.map)[start : start + entry.file_size]

    def manifest(self) -> dict[str, Any]:
        """Return the manifest, its form checked."""
        manifest = self.read_json(MANIFEST, NEWEST)
        if not (form.is_right(manifest) and self._describes_members(manifest)):
            raise self.damaged("its manifest has another form than its format says")
        return manifest

    def _describes_members(self, manifest: dict[str, Any]) -> bool:
        """Return whether the code that the target asks for is there, and it and the others described."""
        code = code_member(manifest)
        described = dict.fromkeys((code, GRAPH, WEIGHTS), form.MEMBER)
        return code in self.entries and form.fits(manifest["members"], described)

    def read_json(self, name: str, newest: int) -> dict[str, Any]:
        """Return a member that describes others, of a format up to `newest`."""
        if self.entries[name].file_size > MAX_MANIFEST_BYTES:
            raise self.damaged("its manifest is too large")
        data = bytes(self.member(name))
        if zlib.crc32(data) != self.entries[name].CRC:
            raise self.damaged("its manifest was altered")
        try:
            found = json.loads(data)
            version = int(found["format"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise self.damaged("its manifest cannot be read") from None
        if version > newest:
            raise ArtifactError(
                f"{self.path} has format {version}, and this mlc reads up to {newest}",
                "update mlc: `pip install --upgrade mlc-compiler`",
            )
        return dict(found)

    def damaged(self, why: str) -> ArtifactError:
        """Return the error for a file that is not what it should be."""
        return ArtifactError(
            f"{self.path} cannot be used: {why}", "copy it again, or compile it again"
        )


def _version(manifest: Mapping[str, Any]) -> int:
    """Return the oldest format that has what a manifest needs."""
    if made.recipes(manifest):
        return MADE
    return SHAPES if {"buckets", "dynamic"} & manifest.keys() else FORMAT


def member_info(file: IO[bytes], name: str) -> zipfile.ZipInfo:
    """Return a member's header, padded so that its data begins at a multiple of 64 bytes."""
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system = 3
    info.external_attr = 0o644 << 16
    zip64 = 20 if name == WEIGHTS else 0  # the extra field that force_zip64 adds
    start = file.tell() + 30 + len(name) + zip64
    padding = (-(start + 4)) % ALIGNMENT
    # An extra field of its own: the id that Android's zipalign uses for the same purpose.
    info.extra = struct.pack("<HH", 0xD935, padding) + b"\0" * padding
    return info


def add_member(
    archive: zipfile.ZipFile, file: IO[bytes], name: str, data: bytes | memoryview
) -> None:
    """Add a member that fits into memory to the archive that `file` becomes."""
    archive.writestr(member_info(file, name), bytes(data))


def _weight_table(
    weights: Sequence[tuple[int, np.ndarray[Any, Any]]],
) -> tuple[list[dict[str, Any]], str, int]:
    table: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    offset = 0
    for chunk in _weight_bytes(weights):
        digest.update(chunk)
    for storage, array in weights:
        table.append({"storage": storage, "offset": offset, "nbytes": array.nbytes})
        offset += array.nbytes + (-array.nbytes) % ALIGNMENT
    return table, digest.hexdigest(), offset


def _weight_bytes(
    weights: Sequence[tuple[int, np.ndarray[Any, Any]]],
) -> Iterator[memoryview | bytes]:
    for _, array in weights:
        if array.size:
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        yield b"\0" * ((-array.nbytes) % ALIGNMENT)


def _facts(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _matches(chunks: Iterable[memoryview | bytes], facts: Mapping[str, Any]) -> bool:
    """Return whether the bytes of a member are those that its manifest describes."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return bool(size == facts["size"] and digest.hexdigest() == facts["sha256"])


def is_artifact(path: Path) -> bool:
    """Return whether a file looks like an artifact (a zip), rather than a model."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False
