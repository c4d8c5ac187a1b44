"""Read PTX, NVIDIA's assembly language: as much of it as LLVM writes for our kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mlc.errors import RunError

_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)[^{;]*\{(.*?)\n\}", re.DOTALL)
_PARAM = re.compile(
    r"\.param\s+\.[a-z](\d+)\s+(?:\.ptr\s+)?(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?(\w+)\s*$"
)
_ARRAY = re.compile(r"\.(shared|local)\s+\.align\s+\d+\s+\.[a-z](\d+)\s+([\w$]+)(?:\[(\d+)\])?;")
_TABLE = re.compile(
    r"\.(?:global|const)\s+\.align\s+\d+\s+\.[a-z](\d+)\s+([\w$]+)\[(\d+)\]\s*=\s*\{([^}]*)\};"
)
_REGISTERS = re.compile(r"\.reg\s+\.([a-z]+\d*)\s+(%\w+)(?:<\d+>)?;")
_LABEL = re.compile(r"^([\w$]+):$")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its words (`setp.lt.u32` gives three), operands, and the guard `@%p`."""

    words: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str = ""  # the predicate's name
    negated: bool = False
    text: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A kernel: `params` as (name, bytes), `arrays` as {name: (space, bytes)}, constant `tables`.

    `registers` gives the type of registers by the prefix of their names; `labels` the position in
    `code` that they stand before.
    """

    name: str
    params: tuple[tuple[str, int], ...]
    arrays: dict[str, tuple[str, int]]
    tables: dict[str, bytes] = field(repr=False)
    registers: dict[str, str]
    code: tuple[Instruction, ...] = field(repr=False)
    labels: dict[str, int]


def entries(ptx: str) -> dict[str, Entry]:
    """Return the kernels of a PTX text by name.

    Raises:
        RunError: it has something that is not read here.
    """
    text = re.sub(r"//[^\n]*", "", ptx)
    outside = _ENTRY.sub("", text)
    common = _arrays(outside)
    tables = _tables(outside)
    return {
        name: _entry(name, params, body, common, tables)
        for name, params, body in _ENTRY.findall(text)
    }


def _tables(text: str) -> dict[str, bytes]:
    """Return the constants of a module, by name; zeros at the end of one are left out in PTX."""
    found = {}
    for bits, name, count, words in _TABLE.findall(text):
        size = int(bits) // 8
        whole = [int(word, 0) % (1 << int(bits)) for word in words.split(",")]
        found[name] = b"".join(word.to_bytes(size, "little") for word in whole)
        found[name] = found[name].ljust(size * int(count), b"\0")
    return found


def _entry(
    name: str,
    params: str,
    body: str,
    common: dict[str, tuple[str, int]],
    tables: dict[str, bytes],
) -> Entry:
    used = {key: row for key, row in common.items() if _mentions(body, key)}
    arrays = {**used, **_arrays(body)}
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in body.splitlines():
        stripped = line.strip()
        label = _LABEL.match(stripped)
        if label:
            labels[label.group(1)] = len(code)
        elif stripped and not stripped.startswith("."):
            code.append(_instruction(stripped))
    return Entry(
        name=name, params=tuple(map(_param, filter(str.strip, params.split(",")))), arrays=arrays,
        tables={key: table for key, table in tables.items() if _mentions(body, key)},
        registers={prefix: kind for kind, prefix in _REGISTERS.findall(body)},
        code=tuple(code), labels=labels,
    )  # fmt: skip


def _arrays(text: str) -> dict[str, tuple[str, int]]:
    """Return (space, bytes) of the variables that a text declares, by name."""
    return {
        name: (space, int(bits) // 8 * int(count or 1))
        for space, bits, name, count in _ARRAY.findall(text)
    }


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", text) is not None


def _param(text: str) -> tuple[str, int]:
    found = _PARAM.match(text.strip())
    if not found:
        raise RunError(f"the simulator cannot read the parameter {text.strip()!r}")
    return found.group(2), int(found.group(1)) // 8


def _instruction(line: str) -> Instruction:
    guard, rest = "", line.rstrip(";").strip()
    if rest.startswith("@"):
        guard, rest = rest.split(None, 1)
    name, _, operands = rest.partition("\t") if "\t" in rest else rest.partition(" ")
    return Instruction(
        words=tuple(name.strip().split(".")),
        operands=tuple(_OPERAND.findall(operands)),
        guard=guard.lstrip("@!"),
        negated=guard.startswith("@!"),
        text=line,
    )
