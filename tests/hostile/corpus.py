"""The corpus: one small file for each way in which a model can be broken or harmful."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from tests import models

Make = Callable[[], bytes]
CORPUS: dict[str, Make] = {}
I64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
node, info = helper.make_node, helper.make_tensor_value_info
BIG = 1 << 40


def add(name: str, make: Callable[[], Any]) -> None:
    """Put a model (or bytes) into the corpus."""
    assert name not in CORPUS

    def data() -> bytes:
        made = make()
        return made if isinstance(made, bytes) else bytes(made.SerializeToString())

    CORPUS[name] = data


def one(
    operator: str,
    shapes: Sequence[Sequence[int | str]] = ((2, 3, 8, 8),),
    constants: Sequence[Any] = (),
    outputs: int = 1,
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one node: inputs of these shapes, then constants."""
    names = [f"x{k}" for k in range(len(shapes))]
    weights = {f"c{k}": np.asarray(value) for k, value in enumerate(constants)}
    made = [f"y{k}" for k in range(outputs)]
    return models.model(
        [node(operator, [*names, *weights], made, **attributes)],
        dict(zip(names, shapes, strict=True)), made, weights, opset=opset,
    )  # fmt: skip


# --- bytes ------------------------------------------------------------------------------------


def _cut(seed: int) -> bytes:
    data = models.conv_net().SerializeToString()
    return data[: random.Random(seed).randrange(1, len(data))]


