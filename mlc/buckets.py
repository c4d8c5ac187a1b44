"""Several shapes in one artifact, format 2: a bucket for each combination of sizes.

The members are those of every artifact: the code of all buckets in one library, each kernel once;
`graph.json` is the list of their graphs; `weights.bin` holds equal bytes once. In the manifest
`buckets` lists for each: `dims` (its sizes), where its graph lies, which weight (a position in
`weights`) fills which storage (with `made`: what is made of it, see `mlc.made`), and what differs from
bucket to bucket (`OWN`). `padding` says along which dimensions inputs of sizes in between may be
filled up with zeros (`offered`), and why not along others (`refused`); see `mlc.runtime.padding`. The
rest holds for all. `view` is one bucket as an artifact by itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.artifact import GRAPH, Artifact, Contents
from mlc.errors import ArtifactError
from mlc.model import Signature, TensorSpec, specs
from mlc.options import MAX_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Array = np.ndarray[Any, Any]
OWN = ("signature", "kernels", "buffer_bytes", "passes", "tuning", "index_bounds")


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One bucket of an artifact: its sizes by dimension, its inputs and outputs."""

    dims: dict[str, int]
    signature: Signature

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.dims.items())


@dataclass
class Weights:
    """The distinct weights of several buckets, in the order of their first use."""

    arrays: list[Array] = field(default_factory=list, repr=False)
    positions: dict[bytes, int] = field(default_factory=dict, repr=False)

    def add(
        self, weights: Sequence[tuple[int, Array]], made: Mapping[int, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return a bucket's weight table; arrays with bytes that are known are not kept.

        `made` says by position which of them are stored smaller than kernels read them.
        """
        table: list[dict[str, Any]] = []
        for number, (storage, array) in enumerate(weights):
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            key = hashlib.sha256(flat.data).digest()
            position = self.positions.setdefault(key, len(self.arrays))
            if position == len(self.arrays):
                self.arrays.append(array)
            table.append({"storage": storage, "weight": position})
            if made and number in made:
                table[-1]["made"] = made[number]
        return table


@dataclass(frozen=True, kw_only=True)
class Part:
    """A compiled bucket: its sizes, its contents (without code and weights), its weight table."""

    dims: dict[str, int]
    contents: Contents = field(repr=False)
    weights: list[dict[str, Any]] = field(repr=False)


def merge(parts: Sequence[Part], library: bytes, weights: Weights) -> Contents:
    """Return the contents of one artifact: the code of all buckets' kernels, all their weights."""
    entries, graphs, offset = [], [], 1
    for part in parts:
        contents = part.contents
        graph = {"offset": offset, "nbytes": len(contents.graph)}
        own = {name: contents.manifest[name] for name in OWN}
        entries.append({"dims": part.dims, **own, "graph": graph, "weights": part.weights})
        graphs.append(contents.graph)
        offset += len(contents.graph) + len(b",\n")
    padding = {"offered": [], "refused": dict.fromkeys(parts[0].dims, "it was not verified")}
    shared = {key: value for key, value in parts[0].contents.manifest.items() if key not in OWN}
    return Contents(
        manifest={**shared, "buckets": entries, "padding": padding},
        library=library,
        graph=b"[" + b",\n".join(graphs) + b"]",
        weights=list(enumerate(weights.arrays)),
    )


def is_bucketed(manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest is that of an artifact with buckets."""
    return "buckets" in manifest


def manifests(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what a manifest says of each bucket (of an artifact without: itself)."""
    return list(manifest["buckets"]) if is_bucketed(manifest) else [manifest]


def read(path: Path, manifest: Mapping[str, Any]) -> tuple[Bucket, ...]:
    """Return the buckets of an artifact with a checked manifest.

    Raises:
        ArtifactError: there are none or too many, or they are not of one model.
    """
    found = tuple(
        Bucket(
            dims={str(name): size for name, size in entry["dims"].items()},
            signature=Signature(
                inputs=specs(entry["signature"]["inputs"]),
                outputs=specs(entry["signature"]["outputs"]),
            ),
        )
        for entry in manifest["buckets"]
    )
    sizes = [size for bucket in found for size in bucket.dims.values()]
    good = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    good &= set(manifest["padding"]["offered"]) <= {dim for one in found for dim in one.dims}
    if not good or not 1 <= len(found) <= MAX_BUCKETS or len(set(map(_likeness, found))) > 1:
        raise ArtifactError(f"{path} cannot be used: its buckets do not fit", "compile it again")
    return found


def _likeness(bucket: Bucket) -> tuple[Any, ...]:
    """Return what buckets of one model have in common."""
    inputs, outputs = bucket.signature.inputs, bucket.signature.outputs
    kinds = tuple((spec.name, spec.dtype, len(spec.shape)) for spec in (*inputs, *outputs))
    return tuple(bucket.dims), kinds, len(inputs)


def view(artifact: Artifact, position: int) -> Artifact:
    """Return a bucket as an artifact without buckets: code and weights are shared, not copied.

    An artifact without buckets is its own first.

    Raises:
        ArtifactError: the manifest points outside the members.
    """
    manifest = artifact.manifest
    if not is_bucketed(manifest):
        return artifact
    entry, table, graphs = (
        manifest["buckets"][position],
        manifest["weights"],
        artifact.members[GRAPH],
    )
    start, size = entry["graph"]["offset"], entry["graph"]["nbytes"]
    inside = all(0 <= use["weight"] < len(table) for use in entry["weights"])
    if not inside or not 0 <= start <= start + size <= len(graphs):
        raise ArtifactError(f"{artifact.path}: a bucket lies outside its members")
    own = {name: entry[name] for name in (*OWN, "dims") if name in entry}
    used = uses(manifest, entry)
    return replace(
        artifact,
        manifest={**manifest, **own, "weights": used},
        members={**artifact.members, GRAPH: graphs[start : start + size]},
    )


def uses(manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a bucket's weights as in the table of an artifact without buckets."""
    table = manifest["weights"]
    return [
        {**table[use["weight"]], **{key: use[key] for key in ("storage", "made") if key in use}}
        for use in entry["weights"]
    ]


def resized(
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    axes: Mapping[str, Mapping[str, Sequence[int]]],
) -> tuple[TensorSpec, ...]:
    """Return inputs with other sizes of some dimensions; `axes` as by `axes`, by dimension."""
    found = []
    for spec in specs:
        shape = list(spec.shape)
        for dim, size in sizes.items():
            for axis in axes[dim][spec.name]:
                shape[axis] = size
        found.append(replace(spec, shape=tuple(shape)))
    return tuple(found)


def axes(dim: str, buckets: Sequence[Bucket], side: str) -> dict[str, tuple[int, ...]]:
    """Return the axes of each input or output (`side`) that are a dimension: of its size always."""
    tensors = zip(*(getattr(bucket.signature, side) for bucket in buckets), strict=True)
    return {
        same[0].name: tuple(
            axis
            for axis in range(len(same[0].shape))
            if all(
                spec.shape[axis] == bucket.dims[dim]
                for spec, bucket in zip(same, buckets, strict=True)
            )
        )
        for same in tensors
    }
