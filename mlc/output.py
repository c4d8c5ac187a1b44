"""Where an artifact may be written: looked at before the long work starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlc.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def check(output: Path, model: Path) -> None:
    """Raise UsageError where the artifact of a model cannot be written, or not over something."""
    folder = output.resolve().parent
    if output.exists() and not output.is_file():
        raise UsageError(f"cannot write {output}: it is no plain file", "give a file with `-o`")
    if not folder.is_dir():
        raise UsageError(f"cannot write {output}: no such folder", "give a file with `-o`")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {output}: permission denied", "choose a place with `-o`")
    if output.resolve() == model.resolve():
        raise UsageError("the artifact would overwrite the model", "choose a name with `-o`")
