"""`mlc check MODEL`, inside the isolated process: what would happen if the model were compiled.

The import of `mlc compile` up to the point where TVM would be needed: read, fix shapes, write
functions out, fold constants, unroll control flow; then look at what is left. It says no more than
names, types and shapes tell: a converter may still refuse an attribute, a pass or LLVM may fail.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.errors import ModelError, UsageError
from mlc.events import Notice, OnEvent, ignore
from mlc.frontend import control, expand, onnx_file, sequences, shapes, simplify
from mlc.frontend.support import support, unsupported
from mlc.inspection.estimate import estimate
from mlc.inspection.facts import facts
from mlc.inspection.open_static import open_dims
from mlc.inspection.static import Problem, not_static
from mlc.options import CheckOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlc.frontend.onnx_file import OnnxFile

_LISTS = ("unsupported", "problems", "open_shapes", "chosen")


def check_model(fields: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Check as `CheckOptions(**fields)` says; return JSON data.

    What `facts` returns of the file, `path`, and: `compiles` (no problem was found), `problems`
    (see `static.Problem`), `support` (see `support.Support`), `open_shapes` (values of `--shape`
    that are missing), `chosen` (what was decided on the user's behalf), `estimate` (see
    `estimate.Estimate`; with sizes from `open_shapes` where there are some, null where the import
    does not get that far). `unsupported` holds what is left after the import, not what the file has.

    Where `--shape` lists sizes, each combination is checked: `buckets` has for each its sizes
    (`dims`), `compiles` and `estimate`; `problems`, `open_shapes` and `chosen` are those of all,
    `estimate` is the first one's.

    `dynamic` has for each dimension that was asked to stay open whether it can (`open_static.OpenDim`);
    `estimate` is null then.

    Runs in a process of its own (see `isolate`).

    Raises:
        ModelError: the file cannot be read.
        UsageError: a `--shape` or `--dynamic` option is wrong.
    """
    lists = {name: tuple(fields.get(name, ())) for name in ("shapes", "dynamic")}
    options = CheckOptions(**{**fields, **lists})
    wanted = shapes.combinations(options.shapes)
    shapes.check_open(wanted, options.dynamic)
    file = onnx_file.read(Path(options.path))
    found = [_check(file, shapes.parse(one.options), options.dynamic, on_event) for one in wanted]
    answer = {
        **facts(file),
        "path": options.path,
        "support": list(map(asdict, support(file.proto))),
        **found[0],
    }
    if len(wanted) == 1:
        return answer
    buckets = [
        {"dims": one.dims, "compiles": entry["compiles"], "estimate": entry["estimate"]}
        for one, entry in zip(wanted, found, strict=True)
    ]
    joined = {name: _distinct(entry[name] for entry in found) for name in _LISTS}
    return {**answer, **joined, "compiles": not joined["problems"], "buckets": buckets}


def _distinct(lists: Iterable[list[Any]]) -> list[Any]:
    """Return what occurs in any of the lists, once."""
    found: list[Any] = []
    for entry in itertools.chain.from_iterable(lists):
        if entry not in found:
            found.append(entry)
    return found


def _check(
    file: OnnxFile, request: shapes.ShapeRequest, dynamic: tuple[str, ...], on_event: OnEvent
) -> dict[str, Any]:
    """Return the part of the answer that depends on the shapes."""
    problems: list[Problem] = []
    chosen: list[str] = []

    def listen(event: Any) -> None:
        on_event(event)
        if isinstance(event, Notice):
            chosen.append(event.text)

    file, kept = shapes.opened(file, request, dynamic)
    fixed, missing = _fixed(file, request, kept, problems, listen)
    flat = _imported(fixed, problems, listen)
    left = unsupported(flat.proto)
    problems += [
        Problem(kind="operator", message=str(entry).partition(" - ")[0], hint=entry.advice)
        for entry in left
        if not control.is_control(entry.domain, entry.operator)
    ]
    dims, refused = open_dims(flat) if kept else ([], not_static(flat))
    problems += refused
    return {
        "unsupported": [asdict(entry) for entry in left],
        "compiles": not problems,
        "problems": [asdict(problem) for problem in problems],
        "open_shapes": list(missing),
        "chosen": chosen,
        "dynamic": list(map(asdict, dims)),
        "estimate": asdict(estimate(flat)) if flat is not file and not kept else None,
    }


def _fixed(
    file: OnnxFile,
    request: shapes.ShapeRequest,
    kept: tuple[str, ...],
    problems: list[Problem],
    on_event: OnEvent,
) -> tuple[OnnxFile, tuple[str, ...]]:
    """Return the file with fixed shapes, guesses where the user must choose, and these guesses."""
    try:
        fixed, missing = shapes.fix_known(file, request, on_event, kept)
    except ModelError as error:
        problems.append(Problem(kind="shape", message=error.message, hint=error.hint))
        return file, ()
    if not missing:
        return fixed, ()
    problems.append(
        Problem(
            kind="shape",
            message="the model leaves sizes open that cannot be guessed",
            hint="say what they are, for example: " + " ".join(map(shapes.option, missing)),
        )
    )
    guess = shapes.parse(missing)
    merged = replace(request, inputs=request.inputs | guess.inputs, dims=request.dims | guess.dims)
    return shapes.fix_known(file, merged, ignore, kept)[0], missing


def _imported(file: OnnxFile, problems: list[Problem], on_event: OnEvent) -> OnnxFile:
    """Return the graph that would be converted; the file as far as the import gets."""
    try:
        expanded = expand.expand(file)
        simplified = simplify.simplify(expanded, on_event)
    except (ModelError, UsageError) as error:
        problems.append(Problem(kind="operator", message=error.message, hint=error.hint))
        return file
    try:
        flat = control.flatten(simplified)
    except ModelError as error:
        problems.append(Problem(kind="control flow", message=error.message, hint=error.hint))
        return simplified
    try:
        return sequences.resolve(flat)
    except ModelError as error:
        problems.append(Problem(kind="operator", message=error.message, hint=error.hint))
        return flat