def _flipped(seed: int) -> bytes:
    data, rng = bytearray(models.conv_net().SerializeToString()), random.Random(seed)
    for _ in range(rng.randrange(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


for _seed in range(10):
    add(f"cut {_seed}", lambda seed=_seed: _cut(seed))
    add(f"flipped {_seed}", lambda seed=_seed: _flipped(seed))
add("messages nested 1,000 deep", lambda: _messages(1000))
add("branches nested 20 deep", lambda: _nested(20))


def _messages(depth: int) -> bytes:
    """ModelProto.graph, then GraphProto.node, .attribute, .g over and over, each with its length."""
    data = b""
    for tag in [0x32, 0x2A, 0x0A] * depth + [0x3A]:
        length, rest = b"", len(data)
        while rest > 127:
            length, rest = length + bytes([rest & 127 | 128]), rest >> 7
        data = bytes([tag]) + length + bytes([rest]) + data
    return b"\x08\x08" + data


def _nested(depth: int) -> onnx.ModelProto:
    """If in If in If."""
    inner = helper.make_graph([node("Identity", ["x"], ["r0"])], "g", [], [info("r0", FLOAT, [2])])
    for k in range(1, depth + 1):
        both = {"then_branch": inner, "else_branch": inner} if k < 4 else {"then_branch": inner}
        both.setdefault(
            "else_branch",
            helper.make_graph([node("Identity", ["x"], [f"e{k}"])], "g", [], [info(f"e{k}", FLOAT, [2])]),
        )  # fmt: skip
        made = info(f"r{k}", FLOAT, [2])
        inner = helper.make_graph([node("If", ["c"], [f"r{k}"], **both)], "g", [], [made])
    proto = models.model([], {"x": [2], "c": []}, [f"r{depth}"], types={"c": BOOL})
    proto.graph.node.extend(inner.node)
    return proto


# --- sizes ------------------------------------------------------------------------------------

for _name, _shape in {
    "huge": [BIG, BIG], "overflowing": [1 << 62, 4], "negative": [-7, 3], "zero": [0, 3],
    "many axes": [1] * 200, "over the memory": [1 << 17, 1 << 17], "32 bits": [1 << 31, 1],
}.items():  # fmt: skip
    add(f"input {_name}", lambda shape=_shape: one("Relu", [shape]))
add("constant of shape, huge", lambda: one("ConstantOfShape", [], [[1 << 20, 1 << 20]]))
add("constant of shape, 8 GB", lambda: one("ConstantOfShape", [], [[1 << 31]]))
add("constant of shape, negative", lambda: one("ConstantOfShape", [], [[-5]]))
add("expand, huge", lambda: one("Expand", [[1]], [[1 << 20, 1 << 20]]))
add("expand of a constant, huge", lambda: one("Expand", [], [np.float32([1]), [1 << 20, 1 << 20]]))
add("tile, huge", lambda: one("Tile", [[2, 2]], [[1 << 31, 1 << 31]]))
add("tile, negative", lambda: one("Tile", [[2, 2]], [[-1, 2]]))
add("range without end", lambda: one("Range", [], [0, 1 << 62, 1]))
add("range of step 0", lambda: one("Range", [], [0, 9, 0]))
add("pad, huge", lambda: one("Pad", [[2]], [[BIG, BIG]]))
add("pad, more than there is", lambda: one("Pad", [[2]], [[-3, -3]]))
add("reflected pad, too wide", lambda: one("Pad", [[2]], [[9, 9]], mode="reflect"))
add("resize, huge", lambda: one("Resize", constants=[np.float32([]), np.float32([1, 1, 1e9, 1e9])]))
add(
    "resize by nan",
    lambda: one("Resize", constants=[np.float32([]), np.float32([1, 1, np.nan, 2])]),
)
add(
    "resize by nothing",
    lambda: one("Resize", constants=[np.float32([]), np.float32([1, 1, 0, -2])]),
)
add("one hot, huge", lambda: _one_hot(BIG))
add("one hot, negative", lambda: _one_hot(-4))
add("reshape, overflowing", lambda: one("Reshape", [[2, 3]], [[1 << 62, 4, -1]]))
add("reshape, two open", lambda: one("Reshape", [[2, 3]], [[-1, -1]]))
add("reshape, another count", lambda: one("Reshape", [[2, 3]], [[4, 4]]))
add("depth to space, 0", lambda: one("DepthToSpace", blocksize=0))
add("depth to space, huge", lambda: one("DepthToSpace", blocksize=1 << 33))
add("split, another sum", lambda: one("Split", [[6]], [[5, 5]], outputs=2))
add("a sequence of 2^31 parts", lambda: one("SplitToSequence", [[1 << 31]]))
add("split, negative", lambda: one("Split", [[6]], [[-2, 8]], outputs=2))
add("top k, more than there is", lambda: one("TopK", [[4]], [[9]], outputs=2))
add("top k, negative", lambda: one("TopK", [[4]], [[-1]], outputs=2))
add("eye, huge", lambda: one("EyeLike", [[1 << 20, 1 << 20]]))
add("einsum, huge", lambda: one("Einsum", [[4096, 1], [4096, 1]], equation="ab,cd->abcd"))


def _one_hot(depth: int) -> onnx.ModelProto:
    proto = one("OneHot", [[3]], [np.int64(depth), np.float32([0, 1])])
    proto.graph.input[0].type.tensor_type.elem_type = I64
    return proto


# --- attributes -------------------------------------------------------------------------------

WEIGHT = models.floats(4, 3, 3, 3)
for _name, _attributes in {
    "group 0": {"group": 0}, "group -1": {"group": -1}, "group 2": {"group": 2},
    "stride 0": {"strides": [0, 0]}, "stride -1": {"strides": [-1, -1]},
    "dilation 0": {"dilations": [0, 0]}, "dilation huge": {"dilations": [BIG, BIG]},
    "pads negative": {"pads": [-9, -9, -9, -9]}, "pads huge": {"pads": [BIG] * 4},
    "pads of another length": {"pads": [1, 1, 1]}, "kernel of another shape": {"kernel_shape": [5, 5]},
    "a strange auto_pad": {"auto_pad": "EVERYWHERE"}, "a million pads": {"pads": [0] * 1_000_000},
}.items():  # fmt: skip
    add(f"conv, {_name}", lambda given=_attributes: one("Conv", constants=[WEIGHT], **given))
add(
    "conv, filter larger than the image",
    lambda: one("Conv", [[1, 3, 2, 2]], [models.floats(4, 3, 7, 7)]),
)
add("conv of a scalar", lambda: one("Conv", [[]], [WEIGHT]))
add("conv without channels", lambda: one("Conv", [[1, 0, 8, 8]], [models.floats(4, 0, 3, 3)]))
add(
    "conv transposed, strides 0",
    lambda: one("ConvTranspose", constants=[models.floats(3, 4, 3, 3)], strides=[0, 0]),
)
add(
    "conv transposed, huge",
    lambda: one("ConvTranspose", constants=[models.floats(3, 4, 3, 3)], strides=[1 << 30, 1 << 30]),
)
for _name, _given in {
    "kernel 0": {"kernel_shape": [0, 0]}, "kernel huge": {"kernel_shape": [BIG, BIG]},
    "stride 0": {"kernel_shape": [2, 2], "strides": [0, 0]}, "no kernel": {},
    "rank": {"kernel_shape": [2, 2, 2]},
}.items():  # fmt: skip
    add(f"pool, {_name}", lambda given=_given: one("MaxPool", **given))
add("lrn of size 0", lambda: one("LRN", size=0))
add("transpose, one axis twice", lambda: one("Transpose", perm=[0, 0, 1, 2]))
add("transpose, an axis outside", lambda: one("Transpose", perm=[0, 1, 2, 99]))
add("concat, an axis outside", lambda: one("Concat", [[2], [2]], axis=-9))
add("softmax, an axis outside", lambda: one("Softmax", axis=1 << 40))
add("squeeze of a long axis", lambda: one("Squeeze", constants=[[0]]))
add("slice of step 0", lambda: one("Slice", [[8]], [[0], [8], [0], [0]]))
add("slice, far outside", lambda: one("Slice", [[8]], [[BIG], [-BIG], [0], [-(1 << 62)]]))
add("gather, outside", lambda: one("Gather", [[4]], [[100]]))
add("einsum, broken", lambda: one("Einsum", [[2, 2]], equation="a...b->->"))
add("cast to no type", lambda: one("Cast", to=4000))
add("cast to text", lambda: one("Cast", to=TensorProto.STRING))
add("clip, ends crossed", lambda: one("Clip", constants=[np.float32(3), np.float32(-3)]))
add("quantise by 0", lambda: one("QuantizeLinear", constants=[np.float32(0), np.uint8(0)]))
add(
    "lstm, sizes that do not fit",
    lambda: one(
        "LSTM", [[3, 1, 4]], [models.floats(1, 8, 4), models.floats(1, 8, 9)], hidden_size=1 << 40
    ),
)
add(
    "lstm, 100,000 steps",
    lambda: one(
        "LSTM", [[100_000, 1, 2]], [models.floats(1, 8, 2), models.floats(1, 8, 2)], hidden_size=2
    ),
)
add(
    "normalisation, other lengths",
    lambda: one("BatchNormalization", constants=[models.floats(k) for k in (3, 4, 5, 6)]),
)
add("dft of length 0", lambda: one("DFT", [[1, 0, 1]], axis=1))


def _attribute_of_text() -> onnx.ModelProto:
    proto = one("LeakyRelu")
    proto.graph.node[0].attribute.append(helper.make_attribute("alpha", "much"))
    return proto


def _twice() -> onnx.ModelProto:
    proto = one("LeakyRelu", alpha=0.1)
    proto.graph.node[0].attribute.append(AttributeProto(name="alpha", type=1, f=float("nan")))
    return proto


add("a text for a number", _attribute_of_text)
add("an attribute twice", _twice)

# --- graphs -----------------------------------------------------------------------------------


def graph(*nodes: Any, outputs: Sequence[str] = ("y",), **weights: np.ndarray) -> onnx.ModelProto:
    """Return a model of nodes that read x, float32[2, 3]."""
    return models.model(list(nodes), {"x": [2, 3]}, outputs, weights)


add(
    "a circle",
    lambda: graph(
        node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])
    ),
)
add("a node that reads itself", lambda: graph(node("Add", ["x", "y"], ["y"])))
add("out of order", lambda: graph(node("Relu", ["a"], ["y"]), node("Relu", ["x"], ["a"])))
add(
    "one name for two results", lambda: graph(node("Relu", ["x"], ["y"]), node("Exp", ["x"], ["y"]))
)
add("a result that is an input", lambda: graph(node("Relu", ["x"], ["x"]), outputs=["x"]))
add("no nodes", lambda: graph(outputs=["x"]))
add("nobody computes the output", lambda: graph(node("Relu", ["x"], ["a"])))
add("no inputs at all", lambda: graph(node("Relu", [], ["y"])))
add("too many inputs", lambda: graph(node("Relu", ["x"] * 5000, ["y"])))
add("a sum of 500", lambda: graph(node("Sum", ["x"] * 500, ["y"])))
add("no output", lambda: graph(node("Relu", ["x"], [""])))
add("an empty operator", lambda: graph(node("", ["x"], ["y"])))
add(
    "a constant of no value",
    lambda: graph(node("Constant", [], ["c"]), node("Add", ["x", "c"], ["y"])),
)
add(
    "a constant of two values",
    lambda: graph(
        node("Constant", [], ["c"], value_int=1, value_float=2.0), node("Add", ["x", "c"], ["y"])
    ),
)
add("types that do not fit", lambda: graph(node("Add", ["x", "w"], ["y"]), w=np.arange(3)))
add(
    "shapes that do not fit",
    lambda: graph(node("MatMul", ["x", "w"], ["y"]), w=models.floats(7, 7)),
)
add("a condition of floats", lambda: graph(node("Where", ["x", "x", "x"], ["y"])))
add("an image that is a text", lambda: graph(node("StringNormalizer", ["x"], ["y"])))
add(
    "a name that moves the cursor",
    lambda: graph(
        node("Bad\x1b[2J\x1b]0;owned\x07", ["x"], ["y\r\n"], "\u202e\x9b1m"), outputs=["y\r\n"]
    ),
)
add(
    "a path for a name",
    lambda: graph(
        node("Relu", ["x"], ["../../../etc/passwd"], "/dev/null"), outputs=["../../../etc/passwd"]
    ),
)
add(
    "a name of a megabyte",
    lambda: graph(node("Relu", ["x"], ["y" * 1_000_000]), outputs=["y" * 1_000_000]),
)
add(
    "a chain of 3,000",
    lambda: graph(
        *(node("Neg", [f"v{k}" if k else "x"], [f"v{k + 1}"]) for k in range(3000)),
        outputs=["v3000"],
    ),
)
add(
    "2^60 by doubling",
    lambda: graph(
        *(node("Concat", [f"v{k}" if k else "x"] * 2, [f"v{k + 1}"], axis=0) for k in range(60)),
        outputs=["v60"],
    ),
)
add(
    "2^60 by doubling a constant",
    lambda: graph(
        *(node("Concat", [f"v{k}" if k else "w"] * 2, [f"v{k + 1}"], axis=0) for k in range(60)),
        outputs=["v60"],
        w=models.floats(2),
    ),
)


