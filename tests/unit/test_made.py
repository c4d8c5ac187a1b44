"""Weights that are made when an artifact is opened: what they are, what is stored, who is refused."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlc import artifact, buckets, bundle, made
from mlc.artifact import LIBRARY, WEIGHTS, Contents
from mlc.emulate.session import EmulatedSession
from mlc.errors import ArtifactError
from mlc.inspection.packed import inspect_artifact
from mlc.runtime import open_graph
from mlc.schedules import winograd_weights
from tests.unit import test_artifact, test_buckets, test_sizes
from tests.unit.test_artifact import CPU, with_manifest

Array = np.ndarray
POINTS = {16: (0, 1, -1), 36: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)}
PLAIN = np.arange(33, dtype=np.float64)


def filters(k: int, c: int) -> Array:
    return np.random.default_rng(k).standard_normal((k, c, 3, 3)).astype(np.float32)


def recipe(*shape: int, by: str = "winograd") -> dict[str, Any]:
    return {"by": by, "shape": list(shape)}


def reference(given: Array, shape: tuple[int, ...]) -> Array:
    """Return G g G^T of each filter by the definition, in panels."""
    positions, panels, channels, columns = shape
    points = POINTS[positions]
    rows = [
        [x**power / np.prod([x - y for y in points if y != x]) for power in range(3)]
        for x in points
    ]
    g = np.array([*rows, [0, 0, 1]])
    whole = np.zeros((positions, panels * columns, channels))
    transformed = np.einsum("ia,kcab,jb->ijkc", g, given.astype(np.float64), g)
    whole[:, : len(given)] = transformed.reshape(positions, len(given), channels)
    return whole.reshape(positions, panels, columns, channels).transpose(0, 1, 3, 2)


def raw(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


FILTERS = filters(20, 3)
SHAPE = (36, 2, 3, 16)
MADE = made.make(recipe(*SHAPE), raw(FILTERS))


def contents(**changes: Any) -> Contents:
    """Return what an artifact holds: a plain weight, filters, and the same again as they are."""
    fields = {"weights": [(4, PLAIN), (7, FILTERS), (2, FILTERS)], "made": {1: recipe(*SHAPE)}}
    return test_artifact.contents(**{**fields, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    artifact.save(contents(), tmp_path / "a.mlc")
    return tmp_path / "a.mlc"


# --- what is made --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "shape"),
    [(16, (36, 1, 16, 16)), (20, (36, 2, 3, 16)), (13, (16, 1, 7, 48)), (1, (16, 1, 1, 1)),
     (130, (36, 3, 33, 64)), (64, (16, 2, 70, 32)), (7, (36, 7, 5, 1)), (24, (16, 1, 2, 1000))],
)  # fmt: skip
def test_filters_are_transformed(k: int, shape: tuple[int, ...]) -> None:
    given = filters(k, shape[2])
    found = made.make(recipe(*shape), raw(given))
    assert found.ctypes.data % made.ALIGNMENT == 0
    assert found.nbytes == made.nbytes(recipe(*shape))
    expected = reference(given, shape)
    np.testing.assert_allclose(
        found.view(np.float32).reshape(shape), expected, rtol=2e-7, atol=1e-7
    )
    packed = winograd_weights.packed(given, shape)
    assert packed is not None
    np.testing.assert_array_equal(packed, found.view(np.float32).reshape(shape))
    behind = expected.transpose(1, 3, 0, 2).reshape(-1, shape[0], shape[2])[k:]
    assert not behind.any()


def test_infinities_spoil_their_filter_alone() -> None:
    given = filters(20, 3)
    given[3, 1, 0, 0] = np.inf
    found = made.make(recipe(*SHAPE), raw(given)).view(np.float32).reshape(SHAPE)
    spoilt = ~np.isfinite(found)
    assert spoilt[:, 0, 1, 3].all()
    assert spoilt.sum() == spoilt[:, 0, 1, 3].sum()


def test_the_file_holds_filters_and_kernels_get_their_transforms(path: Path) -> None:
    opened = artifact.load(path, CPU)
    assert opened.manifest["format"] == artifact.MADE
    assert [entry["nbytes"] for entry in opened.manifest["weights"]] == [264, 2160, 2160]
    assert opened.manifest["members"][WEIGHTS]["size"] == 320 + 2 * 2176
    given = dict(opened.weights())
    assert list(given) == [4, 7, 2]
    np.testing.assert_array_equal(given[7], MADE)
    np.testing.assert_array_equal(given[2], raw(FILTERS))
    assert given[7].ctypes.data % made.ALIGNMENT == 0


def test_they_are_made_once_and_go_with_their_last_user(path: Path) -> None:
    opened = artifact.load(path, CPU)
    ours, theirs = dict(opened.weights())[7], dict(opened.weights())[7]
    assert ours is theirs
    assert len(opened.made) == 1
    del ours, theirs
    assert len(opened.made) == 0


def test_pages_that_are_given_back_come_again_and_others_stay(tmp_path: Path) -> None:
    big = filters(64, 64)  # 36 pages
    weights = [(0, PLAIN), (1, big), (2, PLAIN)]
    artifact.save(contents(weights=weights, made={1: recipe(36, 1, 64, 64)}), tmp_path / "a.mlc")
    opened = artifact.load(tmp_path / "a.mlc", CPU)
    entries, member = opened.manifest["weights"], opened.members[WEIGHTS]
    around = [np.frombuffer(member, np.uint8, 264, entries[k]["offset"]) for k in (0, 2)]
    for part in around:
        part[:] = 77  # in memory: nothing but private pages holds that
    expected = made.make(recipe(36, 1, 64, 64), raw(big))
    for _ in range(2):
        np.testing.assert_array_equal(dict(opened.weights())[1], expected)
    assert all((part == 77).all() for part in around)
    stored = np.frombuffer(member, np.uint8, big.nbytes, entries[1]["offset"])
    np.testing.assert_array_equal(stored, raw(big))


def test_what_needs_no_recipe_keeps_its_format(tmp_path: Path) -> None:
    manifest = artifact.save(contents(made={}), tmp_path / "a.mlc")
    assert manifest["format"] == artifact.FORMAT
    assert not any("made" in entry for entry in manifest["weights"])


def test_an_older_mlc_asks_for_an_update(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "NEWEST", artifact.SHAPES)
    with pytest.raises(ArtifactError, match="has format 3, and this mlc reads up to 2") as caught:
        artifact.load(path, CPU)
    assert "pip install --upgrade" in str(caught.value.hint)


def test_a_rewritten_manifest_keeps_recipes(path: Path) -> None:
    artifact.rewrite_manifest(path, {"verification": {"passed": True}})
    np.testing.assert_array_equal(dict(artifact.load(path, CPU).weights())[7], MADE)


def test_inspect_tells_the_file_from_memory(path: Path) -> None:
    found = inspect_artifact(path)["parameters"]
    assert found == {
        "tensors": 3,
        "bytes": 264 + 2 * 2160,
        "bytes_in_memory": 264 + 2160 + MADE.nbytes,
    }


# --- recipes that do not fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [recipe(*SHAPE, by="magic"), recipe(36, 2, 3), recipe(*SHAPE, 1), recipe(25, 2, 3, 16),
     recipe(36, 2, 4, 16), recipe(36, 1, 3, 16), recipe(36, 3, 3, 16), recipe(36, -2, 3, -16),
     recipe(36, 2, 0, 16), recipe(36, 1, 3, 1 << 40), recipe(1 << 70, 2, 3, 16), recipe(),
     recipe(36, 1, 3, 1000)],
    ids=str,
)  # fmt: skip
def test_a_recipe_that_does_not_fit_is_refused(
    other: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["weights"][1]["made"] = other
        return manifest

    with_manifest(path, change)
    opened = artifact.load(path, CPU)
    monkeypatch.setattr(winograd_weights, "pack", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(ArtifactError, match="a weight cannot be made") as caught:
        list(opened.weights())
    assert "compile it again" in str(caught.value.hint)


@pytest.mark.parametrize(
    "other",
    [None, 3, "winograd", [], {}, {"by": "winograd"}, recipe(*SHAPE) | {"shape": [36, 2, 3, "16"]},
     recipe(*SHAPE) | {"by": 3}, recipe(*SHAPE) | {"shape": [36, 2, 3, True]},
     recipe(*SHAPE) | {"shape": {}}, recipe(*SHAPE) | {"shape": [36, 2.0, 3, 16]}],
    ids=str,
)  # fmt: skip
def test_another_form_is_refused(other: Any, path: Path) -> None:
    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["weights"][1]["made"] = other
        return manifest

    with_manifest(path, change)
    with pytest.raises(ArtifactError, match="its manifest has another form"):
        artifact.read_manifest(path)


def test_many_small_entries_do_not_fill_the_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["weights"] = manifest["weights"][1:2] * 1000
        return manifest

    with_manifest(path, change)
    monkeypatch.setattr(made, "make", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(ArtifactError, match="a weight cannot be made"):
        list(artifact.load(path, CPU).weights())


def test_an_unknown_recipe_is_shown_as_damage(path: Path) -> None:
    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["weights"][1]["made"]["by"] = "magic"
        return manifest

    with_manifest(path, change)
    with pytest.raises(ArtifactError, match="cannot be shown"):
        inspect_artifact(path)


def test_random_recipes_are_refused_or_make_what_they_say(path: Path) -> None:
    opened = artifact.load(path, CPU)
    rng = random.Random(0)
    sizes = [-16, -1, 0, 1, 2, 3, 4, 16, 20, 32, 36, 48, 1 << 31, 1 << 63]
    fitted = 0
    for _ in range(2000):
        chosen = [rng.choice([part, rng.choice(sizes)]) for part in SHAPE]
        entry = {**opened.manifest["weights"][1], "made": recipe(*chosen)}
        entry[rng.choice(["offset", "nbytes"])] += rng.choice([0, 0, 0, 64, 108, -108, 1, 1 << 40])
        manifest = {**opened.manifest, "weights": [entry]}
        try:
            ((_, found),) = dataclasses.replace(opened, manifest=manifest).weights()
        except ArtifactError:
            continue
        assert found.nbytes == made.nbytes(entry["made"])
        fitted += 1
    assert 50 < fitted < 1000


# --- buckets, bundles, other machines ------------------------------------------------------------


def bucketed(path: Path, change: Any = lambda _manifest: None) -> Path:
    """Write an artifact whose buckets read the same filters in two forms, and as they are."""
    weights = buckets.Weights()
    parts = []
    for batch, shape in ((1, SHAPE), (4, (16, 1, 3, 32)), (8, SHAPE), (9, None)):
        part = test_buckets.part(weights, [(0, PLAIN)], batch=batch)
        own = weights.add([(3, FILTERS)], {0: recipe(*shape)} if shape else {})
        parts.append(dataclasses.replace(part, weights=part.weights + own))
    artifact.save(buckets.merge(parts, b"code", weights), path)
    with_manifest(path, test_buckets.changed(change))
    return path


def test_buckets_share_filters_and_what_is_made(tmp_path: Path) -> None:
    whole = artifact.load(bucketed(tmp_path / "a.mlc"), CPU)
    assert whole.manifest["format"] == artifact.MADE
    assert [entry["nbytes"] for entry in whole.manifest["weights"]] == [264, 2160]
    given = [dict(buckets.view(whole, k).weights())[3] for k in range(4)]
    np.testing.assert_array_equal(given[0], MADE)
    assert given[2] is given[0]
    np.testing.assert_array_equal(given[1], made.make(recipe(16, 1, 3, 32), raw(FILTERS)))
    np.testing.assert_array_equal(given[3], raw(FILTERS))
    shown = inspect_artifact(whole.path)
    other = 16 * 3 * 32 * 4
    assert shown["parameters"]["bytes"] == 264 + 2160
    assert shown["parameters"]["bytes_in_memory"] == 264 + 2160 + MADE.nbytes + other
    sizes = [one["parameters"]["bytes_in_memory"] - 264 for one in shown["buckets"]]
    assert sizes == [MADE.nbytes, other, MADE.nbytes, 2160]


def test_a_buckets_recipe_is_checked_too(tmp_path: Path) -> None:
    def change(manifest: dict[str, Any], value: Any) -> None:
        manifest["buckets"][1]["weights"][1]["made"] = value

    path = bucketed(tmp_path / "a.mlc", lambda m: change(m, recipe(16, 9, 3, 32)))
    whole = artifact.load(path, CPU)
    assert len(list(buckets.view(whole, 0).weights())) == 2
    with pytest.raises(ArtifactError, match="a weight cannot be made"):
        list(buckets.view(whole, 1).weights())
    path = bucketed(tmp_path / "b.mlc", lambda m: change(m, {"by": "winograd"}))
    with pytest.raises(ArtifactError, match="its manifest has another form"):
        artifact.read_manifest(path)


def test_a_bundle_keeps_recipes_and_stores_filters_once(tmp_path: Path) -> None:
    singles = []
    for name, features, shape in (("old", ["sse2"], (36, 3, 3, 8)), ("new", ["avx2"], SHAPE)):
        target = {"name": name, "triple": "x86_64-linux-gnu", "features": features, "tvm": name}
        manifest = {**contents().manifest, "target": target}
        singles.append(tmp_path / name)
        artifact.save(
            contents(manifest=manifest, weights=[(1, FILTERS)], made={0: recipe(*shape)}),
            singles[-1],
        )
    stored = bundle.save(singles, tmp_path / "a.mlc")
    assert stored == {"stored": 2176, "shared": 2176}
    for name, shape in (("old", (36, 3, 3, 8)), ("new", SHAPE)):
        opened = bundle.load(tmp_path / "a.mlc", CPU, target=name)
        ((_, given),) = opened.weights()
        np.testing.assert_array_equal(given, made.make(recipe(*shape), raw(FILTERS)))


def test_an_artifact_with_open_sizes_may_have_them() -> None:
    opened = test_sizes.artifact([["*", 2, "n"], 3])
    graph = json.loads(bytes(opened.members["graph.json"]))
    graph["nodes"][1]["name"] = "weight0"
    entry = {"storage": 0, "offset": 0, "nbytes": FILTERS.nbytes, "made": recipe(*SHAPE)}
    members = {
        "graph.json": memoryview(json.dumps(graph).encode()),
        WEIGHTS: memoryview(raw(FILTERS)),
    }
    manifest = {**opened.manifest, "weights": [entry]}
    opened = dataclasses.replace(opened, manifest=manifest, members=members)
    one, other = (open_graph.at(opened, {"n": n}) for n in (5, 6))
    ((_, given),) = one.weights()
    np.testing.assert_array_equal(given, MADE)
    ((_, again),) = other.weights()
    assert again is given


def test_the_emulator_gets_what_kernels_read(path: Path, tmp_path: Path) -> None:
    opened = artifact.load(path, CPU)
    session = object.__new__(EmulatedSession)
    session._artifact, session.manifest = opened, opened.manifest
    session.outputs = ()
    session._runner = SimpleNamespace(close=lambda: None)
    session._write_job(tmp_path, [])
    head, *rows = (tmp_path / "job.txt").read_text().splitlines()
    assert head == "3 0 0"
    data = (tmp_path / WEIGHTS).read_bytes()
    found = {s: data[o : o + n] for s, o, n in (map(int, row.split()) for row in rows)}
    assert found == {4: PLAIN.tobytes(), 7: MADE.tobytes(), 2: FILTERS.tobytes()}
    assert (tmp_path / LIBRARY).read_bytes() == bytes(opened.members[LIBRARY])
