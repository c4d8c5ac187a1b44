"""The import from end to end: a file that was read -> a flat file of known shapes -> `Model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc.events import OnEvent, timed
from mlc.frontend import control, expand, precision, qdq, sequences, shapes, simplify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.frontend.onnx_file import OnnxFile
    from mlc.model import Model


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A file as it is converted, and what its outputs' precision is: see `precision.precisions`.

    `is_open` says that some dimensions have names in the place of sizes.
    """

    file: OnnxFile
    precision: dict[str, str]
    is_open: bool


def imported(
    file: OnnxFile, options: Sequence[str], on_event: OnEvent, dynamic: tuple[str, ...] = ()
) -> Imported:
    """Return the file with shapes fixed but for `dynamic`, functions written out, folded, flat.

    `options` are those of `--shape`.

    Raises:
        UsageError, ModelError: see the stages.
    """
    fixed = shapes.fix(file, shapes.parse(options), on_event, dynamic)
    expanded = timed("expand", on_event, lambda: expand.expand(fixed))
    simplified = timed("simplify", on_event, lambda: simplify.simplify(expanded, on_event))
    return Imported(
        file=qdq.to_integers(sequences.resolve(control.flatten(simplified))),
        precision=precision.precisions(expanded),
        is_open=bool(dynamic),
    )


def converted(found: Imported, on_event: OnEvent) -> Model:
    """Return the `Model` of an imported file.

    Raises:
        UnsupportedError, ModelError: see `convert.convert` and `open_convert.convert`.
    """
    from mlc.frontend import convert, open_convert

    if found.is_open:
        return timed("convert", on_event, lambda: open_convert.convert(found.file, on_event))
    return timed("convert", on_event, lambda: convert.convert(found.file))


def load(file: OnnxFile, options: Sequence[str], on_event: OnEvent) -> Model:
    """Return the `Model` of a file that was read, its shapes fixed; see `imported`, `converted`."""
    return converted(imported(file, options, on_event), on_event)
