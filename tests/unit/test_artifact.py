"""The artifact file: what goes in comes out, and nothing damaged or foreign is opened."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from mlc import artifact
from mlc.artifact import (
    GRAPH,
    LIBRARY,
    MANIFEST,
    NEWEST,
    WEIGHTS,
    Contents,
)
from mlc.cpu import HostCpu
from mlc.errors import ArtifactError, UsageError
from mlc.made import ALIGNMENT

CPU = HostCpu(
    arch="x86_64", vendor="AuthenticAMD", family=25, model=1, name="a CPU",
    features=frozenset({"avx2", "fma", "sse2"}), cores=4,
)  # fmt: skip
Everything = tuple[dict[str, Any], dict[str, bytes], list[tuple[int, bytes]]]


def contents(**changes: Any) -> Contents:
    random_ = np.random.default_rng(0)
    weights = [
        (3, random_.standard_normal((3, 5)).astype(np.float32)),
        (1, np.array(7, np.int64)),
        (2, np.zeros((0, 4), np.float32)),
        (9, random_.integers(0, 255, (131,), dtype=np.uint8)),
        (4, np.asfortranarray(random_.standard_normal((7, 11)).astype(np.float16))),
        (5, np.array([True, False, True])),
    ]
    manifest = {
        "signature": {
            "inputs": [{"name": "größe", "shape": [1, 3], "dtype": "float32"}],
            "outputs": [{"name": "y", "shape": [], "dtype": "int64"}],
        },
        "target": {"name": "haswell", "triple": "x86_64-linux-gnu", "features": ["avx2", "fma"]},
        "versions": {"tvm": "0.19"},
        "verification": None,
    }
    fields = {"manifest": manifest, "library": random_.bytes(301), "graph": b'{"nodes":[]}'}
    return Contents(**{**fields, "weights": weights, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved artifact."""
    file = tmp_path / "model.mlc"
    artifact.save(contents(), file)
    return file


def everything(path: Path, cpu: HostCpu = CPU) -> Everything:
    """Return all that a reader can see of an artifact."""
    opened = artifact.load(path, cpu)
    members = {name: bytes(view) for name, view in opened.members.items()}
    weights = [(storage, array.tobytes()) for storage, array in opened.weights()]
    return opened.manifest, members, weights


def files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- round trip ----------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(path: Path) -> None:
    given = contents()
    manifest, members, weights = everything(path)
    assert {key: manifest[key] for key in given.manifest} == given.manifest
    assert manifest["format"] == 1
    assert members[LIBRARY] == given.library
    assert members[GRAPH] == given.graph
    expected = [(s, np.ascontiguousarray(a).tobytes()) for s, a in given.weights]
    assert weights == expected
    assert artifact.read_manifest(path) == manifest


def test_saving_returns_the_manifest_that_is_read(tmp_path: Path) -> None:
    manifest = artifact.save(contents(), tmp_path / "a.mlc")
    assert json.loads(artifact.encode(manifest)) == artifact.read_manifest(tmp_path / "a.mlc")


def test_a_model_without_weights(tmp_path: Path) -> None:
    artifact.save(contents(weights=[]), tmp_path / "a.mlc")
    _, members, weights = everything(tmp_path / "a.mlc")
    assert weights == []
    assert members[WEIGHTS] == b""


def test_any_zip_tool_can_look_inside(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [MANIFEST, LIBRARY, GRAPH, WEIGHTS]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert json.loads(archive.read(MANIFEST)) == artifact.read_manifest(path)


def test_every_member_and_every_weight_is_aligned_in_the_file(path: Path) -> None:
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    starts = {}
    for info in infos:
        name_size, extra_size = struct.unpack_from("<HH", data, info.header_offset + 26)
        starts[info.filename] = info.header_offset + 30 + name_size + extra_size
    assert [start % ALIGNMENT for start in starts.values()] == [0, 0, 0, 0]
    table = artifact.read_manifest(path)["weights"]
    assert len(table) == 6
    for (_, array), entry in zip(contents().weights, table, strict=True):
        start = starts[WEIGHTS] + entry["offset"]
        assert start % ALIGNMENT == 0
        assert data[start : start + entry["nbytes"]] == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 12345])
