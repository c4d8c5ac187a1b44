"""`mlc export`: what can be checked without torch."""

import dataclasses
import sys

import pytest

from mlc.errors import MissingToolError, UsageError
from mlc.options import ExportOptions
from mlc.torch_export import export
from mlc.torch_export.arguments import (
    EXPORTERS,
    InputSpec,
    default_output,
    parse_input,
    parse_inputs,
    split_factory,
)


@pytest.mark.parametrize(
    ("text", "name", "dtype", "shape"),
    [
        ("1,3,224,224", None, "float32", (1, 3, 224, 224)),
        ("7", None, "float32", (7,)),
        ("1, 8", None, "float32", (1, 8)),
        ("image:1,3,224,224", "image", "float32", (1, 3, 224, 224)),
        ("ids:int64:1,128", "ids", "int64", (1, 128)),
        ("x.y/z-0:bool:2", "x.y/z-0", "bool", (2,)),
    ],
)
def test_input_forms(text, name, dtype, shape):
    assert parse_input(text) == InputSpec(name=name, dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":1,3",
        "a:",
        "a::1",
        "a:int64:",
        "1,,3",
        "1,0,3",
        "1,-1",
        "N,3",
        "1x3",
        "a b:1",
        "²",
    ],
)
def test_malformed_input_shows_the_right_form(text):
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    assert "ids:int64:1,128" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ids:int46:1,128", "did you mean 'int64'?"),
        ("int64:1,128", "`NAME:int64:1,128`"),
        ("1" + ",1" * 16, "16 dimensions"),
        ("x:float64:99999999999,1", "16 GiB"),
    ],
)
def test_wrong_input_says_what_to_write(text, hint):
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    assert hint in caught.value.hint


def test_two_inputs_need_two_names():
    assert [spec.name for spec in parse_inputs(["1,2", "1,3", "a:1"])] == [None, None, "a"]
    with pytest.raises(UsageError, match="two inputs are called 'a'"):
        parse_inputs(["a:1,2", "a:1,3"])


def test_factory_halves():
    assert split_factory("a.b:make") == ("a.b", "make")
    assert split_factory("a:Models.tiny") == ("a", "Models.tiny")
    assert default_output("pkg.zoo:resnet18") == "resnet18.onnx"
    assert default_output("a:Models.tiny") == "tiny.onnx"


@pytest.mark.parametrize(
    "factory", ["", "a", "a:", ":b", "a:b:c", "a b:c", "a:b()", "-x:y", "a..b:c"]
)
def test_malformed_factory_shows_the_right_form(factory):
    with pytest.raises(UsageError) as caught:
        split_factory(factory)
    assert "package.module:callable" in caught.value.hint


def test_a_path_is_turned_into_a_module_name():
    with pytest.raises(UsageError) as caught:
        split_factory("models/vision.py:tiny")
    assert "`models.vision:tiny`" in caught.value.hint


def options(tmp_path, **changes):
    defaults = {"factory": "a:b", "inputs": ("1",), "output": str(tmp_path / "out.onnx")}
    return ExportOptions(**defaults | changes)


def test_unknown_exporter_has_a_suggestion(tmp_path):
    with pytest.raises(UsageError) as caught:
        export(options(tmp_path, exporter="dinamo"))
    assert "did you mean 'dynamo'?" in caught.value.hint


@pytest.mark.parametrize("output", ["", ".", "missing/out.onnx"])
def test_impossible_output(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="folder"):
        export(options(tmp_path, output=output))


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingToolError) as caught:
        export(options(tmp_path))
    assert caught.value.hint == "pip install 'mlc-compiler[torch]'"
    assert list(tmp_path.iterdir()) == []


def test_command_line_agrees_with_the_library():
    from mlc.cli import export as cli

    command = cli.export
    assert cli.EXPORTERS == EXPORTERS
    defaults = {field.name: field.default for field in dataclasses.fields(ExportOptions)}
    by_name = {parameter.name: parameter for parameter in command.params}
    for name in ("exporter", "opset", "seed"):
        assert by_name[name].default in (defaults[name], None)
    assert by_name["exporter"].default == defaults["exporter"]