def _opset(*versions: int, ir_version: int = 8) -> onnx.ModelProto:
    proto = graph(node("Relu", ["x"], ["y"]))
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid("", version) for version in versions)
    proto.ir_version = ir_version
    return proto


for _versions in [(), (0,), (-3,), (9999,), (7, 17)]:
    add(f"opsets {_versions}", lambda versions=_versions: _opset(*versions))
add("another IR", lambda: _opset(17, ir_version=99))


def _typed(field: str) -> onnx.ModelProto:
    proto = graph(node("Identity", ["x"], ["y"]))
    tensor = helper.make_tensor_type_proto(FLOAT, [2])
    kinds = {
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(tensor),
        "map": helper.make_map_type_proto(I64, tensor),
        "text": helper.make_tensor_type_proto(TensorProto.STRING, [2]),
        "sparse": helper.make_sparse_tensor_type_proto(FLOAT, [2]),
        "nothing": onnx.TypeProto(),
        "no type": helper.make_tensor_type_proto(0, [2]),
        "a type of later": helper.make_tensor_type_proto(99, [2]),
        "complex": helper.make_tensor_type_proto(TensorProto.COMPLEX64, [2]),
        "four bits": helper.make_tensor_type_proto(TensorProto.INT4, [2]),
    }
    for each in (proto.graph.input[0], proto.graph.output[0]):
        each.type.CopyFrom(kinds[field])
    return proto