def test_alignment_holds_whatever_comes_before(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.mlc"
    artifact.save(contents(library=bytes(size), graph=b"g" * (size // 7)), path)
    opened = artifact.load(path, CPU)
    addresses = [array.ctypes.data % ALIGNMENT for _, array in opened.weights() if array.size]
    assert addresses == [0] * 5


def test_loaded_weights_are_views_of_the_map(path: Path) -> None:
    for _, array in artifact.load(path, CPU).weights():
        assert not array.flags.owndata
        assert array.dtype == np.uint8


def test_writing_to_a_mapped_weight_changes_no_file(path: Path) -> None:
    before = path.read_bytes()
    (_, array), *_ = artifact.load(path, CPU).weights()
    array[:] = 0
    assert path.read_bytes() == before


def test_equal_contents_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    manifest = dict(reversed(contents().manifest.items()))
    artifact.save(contents(manifest=manifest), tmp_path / "again.mlc")
    assert (tmp_path / "again.mlc").read_bytes() == path.read_bytes()
    artifact.save(contents(library=b"other"), tmp_path / "again.mlc")
    assert (tmp_path / "again.mlc").read_bytes() != path.read_bytes()


def test_the_file_has_the_rights_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        artifact.save(contents(), tmp_path / "a.mlc")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.mlc").stat().st_mode) == 0o640


# --- the manifest rewritten ----------------------------------------------------------------------


def test_a_rewritten_manifest_keeps_the_members(path: Path) -> None:
    before = everything(path)
    result = {"passed": True, "note": "x" * 5000}
    returned = artifact.rewrite_manifest(path, {"verification": result})
    after = everything(path)
    assert after[0] == {**before[0], "verification": result} == returned
    assert after[1:] == before[1:]
    opened = artifact.load(path, CPU)
    assert all(a.ctypes.data % ALIGNMENT == 0 for _, a in opened.weights() if a.size)


def test_rewriting_back_gives_the_same_bytes(path: Path) -> None:
    before = path.read_bytes()
    artifact.rewrite_manifest(path, {"verification": {"passed": True}})
    assert path.read_bytes() != before
    artifact.rewrite_manifest(path, {"verification": None})
    assert path.read_bytes() == before
    assert files(path.parent) == ["model.mlc"]


# --- damage --------------------------------------------------------------------------------------


def test_a_cut_file_is_refused_wherever_it_is_cut(path: Path) -> None:
    data = path.read_bytes()
    for size in [*range(0, len(data), 29), *range(len(data) - 64, len(data))]:
        path.write_bytes(data[:size])
        with pytest.raises(ArtifactError):
            everything(path)


def test_a_longer_file_is_refused_or_the_same(path: Path) -> None:
    before = everything(path)
    data = path.read_bytes()
    for more in (b"\0", b"more", data):
        path.write_bytes(data + more)
        assert same_or_refused(path, before)
        path.write_bytes(more + data)
        assert same_or_refused(path, before)


def same_or_refused(path: Path, before: Everything) -> str:
    """Return which it is; fail when something else was loaded, or another error came."""
    try:
        assert everything(path) == before
    except ArtifactError:
        return "refused"
    return "same"


def test_one_flipped_byte_anywhere_is_seen_or_without_effect(tmp_path: Path) -> None:
    path = tmp_path / "small.mlc"
    artifact.save(contents(library=b"code", weights=contents().weights[:1]), path)
    before = everything(path)
    data = path.read_bytes()
    masks = random.Random(0)
    counts = {"refused": 0, "same": 0}
    for position in range(len(data)):
        mask = masks.choice([0x01, 0x80, 0xFF])
        path.write_bytes(data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :])
        counts[same_or_refused(path, before)] += 1
    stored = sum(map(len, before[1].values())) + len(artifact.encode(before[0]))
    assert counts["refused"] >= stored  # in a member, every byte counts


def test_several_wrong_bytes_are_seen_or_without_effect(path: Path) -> None:
    before = everything(path)
    data = path.read_bytes()
    noise = random.Random(1)
    for _ in range(400):
        wrong = bytearray(data)
        for _ in range(noise.randrange(1, 6)):
            near_end = len(data) - 1 - noise.randrange(400)  # the zip's directory
            wrong[noise.choice([noise.randrange(len(data)), near_end])] = noise.randrange(256)
        path.write_bytes(wrong)
        same_or_refused(path, before)


def test_the_damaged_member_is_named(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(contents().library)
    data[at + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"altered or damaged: library\.so") as caught:
        artifact.load(path, CPU)
    assert "copy it again" in (caught.value.hint or "")
    assert artifact.read_manifest(path)["format"] == 1  # reads nothing else


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"", "it is empty"), (b"\x08\x07onnx" * 20, "it is no mlc artifact"), (b"PK\x03\x04", "no mlc artifact")],
)  # fmt: skip
def test_what_is_no_artifact_is_refused(data: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mlc"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=why):
        artifact.load(path, CPU)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no such artifact: .*x\.mlc") as caught:
        artifact.load(tmp_path / "x.mlc", CPU)
    assert "mlc compile" in (caught.value.hint or "")
    with pytest.raises(ArtifactError, match=r"cannot read .*Is a directory"):
        artifact.load(tmp_path, CPU)


def test_a_device_is_not_mapped() -> None:
    with pytest.raises(ArtifactError, match="is not a file"):
        artifact.load(Path("/dev/zero"), CPU)


# --- other zips ----------------------------------------------------------------------------------


def rezip(
    path: Path,
    change: Callable[[dict[str, bytes]], dict[str, bytes]],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Write the artifact anew by an ordinary zip tool, its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in change(members).items():
            archive.writestr(name, data)


def test_an_ordinary_zip_of_the_same_members_is_opened(path: Path) -> None:
    """The checks below fail for what they change, not for how the file was written."""
    before = everything(path)
    rezip(path, dict)
    assert everything(path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda members: {**members, "more.txt": b""},
        lambda members: {name: members[name] for name in (MANIFEST, LIBRARY, GRAPH)},
        lambda members: dict(reversed(members.items())),
        lambda members: {("other.json" if n == GRAPH else n): d for n, d in members.items()},
        lambda members: {("../" + n if n == LIBRARY else n): d for n, d in members.items()},
        lambda members: {},
    ],
    ids=["extra", "missing", "order", "renamed", "path", "none"],
)
def test_other_members_are_refused(change: Any, path: Path) -> None:
    rezip(path, change)
    with pytest.raises(ArtifactError, match="its members are not those of an artifact"):
        artifact.load(path, CPU)


def test_compressed_members_are_refused(path: Path) -> None:
    rezip(path, dict, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="its members are not those of an artifact"):
        artifact.load(path, CPU)


def test_a_member_said_to_be_compressed_is_refused(path: Path) -> None:
    """Only the directory at the end claims it: nobody shall be led to unpack anything."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.rindex(b"PK\x01\x02") + 10, zipfile.ZIP_DEFLATED)
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="its members are not those of an artifact"):
        artifact.load(path, CPU)


def test_a_member_twice_is_refused(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LIBRARY, b"other code")
    with pytest.raises(ArtifactError, match="its members are not those of an artifact"):
        artifact.load(path, CPU)


# --- manifests that do not fit -------------------------------------------------------------------


def with_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        data = change(json.loads(members[MANIFEST]))
        return {**members, MANIFEST: data if isinstance(data, bytes) else json.dumps(data).encode()}

    rezip(path, changed)


def test_a_newer_format_asks_for_an_update(path: Path) -> None:
    # Whatever else a newer format changes, it is told as what it is.
    with_manifest(path, lambda _manifest: {"format": NEWEST + 1})
    for read in (artifact.read_manifest, lambda p: artifact.load(p, CPU)):
        with pytest.raises(
            ArtifactError, match=f"format {NEWEST + 1}, and this mlc reads"
        ) as caught:
            read(path)
        assert "pip install --upgrade" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: [],
        lambda m: "text",
        lambda m: None,
        lambda m: {k: v for k, v in m.items() if k != "format"},
        lambda m: {**m, "format": "one"},
        lambda m: {**m, "format": None},
        lambda m: b"",
        lambda m: b"\xff\xfe",
        lambda m: b"{",
        lambda m: b"[" * 100_000,
        lambda m: b'{"format": NaN}',
        lambda m: b'{"format": 1e999}',
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(change: Any, path: Path) -> None:
    with_manifest(path, change)
    with pytest.raises(ArtifactError, match="its manifest cannot be read"):
        artifact.load(path, CPU)


@pytest.mark.parametrize("key", ["signature", "target", "weights", "members", "versions"])
@pytest.mark.parametrize("value", [None, 3, "text", [3], {}, {"library.so": 1}], ids=str)
def test_an_incomplete_manifest_is_refused(key: str, value: Any, path: Path) -> None:
    if key == "versions" and isinstance(value, dict):
        value = []
    with_manifest(path, lambda manifest: {**manifest, key: value})
    with pytest.raises(ArtifactError, match="its manifest has another form"):
        artifact.load(path, CPU)
    with_manifest(path, lambda m: {k: v for k, v in m.items() if k != key})
    with pytest.raises(ArtifactError, match="its manifest has another form"):
        artifact.read_manifest(path)


@pytest.mark.parametrize(
    "entry",
    [{"offset": 0, "nbytes": 1 << 40}, {"offset": 1 << 40, "nbytes": 4}, {"offset": -64, "nbytes": 4},
     {"offset": 64, "nbytes": -64}, {"offset": 4, "nbytes": 4}, {"offset": 64, "nbytes": 10_000}],
)  # fmt: skip
def test_a_weight_outside_its_member_is_refused(entry: dict[str, int], path: Path) -> None:
    with_manifest(path, lambda m: {**m, "weights": [{"storage": 1, **entry}]})
    with pytest.raises(ArtifactError, match="a weight lies outside its member"):
        list(artifact.load(path, CPU).weights())


def test_an_altered_manifest_is_seen_before_it_is_believed(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"haswell"', b'"skylake"', 1))
    with pytest.raises(ArtifactError, match="its manifest was altered"):
        artifact.read_manifest(path)


def test_a_huge_manifest_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "MAX_MANIFEST_BYTES", 100)
    monkeypatch.setattr(zlib, "crc32", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ArtifactError, match="manifest is too large"):
        artifact.read_manifest(path)


# --- another machine -----------------------------------------------------------------------------


def test_another_instruction_set_is_refused(path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"haswell \(x86_64 linux\).* it is aarch64 linux$"):
        artifact.load(path, dataclasses.replace(CPU, arch="aarch64"))
    with pytest.raises(ArtifactError, match=r"cannot run it: it is x86_64 darwin$"):
        artifact.load(path, dataclasses.replace(CPU, system="darwin"))


def test_a_missing_cpu_feature_is_named(path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"it lacks avx2, fma$") as caught:
        artifact.load(path, dataclasses.replace(CPU, features=frozenset({"sse2"})))
    assert "--target" in (caught.value.hint or "")
    with pytest.raises(ArtifactError, match=r"it lacks fma$"):
        artifact.load(path, dataclasses.replace(CPU, features=frozenset({"sse2", "avx2"})))


def test_the_machine_is_checked_before_the_members(path: Path) -> None:
    """Nothing of a foreign artifact is touched, and the message tells the true reason."""
    data = bytearray(path.read_bytes())
    data[data.index(contents().library)] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="lacks"):
        artifact.load(path, dataclasses.replace(CPU, features=frozenset()))


# --- places that cannot be written ---------------------------------------------------------------


class FullDisk:
    """A file on a disk with `room` bytes left."""

    def __init__(self, file: IO[bytes], room: int):
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_no_file_and_no_half_one(
    share: float, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / "model.mlc"
    path.parent.mkdir()
    artifact.save(contents(), path)
    room = int(path.stat().st_size * share)
    before = path.read_bytes()
    if not existing:
        path.unlink()
    real = os.fdopen
    monkeypatch.setattr(artifact.os, "fdopen", lambda fd, mode: FullDisk(real(fd, mode), room))
    with pytest.raises(UsageError, match="No space left on device") as caught:
        artifact.save(contents(), path)
    assert "free some space" in (caught.value.hint or "")
    assert files(path.parent) == (["model.mlc"] if existing else [])
    if existing:
        assert path.read_bytes() == before


def test_a_full_disk_keeps_what_was_to_be_rewritten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    real = os.fdopen
    monkeypatch.setattr(artifact.os, "fdopen", lambda fd, mode: FullDisk(real(fd, mode), 1500))
    with pytest.raises(UsageError, match="No space left"):
        artifact.rewrite_manifest(path, {"verification": {"passed": True}})
    assert path.read_bytes() == before
    assert files(path.parent) == ["model.mlc"]


def test_an_interrupt_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifact.save(contents(), tmp_path / "a.mlc")
    assert files(tmp_path) == []


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*No such file or directory"):
        artifact.save(contents(), tmp_path / "no" / "a.mlc")
    (tmp_path / "folder.mlc").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*[Dd]irectory"):
        artifact.save(contents(), tmp_path / "folder.mlc")
    assert files(tmp_path) == ["folder.mlc"]


def test_an_artifact_is_told_from_a_model(path: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08PK\x03\x04")
    assert artifact.is_artifact(path)
    assert not artifact.is_artifact(tmp_path / "m.onnx")
    assert not artifact.is_artifact(tmp_path / "none")
    assert not artifact.is_artifact(tmp_path)
