"""Reading ONNX files that nobody vouches for."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from mlc.errors import ModelError
from mlc.frontend import onnx_file
from mlc.frontend.onnx_file import KEEP_BYTES, OnnxFile
from tests import models

LARGE = models.floats(40, 41)  # above KEEP_BYTES: leaves the proto
SMALL = models.floats(4, 3)
assert LARGE.nbytes > KEEP_BYTES > SMALL.nbytes


def matmul(weight: np.ndarray | TensorProto, **options: Any) -> onnx.ModelProto:
    """Return y = x @ w with the weight as given."""
    rows = weight.dims[0] if isinstance(weight, TensorProto) else weight.shape[0]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = models.model([node], {"x": [2, abs(rows)]}, ["y"], **options)
    if not isinstance(weight, TensorProto):
        weight = numpy_helper.from_array(weight, "w")
    proto.graph.initializer.append(weight)
    return proto


def write(proto: onnx.ModelProto, folder: Path) -> Path:
    """Write the bytes as they are: `onnx.save` would look at external data."""
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def external(
    location: str | None, dims: tuple[int, ...] = (40, 41), name: str = "w", **entries: Any
) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def inline(dims: tuple[int, ...], raw: bytes, kind: int = TensorProto.FLOAT) -> TensorProto:
    return TensorProto(name="w", data_type=kind, dims=dims, raw_data=raw)


def tensors(message: Message) -> Iterator[TensorProto]:
    """Yield every tensor in a message, wherever the schema allows one."""
    for field, value in message.ListFields():
        for inner in value if isinstance(value, list) or hasattr(value, "append") else [value]:
            if isinstance(inner, TensorProto):
                yield inner
            if field.message_type and isinstance(inner, Message):
                yield from tensors(inner)


def well_formed(proto: onnx.ModelProto) -> bool:
    """Whether onnx's checker takes it, once outputs have a shape (it insists, nobody else does)."""
    for info in proto.graph.output:
        info.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(proto)
    return True


# --- no model at all -----------------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such model file: .*x\.onnx"):
        onnx_file.read(tmp_path / "x.onnx")
    with pytest.raises(ModelError, match="is a folder, not a model file"):
        onnx_file.read(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="Not a directory"):
        onnx_file.read(tmp_path / "file" / "x.onnx")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"# a text file, not a model\n", "is not an ONNX model"),
        (b"PK\x03\x04" + bytes(60), "is not an ONNX model"),
        (bytes(1000), "is not an ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "no graph with outputs"),
        (models.conv_net().graph.SerializeToString(), "is not an ONNX model"),
    ],
    ids=["empty", "text", "zip", "zeros", "no-graph", "a-bare-graph"],
)
def test_what_is_no_model_is_refused(data: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=why):
        onnx_file.read(path)


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    data = models.conv_net().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data)
    onnx_file.read(path)
    for size in [*range(0, len(data), 13), *range(len(data) - 20, len(data))]:
        path.write_bytes(data[:size])
        with pytest.raises(ModelError):
            onnx_file.read(path)


def test_a_damaged_file_is_read_or_refused_but_nothing_else(tmp_path: Path) -> None:
    data = matmul(SMALL).SerializeToString()
    path = tmp_path / "damaged.onnx"
    refused = 0
    for position in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(
                data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]
            )
            try:
                onnx_file.read(path)
            except ModelError:
                refused += 1
    assert refused > len(data)


def test_noise_is_refused(tmp_path: Path) -> None:
    noise = random.Random(0)
    path = tmp_path / "noise.onnx"
    for _ in range(200):
        path.write_bytes(noise.randbytes(noise.randrange(1, 300)))
        with pytest.raises(ModelError):
            onnx_file.read(path)


def test_an_invalid_graph_is_refused_with_the_reason(tmp_path: Path) -> None:
    proto = models.model([helper.make_node("Relu", ["nowhere"], ["y"])], {"x": [2]}, ["y"])
    with pytest.raises(ModelError, match=r"is not a valid ONNX model: .*nowhere"):
        onnx_file.read(write(proto, tmp_path))


@pytest.mark.parametrize("name", ["xx", "yy", "inner", "node", "weight", "Relu", "dim"])
def test_names_that_are_no_text_are_refused(name: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["xx", "weight"], ["inner"], "node"),
        helper.make_node("Relu", ["inner"], ["yy"]),
    ]
    proto = models.model(nodes, {"xx": ["dim", 4]}, ["yy"], {"weight": models.floats(4)})
    path = tmp_path / "x.onnx"
    path.write_bytes(proto.SerializeToString().replace(name.encode(), b"\xff" * len(name)))
    with pytest.raises(ModelError, match="a name in it is not UTF-8 text"):
        onnx_file.read(path)


