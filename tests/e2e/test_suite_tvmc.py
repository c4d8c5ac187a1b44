"""The peer `tvmc` on a tiny model: TVM's own code throughout, and the reference's numbers."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from benchmarks.suite import peers, race, tvmc
from benchmarks.tune import equal
from mlc import isolate
from mlc.cpu import physical_cores
from mlc.errors import MlcError
from mlc.runtime.reference import Reference
from mlc.target import resolve
from mlc.tune.measure import Outcome
from tests import models

if TYPE_CHECKING:
    from pathlib import Path

    import onnx


def net(opset: int = 18) -> onnx.ModelProto:
    """Two inputs, the later one by name first; axes of the mean are an input, as since opset 18."""
    nodes = [
        helper.make_node("Conv", ["x.2", "w"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("ReduceMean", ["c", "axes"], ["r"], keepdims=1),
        helper.make_node("Reshape", ["r", "shape"], ["m"]),
        helper.make_node("MatMul", ["m", "v"], ["d"]),
        helper.make_node("Sub", ["d", "a"], ["y"]),
    ]
    weights = {
        "w": models.floats(8, 3, 3, 3, seed=1),
        "v": models.floats(8, 5, seed=2),
        "axes": np.array([-1, -2], np.int64),
        "shape": np.array([1, 8], np.int64),
    }
    return models.model(nodes, {"x.2": (1, 3, 6, 7), "a": (1, 5)}, ["y"], weights, opset=opset)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "net.onnx"
    file.write_bytes(net().SerializeToString())
    return file


def test_it_is_tuned_compiled_and_right(path: Path):
    package = tvmc.package(path, "llvm", trials=6)
    keys = json.loads((package.parent / "tasks.json").read_text())
    names = {json.loads(key)[0] for key in keys}
    assert names == {"conv2d_NCHWc.x86", "dense_nopack.x86", "dense_pack.x86"}
    logs = sorted((package.parent / "logs").iterdir())
    assert [len(log.read_text().splitlines()) for log in logs] == [2, 2, 2]

    made = package.stat().st_mtime_ns
    assert tvmc.package(path, "llvm", trials=6) == package
    assert package.stat().st_mtime_ns == made, "it is kept"

    arrays = [models.floats(1, 3, 6, 7, seed=3), models.floats(1, 5, seed=4)]
    inputs, ours, theirs = (path.parent / f"{name}.npz" for name in ("in", "ours", "theirs"))
    peers.write_arrays(inputs, arrays)
    job = peers.Job(
        peer="tvmc", onnx=str(path), artifact=str(package), factory="", inputs=str(inputs),
        threads=physical_cores(),
    )  # fmt: skip
    with race.Worker(job, peers.environment(job, path.parent), path.parent / "log") as one:
        one.load(ours, 0.01)
    reference = Reference(path)
    found = reference.run(dict(zip(reference.inputs, arrays, strict=True)))
    peers.write_arrays(theirs, found.values())
    race.require_equal("tvmc", ours, theirs)


def test_tvm_still_takes_one_of_several_axes_that_are_an_input(path: Path):
    """Otherwise the conversion to opset 17 in `benchmarks.suite.tvmc` can go."""
    step = tvmc.Step(onnx=str(path), target=resolve("llvm").tvm)
    assert isolate.call("benchmarks.suite.tvmc:tasks", step)
    with pytest.raises(MlcError):
        isolate.call("tests.e2e.test_suite_tvmc:tasks_as_they_are", step)


def tasks_as_they_are(fields: dict, on_event: object) -> list[str]:
    """In the child: without the conversion."""
    tvmc.OPSET = 99
    return tvmc.tasks(fields, on_event)


def test_configs_that_a_cost_model_proposed_have_indices_of_numpy():
    asked: list = []

    def measure(candidates: list) -> list:
        asked.extend(candidates)
        return [Outcome(costs=(1.0,), build_seconds=0.0, run_seconds=0.0)] * len(candidates)

    stopwatch = equal._Stopwatch(SimpleNamespace(measure=measure))
    (found,) = stopwatch.run([SimpleNamespace(config=SimpleNamespace(index=np.int64(3)))], [])
    assert found.costs == (1.0,)
    assert json.dumps(asked) == '[["", 3]]'
