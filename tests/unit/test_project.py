"""mlc.toml, and which model is meant where nothing is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc import project
from mlc.errors import MlcError, UsageError
from mlc.project import Project

GOOD = """
[model]
path = "nets/resnet18.onnx"
shapes = ["batch=1", "x:1,3,224,224"]

[tune]
trials = 500
target = "x86-64-v3"
logs = "records"
"""


def write(folder: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    (folder / project.NAME).write_bytes(data)
    return folder


def refusal(folder: Path, text: str | bytes) -> UsageError:
    with pytest.raises(UsageError) as error:
        project.load(write(folder, text))
    assert project.NAME in error.value.message
    return error.value


def test_everything(tmp_path: Path) -> None:
    assert project.load(write(tmp_path, GOOD)) == Project(
        folder=tmp_path,
        model=tmp_path / "nets" / "resnet18.onnx",
        shapes=("batch=1", "x:1,3,224,224"),
        trials=500,
        target="x86-64-v3",
        logs=tmp_path / "records",
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "[model]\n[tune]\n"])
def test_nothing_is_said(tmp_path: Path, text: str) -> None:
    assert project.load(write(tmp_path, text)) == Project(folder=tmp_path)


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    loaded = project.load(write(tmp_path, '[model]\npath = "/models/a.onnx"'))
    assert loaded.model == Path("/models/a.onnx")


def test_no_trials_is_a_number(tmp_path: Path) -> None:
    assert project.load(write(tmp_path, "[tune]\ntrials = 0")).trials == 0


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[modle]\n", "unknown section [modle]", "did you mean 'model'?"),
        ("[bench]\n", "unknown section [bench]", "choices: build, model, tune"),
        ("trials = 5\n", "unknown section [trials]", "choices: build, model, tune"),
        ("model = 5\n", "[model]", ""),
        ("[[tune]]\ntrials = 5\n", "[tune]", ""),
        ("[tune]\ntrails = 5\n", "unknown entry 'trails' in [tune]", "did you mean 'trials'?"),
        (
            "[model]\ntrials = 5\n",
            "unknown entry 'trials' in [model]",
            "choices: dynamic, path, shapes",
        ),
        ("[tune]\ntrials = '500'\n", "'trials' in [tune] must be a number", ""),
        ("[tune]\ntrials = 1.5\n", "'trials' in [tune] must be a number", ""),
        ("[tune]\ntrials = true\n", "'trials' in [tune] must be a number", ""),
        ("[tune]\ntarget = 3\n", "'target' in [tune] must be a string", ""),
        ("[tune]\nlogs = ['a']\n", "'logs' in [tune] must be a string", ""),
        ("[model]\npath = 1979-05-27\n", "'path' in [model] must be a string", ""),
        ("[model]\nshapes = 'batch=1'\n", "'shapes' in [model] must be a list of strings", ""),
        ("[model]\nshapes = [1, 3]\n", "'shapes' in [model] must be a list of strings", ""),
        ("[model]\nshapes = {batch = 1}\n", "must be a list of strings", ""),
        ("[model]\ndynamic = 1\n", "'dynamic' in [model] must be true, false, the name of", ""),
        ("[model]\ndynamic = []\n", "a dimension or a list of names", ""),
        ("[model]\ndynamic = ''\n", "a dimension or a list of names", ""),
        ("[model]\ndynamic = ['batch', 3]\n", "a dimension or a list of names", ""),
        ("[model]\ndinamic = true\n", "'dinamic' in [model]", "did you mean 'dynamic'?"),
        ("[[build.model]]\ndynamic = 1\n", "'dynamic' in [[build.model]] must be true", ""),
    ],
)
def test_wrong_entries(tmp_path: Path, text: str, message: str, hint: str) -> None:
    error = refusal(tmp_path, text)
    assert message in error.message
    assert hint in (error.hint or "")


@pytest.mark.parametrize(
    "text", ["[tune", "trials: 5", "\x00", b"[tune]\ntarget = '\xff'\n", "[tune]\n[tune]\n"]
)
def test_not_toml(tmp_path: Path, text: str | bytes) -> None:
    assert "cannot read" in refusal(tmp_path, text).message


def test_too_large(tmp_path: Path) -> None:
    assert "larger than 1 MiB" in refusal(tmp_path, "#" * ((1 << 20) + 1)).message


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / project.NAME).mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        project.load(tmp_path)


@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        project.load(write(folder, data))
    except MlcError as error:
        assert isinstance(error, UsageError)  # noqa: PT017 - whether it raises depends on the data


# -- open dimensions --


@pytest.mark.parametrize(
    ("said", "names"),
    [("true", ("*",)), ("false", ()), ("'batch'", ("batch",)), ("['b', 's']", ("b", "s"))],
)
def test_dimensions_that_stay_open(tmp_path: Path, said: str, names: tuple[str, ...]) -> None:
    assert project.load(write(tmp_path, f"[model]\ndynamic = {said}\n")).dynamic == names


def test_the_command_line_decides_about_sizes(tmp_path: Path) -> None:
    here = project.load(write(tmp_path, "[model]\nshapes = ['s=8']\ndynamic = 'b'\n"))

    def sizes(*, shapes: tuple[str, ...] = (), dynamic: tuple[str, ...] = ()) -> object:
        return project.sizes_of(here, shapes, dynamic)

    assert sizes() == {"shapes": ("s=8",), "dynamic": ("b",)}
    assert sizes(dynamic=("*",)) == {"shapes": ("s=8",), "dynamic": ("*",)}
    assert sizes(shapes=("b=1",)) == {"shapes": ("b=1",), "dynamic": ()}
    assert sizes(shapes=("b=1",), dynamic=("s",)) == {"shapes": ("b=1",), "dynamic": ("s",)}


# -- which model --


def test_the_only_model_is_meant(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    (tmp_path / "net.onnx.data").touch()
    assert project.require_model(project.load(tmp_path)) == tmp_path / "net.onnx"


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no \.onnx file") as error:
        project.require_model(project.load(tmp_path))
    assert project.NAME in str(error.value.hint)


def test_several_models_are_listed(tmp_path: Path) -> None:
    for name in ("b.onnx", "a.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"which model\? the folder has a\.onnx, b\.onnx"):
        project.require_model(project.load(tmp_path))


def test_a_project_file_chooses_among_several(tmp_path: Path) -> None:
    for name in ("b.onnx", "a.onnx"):
        (tmp_path / name).touch()
    write(tmp_path, '[model]\npath = "b.onnx"')
    assert project.require_model(project.load(tmp_path)) == tmp_path / "b.onnx"


def test_a_project_file_without_a_model(tmp_path: Path) -> None:
    """Then the only .onnx file is meant, as without one."""
    write(tmp_path, "[tune]\ntrials = 5")
    (tmp_path / "net.onnx").touch()
    assert project.require_model(project.load(tmp_path)) == tmp_path / "net.onnx"