def test_a_location_that_is_no_text_is_a_file_name_all_the_same(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"w\xff.bin")).write_bytes(LARGE.tobytes())
    path = tmp_path / "x.onnx"
    path.write_bytes(matmul(external("w#.bin")).SerializeToString().replace(b"w#", b"w\xff"))
    np.testing.assert_array_equal(onnx_file.read(path).weights["w"], LARGE)


def test_too_many_nodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_MODEL_NODES", 7)
    path = write(models.conv_net(), tmp_path)
    with pytest.raises(ModelError, match="more than 7 nodes"):
        onnx_file.read(path)
    monkeypatch.setattr(onnx_file, "MAX_MODEL_NODES", 8)
    onnx_file.read(path)


# --- weights inline ------------------------------------------------------------------------------


def test_large_weights_leave_the_proto_and_small_ones_stay(tmp_path: Path) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    weights = {"w": LARGE, "b": models.floats(41)}
    proto = models.model([node], {"x": [2, 40]}, ["y"], weights)
    path = write(proto, tmp_path)
    file = onnx_file.read(path)
    assert list(file.weights) == ["w"]
    np.testing.assert_array_equal(file.weights["w"], LARGE)
    assert [t.name for t in file.proto.graph.initializer] == ["b"]
    assert [i.name for i in file.proto.graph.input] == ["x", "w"]
    assert file.proto.ByteSize() < KEEP_BYTES
    assert well_formed(file.proto)
    assert file.size == path.stat().st_size
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.opset == 17


@pytest.mark.parametrize(
    "dtype", ["float16", "float64", "int8", "uint16", "int32", "int64", "uint64", "bool"]
)
def test_weights_of_any_type_are_read_as_written(dtype: str, tmp_path: Path) -> None:
    array = models.rng(3).integers(0, 2, (97, 93)).astype(dtype)
    file = onnx_file.read(write(matmul(array), tmp_path))
    assert file.weights["w"].dtype == dtype
    np.testing.assert_array_equal(file.weights["w"], array)


def test_weights_written_as_fields_are_the_same(tmp_path: Path) -> None:
    fields = helper.make_tensor("w", TensorProto.FLOAT, LARGE.shape, LARGE.reshape(-1).tolist())
    assert not fields.raw_data
    file = onnx_file.read(write(matmul(fields), tmp_path))
    np.testing.assert_array_equal(file.weights["w"], LARGE)


def test_an_initializer_that_is_also_an_input_is_a_constant(tmp_path: Path) -> None:
    """Callers could override it; here it is fixed, large or small, and no input is left of it."""
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    inputs = {"x": [2, 40], "w": [40, 41], "b": [41]}
    proto = models.model([node], inputs, ["y"], {"w": LARGE, "b": models.floats(41)})
    file = onnx_file.read(write(proto, tmp_path))
    assert sorted(file.weights) == ["w"]
    assert [i.name for i in file.proto.graph.input if i.name not in file.weights] == ["x"]
    assert [i.name for i in file.proto.graph.input].count("w") == 1
    assert [t.name for t in file.proto.graph.initializer] == ["b"]


