"""The one error tree.

Every failure that a user can cause or meet is an `MlcError`: a message (what happened and why), an
optional hint (the next command or edit to try) and an exit code that belongs to the class::

    MlcError                  1  unexpected
    |-- UsageError            2  a wrong option, name or combination
    |-- ModelError            3  the model cannot be read or used
    |   `-- UnsupportedError  3  it uses operators without a conversion
    |-- TargetError           4  unknown or impossible target
    |-- BuildError            5  a pass or the code generator failed
    |-- TuningError           6  tuning failed
    |-- ArtifactError         7  the artifact is damaged or does not fit this machine
    |-- RunError              7  wrong inputs, or the run itself failed
    |-- MissingToolError      8  a compiler, linker or package is not installed
    |-- GateError             9  a check that guards a result said no
    |   `-- MismatchError     9  outputs differ from the reference
    `-- Interrupted         130  the user pressed Ctrl-C

`cli/` turns them into text and exit codes in one place; the library only raises them.
"""

from __future__ import annotations

import difflib
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class MlcError(Exception):
    """Something went wrong that has a name; `message` and `hint` are plain, printable text."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None, *, detail: str | None = None):
        self.message = printable(message)
        self.hint = printable(hint) if hint else None
        self.detail = detail
        super().__init__(self.message)


class UsageError(MlcError):
    """A wrong option, name or combination of options."""

    exit_code = 2


class ModelError(MlcError):
    """The model cannot be read, is not valid, or cannot be given fixed shapes."""

    exit_code = 3


class UnsupportedError(ModelError):
    """The model uses operators that mlc cannot convert."""


class TargetError(MlcError):
    """The target is unknown, or does not fit what was asked."""

    exit_code = 4


class BuildError(MlcError):
    """A pass or the code generator failed, or crashed."""

    exit_code = 5


class TuningError(MlcError):
    """Tuning failed."""

    exit_code = 6


class ArtifactError(MlcError):
    """The artifact is damaged, of another format, or for another machine."""

    exit_code = 7


class RunError(MlcError):
    """The inputs do not fit the model, or running it failed."""

    exit_code = 7


class MissingToolError(MlcError):
    """A compiler, linker or Python package that this step needs is not installed."""

    exit_code = 8


class GateError(MlcError):
    """A check that guards a result said no (coverage, regression)."""

    exit_code = 9


class MismatchError(GateError):
    """Outputs differ from the reference by more than the tolerance."""


class Interrupted(MlcError):  # noqa: N818 - it is not an error of anybody's making
    """The user pressed Ctrl-C; nothing half-written stays behind."""

    exit_code = 130


def error_class(name: str) -> type[MlcError]:
    """Return the class of the tree with this name (`MlcError` when there is none)."""
    pending: list[type[MlcError]] = [MlcError]
    while pending:
        cls = pending.pop()
        if cls.__name__ == name:
            return cls
        pending.extend(cls.__subclasses__())
    return MlcError


def printable(text: str, limit: int = 20_000) -> str:
    """Return `text` safe for a terminal: control and format characters become `\\xNN` escapes.

    Names in a model are untrusted; an escape sequence in one must not reach the terminal.
    """
    out = []
    for char in text[:limit]:
        if char == "\n" or not unicodedata.category(char).startswith("C"):
            out.append(char)
        else:
            code = ord(char)
            out.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
    return "".join(out) + ("..." if len(text) > limit else "")


def one_line(name: str) -> str:
    """Return a model's name for a value, as `printable` does, and without line breaks."""
    return printable(name).replace("\n", "\\n")


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a hint for a wrong `name`: the nearest choice, then all of them."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1)
    listing = ", ".join(known) if known else "(none)"
    return (f"did you mean {near[0]!r}? " if near else "") + f"choices: {listing}"
