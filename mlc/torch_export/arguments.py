"""What `mlc export` is given, as text: a factory, input shapes, an exporter, an output path."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlc.errors import UsageError, did_you_mean
from mlc.options import MAX_TENSOR_BYTES, MAX_TENSOR_RANK

if TYPE_CHECKING:
    from collections.abc import Sequence

EXPORTERS = ("dynamo", "torchscript")
INPUT_FORM = "write SHAPE, NAME:SHAPE or NAME:DTYPE:SHAPE: `1,3,224,224`, `ids:int64:1,128`"
FACTORY_FORM = "write package.module:callable, for example `models.vision:resnet18`"

_DTYPE_BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One `--input`: `name` is None where none was given; `dtype` is torch's (and numpy's) name."""

    name: str | None
    dtype: str
    shape: tuple[int, ...]


def parse_inputs(texts: Sequence[str]) -> list[InputSpec]:
    """Parse `--input` options, in their order.

    Raises:
        UsageError: one is malformed (see `parse_input`), or a name is given twice.
    """
    specs = [parse_input(text) for text in texts]
    names = [spec.name for spec in specs if spec.name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two inputs are called {twice!r}", "give each --input its own name")
    return specs


def parse_input(text: str) -> InputSpec:
    """Parse `1,3,224,224` (float32), `name:1,3,224,224` or `name:int64:1,128`.

    Raises:
        UsageError: the form, the dtype or the shape is wrong; the hint shows the right form.
    """
    head, _, dims = text.rpartition(":")
    name, colon, dtype = head.partition(":")
    if ":" in text and (not re.fullmatch(r"[^\s:,]+", name) or (colon and not dtype)):
        raise UsageError(f"--input {text!r} is malformed", INPUT_FORM)
    if not colon:
        dtype = "float32"
        if name in _DTYPE_BYTES:
            raise UsageError(
                f"--input {text!r} has a dtype but no name", f"write `NAME:{name}:{dims}`"
            )
    if dtype not in _DTYPE_BYTES:
        raise UsageError(
            f"--input {text!r}: no dtype is called {dtype!r}", did_you_mean(dtype, _DTYPE_BYTES)
        )
    return InputSpec(name=name or None, dtype=dtype, shape=_parse_shape(text, dims, dtype))


def _parse_shape(text: str, dims: str, dtype: str) -> tuple[int, ...]:
    parts = [part.strip() for part in dims.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,18}", part) and int(part) for part in parts):
        raise UsageError(
            f"--input {text!r}: the shape must be positive numbers with commas", INPUT_FORM
        )
    shape = tuple(map(int, parts))
    if len(shape) > MAX_TENSOR_RANK or math.prod(shape) * _DTYPE_BYTES[dtype] > MAX_TENSOR_BYTES:
        raise UsageError(
            f"--input {text!r} is too large",
            f"at most {MAX_TENSOR_RANK} dimensions and {MAX_TENSOR_BYTES >> 30} GiB",
        )
    return shape


def split_factory(factory: str) -> tuple[str, str]:
    """Split `package.module:callable` into its two halves.

    Raises:
        UsageError: it has another form.
    """
    module, colon, attribute = factory.partition(":")
    if module.endswith(".py") or "/" in module:
        dotted = ".".join(Path(module).with_suffix("").parts)
        raise UsageError(
            f"{factory!r} is a path, not a module",
            f"write it with dots, without .py: `{dotted}:{attribute or 'callable'}`",
        )
    names = [*module.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise UsageError(f"{factory!r} does not name a factory", FACTORY_FORM)
    return module, attribute


def default_output(factory: str) -> str:
    """Return the file name used when none is given: `models:resnet18` goes to `resnet18.onnx`.

    Raises:
        UsageError: `factory` is malformed.
    """
    return split_factory(factory)[1].rpartition(".")[2] + ".onnx"


def checked_output(output: str) -> Path:
    """Return the path to write to.

    Raises:
        UsageError: it is a folder, or lies in one that does not exist.
    """
    path = Path(output)
    if path.is_dir() or not path.name:
        raise UsageError(f"the output {output!r} is a folder", "name a file, `-o model.onnx`")
    if not path.parent.is_dir():
        raise UsageError(
            f"there is no folder {str(path.parent)!r}", f"create it: `mkdir -p {path.parent}`"
        )
    return path
