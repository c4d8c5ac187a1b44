"""The report of a tuning run as files: one HTML page that needs nothing else, and its curve as PNG.

Made from what `mlc.tune.run.tune_model` returns; drawing needs the extra `report` (matplotlib).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.errors import MissingToolError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlc.options import TuneOptions


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a report goes: the HTML page and the PNG beside it."""

    page: Path
    picture: Path


def place_for(text: str, model: Path) -> Place:
    """Return where `--report DIR|FILE.html` puts the report of a model; the folder is made.

    Called before the long work: what would stop the writing is said now.

    Raises:
        MissingToolError: matplotlib is not installed.
        UsageError: the place cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingToolError(
            "--report draws with the package matplotlib, which is not installed",
            "pip install 'mlc-compiler[report]'",
        )
    page = Path(text)
    if page.suffix.lower() not in (".html", ".htm"):
        page /= f"{model.stem or 'model'}-tuning.html"
    place = Place(page=page, picture=page.with_suffix(".png"))
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(page, error.strerror) from None
    if page.is_dir() or place.picture.is_dir():
        raise _unwritable(page, "it is a folder")
    if not os.access(page.parent, os.W_OK):
        raise _unwritable(page, "permission denied")
    return place


def write(found: Mapping[str, Any], options: TuneOptions, place: Place) -> None:
    """Write the report of a run, each file whole or not at all.

    Args:
        found: what `tune_model` returned.
        options: what it was asked.
        place: from `place_for`.

    Raises:
        UsageError: a file cannot be written.
        TargetError: the target is unknown.
    """
    from mlc.report import curve, page

    drawing = curve.draw(found["curve"], [task["id"] for task in found["tasks"]])
    _write(place.picture, drawing.png)
    _write(place.page, page.render(found, options, drawing.svg).encode())


def _write(path: Path, content: bytes) -> None:
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with contextlib.ExitStack() as stack:
            stack.callback(Path(name).unlink, missing_ok=True)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(name).chmod(0o644)
            Path(name).replace(path)
    except OSError as error:
        raise _unwritable(path, error.strerror) from None


def _unwritable(path: Path, why: str | None) -> UsageError:
    return UsageError(f"cannot write the report {path}: {why}", "choose another place: --report")
