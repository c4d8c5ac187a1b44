"""Fixed shapes: what is asked for, what is guessed aloud, and hints that work when pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

import onnx
import pytest
from onnx import helper

from mlc.errors import ModelError, UsageError
from mlc.events import Notice
from mlc.frontend import onnx_file, shapes
from mlc.frontend.onnx_file import OnnxFile
from tests import models

Dim = int | str | None
Shapes = dict[str, tuple[int, ...]]


def model(inputs: dict[str, list[Dim] | None]) -> OnnxFile:
    """Return a model whose inputs have these dimensions (None: no shape at all)."""
    nodes = [helper.make_node("Relu", [name], [f"{name}_out"]) for name in inputs]
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, d) for n, d in inputs.items()
    ]
    outputs = [
        helper.make_tensor_value_info(f"{n}_out", onnx.TensorProto.FLOAT, d)
        for n, d in inputs.items()
    ]
    graph = helper.make_graph(nodes, "test", values, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return OnnxFile(path=Path("m.onnx"), proto=proto, weights={}, sha256="", size=0)


def fix(file: OnnxFile, *options: str) -> tuple[Shapes, list[str]]:
    """Return the shape of every input, and the text of the notices."""
    notices: list[str] = []

    def on_event(event: object) -> None:
        assert isinstance(event, Notice)
        notices.append(event.text)

    fixed = shapes.fix(file, shapes.parse(options), on_event)
    found = {
        info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        for info in fixed.proto.graph.input
    }
    return found, notices


def pasted(hint: str | None) -> list[str]:
    """Return the values of the --shape options in a hint, as a shell would pass them."""
    words = shlex.split((hint or "").partition("example: ")[2])
    assert words[::2] == ["--shape"] * (len(words) // 2)
    return words[1::2]


# --- parse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "inputs", "dims"),
    [
        ("x:1,3,224,224", {"x": (1, 3, 224, 224)}, {}),
        ("x:7", {"x": (7,)}, {}),
        ("x: 1, 3 ,9", {"x": (1, 3, 9)}, {}),
        ("x:", {"x": ()}, {}),  # a scalar
        ("input:0:1,2", {"input:0": (1, 2)}, {}),  # TensorFlow's names
        ("a=b:4", {"a=b": (4,)}, {}),
        ("batch=4", {}, {"batch": 4}),
        ("past=len=128", {}, {"past=len": 128}),
        ("a:b=3", {}, {"a:b": 3}),
        ("größe=12", {}, {"größe": 12}),
        ("n=999999999", {}, {"n": 999999999}),
        ("past:1,8,0,64", {"past": (1, 8, 0, 64)}, {}),  # a text generator's empty past
    ],
)
def test_both_forms_are_understood(option: str, inputs: Shapes, dims: dict[str, int]) -> None:
    assert shapes.parse([option]) == shapes.ShapeRequest(inputs=inputs, dims=dims)


def test_options_add_up() -> None:
    request = shapes.parse(["x:1,2", "y:3", "n=4", "m=5"])
    assert request.inputs == {"x": (1, 2), "y": (3,)}
    assert request.dims == {"n": 4, "m": 5}
    assert shapes.parse([]) == shapes.ShapeRequest(inputs={}, dims={})


@pytest.mark.parametrize(
    "option",
    ["", "x", "1,3,224,224", "x:1,,3", "x:1,", "x:,1", "x:1x3", "x:a", "x:-1,3", "x:1.5", "n=",
     "n=a", "n=-1", "n=1.0", "n=1,", "n=,1", "n=1,,2", "n=1,a", "x:1;3", "n=²"],
)  # fmt: skip
def test_other_forms_are_not(option: str) -> None:
    with pytest.raises(UsageError, match="is not understood") as caught:
        shapes.parse([option])
    assert "--shape input:1,3,224,224" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "option",
    ["n=0", "n=1,0", "n=1000000000", "x:1,99999999999999999999", "n=" + "9" * 5000],
)
def test_sizes_that_no_tensor_has_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=r"sizes from [01] to 999999999"):
        shapes.parse([option])


@pytest.mark.parametrize("options", [("h=3", "h=4"), ("x:1,2", "x:1,3"), ("h=3", "w=2", "h=1")])
def test_options_that_contradict_each_other_are_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"given twice for '[hx]', with different sizes"):
        shapes.parse(options)


def test_saying_the_same_twice_is_no_contradiction() -> None:
    assert shapes.parse(["h=3", "h=3"]).dims == {"h": 3}


# --- several sizes -------------------------------------------------------------------------------


def test_sizes_that_are_listed_are_combined_in_their_order() -> None:
    found = shapes.combinations(["seq=32, 128", "x:1,2", "batch=4,1,4", "heads=2"])
    assert [one.dims for one in found] == [
        {"seq": 32, "batch": 4}, {"seq": 32, "batch": 1},
        {"seq": 128, "batch": 4}, {"seq": 128, "batch": 1},
    ]  # fmt: skip
    assert found[1].options == ("x:1,2", "heads=2", "seq=32", "batch=1")
    for one in found:  # what the stages get is plain
        request = shapes.parse(one.options)
        assert (request.inputs, request.dims) == ({"x": (1, 2)}, {"heads": 2, **one.dims})


@pytest.mark.parametrize("options", [[], ["batch=1"], ["x:1,2", "n=3"], ["batch=4,4"]])
def test_without_lists_there_is_one_combination(options: list[str]) -> None:
    (one,) = shapes.combinations(options)
    assert one == shapes.Combination(dims={}, options=tuple(options))


def test_combinations_are_bounded() -> None:
    sizes = ",".join(map(str, range(1, 9)))
    assert len(shapes.combinations([f"a={sizes}", "b=1,2,3,4"])) == 32
    with pytest.raises(UsageError, match="asks for 40 combinations of sizes, and 32 are the most"):
        shapes.combinations([f"a={sizes}", "b=1,2,3,4,5"])


def test_lists_are_refused_where_one_size_is_needed() -> None:
    with pytest.raises(UsageError, match="gives 'batch' 3 sizes, and here") as caught:
        shapes.parse(["batch=4,1,16"])
    assert (caught.value.hint or "").endswith("here write --shape 'batch=4'")


@pytest.mark.parametrize("options", [("n=1,2", "n=1,3"), ("n=1,2", "n=2,1"), ("n=1", "n=1,2")])
def test_lists_that_contradict_each_other_are_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="given twice for 'n', with different sizes"):
        shapes.combinations(options)
    assert len(shapes.combinations([options[1], options[1]])) == 2


# --- what is guessed -----------------------------------------------------------------------------


def test_fixed_shapes_stay_without_a_word() -> None:
    assert fix(model({"x": [2, 3, 7], "s": []})) == ({"x": (2, 3, 7), "s": ()}, [])


@pytest.mark.parametrize(
    "name", ["batch", "batch_size", "BATCH", "N", "b", "bs", "decoder.batch", "batch1"]
)
def test_a_batch_like_name_becomes_1_wherever_it_stands(name: str) -> None:
    found, notices = fix(model({"x": [5, name, 3]}))
    assert found == {"x": (5, 1, 3)}
    assert notices == [f"input 'x': {name} is set to 1 (batch-like)"]


@pytest.mark.parametrize("name", ["n_tokens", "b_x", "unk__7", "s0", "n.heads", "?"])
def test_a_name_that_only_begins_like_a_batch_is_asked_for(name: str) -> None:
    with pytest.raises(ModelError, match="sizes open that cannot be guessed"):
        fix(model({"x": [5, name, 3]}))


@pytest.mark.parametrize(
    ("first", "label"),
    [(None, "dimension 0"), ("foo", "foo"), (0, "dimension 0"), (-1, "dimension 0")],
)
def test_a_first_dimension_becomes_1(first: Dim, label: str) -> None:
    found, notices = fix(model({"x": [first, 3]}))
    assert found == {"x": (1, 3)}
    assert notices == [f"input 'x': {label} is set to 1 (batch-like)"]


def test_every_guess_is_said() -> None:
    found, notices = fix(model({"x": ["batch", 3], "y": ["batch", 4], "z": [5]}))
    assert found == {"x": (1, 3), "y": (1, 4), "z": (5,)}
    assert len(notices) == 2


# --- what is asked for ---------------------------------------------------------------------------


def test_a_named_dimension_is_set_wherever_it_occurs() -> None:
    file = model({"x": ["batch", "seq"], "mask": ["batch", 1, "seq"]})
    assert fix(file, "seq=11", "batch=3") == ({"x": (3, 11), "mask": (3, 1, 11)}, [])
    found, notices = fix(file, "seq=11")
    assert found == {"x": (1, 11), "mask": (1, 1, 11)}
    assert len(notices) == 2


def test_a_whole_input_is_set() -> None:
    file = model({"x": [None, 3, "h", "w"], "s": []})
    assert fix(file, "x:2,3,5,7", "s:") == ({"x": (2, 3, 5, 7), "s": ()}, [])


@pytest.mark.parametrize("open_dim", [None, "n", -1, 0])
def test_only_open_dimensions_can_be_chosen(open_dim: Dim) -> None:
    file = model({"x": [open_dim, 3, 9]})
    assert fix(file, "x:4,3,9")[0] == {"x": (4, 3, 9)}
    for wrong in ("x:4,3", "x:4,3,9,1", "x:4,4,9", "x:"):
        with pytest.raises(ModelError, match=r"but the model declares \?,3,9") as caught:
            fix(file, wrong)
        assert caught.value.hint == "only open dimensions (?) can be chosen"


def test_a_fixed_input_can_only_be_confirmed() -> None:
    assert fix(model({"x": [2, 3]}), "x:2,3")[0] == {"x": (2, 3)}
    with pytest.raises(ModelError, match="declares 2,3"):
        fix(model({"x": [2, 3]}), "x:1,3")


def test_an_input_without_a_shape_takes_any() -> None:
    assert fix(model({"x": None}), "x:1,3,5")[0] == {"x": (1, 3, 5)}
    assert fix(model({"x": None}), "x:")[0] == {"x": ()}


def test_unknown_names_come_back_with_the_choices() -> None:
    file = model({"images": ["batch", "height"], "mask": [1]})
    with pytest.raises(UsageError, match="no input 'image'") as caught:
        fix(file, "image:1,2")
    assert caught.value.hint == "did you mean 'images'? choices: images, mask"
    with pytest.raises(UsageError, match="no dimension named 'heigth'") as caught:
        fix(file, "heigth=3")
    assert caught.value.hint == "did you mean 'height'? choices: batch, height"


def test_a_weight_is_no_input(tmp_path: Path) -> None:
    """Large weights stand among the graph's inputs (see `onnx_file`): nobody may reshape them."""
    weights = {"w": models.floats(40, 41)}
    proto = models.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["b", 40]}, ["y"], weights
    )
    file = onnx_file.read(models.save(proto, tmp_path))
    assert "w" in [info.name for info in file.proto.graph.input]
    with pytest.raises(UsageError, match="no input 'w'") as caught:
        fix(file, "w:40,41")
    assert caught.value.hint == "choices: x"
    assert fix(file, "b=3")[0]["x"] == (3, 40)


