"""Sizes of open dimensions as data; an artifact's graph at given sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc.artifact import Artifact
from mlc.errors import ArtifactError, RunError
from mlc.model import TensorSpec
from mlc.runtime import open_graph
from mlc.runtime.open_session import sizes_of
from mlc.sizes import Bounds, evaluate, is_size, samples, text

SIZE: list[Any] = ["+", ["*", 2, "seq"], ["//", ["-", "h", 3], 2]]


def test_a_size_is_evaluated_and_shown() -> None:
    assert evaluate(SIZE, {"seq": 5, "h": 8}) == 12
    assert text(SIZE) == "2*seq + (h - 3)//2"
    assert text(["min", "seq", 128]) == "min(seq, 128)"
    assert evaluate(["min", "seq", 128], {"seq": 200}) == 128


@pytest.mark.parametrize(
    "data",
    [True, 1.5, None, {}, "other", ["+", 1], ["**", 2, 3], ["+", 1, "other"], [[], 1, 2], ["+", 1, 2, 3]],
)  # fmt: skip
def test_what_is_no_size_is_told(data: Any) -> None:
    assert not is_size(data, {"seq"})


def test_deep_sizes_are_refused() -> None:
    deep: Any = 1
    for _ in range(1000):
        deep = ["+", deep, 1]
    assert not is_size(deep, {"seq"})
    assert is_size(SIZE, {"seq", "h"})


def test_samples_lie_within_the_bounds() -> None:
    dims = {"batch": Bounds(), "seq": Bounds(most=40), "h": Bounds(least=5), "k": Bounds(most=2)}
    found = samples(dims)
    assert found[0] == {"batch": 1, "seq": 1, "h": 5, "k": 1}
    assert len(found) >= 3
    assert any(sizes["seq"] == 40 for sizes in found)
    for sizes in found:
        assert all(dims[n].least <= size <= dims[n].most for n, size in sizes.items())


def artifact(shape: list[Any]) -> Artifact:
    """One input x and one call of a kernel that gives `shape`."""
    graph = {
        "nodes": [
            {"op": "null", "name": "input0", "inputs": []},
            {"op": "null", "name": "size0", "inputs": []},
            {"op": "tvm_op", "name": "1_f", "attrs": {"func_name": "f"},
             "inputs": [[0, 0, 0], [1, 0, 0]]},
        ],
        "arg_nodes": [0, 1], "heads": [[2, 0, 0]], "node_row_ptr": [0, 1, 2, 3], "inner": [["n", "n"]],
        "attrs": {
            "dltype": ["list_str", ["float32", "int64", "float32"]],
            "storage_id": ["list_int", [-1, -1, -1]],
            "shape": ["list_shape", [["n", 4], [], shape]],
        },
    }  # fmt: skip
    manifest = {
        "dynamic": [{"name": "n", "least": 1, "most": 100_000}],
        "signature": {
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 4]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": shape}],
        },
        "weights": [],
    }
    members = {"graph.json": memoryview(json.dumps(graph).encode()), "weights.bin": memoryview(b"")}
    return Artifact(path=Path("a.mlc"), manifest=manifest, members=members)


def test_a_graph_at_given_sizes_has_numbers_and_buffers() -> None:
    found = open_graph.at(artifact([["*", 2, "n"], 3]), {"n": 5})
    graph = json.loads(bytes(found.members["graph.json"]))
    assert graph["attrs"]["shape"][1] == [[5, 4], [], [10, 3]]
    assert sorted(graph["attrs"]["storage_id"][1]) == [0, 1, 2]
    assert found.manifest["signature"]["outputs"][0]["shape"] == [10, 3]
    ((storage, data),) = found.weights()
    assert storage == graph["attrs"]["storage_id"][1][1]
    assert data.view(np.int64)[0] == 5
    assert data.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    ("sizes", "why"),
    [({}, "not given"), ({"n": 0}, "is 0"), ({"n": 100_001}, "100001"), ({"n": 1, "m": 1}, "'m'"),
     ({"n": 40_000}, "elements")],  # inside a kernel
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, int], why: str) -> None:
    with pytest.raises(RunError, match=why):
        open_graph.at(artifact(["n"]), sizes)


@pytest.mark.parametrize(
    "shape", [["m"], [["/", "n", 2]], [None], [["//", "n", 0]], [["-", 1, "n"]]]
)
def test_a_graph_of_another_form_is_refused(shape: list[Any]) -> None:
    with pytest.raises(ArtifactError, match="graph cannot be read"):
        open_graph.at(artifact(shape), {"n": 5})


def test_sizes_are_those_of_the_inputs() -> None:
    specs = [TensorSpec(name="a", shape=("b", 3), dtype="float32"),
             TensorSpec(name="c", shape=("s", "b"), dtype="float32")]  # fmt: skip
    feed = {"a": np.zeros((2, 3), np.float32), "c": np.zeros((7, 2), np.float32)}
    assert sizes_of(specs, feed) == {"b": 2, "s": 7}
    with pytest.raises(RunError, match="'b' is 2 in input 'a', but 4 in input 'c'"):
        sizes_of(specs, {**feed, "c": np.zeros((7, 4), np.float32)})
    with pytest.raises(RunError, match=r"but the model takes float32\[b, 3\]"):
        sizes_of(specs, {**feed, "a": np.zeros((2, 4), np.float32)})
