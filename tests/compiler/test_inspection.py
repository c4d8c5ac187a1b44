"""Inspection shows what the passes did, on models small enough to know what that must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlc import isolate
from mlc.errors import ArtifactError, UnsupportedError, UsageError
from mlc.inspection import inspect_artifact
from mlc.inspection.dump import find_kernel
from mlc.options import InspectOptions

VECTOR_CPU = "llvm -mtriple=x86_64-linux-gnu -mcpu=haswell"


def save(path: Path, nodes: list[Any], weights: dict[str, np.ndarray], **shapes: Any) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes["x"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["y"])]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="by hand")
    model.ir_version = 8
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolution, batch norm, ReLU, with a named batch dimension."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((16, 16, 3, 3), np.float32)}
    for name in ("scale", "bias", "mean"):
        weights[name] = random.standard_normal(16).astype(np.float32)
    weights["var"] = random.random(16, np.float32) + 0.5
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    shape = ["batch", 16, 8, 8]
    folder = tmp_path_factory.mktemp("conv")
    return save(folder / "conv.onnx", nodes, weights, x=shape, y=shape)


@pytest.fixture(scope="module")
def matmul(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = {"w": np.ones((32, 64), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    folder = tmp_path_factory.mktemp("matmul")
    return save(folder / "matmul.onnx", nodes, weights, x=[4, 32], y=[4, 64])


def inspect(path: Path, **options: Any) -> dict[str, Any]:
    asked = InspectOptions(path=str(path), **{"target": VECTOR_CPU, **options})
    found = isolate.call("mlc.inspection:inspect_model", asked)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dump") / "ir"


@pytest.fixture(scope="module")
def level3(conv: Path, dump: Path) -> dict[str, Any]:
    return inspect(conv, passes=True, relay=True, dump_ir=str(dump))


@pytest.fixture(scope="module")
def level0(conv: Path) -> dict[str, Any]:
    return inspect(conv, passes=True, opt_level=0)


def row(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in found["passes"] if row["name"] == name)


def test_the_file_is_described_as_written(level3: dict[str, Any]) -> None:
    assert level3["opset"] == 17
    assert level3["producer"] == "by hand"
    assert level3["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 16, 8, 8]}]
    assert level3["operators"] == {"Conv": 1, "BatchNormalization": 1, "Relu": 1}
    assert level3["parameters"] == {"tensors": 5, "elements": 2304 + 64, "bytes": 4 * 2368}
    assert level3["unsupported"] == []
    assert level3["incomplete"] is None


def test_flops_of_a_matrix_product(matmul: Path) -> None:
    found = inspect(matmul)
    assert found["flops"] == 2 * 4 * 32 * 64
    assert found["passes"] is found["loops"] is found["relay"] is found["dump"] is None


def test_fusion_makes_fewer_kernels_than_operators(level3: dict[str, Any]) -> None:
    fused = row(level3, "fuse-operators")
    assert fused["ran"]
    assert fused["changed"]
    assert 0 < fused["kernels_after"] < fused["operators_after"]
    anchor = level3["kernels"][0]["operators"]
    assert "conv2d" in anchor[0]  # direct or Winograd's, as the CPU has it
    assert anchor[-1] == "nn.relu"


def test_without_fusion_every_operator_is_a_kernel(level0: dict[str, Any]) -> None:
    wrapped = row(level0, "wrap-operators")
    assert wrapped["kernels_after"] == wrapped["operators_after"]
    assert level0["calls"] > 3


def test_a_row_says_what_changed(level3: dict[str, Any]) -> None:
    lowered = row(level3, "simplify-inference")
    assert lowered["differences"]["nn.batch_norm"] == -1
    assert lowered["what"].startswith("nn.batch_norm -1, ")
    assert lowered["operators_after"] > lowered["operators_before"]
    scaled = row(level3, "fold-scale-backward")
    assert scaled["differences"] == {"multiply": -1}
    assert scaled["seconds"] > 0


def test_rows_that_did_not_run_say_why(level0: dict[str, Any], level3: dict[str, Any]) -> None:
    assert row(level0, "alter-layout")["what"] == "from -O3 on"
    assert row(level0, "fuse-operators")["what"] == "from -O1 on"
    assert row(level3, "wrap-operators")["what"] == "-O0 only"
    assert row(level3, "legalize-quantized")["what"] == "the model has no qnn.*"
    assert not row(level3, "legalize-quantized")["ran"]


def test_every_row_of_the_table_is_there_once(level3: dict[str, Any]) -> None:
    from mlc.passes.table import PASSES

    assert [row["name"] for row in level3["passes"]] == [row.name for row in PASSES]


def test_loops_are_vectorised_at_level_3_only(
    level0: dict[str, Any], level3: dict[str, Any]
) -> None:
    assert level3["loops"]["vectorized"] > 0
    assert level3["loops"]["lowered"]["vector_stores"] > 0
    assert level3["loops"]["widest_vector_lanes"] >= 4
    assert row(level3, "tir.VectorizeLoop")["ran"]
    assert row(level3, "tir.VectorizeLoop")["seconds"] > 0
    assert level0["loops"]["scheduled"]["vectorized"] > 0
    assert level0["loops"]["vectorized"] == 0
    assert level0["loops"]["lowered"]["vector_stores"] == 0
    assert not row(level0, "vectorize")["ran"]
    assert not row(level0, "tir.VectorizeLoop")["ran"]


def test_marked_loops_are_gone_after_lowering(level3: dict[str, Any]) -> None:
    scheduled, lowered = level3["loops"]["scheduled"], level3["loops"]["lowered"]
    assert row(level3, "tile")["loops"] == scheduled["blocked"] > 0
    assert row(level3, "parallelize")["loops"] == scheduled["parallel"]
    assert scheduled["parallel"] > lowered["parallel"] > 0  # short ones run on one thread
    assert row(level3, "unroll")["loops"] == scheduled["unrolled"] > 0
    assert lowered["vectorized"] == lowered["unrolled"] == 0


def test_totals_are_the_sum_over_kernels(level3: dict[str, Any]) -> None:
    each = [kernel["loops"]["scheduled"]["serial"] for kernel in level3["kernels"]]
    assert level3["loops"]["scheduled"]["serial"] == sum(each)


def test_relay_is_the_fused_graph_without_weights(level3: dict[str, Any]) -> None:
    assert "Primitive=1" in level3["relay"]
    assert "meta[relay.Constant][0]" in level3["relay"]


def test_relay_is_dumped_around_every_pass(level3: dict[str, Any], dump: Path) -> None:
    ran = [row["name"] for row in level3["passes"] if row["stage"] == "relay" and row["ran"]]
    files = sorted(path.name for path in (dump / "relay").iterdir())
    assert len(files) == 2 * len(ran)
    (before,) = (dump / "relay").glob("*-fuse-operators-before.txt")
    (after,) = (dump / "relay").glob("*-fuse-operators-after.txt")
    assert "Primitive=1" not in before.read_text()
    assert "Primitive=1" in after.read_text()


def test_the_heaviest_kernel_is_dumped_down_to_assembly(level3: dict[str, Any], dump: Path) -> None:
    symbol = level3["dump"]["kernel"]
    assert symbol == level3["kernels"][0]["symbol"]
    text = {path.name: path.read_text() for path in (dump / "kernels" / symbol).iterdir()}
    assert "nn.relu" in text["relay.txt"]
    assert "T.vectorized(" in text["scheduled.txt"]
    assert "T.parallel(" in text["scheduled.txt"]
    assert "T.vectorized(" not in text["tir.txt"]
    assert "T.Broadcast(" in text["tir.txt"]
    assert '"float32x' in text["tir.txt"]
    assert " x float>" in text["llvm.ll"]
    assert "ymm" in text["asm.s"]
    assert "\tret" in text["asm.s"]
    assert symbol in (dump / "kernels" / "list.txt").read_text()
    guide = (dump / "index.txt").read_text()
    assert all(name in guide for name in text)


def test_a_second_dump_replaces_the_first(matmul: Path, tmp_path: Path) -> None:
    stale = tmp_path / "relay" / "01-no-such-pass-after.txt"
    stale.parent.mkdir()
    stale.write_text("old")
    inspect(matmul, dump_ir=str(tmp_path), kernel="dense")
    assert not stale.exists()
    assert (tmp_path / "kernels").is_dir()


def test_an_unknown_kernel_comes_back_with_the_choices(conv: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no kernel 'conv3d'") as caught:
        inspect(conv, dump_ir=str(tmp_path), kernel="conv3d")
    assert "choices: mlc_" in (caught.value.hint or "")


def test_a_kernel_goes_by_its_symbol_or_a_part_of_it() -> None:
    work = {"mlc_conv2d_add_1": 5, "mlc_conv2d_add_12": 9, "mlc_dense_3": 1}
    assert find_kernel(None, work) == "mlc_conv2d_add_12"
    assert find_kernel("dense", work) == "mlc_dense_3"
    assert find_kernel("mlc_conv2d_add_1", work) == "mlc_conv2d_add_1"
    with pytest.raises(UsageError, match="2 kernels have 'conv2d'"):
        find_kernel("conv2d", work)
    with pytest.raises(UsageError) as caught:
        find_kernel("mlc_dense_4", work)
    assert "did you mean 'mlc_dense_3'" in (caught.value.hint or "")


def test_a_folder_that_cannot_be_written_is_named(matmul: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*file"):
        inspect(matmul, dump_ir=str(tmp_path / "file"))


def test_a_kernel_needs_a_folder_and_a_level_must_exist(matmul: Path) -> None:
    with pytest.raises(UsageError, match="--kernel"):
        inspect(matmul, kernel="dense")
    with pytest.raises(UsageError, match="-O4"):
        inspect(matmul, opt_level=4)


def test_open_sizes_leave_only_kernels_unknown(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = save(tmp_path / "open.onnx", nodes, {}, x=[1, "time"], y=[1, "time"])
    found = inspect(path)
    assert found["inputs"][0]["shape"] == [1, "time"]
    assert found["flops"] is None
    assert found["kernels"] == []
    assert "--shape 'time=" in found["incomplete"]
    assert inspect(path, shapes=("time=8",))["flops"] == 8


def test_unsupported_operators_are_listed(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mystery", ["x"], ["y"], domain="my.ops")]
    path = save(tmp_path / "odd.onnx", nodes, {}, x=[2], y=[2])
    found = inspect(path)
    assert found["operators"] == {"my.ops::Mystery": 1}
    (entry,) = found["unsupported"]
    assert (entry["operator"], entry["count"]) == ("Mystery", 1)
    assert "cannot be converted" in found["incomplete"]
    with pytest.raises(UnsupportedError):
        inspect(path, passes=True)


def test_a_manifest_of_another_form_is_refused(tmp_path: Path) -> None:
    from mlc.artifact import Contents, save

    manifest = {"signature": {"inputs": [{"name": "x"}]}, "target": {}, "versions": {}}
    contents = Contents(manifest=manifest, library=b"", graph=b"{}", weights=[])
    save(contents, tmp_path / "odd.mlc")
    with pytest.raises(ArtifactError, match="another form"):
        inspect_artifact(tmp_path / "odd.mlc")
