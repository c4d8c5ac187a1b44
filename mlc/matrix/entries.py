"""The artifacts that the [build] section of mlc.toml asks for.

    [build]
    output = "dist"
    targets = ["llvm", "rpi4", "cuda:sm_80"]

    [[build.model]]
    path = "a.onnx"
    shapes = ["batch=1"]

    [[build.model]]
    path = "b.onnx"
    targets = ["llvm"]

That is `dist/a-llvm.mlc`, `dist/a-rpi4.mlc`, `dist/a-cuda-sm_80.mlc`, `dist/b-llvm.mlc`; with `bundle =
true` one artifact for all targets of a model, `dist/a.mlc` and `dist/b.mlc`. Without any
[[build.model]] the project's model is meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mlc import project
from mlc.errors import UsageError
from mlc.sizes import open_names

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTPUT, TARGETS = "dist", ("llvm",)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_MAX_ENTRIES = 10_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One artifact to be made: `name.mlc` of a model, for one target or for several."""

    name: str
    model: Path
    targets: tuple[str, ...]
    shapes: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What every artifact must keep, or the build fails: see `mlc.matrix.gates`."""

    require_tuned: float | None = None
    require_verified: bool = False
    max_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What is built: the entries, in the file's order, the folder they go to, the gates."""

    output: Path
    entries: tuple[Entry, ...]
    gates: Gates = Gates()
    jobs: int | None = None
    logs: Path | None = None


def read(folder: Path, output: str | None = None) -> Matrix:
    """Return the matrix of a folder's mlc.toml; `output` (of the command line) takes precedence.

    Raises:
        UsageError: there is no [build], or something in it cannot be.
    """
    here = project.load(folder)
    if here.build is None:
        raise UsageError(
            f"{folder / project.NAME} has no [build] section",
            'write one: `[build]`, `targets = ["llvm"]`, then for each model `[[build.model]]`, '
            '`path = "model.onnx"`',
        )
    asked = here.build
    gates = Gates(**{key: asked[key] for key in Gates.__dataclass_fields__ if key in asked})
    _check_gates(gates)
    jobs = asked.get("jobs")
    if jobs is not None and jobs < 1:
        raise _wrong("jobs must be at least 1")
    entries = tuple(_entries(here, asked))
    _check_names(entries)
    place = Path(output) if output is not None else _inside(folder, asked.get("output", OUTPUT))
    logs = here.logs if here.logs and here.logs.is_dir() else None
    return Matrix(output=place, entries=entries, gates=gates, jobs=jobs, logs=logs)


def _entries(here: project.Project, asked: dict[str, Any]) -> Iterator[Entry]:
    models = asked.get("model")
    if not models:
        path = project.require_model(here).relative_to(here.folder)
        models = [{"path": str(path), "shapes": here.shapes, "dynamic": here.dynamic}]
    for model in models:
        if "path" not in model:
            raise _wrong("a [[build.model]] has no path")
        path = here.folder / model["path"]
        targets = tuple(model.get("targets", asked.get("targets", TARGETS)))
        if not targets:
            raise _wrong(f"no targets for {model['path']}", 'write `targets = ["llvm"]`')
        whole = Entry(
            name=_name(model, path),
            model=path,
            targets=targets,
            shapes=tuple(model.get("shapes", ())),
            dynamic=open_names(model.get("dynamic", ())),
        )
        if asked.get("bundle"):
            yield whole
            continue
        for target in targets:
            yield replace(whole, name=f"{whole.name}-{_slug(target)}", targets=(target,))


def _name(model: dict[str, Any], path: Path) -> str:
    name = str(model.get("name", _slug(path.stem)))
    if not _NAME.fullmatch(name):
        raise _wrong(
            f"{name!r} cannot be the name of an artifact",
            'give the [[build.model]] another: `name = "..."` of letters, digits, `.`, `_`, `-`',
        )
    return name


def _slug(text: str) -> str:
    """Return a name without what is awkward in file names: `cuda:sm_80` as `cuda-sm_80`."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")[:80]


def _check_names(entries: tuple[Entry, ...]) -> None:
    if len(entries) > _MAX_ENTRIES:
        raise _wrong(f"[build] asks for {len(entries)} artifacts, more than {_MAX_ENTRIES}")
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.name.lower(), entry)  # some file systems ignore case
        if other is not entry:
            both = " and ".join(
                f"{one.model.name} for {', '.join(one.targets)}" for one in (other, entry)
            )
            raise _wrong(
                f"{both} would both be {entry.name}.mlc",
                'give one [[build.model]] a name of its own: `name = "..."`',
            )


def _check_gates(gates: Gates) -> None:
    if gates.require_tuned is not None and not 0 <= gates.require_tuned <= 1:
        raise _wrong("require_tuned is a share, from 0 to 1")
    if gates.max_mb is not None and not gates.max_mb > 0:
        raise _wrong("max_mb must be a size in MB above 0")


def _inside(folder: Path, output: str) -> Path:
    """Return the output folder, which a file from somebody else must not put just anywhere."""
    place = folder / output
    if PurePath(output).is_absolute() or not place.resolve().is_relative_to(folder.resolve()):
        raise _wrong(
            f"output = {output!r} lies outside the folder of {project.NAME}",
            "name a folder below it, or say so yourself: `mlc build -o DIR`",
        )
    return place


def _wrong(message: str, hint: str | None = None) -> UsageError:
    return UsageError(f"{project.NAME}: {message}", hint)
