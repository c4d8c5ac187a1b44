"""An artifact with open dimensions at given sizes: an artifact of fixed shapes, made in memory.

Its graph has sizes in the place of numbers (`mlc.sizes`), and no buffers yet. With the sizes known
both follow, and everything that runs, times or profiles an artifact does so with this one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.artifact import GRAPH, Artifact
from mlc.codegen.storage import assign
from mlc.errors import ArtifactError, RunError
from mlc.made import aligned
from mlc.sizes import MAX_ELEMENTS, Bounds, Size, evaluate, is_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SIZE, _WEIGHT = "size", "weight"


@dataclass(frozen=True, kw_only=True)
class SizedArtifact(Artifact):
    """An artifact at given sizes; `storage` maps leaves of the graph, by name, to their buffers."""

    sizes: tuple[int, ...]
    storage: dict[str, int] = field(repr=False)

    def weights(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Yield each weight as (storage, flat uint8 array in mapped memory), and the sizes."""
        for position, array in super().weights():
            yield self.storage[f"{_WEIGHT}{position}"], array
        for position, size in enumerate(self.sizes):
            if f"{_SIZE}{position}" in self.storage:
                yield self.storage[f"{_SIZE}{position}"], _aligned(size)


def dimensions(manifest: Mapping[str, Any]) -> dict[str, Bounds]:
    """Return the open dimensions of an artifact's manifest, with their bounds; {} where all is fixed."""
    return {
        dim["name"]: Bounds(least=dim["least"], most=dim["most"])
        for dim in manifest.get("dynamic", [])
    }


def at(artifact: Artifact, sizes: Mapping[str, int]) -> SizedArtifact:
    """Return an artifact with open dimensions at given sizes.

    Raises:
        RunError: a size is missing, unknown, or outside its bounds; or a tensor becomes too large.
        ArtifactError: its graph has another form than its manifest says.
    """
    bounds = dimensions(artifact.manifest)
    check(bounds, sizes)
    try:
        graph = json.loads(bytes(artifact.members[GRAPH]))
        shapes = [_shape(shape, sizes) for shape in graph["attrs"]["shape"][1]]
        graph["attrs"]["shape"][1] = shapes
        for shape in graph.pop("inner"):
            _shape(shape, sizes)
        assign(graph)
        rows = zip(graph["nodes"], graph["node_row_ptr"], strict=False)
        buffers = graph["attrs"]["storage_id"][1]
        storage = {node["name"]: buffers[row] for node, row in rows if node["op"] == "null"}
    except (
        ValueError,
        ArithmeticError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
    ):
        raise ArtifactError(
            f"{artifact.path}: its graph cannot be read", "compile it again"
        ) from None
    signature = {
        kind: [{**entry, "shape": list(_shape(entry["shape"], sizes))} for entry in entries]
        for kind, entries in artifact.manifest["signature"].items()
    }
    text = json.dumps(graph, separators=(",", ":")).encode()
    return SizedArtifact(
        path=artifact.path,
        manifest={**artifact.manifest, "signature": signature},
        members={**artifact.members, GRAPH: memoryview(text)},
        made=artifact.made,
        sizes=tuple(sizes[name] for name in bounds),
        storage=storage,
    )


def check(bounds: Mapping[str, Bounds], sizes: Mapping[str, int]) -> None:
    """Raise RunError unless there is a size within its bounds for every dimension, and no other."""
    known = ", ".join(f"{name} ({limits})" for name, limits in bounds.items())
    for name in sizes:
        if name not in bounds:
            raise RunError(f"the model has no open dimension {name!r}", f"it has {known}")
    for name, limits in bounds.items():
        if name not in sizes:
            raise RunError(f"the size of dimension {name!r} is not given", f"sizes: {known}")
        if not limits.least <= sizes[name] <= limits.most:
            raise RunError(
                f"dimension {name!r} is {sizes[name]}, and the artifact takes {limits}",
                "the model itself, or how it was compiled, allows no other size",
            )


def _shape(shape: list[Size], sizes: Mapping[str, int]) -> list[int]:
    if not all(is_size(size, sizes) for size in shape):
        raise ValueError
    found = [evaluate(size, sizes) for size in shape]
    if min(found, default=0) < 0:
        raise ValueError
    if math.prod(found) > MAX_ELEMENTS:
        raise RunError(
            f"a tensor would have the shape {found}: more than {MAX_ELEMENTS} elements",
            "give smaller sizes",
        )
    return found


def _aligned(size: int) -> np.ndarray[Any, Any]:
    """Return an int64 as bytes that begin where kernels may expect them to."""
    memory = aligned(8)
    memory.view(np.int64)[0] = size
    return memory