@pytest.mark.parametrize("weight", [LARGE, SMALL], ids=["large", "small"])
def test_a_file_of_ir_version_3_is_read(weight: np.ndarray, tmp_path: Path) -> None:
    """There every initializer had to be an input as well."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    inputs = {"x": [2, weight.shape[0]], "w": weight.shape}
    proto = models.model([node], inputs, ["y"], {"w": weight}, opset=8)
    proto.ir_version = 3
    file = onnx_file.read(write(proto, tmp_path))
    assert file.opset == 8
    assert [i.name for i in file.proto.graph.input if i.name not in file.weights] == ["x"]
    assert well_formed(file.proto)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (inline((-40, 41), b""), r"impossible dimensions \[-40, 41\]"),
        (inline((-1, 1), bytes(4)), "impossible dimensions"),
        (inline((1 << 40, 1 << 40), b""), "claims [0-9]+ GiB"),
        (inline((1 << 62, 4), b""), "claims [0-9]+ GiB"),
        (inline((1,) * 17, bytes(4)), "impossible dimensions"),
        (inline((40, 41), bytes(100)), "data of tensor 'w' is damaged"),
        (inline((40, 41), bytes(10_000)), "data of tensor 'w' is damaged"),
        (inline((40, 41), b""), "data of tensor 'w' is damaged"),
        (inline((4, 3), bytes(10)), "data of tensor 'w' is damaged"),
        (inline((40, 41), bytes(6560), 9999), "unknown element type"),
        (inline((40, 41), bytes(6560), TensorProto.UNDEFINED), "unknown element type"),
    ],
    ids=["negative", "minus-one", "huge", "overflowing", "rank", "short", "long", "none",
         "small-and-short", "type", "undefined"],
)  # fmt: skip
def test_impossible_tensors_are_refused(tensor: TensorProto, why: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=why):
        onnx_file.read(write(matmul(tensor), tmp_path))


# --- external data: good -------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["w.bin", "./w.bin", "sub/deep/w.bin", "größe 层.bin"])
def test_external_weights_are_mapped_and_equal_inline_ones(location: str, tmp_path: Path) -> None:
    target = tmp_path / location
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(bytes(64) + LARGE.tobytes() + b"more")
    entries = {"offset": 64, "length": LARGE.nbytes}
    path = write(matmul(external(location, **entries)), tmp_path)
    array = onnx_file.read(path).weights["w"]
    plain = onnx_file.read(write(matmul(LARGE), tmp_path)).weights["w"]
    np.testing.assert_array_equal(array, plain)
    assert array.dtype == plain.dtype
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_small_external_weights_move_into_the_proto(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(SMALL.tobytes())
    file = onnx_file.read(write(matmul(external("w.bin", SMALL.shape)), tmp_path))
    assert not file.weights
    np.testing.assert_array_equal(numpy_helper.to_array(file.proto.graph.initializer[0]), SMALL)


def test_one_file_may_hold_many_weights(tmp_path: Path) -> None:
    arrays = {f"w{k}": models.floats(41, 41, seed=k) for k in range(3)}
    tensors = [
        external("all.bin", (41, 41), n, offset=k * 41 * 41 * 4) for k, n in enumerate(arrays)
    ]
    nodes = [helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"x{k + 1}"]) for k in range(3)]
    proto = models.model(nodes, {"x0": [2, 41]}, ["x3"])
    proto.graph.initializer.extend(tensors)
    (tmp_path / "all.bin").write_bytes(b"".join(a.tobytes() for a in arrays.values()))
    file = onnx_file.read(write(proto, tmp_path))
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.weights[name], array)
    assert file.size == (tmp_path / "model.onnx").stat().st_size + 3 * 41 * 41 * 4


def test_the_digest_covers_the_external_data(tmp_path: Path) -> None:
    path = write(matmul(external("w.bin")), tmp_path)
    (tmp_path / "w.bin").write_bytes(LARGE.tobytes())
    first = onnx_file.read(path)
    assert onnx_file.read(path).sha256 == first.sha256
    (tmp_path / "w.bin").write_bytes((LARGE + 1).tobytes())
    assert onnx_file.read(path).sha256 != first.sha256


# --- external data: refused ----------------------------------------------------------------------


def refused(location: str | None, folder: Path, match: str, **entries: Any) -> None:
    dims = entries.pop("dims", (40, 41))
    path = write(matmul(external(location, dims, **entries)), folder)
    with pytest.raises(ModelError, match=match):
        onnx_file.read(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with good data in it, and beside it data that it must not touch."""
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    for place in (inside / "w.bin", inside / "sub" / "w.bin", tmp_path / "secret.bin"):
        place.write_bytes(LARGE.tobytes())
    return inside


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "sub/../../secret.bin", "sub/../w.bin", "..", "/etc/passwd", "//etc/passwd",
     "", ".", "./", "w.bin/..", "a\0b"],
)  # fmt: skip
def test_a_location_outside_the_folder_is_refused(location: str, folder: Path) -> None:
    refused(location, folder, "points outside the model's folder")


def test_an_absolute_path_is_refused_even_into_the_folder(folder: Path) -> None:
    refused(str(folder / "w.bin"), folder, "points outside the model's folder")


def test_a_tensor_without_a_location_is_refused(folder: Path) -> None:
    refused(None, folder, "points outside the model's folder")


