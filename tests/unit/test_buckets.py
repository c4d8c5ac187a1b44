"""Several shapes in one artifact: its form, which bucket a run goes to, when padding is offered."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc import artifact, buckets
from mlc.artifact import Contents
from mlc.cpu import HostCpu
from mlc.errors import ArtifactError, RunError, UsageError
from mlc.inspection.packed import inspect_artifact
from mlc.model import TensorSpec, specs
from mlc.runtime import session as sessions
from mlc.runtime.buckets import BucketSession, Pick, open_one
from mlc.runtime.padding import Trial
from mlc.tune import baseline
from mlc.tune.tasks import Task, merged
from tests.unit.test_artifact import with_manifest

CPU = HostCpu(
    arch="x86_64", vendor="GenuineIntel", family=6, model=1, name="a CPU",
    features=frozenset({"avx2"}), cores=2,
)  # fmt: skip
BIG = np.arange(100, dtype=np.float32)
Array = np.ndarray
Function = Callable[[Array], Array]


def tensor(name: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": "float32"}


def part(weights: buckets.Weights, arrays: list[tuple[int, Array]], **dims: int) -> buckets.Part:
    """Return a bucket of x [batch, 3, seq] -> y [batch, 3, seq]."""
    shape = (dims["batch"], 3, dims.get("seq", 5))
    manifest = {
        "signature": {"inputs": [tensor("x", *shape)], "outputs": [tensor("y", *shape)]},
        "target": {"name": "haswell", "triple": "x86_64-linux-gnu", "features": ["avx2"]},
        "versions": {"tvm": "0.19"},
        "kernels": {}, "buffer_bytes": 4, "passes": [], "tuning": {}, "index_bounds": {},
        "precision": {}, "verification": None,
    }  # fmt: skip
    graph = json.dumps({"nodes": [], "batch": dims["batch"]}).encode()
    contents = Contents(manifest=manifest, library=b"", graph=graph, weights=())
    return buckets.Part(dims=dims, contents=contents, weights=weights.add(arrays))


def saved(path: Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    """Write an artifact with the buckets batch=1 and batch=4, its manifest changed in place."""
    weights = buckets.Weights()
    parts = [
        part(weights, [(2, BIG), (0, BIG[:7])], batch=1),
        part(weights, [(1, BIG.reshape(10, 10)), (5, BIG[:8])], batch=4),
    ]
    artifact.save(buckets.merge(parts, b"code of both", weights), path)
    if change is not None:
        with_manifest(path, changed(change))
    return path


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Return what gives the manifest that was changed in place."""
    return lambda manifest: (change(manifest), manifest)[1]


# --- the file ------------------------------------------------------------------------------------


def test_each_bucket_is_an_artifact_by_itself(tmp_path: Path) -> None:
    whole = artifact.load(saved(tmp_path / "a.mlc"), CPU)
    assert whole.manifest["format"] == artifact.SHAPES
    one, other = buckets.view(whole, 0), buckets.view(whole, 1)
    assert json.loads(bytes(one.members[artifact.GRAPH])) == {"nodes": [], "batch": 1}
    assert json.loads(bytes(other.members[artifact.GRAPH])) == {"nodes": [], "batch": 4}
    assert other.manifest["signature"]["inputs"] == [tensor("x", 4, 3, 5)]
    assert [(s, a.tobytes()) for s, a in one.weights()] == [
        (2, BIG.tobytes()),
        (0, BIG[:7].tobytes()),
    ]
    assert [(s, a.tobytes()) for s, a in other.weights()] == [
        (1, BIG.tobytes()),
        (5, BIG[:8].tobytes()),
    ]
    assert bytes(other.members[artifact.LIBRARY]) == b"code of both"
    graphs = json.loads(bytes(whole.members[artifact.GRAPH]))
    assert [graph["batch"] for graph in graphs] == [1, 4]


def test_equal_weights_are_stored_once_and_mapped_once(tmp_path: Path) -> None:
    whole = artifact.load(saved(tmp_path / "a.mlc"), CPU)
    assert [entry["nbytes"] for entry in whole.manifest["weights"]] == [400, 28, 32]
    (_, one), _ = buckets.view(whole, 0).weights()
    (_, other), _ = buckets.view(whole, 1).weights()
    assert one.ctypes.data == other.ctypes.data


