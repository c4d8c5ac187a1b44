"""What of a matrix is up to date, by content, and what is to be built and why."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import isolate
from mlc.errors import MlcError
from mlc.events import Notice
from mlc.options import CompileOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlc.events import OnEvent
    from mlc.matrix.entries import Entry, Matrix

_CHUNK = 1 << 20
_PARTS = {  # of a stamp, in the order in which a change is told
    "model": "the model changed",
    "targets": "the target is another here",
    "records": "the tuning records changed",
    "mlc": "mlc, TVM or LLVM changed",
    "key": "the options changed",
}


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What decides an artifact: `key` is a digest over all of it, the rest says what changed.

    `model_bytes` is the model's size, external data included.
    """

    key: str
    model: str
    targets: str
    records: str
    mlc: str
    model_bytes: int


@dataclass(frozen=True, kw_only=True)
class Planned:
    """An entry, and why it is to be built; "" where the artifact is up to date.

    `stamp` is None where it cannot be told, for example since there is no such model.
    """

    entry: Entry
    output: Path
    stamp: Stamp | None
    why: str


@dataclass(frozen=True, kw_only=True)
class _Question:
    """The compiles of each entry, one for each target."""

    compiles: tuple[tuple[CompileOptions, ...], ...]


def plan(
    matrix: Matrix, previous: Mapping[str, Mapping[str, Any]], on_event: OnEvent
) -> list[Planned]:
    """Return what is to be built, in the matrix's order.

    `previous` has what the last report says about each entry, by name. An artifact is up to date if
    it was built from the same stamp, and if its bytes are still those that were built.
    """
    stamps = _stamps(matrix, on_event)
    planned = []
    for entry, stamp in zip(matrix.entries, stamps, strict=True):
        output = matrix.output / f"{entry.name}.mlc"
        why = _why(output, stamp, previous.get(entry.name, {}))
        planned.append(Planned(entry=entry, output=output, stamp=stamp, why=why))
    return planned


def compile_options(matrix: Matrix, entry: Entry, **changes: Any) -> CompileOptions:
    """Return what an entry's compile is asked to do, for the first of its targets."""
    return CompileOptions(
        model=str(entry.model),
        target=entry.targets[0],
        shapes=entry.shapes,
        dynamic=entry.dynamic,
        logs=str(matrix.logs) if matrix.logs else None,
        require_tuned=matrix.gates.require_tuned,
        **changes,
    )


def file_sha256(path: Path) -> str:
    """Return the digest of a file; "" where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()


def _why(output: Path, stamp: Stamp | None, before: Mapping[str, Any]) -> str:
    """Return why an artifact is to be built; what the last report says may be anything."""
    old = before.get("stamp")
    if stamp is None or not isinstance(old, dict):
        failed = before.get("state") in ("failed", "gate failed")
        return "the last build of it failed" if failed else "not built yet"
    if old.get("key") != stamp.key:
        changed = (said for part, said in _PARTS.items() if old.get(part) != getattr(stamp, part))
        return next(changed)
    if not output.is_file():
        return "the artifact is gone"
    return "" if file_sha256(output) == before.get("sha256") else "the artifact was altered"


def _stamps(matrix: Matrix, on_event: OnEvent) -> list[Stamp | None]:
    """Return the stamp of each entry; models are read in a process of their own."""
    compiles = tuple(
        tuple(replace(compile_options(matrix, entry), target=target) for target in entry.targets)
        for entry in matrix.entries
    )
    try:
        answers = isolate.call("mlc.matrix.plan:answer", _Question(compiles=compiles), on_event)
    except MlcError as error:
        text = f"cannot tell what is up to date ({error.message}): everything is built"
        on_event(Notice(text=text, level="warning"))
        return [None] * len(compiles)
    return [Stamp(**answer) if answer else None for answer in answers]


def answer(fields: dict[str, Any], on_event: OnEvent) -> list[dict[str, Any] | None]:
    """Return the fields of each entry's `Stamp` (see `_Question`): what `isolate.call` calls."""
    from mlc import driver

    del on_event
    models: dict[str, tuple[str, int] | None] = {}
    found = []
    for compiles in fields["compiles"]:
        options = [driver.from_fields(one) for one in compiles]
        path = options[0].model
        if path not in models:
            models[path] = _model(Path(path))
        found.append(_stamp(options, models[path]))
    return found


def _model(path: Path) -> tuple[str, int] | None:
    from mlc.frontend import onnx_file

    try:
        file = onnx_file.read(path)
    except MlcError:  # its own compile will say what is wrong
        return None
    return file.sha256, file.size


def _stamp(
    options: Sequence[CompileOptions], model: tuple[str, int] | None
) -> dict[str, Any] | None:
    from mlc import driver, target, tvm_env
    from mlc.cache import key_of, source_digest

    if model is None:
        return None
    sha256, size = model
    try:
        targets = [target.resolve(one.target) for one in options]
        keys = [
            driver.artifact_key(one, chosen, sha256)
            for one, chosen in zip(options, targets, strict=True)
        ]
        records = key_of(driver.records_state(options[0]))
    except MlcError:
        return None
    return {
        "key": key_of(keys),
        "model": sha256,
        "targets": " ".join(chosen.tvm for chosen in targets),
        "records": records,
        "mlc": key_of(source_digest(), tvm_env.versions()),
        "model_bytes": size,
    }