@pytest.mark.parametrize("outside", [True, False])
def test_a_symbolic_link_is_refused(folder: Path, outside: bool) -> None:
    target = folder.parent / "secret.bin" if outside else folder / "w.bin"
    (folder / "link.bin").symlink_to(target)
    refused("link.bin", folder, "it is a link or unreadable")


@pytest.mark.parametrize("outside", [True, False])
def test_a_folder_that_is_a_symbolic_link_is_refused(folder: Path, outside: bool) -> None:
    name = "secret.bin" if outside else "w.bin"
    (folder / "link").symlink_to(folder.parent if outside else folder / "sub")
    refused(f"link/{name}", folder, "it is a link or unreadable")


def test_a_hard_link_is_refused(folder: Path) -> None:
    os.link(folder.parent / "secret.bin", folder / "hard.bin")
    refused("hard.bin", folder, "hard link or not a plain file")


def test_a_pipe_and_a_folder_are_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    refused("pipe", folder, "not a plain file")
    refused("sub", folder, "not a plain file")


def test_missing_and_empty_data_files_are_named(folder: Path) -> None:
    refused("gone.bin", folder, r"external data file 'gone.bin' \(tensor 'w'\) is missing")
    refused("gone/w.bin", folder, "is missing")
    refused("w.bin/w.bin", folder, "unreadable")
    refused("x" * 5000, folder, "unreadable")
    (folder / "empty.bin").write_bytes(b"")
    refused("empty.bin", folder, "external data file 'empty.bin' is empty")


@pytest.mark.parametrize(
    "entries",
    [{"offset": 1}, {"offset": -4}, {"offset": "abc"}, {"offset": 1 << 70}, {"length": 4},
     {"length": LARGE.nbytes + 4}, {"length": "x"}, {"length": -2}, {"dims": (40, 42)},
     {"dims": (1 << 20, 41)}],
    ids=str,
)  # fmt: skip
def test_data_that_does_not_fit_its_file_is_refused(entries: dict[str, Any], folder: Path) -> None:
    refused("w.bin", folder, "does not fit its file", **entries)


def test_a_cut_data_file_is_refused(folder: Path) -> None:
    (folder / "w.bin").write_bytes(LARGE.tobytes()[:-1])
    refused("w.bin", folder, "does not fit its file")


@pytest.mark.parametrize("dims", [(-40, 41), (1 << 40, 1 << 40), (1,) * 17])
def test_impossible_external_dimensions_are_refused(dims: tuple[int, ...], folder: Path) -> None:
    refused("w.bin", folder, "impossible dimensions|claims", dims=dims)


def test_external_types_below_a_byte_are_refused(folder: Path) -> None:
    tensor = external("w.bin", (40, 401))
    tensor.data_type = TensorProto.INT4
    with pytest.raises(ModelError, match="sub-byte type"):
        onnx_file.read(write(matmul(tensor), folder))


# --- external data in places that are easily forgotten -------------------------------------------


def constant_node(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], value=tensor)


def in_an_attribute(tensor: TensorProto) -> onnx.ModelProto:
    nodes = [constant_node(tensor), helper.make_node("Add", ["x", "w"], ["y"])]
    return models.model(nodes, {"x": [4]}, ["y"])


def in_a_branch(tensor: TensorProto) -> onnx.ModelProto:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [4])
    identity = helper.make_node("Identity", ["w"], ["o"])
    as_initializer = helper.make_graph([identity], "then", [], [out], [tensor])
    as_attribute = helper.make_graph([constant_node(tensor), identity], "else", [], [out])
    branches = {"then_branch": as_initializer, "else_branch": as_attribute}
    nodes = [
        helper.make_node("If", ["c"], ["z"], **branches),
        helper.make_node("Add", ["x", "z"], ["y"]),
    ]
    return models.model(nodes, {"x": [4]}, ["y"], {"c": np.array(True)})


def in_a_function(tensor: TensorProto) -> onnx.ModelProto:
    nodes = [constant_node(tensor), helper.make_node("Add", ["x", "w"], ["y"])]
    opsets = [helper.make_opsetid("", 17)]
    proto = models.model([helper.make_node("F", ["x"], ["y"], domain="own")], {"x": [4]}, ["y"])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.functions.append(helper.make_function("own", "F", ["x"], ["y"], nodes, opsets))
    return proto