def test_equal_buckets_give_equal_bytes(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "a.mlc"), saved(tmp_path / "b.mlc")
    assert one.read_bytes() == other.read_bytes()


def test_weights_without_elements_have_a_place(tmp_path: Path) -> None:
    weights = buckets.Weights()
    table = weights.add([(0, np.zeros((0, 4), np.float32)), (1, np.array(7.0))])
    assert [entry["weight"] for entry in table] == [0, 1]
    assert weights.add([(9, np.zeros(0, np.int64))]) == [{"storage": 9, "weight": 0}]


def test_the_manifest_can_be_rewritten_and_shown(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.mlc")
    unverified = {"offered": [], "refused": {"batch": "it was not verified"}}
    assert artifact.read_manifest(path)["padding"] == unverified
    artifact.rewrite_manifest(path, {"padding": {"offered": ["batch"], "refused": {}}})
    assert artifact.load(path, CPU).manifest["padding"]["offered"] == ["batch"]
    shown = inspect_artifact(path)
    assert [(one["dims"], one["parameters"]["bytes"]) for one in shown["buckets"]] == [
        ({"batch": 1}, 428), ({"batch": 4}, 432),
    ]  # fmt: skip
    assert shown["parameters"] == {"tensors": 3, "bytes": 460, "bytes_in_memory": 460}
    assert shown["padding"] == {"offered": ["batch"], "refused": {}}


def test_a_session_for_one_shape_refuses_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(artifact, "host_cpu", lambda: CPU)
    with pytest.raises(ArtifactError, match="compiled for several shapes") as caught:
        sessions.open(saved(tmp_path / "a.mlc"))
    assert "mlc.open" in str(caught.value.hint)
    with pytest.raises(UsageError, match="has no bucket with batch=3") as usage:
        open_one(tmp_path / "a.mlc", ["batch=3"])
    assert usage.value.hint == "choose one of: batch=1; batch=4"


def entry(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets the entry of a manifest that lies at `a.0.b`."""

    def change(manifest: Any) -> None:
        *steps, last = path.split(".")
        for step in steps:
            manifest = manifest[int(step) if step.isdecimal() else step]
        manifest[int(last) if last.isdecimal() else last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [("buckets", None), ("buckets", {}), ("buckets.1", 3), ("buckets.1.dims", [4]), ("padding", {}),
     ("buckets.0.graph", None), ("buckets.0.graph.offset", "1"), ("buckets.0.signature", {}),
     ("buckets.0.weights.0.weight", 1.5), ("padding.offered", "batch"), ("padding.refused", [])],
)  # fmt: skip
def test_another_form_is_refused(path: str, value: Any, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.mlc", entry(path, value))
    for read in (artifact.read_manifest, inspect_artifact, lambda p: artifact.load(p, CPU)):
        with pytest.raises(ArtifactError, match="its manifest has another form"):
            read(file)


@pytest.mark.parametrize(
    ("path", "value"),
    [("buckets", []), ("buckets.1.dims", {"seq": 4}), ("buckets.1.dims.batch", 0),
     ("buckets.1.dims.batch", "4"), ("buckets.1.dims.batch", True), ("padding.offered", ["seq"]),
     ("buckets.1.signature.inputs.0.name", "z"), ("buckets.1.signature.inputs.0.dtype", "int8"),
     ("buckets.1.signature.inputs.0.shape", [4, 15]), ("buckets.1.signature.outputs", [])],
)  # fmt: skip
def test_buckets_of_different_models_are_refused(path: str, value: Any, tmp_path: Path) -> None:
    manifest = artifact.read_manifest(saved(tmp_path / "a.mlc", entry(path, value)))
    with pytest.raises(ArtifactError, match="its buckets do not fit"):
        buckets.read(tmp_path, manifest)


def test_too_many_buckets_are_refused(tmp_path: Path) -> None:
    manifest = artifact.read_manifest(saved(tmp_path / "a.mlc"))
    many = {**manifest, "buckets": manifest["buckets"] * 17}
    with pytest.raises(ArtifactError, match="its buckets do not fit"):
        buckets.read(tmp_path, many)
    assert len(buckets.read(tmp_path, {**manifest, "buckets": manifest["buckets"] * 16})) == 32


@pytest.mark.parametrize(
    ("path", "value"),
    [("buckets.1.graph.offset", -1), ("buckets.1.graph.nbytes", -1), ("buckets.1.graph.nbytes", 999),
     ("buckets.1.graph.offset", 1 << 70), ("buckets.1.weights.0.weight", 3),
     ("buckets.1.weights.0.weight", -1)],
)  # fmt: skip
def test_a_bucket_outside_the_members_is_refused(path: str, value: Any, tmp_path: Path) -> None:
    whole = artifact.load(saved(tmp_path / "a.mlc", entry(path, value)), CPU)
    buckets.view(whole, 0)
    with pytest.raises(ArtifactError, match="a bucket lies outside its members"):
        buckets.view(whole, 1)


def test_a_bucket_does_not_change_what_was_checked_for_all(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.mlc", entry("buckets.1.target", {"name": "other"}))
    assert buckets.view(artifact.load(file, CPU), 1).manifest["target"]["name"] == "haswell"


# --- which bucket --------------------------------------------------------------------------------


class Fake:
    """A session of one bucket that computes with numpy, on the shapes of its bucket only."""

    def __init__(self, one: Mapping[str, Any], function: Function):
        self.inputs, self.outputs = (
            specs(one["signature"][side]) for side in ("inputs", "outputs")
        )
        self.function = function
        self.seen: list[Array] = []
        self.closed = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        (array,) = sessions.check_inputs(self.inputs, inputs)
        self.seen.append(array)
        return {"y": self.function(array)}

    def close(self) -> None:
        self.closed = True


def twice(x: Array) -> Array:
    return x * np.float32(2) + 1


def opened(
    sizes: list[dict[str, int]], offered: list[str], function: Function = twice
) -> tuple[BucketSession, dict[int, Fake]]:
    """Return a session over buckets x [batch, 3, seq] -> y, and its fakes by position."""
    weights = buckets.Weights()
    manifest = buckets.merge([part(weights, [], **dims) for dims in sizes], b"", weights).manifest
    manifest = {**manifest, "padding": {"offered": offered, "refused": {}}}
    fakes: dict[int, Fake] = {}

    def open_bucket(position: int) -> Any:
        fakes[position] = Fake(manifest["buckets"][position], function)
        return fakes[position]

    return BucketSession(Path("a.mlc"), manifest, open_bucket), fakes


def rows(batch: int, seq: int = 5) -> Array:
    return np.random.default_rng(batch).standard_normal((batch, 3, seq)).astype(np.float32)


BATCHES = [{"batch": 4}, {"batch": 1}, {"batch": 16}]
BOTH = [{"batch": b, "seq": s} for b in (1, 4) for s in (6, 13)]


@pytest.mark.parametrize(("batch", "position"), [(1, 1), (4, 0), (16, 2)])
def test_exact_shapes_go_to_their_bucket(batch: int, position: int) -> None:
    session, fakes = opened(BATCHES, [])
    x = rows(batch)
    np.testing.assert_array_equal(session.run({"x": x})["y"], twice(x))
    np.testing.assert_array_equal(session.run([x])["y"], twice(x))
    assert list(fakes) == [position]  # opened when it was needed, once


@pytest.mark.parametrize(("batch", "position"), [(2, 0), (3, 0), (5, 2), (15, 2)])
def test_sizes_in_between_are_padded_where_that_is_offered(batch: int, position: int) -> None:
    session, fakes = opened(BATCHES, ["batch"])
    x = rows(batch)
    assert session.pick({"x": x}) == Pick(position=position, padded={"batch": batch})
    np.testing.assert_array_equal(session.run({"x": x})["y"], twice(x))
    (seen,) = fakes[position].seen
    np.testing.assert_array_equal(seen[:batch], x)
    assert not seen[batch:].any()
    refused, _ = opened(BATCHES, [])
    with pytest.raises(RunError, match=r"no bucket of a\.mlc takes x\[\d+, 3, 5\]") as caught:
        refused.run({"x": x})
    assert "batch=4: x[4, 3, 5]; batch=1: x[1, 3, 5]; batch=16: x[16, 3, 5]" in str(
        caught.value.hint
    )


@pytest.mark.parametrize(
    ("offered", "shape", "dims"),
    [
        (["batch"], (2, 6), {"batch": 4, "seq": 6}),
        (["seq"], (4, 7), {"batch": 4, "seq": 13}),
        (["seq"], (1, 2), {"batch": 1, "seq": 6}),
        (["batch", "seq"], (1, 7), {"batch": 1, "seq": 13}),
        (["batch", "seq"], (3, 12), {"batch": 4, "seq": 13}),
        (["batch", "seq"], (4, 13), {"batch": 4, "seq": 13}),
    ],
)
def test_the_nearest_larger_bucket_is_taken(
    offered: list[str], shape: tuple[int, int], dims: dict[str, int]
) -> None:
    session, _ = opened(BOTH, offered)
    x = rows(*shape)
    pick = session.pick({"x": x})
    assert session.buckets[pick.position].dims == dims
    outputs = session.run({"x": x})
    assert outputs["y"].shape == x.shape  # cut along the last axis as well
    np.testing.assert_array_equal(outputs["y"], twice(x))


@pytest.mark.parametrize(
    ("offered", "shape"),
    [(["batch"], (2, 7)), (["batch"], (5, 6)), (["seq"], (2, 6)), (["batch", "seq"], (4, 14)),
     (["batch", "seq"], (0, 6)), ([], (3, 6))],
)  # fmt: skip
def test_other_sizes_are_refused(offered: list[str], shape: tuple[int, int]) -> None:
    session, fakes = opened(BOTH, offered)
    with pytest.raises(RunError, match=r"no bucket of a\.mlc takes"):
        session.run({"x": rows(*shape)})
    assert not fakes


def test_inputs_that_do_not_fit_are_refused() -> None:
    session, _ = opened(BATCHES, ["batch"])
    for wrong in (np.zeros((3, 3), np.float32), np.float32(1), np.zeros((3, 4, 5), np.float32)):
        with pytest.raises(RunError, match=r"no bucket of a\.mlc takes"):
            session.run({"x": wrong})
    with pytest.raises(RunError, match="no input 'z'"):
        session.run({"x": rows(4), "z": rows(4)})
    with pytest.raises(RunError, match="input 'x' is missing"):
        session.run({})
    with pytest.raises(RunError, match="has 1 inputs, 2 were given"):
        session.run([rows(4), rows(4)])
    for batch in (4, 3):  # exact and padded: dtypes are not converted
        with pytest.raises(RunError, match="float64"):
            session.run([rows(batch).astype(np.float64)])


def test_closing_closes_every_bucket() -> None:
    session, fakes = opened(BATCHES, [])
    with session:
        session.run([rows(1)])
        session.run([rows(4)])
    assert [fake.closed for fake in fakes.values()] == [True, True]
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run([rows(1)])


# --- where padding is offered --------------------------------------------------------------------


class Model:
    """Stands for ONNX Runtime on the original model: takes any shape."""

    def __init__(self, function: Function):
        self.function = function

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self.function(inputs["x"])}


def trial(function: Function, sizes: list[dict[str, int]] = BOTH) -> Trial:
    session, _ = opened(sizes, [], function)
    return Trial(session=session, reference=Model(function), seed=0)  # type: ignore[arg-type]


def test_rows_that_do_not_see_each_other_may_be_padded() -> None:
    for dims in (("batch",), ("seq",), ("batch", "seq")):
        assert trial(twice).fault(dims) == ""


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(2, keepdims=True),
        lambda x: x - x.max(2, keepdims=True),  # of random rows zero is never the largest
        lambda x: x[:, :, ::-1].copy(),
        lambda x: np.cumsum(x[:, :, ::-1], 2),
        lambda x: x + np.float32(x.shape[2]),
    ],
)
def test_rows_that_do_may_not(function: Function) -> None:
    assert trial(function).fault(("batch",)) == ""
    assert "output 'y' is wrong by" in trial(function).fault(("seq",))
    assert "output 'y' is wrong by" in trial(function).fault(("batch", "seq"))


def test_zeros_that_hide_behind_larger_rows_are_found() -> None:
    """With 100 random rows a largest one above zero is as good as sure; with equal ones it is not."""
    asked = trial(lambda x: x - x.max(2, keepdims=True), [{"batch": 2, "seq": n} for n in (1, 199)])
    random, alike = asked._feeds(1, {"seq": 100})
    assert random["x"].shape == alike["x"].shape == (2, 3, 100)
    assert (random["x"].max(2) > 0).all()
    assert (alike["x"] == alike["x"][:, :, :1]).all()
    assert "is wrong" in asked.fault(("seq",))


def test_outputs_must_have_the_dimension() -> None:
    found = trial(lambda x: x[:, :, :1].repeat(5, 2), BATCHES).fault(("batch",))
    assert found == ""
    session, _ = opened(BOTH, [])
    for one in session.manifest["buckets"]:
        one["signature"]["outputs"][0]["shape"][2] = 5
    again = BucketSession(session.path, session.manifest, lambda _position: None)  # type: ignore[arg-type, return-value]
    asked = Trial(session=again, reference=Model(twice), seed=0)  # type: ignore[arg-type]
    assert asked.fault(("seq",)) == "output 'y' does not have it"


def test_sizes_next_to_each_other_leave_nothing_to_pad() -> None:
    assert (
        trial(twice, [{"batch": 1}, {"batch": 2}]).fault(("batch",))
        == "there is no size in between"
    )
    between = trial(twice, [{"batch": 16}, {"batch": 3}, {"batch": 4}]).between
    assert [between(position, ("batch",)) for position in range(3)] == [
        {"batch": 10},
        {"batch": 1},
        {},
    ]


def test_a_model_that_fails_in_between_is_not_padded() -> None:
    def fixed(x: Array) -> Array:
        if x.shape[0] not in (1, 4):
            raise RunError("cannot reshape")
        return x

    assert trial(fixed).fault(("batch",)).startswith("the model itself does not run at batch=2")


# --- tuning several shapes -----------------------------------------------------------------------


def test_tasks_of_several_shapes_are_weighed_together() -> None:
    both, one, other = (Task(key=f'["{k}"]', calls=2, flops=5) for k in "abc")
    found = merged(
        [
            ([dataclasses.replace(both, share=0.5, seconds=1.0, kernels=("k",)),
              dataclasses.replace(one, share=0.25)], 4.0),
            ([dataclasses.replace(both, share=0.25, kernels=("l",)),
              dataclasses.replace(other, share=0.75)], 12.0),
        ]
    )  # fmt: skip
    assert [(task.key, task.calls, task.share) for task in found] == [
        ('["c"]', 2, 0.5625), ('["a"]', 4, 0.3125), ('["b"]', 2, 0.0625),
    ]  # fmt: skip
    assert (found[1].seconds, found[1].kernels) == (1.0, ("k", "l"))
    assert merged([([both], 1.0)]) == [both]
    assert merged([([], 0.0), ([], 0.0)]) == []


def test_models_of_several_shapes_are_compared_together() -> None:
    part_of = baseline.Versus
    one = part_of(before=1.0, after=0.5, ratio=2.0, low=1.9, high=2.1)
    for name, value in dataclasses.asdict(one).items():
        assert getattr(baseline.together([one]), name) == pytest.approx(value)
    three = part_of(before=3.0, after=3.0, ratio=1.0, low=0.9, high=1.1)
    found = baseline.together([one, three])
    assert (found.before, found.after) == (4.0, 3.5)
    assert found.ratio == pytest.approx(4.0 / 3.5)
    assert found.low < found.ratio < found.high


def test_a_dimension_is_found_on_both_sides() -> None:
    session, _ = opened(BOTH, [])
    assert buckets.axes("batch", session.buckets, "inputs") == {"x": (0,)}
    assert buckets.axes("seq", session.buckets, "outputs") == {"y": (2,)}
    spec = TensorSpec(name="x", shape=(4, 3, 13), dtype="float32")
    where = {"batch": {"x": (0,)}, "seq": {"x": (2,)}}
    (small,) = buckets.resized([spec], {"batch": 2, "seq": 7}, where)
    assert small.shape == (2, 3, 7)
