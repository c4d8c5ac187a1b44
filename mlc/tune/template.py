"""What a record's template was when it was measured: a digest of the source that makes its kernels.

Of our own modules it covers what they do, not how they are written down: a comment, a docstring,
an annotation or another line break leaves records valid, and so does another version of Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from pathlib import Path
from typing import Any

from mlc import tvm_env
from mlc.errors import UsageError

_SILENT = frozenset(
    {"annotation", "returns", "type_comment", "type_params", "simple", "kind", "ctx"}
)


@functools.cache
def template_hash(template: str) -> str:
    """Return a digest of the source behind a template: schedules change, and records with them.

    It covers every file of TVM's folder that defines the template; of ours, what is done in the
    module that defines it, and in those of its package that this imports.

    Raises:
        UsageError: there is no such template.
    """
    tvm_env.tvm()
    from tvm.autotvm.task.task import TASK_TABLE

    entry = TASK_TABLE.get(template)
    if entry is None:
        raise UsageError(f"there is no AutoTVM template {template!r}")
    function = inspect.unwrap(entry.fcompute or entry.fcustomized)
    source = Path(inspect.getfile(function))
    package = function.__module__.rpartition(".")[0]
    digest = hashlib.sha256(tvm_env.VERSION.encode())
    if package.partition(".")[0] == __package__.partition(".")[0]:
        texts = {path: meaning(tree).encode() for path, tree in _needed(source, package).items()}
    else:
        texts = {path: path.read_bytes() for path in source.parent.glob("*.py")}
    for path, text in sorted(texts.items()):
        digest.update(path.name.encode() + b"\0" + text)
    return digest.hexdigest()[:12]


def _needed(source: Path, package: str) -> dict[Path, ast.Module]:
    """Return a module and those of its package that it needs, at any depth, parsed."""
    found: dict[Path, ast.Module] = {}
    pending = [source]
    while pending:
        path = pending.pop()
        if path in found or not path.is_file():
            continue
        found[path] = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(found[path]):
            if isinstance(node, ast.ImportFrom) and node.module == package:
                pending += [path.with_name(f"{name.name}.py") for name in node.names]
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{package}."):
                pending.append(path.with_name(f"{str(node.module)[len(package) + 1 :]}.py"))
    return found


def meaning(node: ast.AST) -> str:
    """Return a syntax tree as text, without docstrings, annotations and imports made for them.

    `ast.dump` would do but for its text, which differs between versions of Python: fields that are
    empty are left out here, so that those which a version adds change nothing.
    """
    fields = [
        f"{name}={_text(value)}"
        for name, value in ast.iter_fields(node)
        if name not in _SILENT and value is not None and value != []
    ]
    return f"{type(node).__name__}({','.join(fields)})"


def _text(value: Any) -> str:
    if isinstance(value, ast.AST):
        return meaning(value)
    if isinstance(value, list):
        return f"[{','.join(_text(item) for item in value if not _says_nothing(item))}]"
    return repr(value)


def _says_nothing(node: Any) -> bool:
    """Return whether a statement is a docstring, imports for annotations or `pass`."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If):
        return (
            isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" and not node.orelse
        )
    return isinstance(node, ast.Pass)
