"""One artifact for several targets: what is opened where, what is shared, what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc import artifact, bundle, emulate
from mlc.artifact import GRAPH, LIBRARY, MANIFEST, PROGRAMS, WEIGHTS
from mlc.errors import ArtifactError, TargetError, UsageError
from mlc.made import ALIGNMENT
from mlc.runtime import session
from tests.unit.test_artifact import CPU, contents

AVX2 = {"name": "haswell", "triple": "x86_64-linux-gnu", "features": ["avx2", "fma", "sse2"]}
SSE2 = {"name": "old", "triple": "x86_64-linux-gnu", "features": ["sse2"]}
ARM = {"name": "rpi4", "triple": "aarch64-linux-gnu", "features": ["neon"]}


def cuda(sm: int) -> dict[str, Any]:
    return {
        "name": f"cuda-sm_{sm}", "kind": "cuda", "triple": "nvptx64-nvidia-cuda", "features": [],
        "tvm": f"nvptx -mcpu=sm_{sm} -x",
    }  # fmt: skip


SHARED = np.arange(1000, dtype=np.float32)


def part(folder: Path, target: dict[str, Any], *own: np.ndarray) -> Path:
    """Write an artifact with weights of its own between shared ones."""
    target = {"tvm": f"llvm of {target['name']}", **target}
    arrays = [SHARED, *own, SHARED[:7], np.zeros(0, np.float32)]
    path = folder / f"{target['name']}.part"
    artifact.save(
        contents(
            manifest={**contents().manifest, "target": target},
            library=f"code of {target['name']}".encode(),
            weights=[(10 + k, array) for k, array in enumerate(arrays)],
        ),
        path,
    )
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    own = [np.full(33, number, np.float64) for number in range(4)]
    targets = (SSE2, AVX2, ARM, cuda(80))
    return [part(tmp_path, target, one) for target, one in zip(targets, own, strict=True)]


@pytest.fixture
def path(parts: list[Path], tmp_path: Path) -> Path:
    bundle.save(parts, tmp_path / "model.mlc")
    return tmp_path / "model.mlc"


def weights(opened: artifact.Artifact) -> list[tuple[int, bytes]]:
    return [(storage, array.tobytes()) for storage, array in opened.weights()]


# --- what is opened ------------------------------------------------------------------------------


def test_each_variant_is_its_artifact(parts: list[Path], path: Path) -> None:
    cpu = dataclasses.replace(CPU, arch="aarch64", features=frozenset({"neon"}))
    for single, on in zip(parts, (CPU, CPU, cpu, None), strict=True):
        for_gpu = on is None
        alone = artifact.load(single, on, for_gpu=for_gpu)
        name = alone.manifest["target"]["name"]
        ours = bundle.load(path, on, target=name, for_gpu=for_gpu)
        code = artifact.code_member(alone.manifest)
        assert weights(ours) == weights(alone)
        assert [bytes(ours.members[m]) for m in (code, GRAPH)] == [
            bytes(alone.members[m]) for m in (code, GRAPH)
        ]
        for key in alone.manifest.keys() - {"weights"}:
            assert ours.manifest[key] == alone.manifest[key]


def test_the_manifests_are_stored_as_they_were(parts: list[Path], path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for number, single in enumerate(parts):
            with zipfile.ZipFile(single) as alone:
                assert archive.read(f"{number}/{MANIFEST}") == alone.read(MANIFEST)


@pytest.mark.parametrize(
    ("features", "name"),
    [(("sse2",), "old"), (("avx2", "fma", "sse2"), "haswell"), (("sse2", "avx2"), "old")],
)
def test_the_variant_with_most_features_that_the_cpu_has(
    features: tuple[str, ...], name: str, path: Path
) -> None:
    cpu = dataclasses.replace(CPU, features=frozenset(features))
    assert bundle.load(path, cpu).manifest["target"]["name"] == name


def test_nothing_fits_and_what_there_is_gets_listed(path: Path) -> None:
    cpu = dataclasses.replace(CPU, features=frozenset())
    with pytest.raises(ArtifactError, match="nothing that this machine can run") as found:
        bundle.load(path, cpu)
    for line in ("old: it lacks sse2", "rpi4: it is x86_64 linux", "cuda-sm_80: it is a CPU"):
        assert line in found.value.message


def test_a_named_variant_must_fit_too(path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is for rpi4 .* and this machine cannot run it"):
        bundle.load(path, CPU, target="rpi4")
    with pytest.raises(ArtifactError, match="holds nothing for rpi5, but for old, haswell, rpi4"):
        bundle.load(path, CPU, target="rpi5")
    with pytest.raises(TargetError, match="unknown target"):
        bundle.load(path, CPU, target="nothing")


def test_a_target_is_known_by_any_of_its_spellings(parts: list[Path], tmp_path: Path) -> None:
    from mlc.target import resolve

    pi = resolve("rpi4")
    fields = {"name": "a pi", "triple": pi.triple, "features": [], "tvm": pi.tvm}
    bundle.save([part(tmp_path, SSE2), part(tmp_path, fields)], tmp_path / "b.mlc")
    for text in ("rpi4", "a pi", pi.tvm):
        assert bundle.read_manifest(tmp_path / "b.mlc", text)["target"]["name"] == "a pi"


@pytest.mark.parametrize(
    ("capability", "name"),
    [((8, 9), "cuda-sm_80"), ((9, 0), "cuda-sm_90"), ((12, 0), "cuda-sm_90"), (None, "cuda-sm_90")],
)
def test_the_newest_gpu_code_that_the_gpu_can_run(
    capability: tuple[int, int] | None, name: str, tmp_path: Path
) -> None:
    sources = [part(tmp_path, target) for target in (AVX2, cuda(90), cuda(80))]
    bundle.save(sources, tmp_path / "b.mlc")
    found = bundle.load(tmp_path / "b.mlc", for_gpu=True, capability=capability)
    assert found.manifest["target"]["name"] == name


def test_an_older_gpu_and_a_bundle_without_any(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing that this GPU can run, but old, haswell"):
        bundle.load(path, for_gpu=True, capability=(7, 5))
    bundle.save([part(tmp_path, SSE2), part(tmp_path, ARM)], tmp_path / "cpus.mlc")
    with pytest.raises(ArtifactError, match="is for a CPU"):
        bundle.require_gpu(tmp_path / "cpus.mlc")
    bundle.require_gpu(path)


def test_what_can_be_emulated(path: Path, parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"which variant .* holds old, haswell, rpi4, cuda-sm_80"):
        emulate.only_variant(path)
    bundle.save(parts[:3], tmp_path / "b.mlc")
    assert emulate.only_variant(tmp_path / "b.mlc") == "llvm of rpi4"
    assert emulate.only_variant(parts[0]) == "llvm of old"


def test_plain_artifacts_open_as_before(parts: list[Path]) -> None:
    assert not bundle.is_bundle(parts[1])
    assert bundle.read_manifests(parts[1]) == [artifact.read_manifest(parts[1])]
    assert bundle.load(parts[1], CPU, target="haswell").manifest["target"]["name"] == "haswell"
    with pytest.raises(ArtifactError, match="holds nothing for rpi4, but for haswell"):
        bundle.load(parts[1], CPU, target="rpi4")


def test_an_artifact_of_one_target_is_refused_as_such(path: Path) -> None:
    with pytest.raises(ArtifactError, match="its members are not those"):
        artifact.load(path, CPU)
    with pytest.raises(ArtifactError, match="no such artifact"):
        bundle.load(Path("nowhere.mlc"), CPU)


# --- what is stored ------------------------------------------------------------------------------


def test_equal_weights_are_stored_once(parts: list[Path], path: Path) -> None:
    alone = [artifact.read_manifest(single)["members"][WEIGHTS]["size"] for single in parts]
    said = bundle.save(parts, path)
    with zipfile.ZipFile(path) as archive:
        stored = archive.getinfo(WEIGHTS).file_size
    shared = 4032 + 64  # 1000 and 7 float32, up to the next multiple of 64
    assert stored == sum(alone) - 3 * shared
    assert said == {"stored": stored, "shared": 3 * shared}


def test_a_weight_that_one_variant_has_twice_stays_twice(tmp_path: Path) -> None:
    sources = [part(tmp_path, SSE2, SHARED), part(tmp_path, AVX2, SHARED, SHARED)]
    bundle.save(sources, tmp_path / "b.mlc")
    with zipfile.ZipFile(tmp_path / "b.mlc") as archive:
        assert archive.getinfo(WEIGHTS).file_size == 3 * 4032 + 64
    opened = bundle.load(tmp_path / "b.mlc", CPU)
    assert weights(opened) == weights(artifact.load(sources[1], CPU))


def test_members_and_weights_are_aligned(path: Path) -> None:
    opened = bundle.load(path, CPU)
    assert all(array.ctypes.data % ALIGNMENT == 0 for _, array in opened.weights() if array.size)


def test_equal_parts_give_equal_bytes(parts: list[Path], path: Path, tmp_path: Path) -> None:
    bundle.save(parts, tmp_path / "again.mlc")
    assert (tmp_path / "again.mlc").read_bytes() == path.read_bytes()


def test_too_many_targets(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 to 64 targets, not 65"):
        bundle.save([parts[0]] * 65, tmp_path / "b.mlc")


# --- what is refused -----------------------------------------------------------------------------

Members = dict[str, bytes]


def rezip(path: Path, change: Callable[[Members], Members], packing: int = 0) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for name, data in change(members).items():
            archive.writestr(name, data)
    path.write_bytes(out.getvalue())


def replaced(members: Members, name: str, data: Any) -> Members:
    return {**members, name: data if isinstance(data, bytes) else json.dumps(data).encode()}


def test_an_ordinary_zip_of_the_same_members_is_opened(path: Path) -> None:
    before = weights(bundle.load(path, CPU))
    rezip(path, dict)
    assert weights(bundle.load(path, CPU)) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {**m, "more.txt": b""},
        lambda m: {name: data for name, data in m.items() if name != f"1/{GRAPH}"},
        lambda m: {name: data for name, data in m.items() if name != WEIGHTS},
        lambda m: {(f"7{n[1:]}" if n[0] == "2" else n): d for n, d in m.items()},
        lambda m: {(f"../{n}" if n == f"2/{LIBRARY}" else n): d for n, d in m.items()},
        lambda m: {(f"1/{LIBRARY}/x" if n == f"1/{LIBRARY}" else n): d for n, d in m.items()},
        lambda m: {name: m[name] for name in (bundle.INDEX, WEIGHTS)},
        lambda m: {bundle.INDEX: m[bundle.INDEX], **{f"{n}/a": b"" for n in range(3000)}},
    ],
    ids=["extra", "missing", "no weights", "number", "path", "deeper", "empty", "many"],
)
def test_other_members_are_refused(change: Any, path: Path) -> None:
    rezip(path, change)
    with pytest.raises(ArtifactError, match="its members are not those of an artifact"):
        bundle.load(path, CPU)


def test_compressed_members_are_refused(path: Path) -> None:
    rezip(path, dict, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError):
        bundle.load(path, CPU)


def index_of(members: Members) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(members[bundle.INDEX])
    return found


def with_offsets(change: Callable[[list[list[int]]], Any]) -> Callable[[Members], Members]:
    def changed(members: Members) -> Members:
        index = index_of(members)
        index["weights"] = change(index["weights"])
        return replaced(members, bundle.INDEX, index)

    return changed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: w[:-1], "its index has another form"),
        (lambda w: [*w, []], "its index has another form"),
        (lambda w: "none", "its index has another form"),
        (lambda w: [["0"], *w[1:]], "its index has another form"),
        (lambda w: [w[0][:-1], *w[1:]], "lies outside"),
        (lambda w: [[-64, *w[0][1:]], *w[1:]], "lies outside"),
        (lambda w: [[1 << 70, *w[0][1:]], *w[1:]], "lies outside"),
        (lambda w: [*w[:1], w[0], *w[2:]], "does not match its hash"),
        (lambda w: [*w[:1], [w[1][0] + 1, *w[1][1:]], *w[2:]], "does not match its hash"),
    ],
)
def test_offsets_that_cannot_be(change: Any, why: str, path: Path) -> None:
    rezip(path, with_offsets(change))
    with pytest.raises(ArtifactError, match=why):
        bundle.load(path, CPU)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (b"{", "cannot be read"),
        (b"[]", "cannot be read"),
        (b'{"format": 1e400}', "cannot be read"),
        ({"format": 2, "weights": []}, "has format 2"),
        ({"format": 1}, "another form"),
    ],
)
def test_an_index_that_is_none(index: Any, why: str, path: Path) -> None:
    rezip(path, lambda members: replaced(members, bundle.INDEX, index))
    with pytest.raises(ArtifactError, match=why):
        bundle.load(path, CPU)


def test_a_manifest_cannot_ask_for_more_work_than_the_file_is_large(path: Path) -> None:
    """Else a small file could have the same weight hashed a million times."""

    def many(members: Members) -> Members:
        manifest, index = json.loads(members[f"1/{MANIFEST}"]), index_of(members)
        manifest["weights"] = manifest["weights"][:1] * 1000
        index["weights"][1] = index["weights"][1][:1] * 1000
        members = replaced(members, f"1/{MANIFEST}", manifest)
        return replaced(members, bundle.INDEX, index)

    rezip(path, many)
    with pytest.raises(ArtifactError, match="its weights are larger than their member"):
        bundle.load(path, CPU)


def test_manifests_are_bounded_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(path) as archive:
        sizes = [archive.getinfo(f"{number}/{MANIFEST}").file_size for number in range(4)]
    monkeypatch.setattr(bundle, "MAX_MANIFEST_BYTES", sum(sizes))
    bundle.load(path, CPU)
    monkeypatch.setattr(bundle, "MAX_MANIFEST_BYTES", sum(sizes) - 1)
    with pytest.raises(ArtifactError, match="its manifests are too large"):
        bundle.load(path, CPU)


def test_code_of_another_kind_than_the_target_says(path: Path) -> None:
    def swap(members: Members) -> Members:
        return {n.replace(f"1/{LIBRARY}", f"1/{PROGRAMS}"): d for n, d in members.items()}

    rezip(path, swap)
    with pytest.raises(ArtifactError, match="manifest has another form"):
        bundle.load(path, CPU)


@pytest.mark.parametrize("name", [f"1/{LIBRARY}", f"1/{GRAPH}"])
def test_changed_members_are_seen(name: str, path: Path) -> None:
    rezip(path, lambda members: replaced(members, name, members[name][:-1] + b"?"))
    with pytest.raises(ArtifactError, match="does not match its hash"):
        bundle.load(path, CPU)


def test_damage_anywhere_is_seen_or_without_effect(path: Path) -> None:
    data = path.read_bytes()
    before = weights(bundle.load(path, CPU))
    chance = random.Random(5)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            opened = bundle.load(path, CPU)
        except ArtifactError:
            refused += 1
            continue
        assert weights(opened) == before
        assert bytes(opened.members[LIBRARY]) == b"code of haswell"
    assert refused > 50
    for size in range(0, len(data), 97):
        path.write_bytes(data[:size])
        with pytest.raises(ArtifactError):
            bundle.load(path, CPU)


def test_a_session_of_nothing_that_fits(parts: list[Path], tmp_path: Path) -> None:
    bundle.save(parts[2:], tmp_path / "b.mlc")
    with pytest.raises(ArtifactError, match="nothing that this machine can run"):
        session.open(tmp_path / "b.mlc")
