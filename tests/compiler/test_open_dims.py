"""Open dimensions: one artifact at any size, against ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlc import sizes
from mlc.errors import ModelError, RunError, UsageError
from mlc.events import ignore
from mlc.inspection.check import check_model
from mlc.runtime.buckets import open as open_session
from mlc.runtime.open_session import DynamicSession
from mlc.runtime.reference import Reference
from mlc.runtime.verify import compare
from tests import models
from tests.compiler.conftest import Compile

INT64 = TensorProto.INT64


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, f"to_{outputs[-1]}", **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def check(
    compiled: Compile, proto: onnx.ModelProto, at: list[dict[str, int]], **options: Any
) -> Any:
    """Compile with all dimensions open, as foretold, and compare at each of the sizes.

    Returns the manifest.
    """
    made = compiled(proto, **{"dynamic": ("*",), **options})
    asked = {"path": str(made.path.with_name("model.onnx")), "shapes": [], "dynamic": ["*"]}
    foretold = check_model(asked, ignore)
    assert foretold["problems"] == []
    assert all(dim["stays"] is not False for dim in foretold["dynamic"])
    reference = Reference(made.path.with_name("model.onnx"))
    with open_session(made.path) as session:
        assert isinstance(session, DynamicSession)
        for seed, sizes_now in enumerate(at):
            fixed = session.at(sizes_now)
            feed = random_inputs(fixed.inputs, seed, made.manifest["index_bounds"])
            ours, theirs = session.run(feed), reference.run(feed)
            for name in ours:
                assert ours[name].shape == theirs[name].shape
                found = compare(name, ours[name], theirs[name])
                assert found.passed, (sizes_now, str(found))
    return made.manifest


def random_inputs(specs: Any, seed: int, bounds: Any) -> Any:
    from mlc.runtime import inputs

    return inputs.random(specs, seed, bounds)


def mlp() -> onnx.ModelProto:
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["a"], transB=1),
        node("Relu", ["a"], ["b"]),
        node("Gemm", ["b", "w2", "b2"], ["c"], transB=1),
        node("Softmax", ["c"], ["y"], axis=-1),
    ]
    weights = {
        "w1": models.floats(33, 20, seed=1), "b1": models.floats(33, seed=2),
        "w2": models.floats(7, 33, seed=3), "b2": models.floats(7, seed=4),
    }  # fmt: skip
    return models.model(nodes, {"x": ["batch", 20]}, ["y"], weights)


@pytest.mark.parametrize("level", [0, 3])
def test_mlp_with_an_open_batch(compiled: Compile, level: int) -> None:
    at = [{"batch": size} for size in (1, 2, 7, 16, 129)]
    manifest = check(compiled, mlp(), at, opt_level=level)
    assert manifest["format"] == 2
    assert manifest["dynamic"] == [{"name": "batch", "least": 1, "most": sizes.MAX_SIZE}]
    assert manifest["signature"]["outputs"][0]["shape"] == ["batch", 7]


def test_verification_is_at_several_sizes_which_are_recorded(compiled: Compile) -> None:
    made = compiled(mlp(), dynamic=("*",), verify=True)
    found = made.manifest["verification"]
    assert found["passed"]
    assert found["sizes"] == [{"batch": 1}, {"batch": 3}, {"batch": 8}]


def encoder(positions: int = 40, width: int = 16, heads: int = 2) -> onnx.ModelProto:
    """Token and position tables, attention with computed shapes as exporters write them, GELU."""
    part = width // heads
    weights = {
        "table": models.floats(50, width, seed=1), "places": models.floats(positions, width, seed=2),
        "wq": models.floats(width, width, seed=3, scale=0.3),
        "wk": models.floats(width, width, seed=4, scale=0.3),
        "wv": models.floats(width, width, seed=5, scale=0.3),
        "wo": models.floats(width, width, seed=6, scale=0.3),
        "scale": models.floats(width, seed=7), "shift": models.floats(width, seed=8),
        "bias": models.floats(width, seed=9),
        "zero": ints(0)[0], "one": ints(1)[0], "first": ints(0), "second": ints(1),
        "heads": ints(heads), "part": ints(part), "rest": ints(-1),
        "root": np.array(part**0.5, np.float32), "half": np.array(0.5, np.float32),
        "unit": np.array(1, np.float32), "two": np.array(2**0.5, np.float32),
        "low": np.array(-1e4, np.float32),
    }  # fmt: skip
    nodes = [
        node("Shape", ["ids"], ["shape"]),
        node("Gather", ["shape", "zero"], ["b0"]), node("Gather", ["shape", "one"], ["s0"]),
        node("Unsqueeze", ["b0", "first"], ["b"]), node("Unsqueeze", ["s0", "first"], ["s"]),
        node("Range", ["zero", "s0", "one"], ["range"]),
        node("Gather", ["places", "range"], ["pos"]), node("Gather", ["table", "ids"], ["tok"]),
        node("Add", ["tok", "pos"], ["x"]),
        node("Concat", ["b", "s", "heads", "part"], ["split"], axis=0),
        node("Concat", ["b", "s", "rest"], ["joined"], axis=0),
    ]  # fmt: skip
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [name], perm=order),
        ]
    nodes += [
        node("MatMul", ["q", "k"], ["qk"]), node("Div", ["qk", "root"], ["scaled"]),
        node("Unsqueeze", ["mask", "axes"], ["mask4"]), node("Cast", ["mask4"], ["maskf"], to=1),
        node("Sub", ["unit", "maskf"], ["hidden"]), node("Mul", ["hidden", "low"], ["added"]),
        node("Add", ["scaled", "added"], ["scores"]), node("Softmax", ["scores"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["pv"]), node("Transpose", ["pv"], ["t"], perm=[0, 2, 1, 3]),
        node("Reshape", ["t", "joined"], ["flat"]), node("MatMul", ["flat", "wo"], ["out"]),
        node("Add", ["out", "bias"], ["biased"]), node("Add", ["biased", "x"], ["sum"]),
        node("LayerNormalization", ["sum", "scale", "shift"], ["n"]),
        node("Div", ["n", "two"], ["g0"]), node("Erf", ["g0"], ["g1"]),
        node("Add", ["g1", "unit"], ["g2"]), node("Mul", ["n", "g2"], ["g3"]),
        node("Mul", ["g3", "half"], ["y"]),
    ]  # fmt: skip
    weights["axes"] = ints(1, 2)
    inputs = {"ids": ["batch", "seq"], "mask": ["batch", "seq"]}
    return models.model(nodes, inputs, ["y"], weights, types={"ids": INT64, "mask": INT64, "y": 1})


def test_encoder_with_open_batch_and_length(compiled: Compile) -> None:
    at = [{"batch": b, "seq": s} for b, s in ((1, 1), (3, 5), (1, 17), (2, 40))]
    manifest = check(compiled, encoder(), at)
    bounds = {dim["name"]: dim["most"] for dim in manifest["dynamic"]}
    assert (
        bounds["seq"] == 40
    )  # the rows of the position table: longer texts are refused, not clipped
    assert "mlc.layer_norm" in str(manifest["kernels"])


def test_only_named_dimensions_stay_open(compiled: Compile) -> None:
    made = compiled(encoder(), dynamic=("seq",))
    assert [dim["name"] for dim in made.manifest["dynamic"]] == ["seq"]
    assert made.manifest["signature"]["inputs"][0]["shape"] == [1, "seq"]


def test_convolutions_with_an_open_batch(compiled: Compile) -> None:
    check(compiled, models.conv_net(batch="n"), [{"n": 1}, {"n": 3}, {"n": 8}])


def test_pooling_of_any_image(compiled: Compile) -> None:
    nodes = [
        node("MaxPool", ["x"], ["a"], kernel_shape=[3, 3], strides=[2, 2]),
        node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["b"], ["y"]),
    ]
    proto = models.model(nodes, {"x": ["n", 3, "h", "w"]}, ["y"], {})
    at = [{"n": n, "h": h, "w": w} for n, h, w in ((1, 5, 5), (2, 7, 12), (3, 33, 18))]
    manifest = check(compiled, proto, at)
    assert [dim["least"] for dim in manifest["dynamic"]] == [1, 5, 5]  # the windows must fit


def test_convolutions_of_any_image_are_refused(compiled: Compile) -> None:
    weights = {"w": models.floats(8, 3, 3, 3, seed=1)}
    proto = models.model(
        [node("Conv", ["x", "w"], ["y"])], {"x": [1, 3, "h", "w2"]}, ["y"], weights
    )
    with pytest.raises(ModelError, match="convolution over axes of open size has no schedule"):
        compiled(proto, dynamic=("*",))


def test_what_does_not_fit_is_refused(compiled: Compile) -> None:
    made = compiled(encoder(), dynamic=("*",))
    ids = np.zeros((2, 5), np.int64)
    with open_session(made.path) as session:
        with pytest.raises(RunError, match=r"'seq' is 5 in input 'ids', but 6 in input 'mask'"):
            session.run({"ids": ids, "mask": np.zeros((2, 6), np.int64)})
        with pytest.raises(RunError, match=r"'seq' is 41, and the artifact takes 1 to 40"):
            session.run({"ids": np.zeros((1, 41), np.int64), "mask": np.zeros((1, 41), np.int64)})
        with pytest.raises(RunError, match=r"'seq' is 0"):
            session.run({"ids": np.zeros((1, 0), np.int64), "mask": np.zeros((1, 0), np.int64)})
        with pytest.raises(
            RunError, match=r"'ids' is int64\[5\], but the model takes int64\[batch"
        ):
            session.run({"ids": ids[0, :5], "mask": ids})
        with pytest.raises(RunError, match=r"'ids' is int32"):
            session.run({"ids": ids.astype(np.int32), "mask": ids})
        with pytest.raises(RunError, match="'mask' is missing"):
            session.run({"ids": ids})
        with pytest.raises(RunError, match="no input 'x'"):
            session.run({"ids": ids, "mask": ids, "x": ids})
        with pytest.raises(RunError, match="no open dimension 'length'"):
            session.at({"batch": 1, "seq": 1, "length": 2})
    with pytest.raises(RunError, match="closed"):
        session.run({"ids": ids, "mask": ids})


def test_a_tensor_with_too_many_elements_is_refused(compiled: Compile) -> None:
    nodes = [node("Unsqueeze", ["x", "two"], ["a"]), node("Unsqueeze", ["x", "one"], ["b"]),
             node("Mul", ["a", "b"], ["y"])]  # fmt: skip
    weights = {"one": ints(0), "two": ints(1)}
    made = compiled(models.model(nodes, {"x": ["n"]}, ["y"], weights), dynamic=("*",))
    with open_session(made.path) as session:
        assert isinstance(session, DynamicSession)
        x = models.floats(5)
        np.testing.assert_allclose(session.run({"x": x})["y"], x[:, None] * x[None])
        with pytest.raises(RunError, match="more than 1073741823 elements"):
            session.run({"x": np.zeros(50_000, np.float32)})


def test_sizes_as_data(compiled: Compile) -> None:
    """The mean over an open axis, written as a sum divided by the size."""
    nodes = [
        node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "one"], ["n"]),
        node("Cast", ["n"], ["nf"], to=1), node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
        node("Div", ["sum", "nf"], ["mean"]), node("Mul", ["n", "n"], ["square"]),
        node("Cast", ["square"], ["sf"], to=1), node("Add", ["mean", "sf"], ["y"]),
    ]  # fmt: skip
    weights = {"one": ints(1)[0], "axes": ints(1)}
    proto = models.model(nodes, {"x": ["b", "n"]}, ["y"], weights)
    check(compiled, proto, [{"b": 1, "n": 1}, {"b": 3, "n": 5}, {"b": 2, "n": 33}])


SHAPES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "concat": ([node("Concat", ["x", "c"], ["y"], axis=0)], {"c": models.floats(2, 6)}),
    "last": ([node("Slice", ["x", "m1", "end", "zero"], ["y"])],
             {"m1": ints(-1), "end": ints(2**62), "zero": ints(0)}),
    "front": ([node("Slice", ["x", "zero", "two", "zero"], ["y"])],
              {"zero": ints(0), "two": ints(2)}),
    "steps": ([node("Slice", ["x", "zero", "end", "zero", "two"], ["y"])],
              {"zero": ints(0), "end": ints(2**62), "two": ints(2)}),
    "expand": ([node("Shape", ["x"], ["s"]), node("Expand", ["c", "s"], ["y"])],
               {"c": models.floats(1, 6)}),
    "zeros": ([node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["z"]),
               node("Add", ["x", "z"], ["y"])], {}),
    "merge": ([node("Reshape", ["x", "s"], ["y"])], {"s": ints(-1)}),
    "split": ([node("Split", ["x", "s"], ["a", "y"], axis=1)], {"s": ints(2, 4)}),
    "halve": ([node("Reshape", ["x", "s"], ["y"])], {"s": ints(0, 2, 3)}),
    "flatten": ([node("Unsqueeze", ["x", "zero"], ["u"]), node("Flatten", ["u"], ["y"], axis=2)],
                {"zero": ints(0)}),
    "triangle": ([node("MatMul", ["x", "w"], ["m"]), node("Transpose", ["m"], ["t"]),
                  node("MatMul", ["m", "t"], ["p"]), node("Trilu", ["p"], ["y"], upper=0)],
                 {"w": models.floats(6, 3)}),
    "pad": ([node("Pad", ["x", "p"], ["y"])], {"p": ints(1, 0, 2, 3)}),
    "mean": ([node("ReduceMean", ["x"], ["y"], axes=[0])], {}),
    "most": ([node("ReduceMax", ["x"], ["y"], axes=[0], keepdims=0)], {}),
    "where": ([node("Greater", ["x", "c"], ["g"]), node("Where", ["g", "x", "c"], ["y"])],
              {"c": models.floats(6)}),
    "columns": ([node("Softmax", ["x"], ["y"], axis=0)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_operators_that_move_shapes(compiled: Compile, name: str) -> None:
    nodes, weights = SHAPES[name]
    proto = models.model(nodes, {"x": ["n", 6]}, ["y"], weights)
    least = 1
    check(compiled, proto, [{"n": least}, {"n": 3}, {"n": 16}, {"n": 21}])


def test_all_that_cannot_stay_open_is_said_at_once(compiled: Compile) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["y"], "find"),
        helper.make_node("Reshape", ["x", "s"], ["z"], "cut"),
    ]
    proto = models.model(nodes, {"x": ["n", 6]}, ["y", "z"], {"s": ints(3, 6)}, types={"y": INT64})
    with pytest.raises(ModelError) as caught:
        compiled(proto, dynamic=("*",))
    assert "2 node(s) cannot be converted with open sizes ('n')" in caught.value.message
    assert "'find' (ai.onnx::NonZero-17)" in caught.value.message
    assert "'cut' (ai.onnx::Reshape-17): it makes 18 elements of n*6" in caught.value.message
    assert "--shape 'n=16'" in str(caught.value.hint)


def test_names_that_cannot_be_open(compiled: Compile) -> None:
    with pytest.raises(UsageError, match="batsch"):
        compiled(mlp(), dynamic=("batsch",))
    with pytest.raises(UsageError, match="no open dimension"):
        compiled(mlp(), dynamic=("*",), shapes=("batch=3",))
    with pytest.raises(UsageError, match="for CPUs"):
        compiled(mlp(), dynamic=("*",), target="cuda:sm_80")


@pytest.mark.slow
def test_torch_exports(compiled: Compile, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(30, 16)
            self.places = torch.nn.Embedding(24, 16)
            self.project = torch.nn.Linear(16, 48)
            self.norm = torch.nn.LayerNorm(16)

        def forward(self, ids: Any) -> Any:
            batch, length = ids.shape
            x = self.table(ids) + self.places(torch.arange(length))
            q, k, v = (
                p.reshape(batch, length, 2, 8).transpose(1, 2) for p in self.project(x).chunk(3, -1)
            )
            mixed = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v
            return self.norm(x + mixed.transpose(1, 2).reshape(batch, length, 16)).mean(1)

    torch.manual_seed(0)
    ids = torch.randint(0, 30, (3, 7))
    model = Encoder().eval()
    at = [{"batch": b, "seq": s} for b, s in ((1, 2), (3, 5), (2, 24))]
    length = torch.export.Dim("seq", min=2, max=24)
    exporters: dict[str, dict[str, Any]] = {
        "dynamo": {"dynamic_shapes": {"ids": {0: torch.export.Dim("batch"), 1: length}}},
        "torchscript": {"dynamic_axes": {"ids": {0: "batch", 1: "seq"}}, "opset_version": 17},
    }
    for exporter, options in exporters.items():
        path = tmp_path.with_name(f"{tmp_path.name}-{exporter}.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its own code
            torch.onnx.export(
                model, (ids,), str(path), input_names=["ids"], output_names=["y"],
                dynamo=exporter == "dynamo", verbose=False, **options,
            )  # fmt: skip
        manifest = check(compiled, onnx.load(str(path)), at)
        assert {d["name"]: d["most"] for d in manifest["dynamic"]}["seq"] == 24
