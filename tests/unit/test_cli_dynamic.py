"""`--dynamic [DIM]` before and behind MODEL, and what mlc.toml adds to it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mlc.cli.bisect import bisect
from mlc.cli.check import check
from mlc.cli.compile import compile, with_project
from mlc.cli.options import TakesDynamic, dynamic


@click.command(cls=TakesDynamic)
@click.argument("model", required=False)
@click.option("-o", "--output")
@dynamic("Keep dimensions open.")
def verb(**asked: Any) -> None:
    click.echo(repr((asked["model"], asked["dynamic"])))


@pytest.mark.parametrize(
    ("line", "model", "names"),
    [
        ("m.onnx", "m.onnx", ()),
        ("m.onnx --dynamic", "m.onnx", ("*",)),
        ("--dynamic m.onnx", "m.onnx", ("*",)),
        ("--dynamic models/M.ONNX -o x", "models/M.ONNX", ("*",)),
        ("--dynamic -o x m.onnx", "m.onnx", ("*",)),
        ("--dynamic -- m.onnx", "m.onnx", ("*",)),
        ("--dynamic batch m.onnx", "m.onnx", ("batch",)),
        ("--dynamic batch,seq m.onnx", "m.onnx", ("batch", "seq")),
        ("--dynamic batch --dynamic seq m.onnx", "m.onnx", ("batch", "seq")),
        ("--dynamic=batch m.onnx", "m.onnx", ("batch",)),
        ("m.onnx --dynamic batch", "m.onnx", ("batch",)),
        ("--dynamic=odd.onnx m.onnx", "m.onnx", ("odd.onnx",)),
        ("--dynamic", None, ("*",)),
        ("--dynamic batch", None, ("batch",)),
        ("--dynamic=", None, ("",)),  # an error of the model's: it has no such dimension
    ],
)
def test_which_word_is_the_model(line: str, model: str | None, names: tuple[str, ...]) -> None:
    done = CliRunner().invoke(verb, shlex.split(line))
    assert done.output == f"{(model, names)!r}\n"


def helped(command: click.Command) -> str:
    return " ".join(CliRunner().invoke(command, ["--help"]).output.split())


def test_the_rule_is_in_the_help() -> None:
    for command in (compile, check, bisect):
        assert "--dynamic [DIM[,DIM]]" in helped(command)
    assert "A next word that ends in .onnx is MODEL" in helped(compile)


def test_the_projects_dimensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mlc.toml").write_text('[model]\npath = "m.onnx"\ndynamic = ["batch", "seq"]\n')
    nothing = {"model": None, "target": None, "logs": None, "shapes": (), "dynamic": ()}
    assert with_project(nothing)["dynamic"] == ("batch", "seq")
    assert with_project({**nothing, "dynamic": ("seq",)})["dynamic"] == ("seq",)
    assert with_project({**nothing, "shapes": ("batch=4",)})["dynamic"] == ()
    assert with_project({**nothing, "model": "other.onnx"})["dynamic"] == ()
