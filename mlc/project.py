"""`mlc.toml`: what `mlc compile` and `mlc tune` work on when nothing else is said.

    [model]
    path = "resnet18.onnx"
    shapes = ["batch=1"]
    dynamic = true

    [tune]
    trials = 500
    target = "llvm"
    logs = "tuning_logs"

The section [build] is for `mlc build`: see `mlc.matrix.entries`.

`dynamic` keeps dimensions open, as `mlc compile --dynamic`: true for all that `shapes` leaves open,
or a name, or a list of names. Paths are relative to the file. Without one, the only `.onnx` file of the folder is the model.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc import sizes
from mlc.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = "mlc.toml"
LOGS = "tuning_logs"
_MAX_BYTES = 1 << 20
_STRINGS, _TABLES, _NAMES = list[str], list[dict[str, Any]], bool | str | list[str]
_SCHEMA: dict[str, dict[str, Any]] = {
    "model": {"path": str, "shapes": _STRINGS, "dynamic": _NAMES},
    "tune": {"trials": int, "target": str, "logs": str},
    "build": {
        "output": str,
        "targets": _STRINGS,
        "bundle": bool,
        "require_tuned": float,
        "require_verified": bool,
        "max_mb": float,
        "jobs": int,
        "model": _TABLES,
    },
}
_BUILD_MODEL = {
    "path": str,
    "name": str,
    "shapes": _STRINGS,
    "dynamic": _NAMES,
    "targets": _STRINGS,
}
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {  # what an entry must be
    str: ("a string", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: (
        "a number",
        lambda value: (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ),
    ),
    _STRINGS: ("a list of strings", lambda value: _is_list_of(str, value)),
    _NAMES: (
        "true, false, the name of a dimension or a list of names",
        lambda value: isinstance(value, bool) or _is_name(value) or _is_list_of_names(value),
    ),
    _TABLES: ("[[tables]]", lambda value: _is_list_of(dict, value)),
}


@dataclass(frozen=True, kw_only=True)
class Project:
    """What a folder says about its model; None where it says nothing.

    `build` is the section of that name, as it stands there; its types were checked.
    """

    folder: Path
    model: Path | None = None
    shapes: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    trials: int | None = None
    target: str | None = None
    logs: Path | None = None
    build: dict[str, Any] | None = None


def load(folder: Path) -> Project:
    """Return the project of a folder: from its mlc.toml, else from the .onnx files in it.

    Raises:
        UsageError: mlc.toml cannot be read, or has unknown or wrong entries.
    """
    file = folder / NAME
    if not file.exists():
        models = sorted(folder.glob("*.onnx"))
        return Project(folder=folder, model=models[0] if len(models) == 1 else None)
    data = _read(file)
    for section, entries in data.items():
        if section not in _SCHEMA or not isinstance(entries, dict):
            raise UsageError(f"{file}: unknown section [{section}]", did_you_mean(section, _SCHEMA))
        _check_section(file, f"[{section}]", entries, _SCHEMA[section])
    for entries in data.get("build", {}).get("model", []):
        _check_section(file, "[[build.model]]", entries, _BUILD_MODEL)
    model, tune = data.get("model", {}), data.get("tune", {})
    return Project(
        folder=folder,
        model=folder / model["path"] if "path" in model else None,
        shapes=tuple(model.get("shapes", ())),
        dynamic=sizes.open_names(model.get("dynamic", ())),
        trials=tune.get("trials"),
        target=tune.get("target"),
        logs=folder / tune["logs"] if "logs" in tune else None,
        build=data.get("build"),
    )


def require_model(project: Project) -> Path:
    """Return the project's model.

    Raises:
        UsageError: it names none, and the folder has no or several .onnx files (they are listed).
    """
    if project.model is not None:
        return project.model
    models = sorted(path.name for path in project.folder.glob("*.onnx"))
    if len(models) == 1:  # beside an mlc.toml that names none
        return project.folder / models[0]
    if models:
        shown = ", ".join(models[:20])
        raise UsageError(f"which model? the folder has {shown}", f"name one, or write a {NAME}")
    raise UsageError(
        "no model was named, and the folder has no .onnx file",
        f"give its path, or write a {NAME} with `[model]` and `path = ...`",
    )


def sizes_of(
    project: Project, shapes: tuple[str, ...], dynamic: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Return `shapes` and `dynamic` of a verb that takes the project's model.

    What the command line says of sizes takes the place of what the project says: `--shape` of both,
    `--dynamic` of `dynamic` alone.
    """
    return {
        "shapes": shapes or project.shapes,
        "dynamic": dynamic or (() if shapes else project.dynamic),
    }


def _read(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = file.read_bytes()
        if len(data) > _MAX_BYTES:
            raise UsageError(f"{file} is larger than {_MAX_BYTES >> 20} MiB")
        parsed: dict[str, Any] = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from None
    return parsed


def _check_section(
    file: Path, section: str, entries: dict[str, Any], schema: dict[str, Any]
) -> None:
    for key, value in entries.items():
        if key not in schema:
            raise UsageError(
                f"{file}: unknown entry {key!r} in {section}", did_you_mean(key, schema)
            )
        name, is_one = _KINDS[schema[key]]
        if not is_one(value):
            raise UsageError(f"{file}: {key!r} in {section} must be {name}")


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_name, value))