# --- what cannot be guessed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"x": ["batch", "seq"]}, {"x": (1, 128)}),
        ({"x": ["batch", 3, "height", "width"]}, {"x": (1, 3, 224, 224)}),
        ({"x": [1, 3, None, None]}, {"x": (1, 3, 16, 16)}),
        ({"x": ["seq", 8]}, {"x": (128, 8)}),  # a sequence is no batch, first or not
        ({"x": [1, "foo"], "y": [2, "foo", 3]}, {"x": (1, 16), "y": (2, 16, 3)}),
        ({"x": ["b", -1, 4]}, {"x": (1, 16, 4)}),
        ({"x": [2, 0]}, {"x": (2, 16)}),
        ({"x": ["b", "h", None], "y": ["h"]}, {"x": (1, 224, 16), "y": (224,)}),
        ({"x": None}, {"x": (1, 3, 224, 224)}),
        ({"x": None, "y": ["b", "seq"], "z": [1, None]},
         {"x": (1, 3, 224, 224), "y": (1, 128), "z": (1, 16)}),
        ({"in:0": [1, None]}, {"in:0": (1, 16)}),
        ({"x": [1, "past=len"]}, {"x": (1, 128)}),
        ({"x": [1, "a:3"]}, {"x": (1, 16)}),
        ({"x": [1, " padded "]}, {"x": (1, 16)}),
        ({"x": [1, "floor(h/2 + 1)"]}, {"x": (1, 16)}),
        ({"it's": [1, None]}, {"it's": (1, 16)}),
        ({"x": [1, "'; touch owned; '"]}, {"x": (1, 16)}),
        ({"x": [1, "$(touch owned)`id`"]}, {"x": (1, 16)}),
    ],
)  # fmt: skip
def test_the_hint_works_when_pasted(inputs: dict[str, list[Dim] | None], expected: Shapes) -> None:
    file = model(inputs)
    with pytest.raises(ModelError, match="sizes open that cannot be guessed") as caught:
        fix(file)
    found, _ = fix(file, *pasted(caught.value.hint))
    assert found == expected


