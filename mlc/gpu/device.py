"""A kernel compiled for a GPU: code, and the launches that make up one call, as data.

Shapes are fixed, so every launch is known when the model is compiled. That leaves no host code to
generate: whoever runs the artifact walks through a list. Its form is checked when it is read.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from mlc.errors import ArtifactError, BuildError

TENSOR, TEMPORARY, INT32, INT64 = "tensor", "temporary", "int32", "int64"
_KINDS = (TENSOR, TEMPORARY, INT32, INT64)
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)  # threads in x, y, z; 1024 in all


class UnfitError(BuildError):
    """A kernel, as it is scheduled, does not suit the GPU; with other tiles it may."""


def architecture(target: str) -> tuple[int, int] | None:
    """Return what a TVM target string says GPUs must have at least: (8, 0) for `-mcpu=sm_80`."""
    digits = target.partition("-mcpu=sm_")[2].partition(" ")[0]
    return divmod(int(digits), 10) if digits.isdecimal() and len(digits) < 5 else None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of a GPU function.

    `grid` and `block` count blocks and threads in x, y, z. Each argument is (kind, number): the
    kernel's tensor (inputs, then outputs) or temporary buffer at that position, or a plain integer.
    """

    function: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What `ptxas` says that a function takes: registers a thread, bytes of the rest."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """All that one call of a kernel does: `launches` in order, over `temporaries` (sizes in bytes).

    `cubin` is machine code for the architecture compiled for; a newer GPU's driver compiles `ptx`.
    `note` says what was taken instead of what was asked for, if anything.
    """

    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)
    temporaries: tuple[int, ...]
    launches: tuple[Launch, ...]
    resources: dict[str, Resources]
    note: str = ""


def encode(program: Program) -> bytes:
    """Return a program in the bytes that are stored; equal programs give equal bytes."""
    data = {**asdict(program), "cubin": base64.b64encode(program.cubin).decode()}
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def join(programs: dict[str, bytes]) -> bytes:
    """Return the artifact's member of encoded programs by symbol."""
    rows = (json.dumps(symbol).encode() + b":" + code for symbol, code in sorted(programs.items()))
    return b"{" + b",\n".join(rows) + b"}\n"


def read(data: bytes) -> dict[str, Program]:
    """Return the programs of an artifact's member, by symbol.

    Raises:
        ArtifactError: it has another form.
    """
    try:
        return {str(symbol): decode(entry) for symbol, entry in json.loads(data).items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise ArtifactError(
            "the artifact's GPU programs have another form than its format says",
            "compile it again",
        ) from None


def decode(entry: dict[str, Any]) -> Program:
    """Return a program from JSON data.

    Raises:
        ValueError, KeyError, TypeError: it has another form.
    """
    return Program(
        ptx=str(entry["ptx"]),
        cubin=base64.b64decode(entry["cubin"], validate=True),
        temporaries=tuple(_count(size, 2**40) for size in entry["temporaries"]),
        launches=tuple(_launch(row, len(entry["temporaries"])) for row in entry["launches"]),
        resources={name: Resources(**row) for name, row in entry["resources"].items()},
        note=str(entry["note"]),
    )


def _launch(row: dict[str, Any], temporaries: int) -> Launch:
    grid, block = (_triple(row[key]) for key in ("grid", "block"))
    sizes = zip(grid + block, MAX_GRID + MAX_BLOCK, strict=True)
    if any(n > most for n, most in sizes) or math.prod(block) > 1024:
        raise ValueError("a launch is too large")
    arguments = tuple((kind, number) for kind, number in row["arguments"])
    for kind, number in arguments:
        if kind not in _KINDS or type(number) is not int:
            raise ValueError("an argument is of no known kind")
        if kind == TEMPORARY and not 0 <= number < temporaries:
            raise ValueError("there is no such temporary")
    return Launch(function=str(row["function"]), grid=grid, block=block, arguments=arguments)


def _triple(row: list[int]) -> tuple[int, int, int]:
    x, y, z = (_count(number, 2**31) for number in row)
    return x, y, z


def _count(number: Any, most: int) -> int:
    if type(number) is not int or not 1 <= number < most:
        raise ValueError("a size is out of bounds")
    return number