for _kind in ("sequence", "optional", "map", "text", "sparse", "nothing", "no type",
              "a type of later", "complex", "four bits"):  # fmt: skip
    add(f"input of {_kind}", lambda kind=_kind: _typed(kind))


# --- control flow and functions ---------------------------------------------------------------


def _loop(count: int, *nodes: Any, depth: int = 1, state: str = "out") -> onnx.ModelProto:
    """Return loops in loops; the innermost body has these nodes, and each runs `count` times."""
    body_nodes = list(nodes) or [node("Neg", ["in"], ["out"])]
    for k in range(depth):
        body = helper.make_graph(
            [*body_nodes, node("Identity", ["go"], ["on"])], "body",
            [info("i", I64, []), info("go", BOOL, []), info("in", FLOAT, [2, 3])],
            [info("on", BOOL, []), info(state, FLOAT, [2, 3])],
        )  # fmt: skip
        first = "x" if k == depth - 1 else "in"
        body_nodes = [node("Loop", ["count", "", first], ["out"], body=body)]
    return graph(*body_nodes, node("Relu", ["out"], ["y"]), count=np.array(count))


add("a loop without end", lambda: _loop(1 << 62))
add("a loop of a million", lambda: _loop(1_000_000))
add("a negative loop", lambda: _loop(-5))
add("loops in loops", lambda: _loop(100, depth=6))
add("a body that misses a value", lambda: _loop(3, node("Add", ["in", "nowhere"], ["out"])))
add("a body that returns nothing", lambda: _loop(3, state="absent"))
add("a body that grows", lambda: _loop(40, node("Concat", ["in", "in"], ["out"], axis=0)))