def test_the_hint_works_beside_what_was_asked_for() -> None:
    file = model({"x": ["b", "h", None]})
    with pytest.raises(ModelError) as caught:
        fix(file, "h=32")
    assert pasted(caught.value.hint) == ["x:1,32,16"]
    assert fix(file, "h=32", *pasted(caught.value.hint))[0] == {"x": (1, 32, 16)}


def test_a_hint_names_each_dimension_once() -> None:
    with pytest.raises(ModelError) as caught:
        fix(model({"x": ["b", "seq"], "y": ["b", "seq"], "z": [1, 1, "seq"]}))
    assert pasted(caught.value.hint) == ["seq=128"]


def test_only_tensors_can_be_inputs() -> None:
    info = helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    file = model({"x": [1]})
    file.proto.graph.input.append(info)
    with pytest.raises(ModelError, match="input 's' is a sequence_type, only tensors"):
        fix(file)
    file.proto.graph.input[-1].ClearField("type")
    with pytest.raises(ModelError, match="input 's' is a value without a type"):
        fix(file)


# --- the rest of the graph -----------------------------------------------------------------------


def test_shapes_that_name_the_old_dimensions_are_forgotten() -> None:
    file = model({"x": ["batch", 3]})
    inner = helper.make_tensor_value_info("x_out", onnx.TensorProto.FLOAT, ["batch", 3])
    file.proto.graph.value_info.append(inner)
    before = file.proto.SerializeToString()
    fixed = shapes.fix(file, shapes.parse(["batch=5"]), lambda _event: None)
    assert not fixed.proto.graph.value_info
    assert not fixed.proto.graph.output[0].type.tensor_type.HasField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed.proto)
    assert [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim] == [5, 3]
    assert file.proto.SerializeToString() == before  # the caller's file is left alone
