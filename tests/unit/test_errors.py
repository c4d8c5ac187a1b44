"""The error tree, and text that is safe to print."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc import errors
from mlc.errors import MlcError, did_you_mean, error_class, one_line, printable
from mlc.model import TensorSpec

TREE = re.compile(r"^    ([| `-]*)(\w+) +(\d+)  \S", re.MULTILINE)


def drawn_tree() -> dict[str, tuple[str | None, int]]:
    """Return {class: (parent, exit code)} as the module's docstring draws them."""
    found: dict[str, tuple[str | None, int]] = {}
    above: list[str] = []
    for branch, name, code in TREE.findall(errors.__doc__ or ""):
        depth = len(branch) // 4
        del above[depth:]
        found[name] = (above[-1] if above else None, int(code))
        above.append(name)
    return found


def all_classes(root: type[MlcError] = MlcError) -> list[type[MlcError]]:
    return [root, *(cls for child in root.__subclasses__() for cls in all_classes(child))]


def test_the_drawn_tree_is_the_tree() -> None:
    real = {
        cls.__name__: (None if cls is MlcError else cls.__base__.__name__, cls.exit_code)  # type: ignore[union-attr]
        for cls in all_classes()
        if cls.__module__ == "mlc.errors"
    }
    assert drawn_tree() == real
    assert len(real) == 13


@pytest.mark.parametrize(
    ("name", "code"),
    [("UsageError", 2), ("ModelError", 3), ("UnsupportedError", 3), ("TargetError", 4),
     ("BuildError", 5), ("TuningError", 6), ("ArtifactError", 7), ("RunError", 7),
     ("MissingToolError", 8), ("GateError", 9), ("MismatchError", 9), ("Interrupted", 130),
     ("MlcError", 1)],
)  # fmt: skip
def test_exit_codes_are_the_documented_ones(name: str, code: int) -> None:
    assert getattr(errors, name)("why").exit_code == code


def test_a_class_is_found_by_its_name() -> None:
    assert {error_class(cls.__name__) for cls in all_classes()} == set(all_classes())
    assert error_class("MismatchError") is errors.MismatchError
    assert error_class("KeyError") is MlcError
    assert error_class("") is MlcError


def test_an_error_holds_printable_text_and_raw_detail() -> None:
    error = errors.ModelError("bad \x1b[31mname", "rename \x07it", detail="raw \x1b")
    assert error.message == str(error) == r"bad \x1b[31mname"
    assert error.hint == r"rename \x07it"
    assert error.detail == "raw \x1b"
    assert errors.ModelError("why").hint is None
    assert errors.ModelError("why", "").hint is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H"),
        ("\x9b31m", r"\x9b31m"),  # the one-byte form of ESC [
        ("a\rb", r"a\x0db"),
        ("a\tb\0c\x7f", r"a\x09b\x00c\x7f"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),  # right-to-left override
        ("\u2066\u2067\u2068\u2069\u200f", r"\u2066\u2067\u2068\u2069\u200f"),
        ("pay\u200bpal\ufeff", r"pay\u200bpal\ufeff"),  # zero width
        ("\ud800", r"\ud800"),  # a lone surrogate cannot be encoded
        ("\ue000", r"\ue000"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["", "two\nlines\n", "größe 层 слой", "naïve 🙂", r"C:\x1b"])
def test_plain_text_passes(text: str) -> None:
    assert printable(text) == text


def test_long_text_is_cut() -> None:
    assert printable("a" * 20_001) == "a" * 20_000 + "..."
    assert printable("a" * 20_000) == "a" * 20_000
    assert printable("abcdef", limit=3) == "abc..."


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(st.characters()))
def test_no_text_reaches_a_terminal_unprintable(text: str) -> None:
    shown = printable(text)
    assert all(c == "\n" or not unicodedata.category(c).startswith("C") for c in shown)
    shown.encode()
    assert printable(shown) == shown


def test_the_nearest_choice_comes_first() -> None:
    assert did_you_mean("skylke", {"znver4", "skylake", "haswell"}) == (
        "did you mean 'skylake'? choices: haswell, skylake, znver4"
    )


def test_a_far_name_gets_the_choices_only() -> None:
    assert did_you_mean("qqqq", ["b", "a"]) == "choices: a, b"
    assert did_you_mean("x", []) == "choices: (none)"
    assert did_you_mean("x", iter({"y": 1})) == "choices: y"


def test_a_name_fakes_no_further_line() -> None:
    """A hostile model could write a line that looks like the program's own."""
    name = "y\nverified: yes\x1b[2K"
    assert one_line(name) == r"y\nverified: yes\x1b[2K"
    assert "\n" not in str(TensorSpec(name=name, shape=(1,), dtype="float32"))
