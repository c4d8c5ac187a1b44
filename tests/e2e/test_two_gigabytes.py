"""A weight of more than 2 GB and of more than 2**31 elements, beside the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

ROWS, WIDTH = 2_300_000, 1000  # bytes; only a few rows are written, the file has holes
EDGE = 2**31 // WIDTH  # the row that the 2**31st element is in
MARKED = (0, EDGE, EDGE + 1, ROWS - 1)


def row(position: int) -> np.ndarray:
    return np.random.default_rng(position).integers(-128, 128, WIDTH, np.int8)


def table_model(folder: Path) -> Path:
    with (folder / "table.data").open("wb") as data:
        data.truncate(ROWS * WIDTH)
        for position in MARKED:
            data.seek(position * WIDTH)
            data.write(row(position).tobytes())
    table = TensorProto(name="table", data_type=TensorProto.INT8, dims=[ROWS, WIDTH])
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="table.data")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"]),
         helper.make_node("Cast", ["rows"], ["y"], to=TensorProto.FLOAT)],
        "look-up",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [len(MARKED)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(MARKED), WIDTH])],
        [table],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "table.onnx"
    onnx.save(proto, str(path))
    return path


@pytest.mark.slow
def test_more_elements_than_32_bits_count(mlc, tmp_path):
    """Needs 8 GB of memory and 3 GB of disk."""
    model = table_model(tmp_path)
    assert EDGE * WIDTH < 2**31 < ROWS * WIDTH
    report = json.loads(mlc("compile", model.name, "--no-cache", "--json", cwd=tmp_path).stdout)
    assert report["manifest"]["verification"]["passed"]
    np.save(tmp_path / "ids.npy", np.array(MARKED, np.int64))
    mlc("run", "table.mlc", "--input", "ids.npy", "-o", "out.npz", cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")["y"]
    np.testing.assert_array_equal(found, np.stack([row(position) for position in MARKED]))
