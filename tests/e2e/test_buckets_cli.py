"""`mlc compile --shape batch=1,4` and what follows: one artifact, several shapes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import mlc as library
from mlc import artifact
from mlc.errors import MissingToolError, RunError
from mlc.gpu import ptxas
from mlc.runtime.buckets import BucketSession
from mlc.runtime.reference import Reference
from tests import models

WIDTH = 12


def encoder() -> onnx.ModelProto:
    """x [batch, seq, 12] -> y of that shape: attention over seq, a residual, layer norm."""
    names = ("q", "k", "v", "o")
    weights = {f"w{n}": models.floats(WIDTH, WIDTH, seed=k, scale=0.3) for k, n in enumerate(names)}
    weights |= {"scale": models.floats(WIDTH, seed=8), "bias": models.floats(WIDTH, seed=9)}
    nodes = [
        *(helper.make_node("MatMul", ["x", f"w{n}"], [n], n) for n in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], "kt", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["p"], "p", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["mixed"], "mixed"),
        helper.make_node("MatMul", ["mixed", "wo"], ["o"], "o"),
        helper.make_node("Add", ["o", "x"], ["sum"], "sum"),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["y"], "norm", axis=-1),
    ]
    return models.model(nodes, {"x": ["batch", "seq", WIDTH]}, ["y"], weights)


def quotient() -> onnx.ModelProto:
    """a / ceil(|b|) in integers: never zero but where b is, which ends the process."""
    nodes = [
        helper.make_node("Abs", ["b"], ["size"]),
        helper.make_node("Ceil", ["size"], ["ceiling"]),
        helper.make_node("Cast", ["ceiling"], ["divisor"], to=TensorProto.INT32),
        helper.make_node("Div", ["a", "divisor"], ["y"]),
    ]
    types = {"a": TensorProto.INT32, "y": TensorProto.INT32}
    return models.model(nodes, {"a": ["batch", 3], "b": ["batch", 3]}, ["y"], types=types)


def compiled(mlc: Any, folder: Path, proto: onnx.ModelProto, *args: object) -> dict[str, Any]:
    models.save(proto, folder, "net.onnx")
    done = mlc("compile", "net.onnx", "--json", *args, cwd=folder)
    found: dict[str, Any] = json.loads(done.stdout)["manifest"]
    return found


@pytest.fixture(scope="module")
def conv(mlc, tmp_path_factory) -> Path:
    """A folder with net.onnx and net.mlc: x [batch, 3, 9, 9] to y [batch, 5], batch 1, 4 and 7."""
    folder = tmp_path_factory.mktemp("conv")
    manifest = compiled(mlc, folder, models.conv_net(batch="batch"), "-s", "batch=1,4,7")
    assert manifest["padding"] == {"offered": ["batch"], "refused": {}}
    return folder


@pytest.fixture(scope="module")
def two_dims(mlc, tmp_path_factory) -> Path:
    """A folder with net.onnx and net.mlc: `encoder`, batch 1 and 4, seq 5 and 11."""
    folder = tmp_path_factory.mktemp("encoder")
    manifest = compiled(mlc, folder, encoder(), "-s", "batch=1,4", "-s", "seq=5,11")
    assert manifest["padding"]["offered"] == ["batch"]
    assert "output 'y' is wrong by" in manifest["padding"]["refused"]["seq"]
    return folder


def check(folder: Path, session: Any, shape: tuple[int, ...]) -> None:
    x = models.floats(*shape, seed=sum(shape))
    (name,) = session.run({"x": x})
    ours = session.run([x])[name]
    expected = Reference(folder / "net.onnx").run({"x": x})[name]
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5 * max(1, abs(expected).max()))


@pytest.mark.parametrize("batch", [1, 4, 7, 2, 3, 5, 6])
def test_every_batch_agrees_with_onnx_runtime(conv, batch):
    with library.open(conv / "net.mlc") as session:
        assert isinstance(session, BucketSession)
        check(conv, session, (batch, 3, 9, 9))
        assert len(session._opened) == 1


@pytest.mark.parametrize("shape", [(1, 5), (4, 11), (1, 11), (2, 5), (3, 11)])
def test_two_dimensions_agree_with_onnx_runtime(two_dims, shape):
    with library.open(two_dims / "net.mlc") as session:
        check(two_dims, session, (*shape, WIDTH))


def test_sizes_that_cannot_be_padded_are_refused(conv, two_dims):
    with library.open(two_dims / "net.mlc") as session, pytest.raises(RunError) as caught:
        session.run([models.floats(4, 7, WIDTH)])
    assert "takes x[4, 7, 12]" in caught.value.message
    assert "batch=4, seq=11: x[4, 11, 12]" in str(caught.value.hint)
    assert "padded along batch" in str(caught.value.hint)
    with library.open(conv / "net.mlc") as session, pytest.raises(RunError):
        session.run([models.floats(8, 3, 9, 9)])


def test_weights_are_stored_once(conv):
    manifest = artifact.read_manifest(conv / "net.mlc")
    used = [{use["weight"] for use in entry["weights"]} for entry in manifest["buckets"]]
    assert len(used) == 3
    assert set.intersection(*used), "the buckets share no weight"
    bytes_of = [sum(manifest["weights"][k]["nbytes"] for k in own) for own in used]
    assert manifest["members"]["weights.bin"]["size"] < sum(bytes_of) / 2


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes(mlc, conv):
    mlc("compile", "net.onnx", "-s", "batch=1,4,7", "--no-cache", "-o", "b.mlc", cwd=conv)
    assert (conv / "b.mlc").read_bytes() == (conv / "net.mlc").read_bytes()


def test_one_size_gives_the_artifact_of_before(mlc, conv):
    for name, size in (("one", "batch=4"), ("same", "batch=4,4")):
        mlc("compile", "net.onnx", "-s", size, "-o", f"{name}.mlc", "--no-verify", cwd=conv)
    assert artifact.read_manifest(conv / "one.mlc")["format"] == 1
    assert (conv / "one.mlc").read_bytes() == (conv / "same.mlc").read_bytes()
    with zipfile.ZipFile(conv / "net.mlc") as ours, zipfile.ZipFile(conv / "one.mlc") as one:
        graphs = [json.dumps(graph) for graph in json.loads(ours.read("graph.json"))]
        assert json.dumps(json.loads(one.read("graph.json"))) in graphs


def test_every_bucket_is_verified(mlc, two_dims, tmp_path):
    done = mlc("verify", "net.mlc", "net.onnx", "--rounds", 2, "--json", cwd=two_dims)
    result = json.loads(done.stdout)
    assert [check["name"] for check in result["outputs"]] == [
        "y (batch=1, seq=5)", "y (batch=1, seq=11)", "y (batch=4, seq=5)", "y (batch=4, seq=11)",
    ]  # fmt: skip
    manifest = artifact.read_manifest(two_dims / "net.mlc")
    assert len(manifest["verification"]["outputs"]) == 4
    other = encoder()
    next(t for t in other.graph.initializer if t.name == "bias").raw_data = models.floats(
        WIDTH, seed=77
    ).tobytes()
    models.save(other, tmp_path, "other.onnx")
    mlc("verify", "net.mlc", tmp_path / "other.onnx", cwd=two_dims, check_code=9)


def test_one_bucket_is_verified_by_its_sizes(mlc, two_dims):
    only = ("verify", "net.mlc", "net.onnx", "--rounds", 1, "--json", "-s")
    found = json.loads(mlc(*only, "batch=4", "-s", "seq=5", cwd=two_dims).stdout)
    assert [check["name"] for check in found["outputs"]] == ["y (batch=4, seq=5)"]
    done = mlc(*only, "batch=5", cwd=two_dims, check_code=2)
    assert "choose one of: batch=1, seq=5" in done.stderr


def test_inputs_from_files_choose_the_bucket(mlc, conv, tmp_path):
    np.save(tmp_path / "x.npy", models.floats(3, 3, 9, 9))
    done = mlc("run", conv / "net.mlc", "-i", "x.npy", "-o", "y.npz", cwd=tmp_path)
    assert "runs in the bucket batch=4, padded from batch=3" in done.stderr
    with np.load(tmp_path / "y.npz") as outputs:
        assert outputs["y"].shape == (3, 5)
    done = mlc("verify", conv / "net.mlc", conv / "net.onnx", "-i", "x.npy", cwd=tmp_path)
    assert "MISMATCH" not in done.stdout
    done = mlc("run", conv / "net.mlc", "--random", cwd=tmp_path)
    assert "runs in the bucket batch=1\n" in done.stderr
    np.save(tmp_path / "x.npy", models.floats(9, 3, 9, 9))
    done = mlc("run", conv / "net.mlc", "-i", "x.npy", cwd=tmp_path, check_code=7)
    assert "batch=7: x[7, 3, 9, 9]" in done.stderr


def test_bench_takes_the_bucket_that_is_named(mlc, conv):
    short = ("--duration", 0.05, "--warmup", 0.01, "--json")
    for shape, batch in (((), 1), (("-s", "x:7,3,9,9"), 7)):
        found = json.loads(mlc("bench", "net.mlc", *short, *shape, cwd=conv).stdout)
        assert found["batch"] == batch
    done = mlc("bench", "net.mlc", *short, "-s", "batch=5", cwd=conv, check_code=2)
    assert "choose one of: batch=1; batch=4; batch=7" in done.stderr


def test_inspect_shows_the_buckets(mlc, two_dims):
    found = json.loads(mlc("inspect", "net.mlc", "--json", cwd=two_dims).stdout)
    assert [one["dims"]["seq"] for one in found["buckets"]] == [5, 11, 5, 11]
    assert found["buckets"][3]["flops"] > found["buckets"][0]["flops"] == found["flops"] > 0
    shown = mlc("inspect", "net.mlc", cwd=two_dims).stdout
    assert "along batch; not seq: output 'y' is wrong" in shown
    assert "batch=4, seq=11" in shown


def test_compile_says_what_it_made(mlc, conv):
    shown = mlc("compile", "net.onnx", "-s", "batch=1,4,7", "-o", "again.mlc", cwd=conv).stdout
    assert "buckets    batch=1; batch=4; batch=7" in shown
    assert "padding    along batch" in shown


def test_zeros_that_end_the_process_are_no_padding(mlc, tmp_path):
    manifest = compiled(mlc, tmp_path, quotient(), "-s", "batch=1,4")
    assert manifest["padding"]["offered"] == []
    assert "SIGFPE" in manifest["padding"]["refused"]["batch"]


def test_check_looks_at_every_size(mlc, two_dims):
    asked = ("check", "net.onnx", "-s", "batch=1,4", "--json")
    found = json.loads(mlc(*asked, "-s", "seq=5,11", cwd=two_dims).stdout)
    assert found["compiles"]
    assert [one["dims"] for one in found["buckets"]] == [
        {"batch": b, "seq": s} for b in (1, 4) for s in (5, 11)
    ]
    done = mlc(*asked, cwd=two_dims, check_code=3)
    found = json.loads(done.stdout)
    assert [one["compiles"] for one in found["buckets"]] == [False, False]
    assert found["open_shapes"] == ["seq=128"]
    assert len(found["problems"]) == 1


@pytest.mark.parametrize(
    "args",
    [("inspect", "net.onnx"), ("bisect", "net.onnx")],
    ids=lambda args: args[0],
)
def test_verbs_for_one_shape_say_so(mlc, conv, args):
    done = mlc(*args, "-s", "batch=4,1", cwd=conv, check_code=2)
    assert "gives 'batch' 2 sizes, and here it can have only one" in done.stderr
    assert "--shape 'batch=4'" in done.stderr


def test_wrong_lists_are_refused(mlc, conv):
    done = mlc("compile", "net.onnx", "-s", "bach=1,4", "-o", "w.mlc", cwd=conv, check_code=2)
    assert "did you mean 'batch'" in done.stderr
    done = mlc("compile", "net.onnx", "-s", "batch=1,4", "--dump-ir", "ir", cwd=conv, check_code=2)
    assert "--dump-ir shows one bucket" in done.stderr
    assert not (conv / "w.mlc").exists()


def test_tuning_takes_the_tasks_of_every_size(mlc, conv):
    asked = ("tune", "net.onnx", "--list", "--json")
    tasks = json.loads(mlc(*asked, "-s", "batch=1,4", cwd=conv).stdout)["tasks"]
    dense = {task["shapes"] for task in tasks if task["template"].startswith("dense")}
    assert dense == {"1x8 5x8", "4x8 5x8"}
    assert len(tasks) == len({task["key"] for task in tasks}) > 2
    assert 0 < sum(task["share"] for task in tasks) <= 1


def test_from_python(conv, tmp_path):
    report = library.compile(conv / "net.onnx", tmp_path / "p.mlc", shapes=("batch=4,1",))
    assert report.verification is not None
    assert report.verification["passed"]
    assert [entry["dims"] for entry in report.manifest["buckets"]] == [{"batch": 4}, {"batch": 1}]
    with library.open(report.path) as session:
        check(conv, session, (3, 3, 9, 9))
        check(conv, session, (1, 3, 9, 9))
    assert library.verify(report.path, conv / "net.onnx").passed


def test_buckets_for_a_gpu_run_in_the_simulator(mlc, tmp_path):
    try:
        ptxas.find()
    except MissingToolError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    manifest = compiled(
        mlc, tmp_path, models.conv_net(4, 5, "batch"), "-s", "batch=1,2", "-t", "cuda:sm_80"
    )
    assert manifest["padding"]["offered"] == []
    done = mlc("verify", "net.mlc", "net.onnx", "--emulate", "--json", cwd=tmp_path)
    outputs = json.loads(done.stdout)["outputs"]
    assert [check["name"] for check in outputs] == ["y (batch=1)", "y (batch=2)"]