def _broken_if(*, branches: Sequence[str], other: int = 2) -> onnx.ModelProto:
    made = {
        name: helper.make_graph(
            [node("Slice", ["x", "zero", f"n{k}"], ["r"])], name, [], [info("r", FLOAT, None)]
        )
        for k, name in enumerate(branches)
    }
    return graph(
        node("ReduceSum", ["x"], ["s"], keepdims=0), node("Cast", ["s"], ["c"], to=BOOL),
        node("If", ["c"], ["y"], **made), zero=np.array([0]), n0=np.array([1]), n1=np.array([other]),
    )  # fmt: skip


add("a branch is missing", lambda: _broken_if(branches=["then_branch"]))
add("no branches", lambda: _broken_if(branches=[]))
add("branches of other shapes", lambda: _broken_if(branches=["then_branch", "else_branch"]))
add("a loop without a body", lambda: graph(node("Loop", ["", "", "x"], ["y"])))
add("a scan without a body", lambda: graph(node("Scan", ["x"], ["y"], num_scan_inputs=1)))
add("a scan of too much", lambda: graph(node("Scan", ["x"], ["y"], num_scan_inputs=1 << 40)))


def _functions(*bodies: tuple[str, Sequence[str]]) -> onnx.ModelProto:
    """Return a model of functions, each of which calls others in turn."""
    proto = graph(node(bodies[0][0], ["x"], ["y"], domain="own"))
    proto.opset_import.add(domain="own", version=1)
    for name, calls in bodies:
        steps = [
            node(c, [f"v{k}"], [f"v{k + 1}"], domain="" if c == "Neg" else "own")
            for k, c in enumerate(calls)
        ]
        function = helper.make_function(
            "own", name, ["v0"], [f"v{len(calls)}"], steps, proto.opset_import
        )
        proto.functions.append(function)
    return proto


add("a function that calls itself", lambda: _functions(("F", ["F"])))
add("functions in a circle", lambda: _functions(("F", ["G"]), ("G", ["H"]), ("H", ["F"])))
add(
    "10^12 by functions",
    lambda: _functions(*((f"F{k}", [f"F{k + 1}"] * 10) for k in range(12)), ("F12", ["Neg"])),
)
add("a function of nothing", lambda: _functions(("F", [])))


# --- tensors ----------------------------------------------------------------------------------


def _tensor(**fields: Any) -> onnx.ModelProto:
    proto = graph(node("Add", ["x", "w"], ["y"]))
    proto.graph.initializer.append(TensorProto(**{"name": "w", "data_type": FLOAT, **fields}))
    return proto


def _outside(location: str) -> onnx.ModelProto:
    proto = _tensor(dims=[3], data_location=TensorProto.EXTERNAL)
    proto.graph.initializer[0].external_data.add(key="location", value=location)
    return proto


for _place in ("../weights.bin", "/etc/passwd", "/proc/self/mem", "/dev/zero", "", "a\0b", "."):
    add(f"weights at {_place!r}", lambda place=_place: _outside(place))
add("weights too short", lambda: _tensor(dims=[3], raw_data=b"1234"))
add("weights too long", lambda: _tensor(dims=[3], raw_data=bytes(9999)))
add("weights of two kinds", lambda: _tensor(dims=[1], raw_data=bytes(4), float_data=[1.0]))
add("weights of a negative size", lambda: _tensor(dims=[-3], raw_data=bytes(12)))
add("weights of a huge size", lambda: _tensor(dims=[BIG, BIG], raw_data=bytes(12)))
add("weights of no type", lambda: _tensor(dims=[3], data_type=0, raw_data=bytes(12)))
add(
    "weights of text",
    lambda: _tensor(dims=[1], data_type=TensorProto.STRING, string_data=[b"\xff"]),
)
add(
    "weights in pieces",
    lambda: _tensor(dims=[3], raw_data=bytes(12), segment=TensorProto.Segment(begin=0, end=1)),
)
