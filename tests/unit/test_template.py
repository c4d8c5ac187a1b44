"""The digest of a template's source: what it covers, and what may change without voiding records."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from mlc.tune.template import _needed, meaning

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = '''"""What the module is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK: int = 16  # lanes


def tile(sizes: Sequence[int], *, most: int = 8) -> int:
    """Return a tile."""
    name = f"tile_{sizes[0]:>4}" "_of"
    return max(size for size in sizes if size <= most) if name else -1
'''

SAME = {
    "a comment": ("BLOCK: int = 16  # lanes", "BLOCK: int = 16  # of float32\n# wide"),
    "a docstring": ('"""Return a tile."""', '"""Return the largest tile, in elements."""'),
    "no docstring": ('    """Return a tile."""\n', ""),
    "the module's": ('"""What the module is for."""', ""),
    "annotations": ("sizes: Sequence[int], *, most: int = 8) -> int", "sizes, *, most: Any = 8)"),
    "an import for them": ("import Sequence", "import Iterable, Sequence"),
    "a line break": ("for size in sizes if", "for size in sizes\n        if"),
    "quotes": ('"_of"', "'_of'"),
}
OTHER = {
    "a constant": ("= 16", "= 32"),
    "its type": ("= 16", "= 16.0"),
    "a default": ("= 8)", "= 4)"),
    "an operator": ("<=", "<"),
    "a name": ("def tile", "def tiles"),
    "a format": (":>4", ":<4"),
    "a sign": ("else -1", "else 1"),
    "an import": ("import TYPE_CHECKING, Any", "import TYPE_CHECKING"),
}


@pytest.mark.parametrize("what", SAME)
def test_how_it_is_written_changes_nothing(what: str) -> None:
    assert means(changed(*SAME[what])) == means(SOURCE)


@pytest.mark.parametrize("what", OTHER)
def test_what_it_does_changes_the_digest(what: str) -> None:
    assert means(changed(*OTHER[what])) != means(SOURCE)


def test_each_version_of_python_writes_the_same() -> None:
    """Fields that a version adds (`type_params` and more) are empty, or say how it was written."""
    assert means("def f(x: int = 3) -> int:\n    'Doc.'\n    return f'{x!r}' + u'y'\n") == (
        "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='x')],"
        "defaults=[Constant(value=3)]),body=[Return(value=BinOp(left=JoinedStr(values=["
        "FormattedValue(value=Name(id='x'),conversion=114)]),op=Add(),right=Constant(value='y')))])])"
    )


def test_the_modules_that_a_template_imports_count(tmp_path: Path) -> None:
    files = {
        "dense": "import math\nfrom ours import gemm\n", "gemm": "from ours.tails import MARK\n",
        "tails": "from ours import gemm\n", "other": "from ours import dense\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    found = _needed(tmp_path / "dense.py", "ours")
    assert {path.stem for path in found} == {"dense", "gemm", "tails"}


def changed(old: str, new: str) -> str:
    assert SOURCE.count(old) == 1
    return SOURCE.replace(old, new)


def means(source: str) -> str:
    return meaning(ast.parse(source))
