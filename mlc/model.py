"""`Model`: what flows between the stages, and the signature that users see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlc.errors import one_line
from mlc.sizes import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A named input or output: `shape` in elements, `dtype` by its numpy name.

    Where a model has open dimensions, sizes may be expressions of them (`mlc.sizes`).
    """

    name: str
    shape: tuple[Any, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{one_line(self.name)} {self.dtype}[{', '.join(map(text, self.shape))}]"


def specs(entries: Iterable[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return the inputs or the outputs in the signature of a manifest."""
    return tuple(
        TensorSpec(name=entry["name"], shape=tuple(entry["shape"]), dtype=entry["dtype"])
        for entry in entries
    )


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The inputs and outputs of a model, in the order of the ONNX file."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model came from: file name, sha256 over all its files, opset, size in bytes."""

    path: str
    sha256: str
    opset: int
    size: int
    nodes: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """A Relay module with its signature.

    `module` is a `tvm.IRModule` whose `main` takes one variable per input (named `input0`,
    `input1`, ...: the user's names are untrusted text and live in the signature only) and returns
    one tensor, or a tuple when there are several outputs. Weights are constants inside it.
    `dims` (`frontend.open_dims.Dims`) tells of open dimensions; their sizes may be inputs, too.
    """

    module: Any = field(repr=False)
    signature: Signature
    source: Source
    dims: Any = field(default=None, repr=False)