def in_a_sparse_attribute(tensor: TensorProto) -> onnx.ModelProto:
    indices = numpy_helper.from_array(np.arange(4))
    sparse = helper.make_sparse_tensor(tensor, indices, [4])
    nodes = [helper.make_node("Constant", [], ["w"], sparse_value=sparse),
             helper.make_node("Add", ["x", "w"], ["y"])]  # fmt: skip
    return models.model(nodes, {"x": [4]}, ["y"])


def in_a_list(tensor: TensorProto) -> onnx.ModelProto:
    custom = helper.make_node("Custom", ["x"], ["y"], domain="own")
    custom.attribute.add(name="tables", type=onnx.AttributeProto.TENSORS, tensors=[tensor])
    proto = models.model([custom], {"x": [4]}, ["y"])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    return proto


def in_training_info(tensor: TensorProto) -> onnx.ModelProto:
    proto = models.model([helper.make_node("Relu", ["x"], ["y"])], {"x": [4]}, ["y"])
    algorithm = proto.training_info.add().algorithm
    algorithm.name = "step"
    algorithm.initializer.append(tensor)
    return proto


PLACES = [
    in_an_attribute,
    in_a_branch,
    in_a_function,
    in_a_sparse_attribute,
    in_a_list,
    in_training_info,
]


@pytest.mark.parametrize("place", PLACES)
def test_no_reference_to_a_file_is_left(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX's checker and ONNX Runtime would follow it themselves, from the current folder."""
    values = models.floats(4)
    (tmp_path / "w.bin").write_bytes(values.tobytes())
    monkeypatch.chdir(tmp_path)
    path = write(place(external("w.bin", (4,))), tmp_path)
    assert any(t.data_location for t in tensors(onnx.load_model(path, load_external_data=False)))
    file = onnx_file.read(path)
    left = list(tensors(file.proto))
    assert not any(t.data_location or t.external_data for t in left)
    if place is not in_training_info:
        assert any(np.array_equal(numpy_helper.to_array(t), values) for t in left)


@pytest.mark.parametrize("place", PLACES[:-1])
def test_inner_external_data_is_contained_too(place: Any, folder: Path) -> None:
    with pytest.raises(ModelError, match="points outside the model's folder"):
        onnx_file.read(write(place(external("../secret.bin", (4,))), folder))


def test_nodes_are_brought_into_order(tmp_path: Path) -> None:
    """What a branch reads counts; ONNX Runtime takes such files, so mlc does."""
    node = helper.make_node
    inner = helper.make_graph(
        [node("Neg", ["b"], ["r"])], "g", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    nodes = [
        node("If", ["c"], ["y"], then_branch=inner, else_branch=inner), node("Exp", ["a"], ["b"]),
        node("Relu", ["x"], ["a"]), node("Greater", ["s", "zero"], ["c"]),
        node("ReduceSum", ["a"], ["s"], keepdims=0),
    ]  # fmt: skip
    proto = models.model(nodes, {"x": [2]}, ["y"], {"zero": np.zeros((), np.float32)})
    made = onnx_file.read(write(proto, tmp_path)).proto
    order = [each.op_type for each in made.graph.node]
    assert sorted(order) == sorted(each.op_type for each in nodes)
    assert order[0] == "Relu"
    assert order[-1] == "If"
    assert well_formed(made)
    ordered = onnx_file.read(write(made, tmp_path)).proto
    assert [each.op_type for each in ordered.graph.node] == order
    proto.graph.node[2].input[0] = "b"
    with pytest.raises(ModelError, match="topologically sorted"):
        onnx_file.read(write(proto, tmp_path))


def test_sparse_initializers_are_refused(tmp_path: Path) -> None:
    proto = matmul(SMALL)
    values = numpy_helper.from_array(models.floats(4), "s")
    indices = numpy_helper.from_array(np.arange(4))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(ModelError, match="holds sparse tensors"):
        onnx_file.read(write(proto, tmp_path))


# --- what reading leaves alone -------------------------------------------------------------------


def test_reading_changes_no_file(folder: Path) -> None:
    path = write(matmul(external("w.bin")), folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    file: OnnxFile = onnx_file.read(path)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert file.path == path


@pytest.mark.parametrize(
    ("imports", "opset"), [([("", 13)], 13), ([("ai.onnx", 15)], 15), ([("own", 3), ("", 11)], 11)]
)
def test_the_opset_is_that_of_the_default_domain(imports: Any, opset: int, tmp_path: Path) -> None:
    proto = matmul(SMALL)
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(*pair) for pair in imports)
    assert onnx_file.read(write(proto, tmp_path)).opset == opset
