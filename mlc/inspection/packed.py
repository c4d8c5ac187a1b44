"""An artifact's manifest in readable form; neither TVM nor the artifact's code is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.buckets import is_bucketed, read, uses
from mlc.errors import ArtifactError
from mlc.made import nbytes
from mlc.sizes import text

if TYPE_CHECKING:
    from pathlib import Path


def inspect_artifact(path: Path, target: str | None = None) -> dict[str, Any]:
    """Return what an artifact holds, as JSON data; sizes in bytes, FLOPs per run.

    Of one for several targets: each variant and which runs here, or the one for `target`. Of one for
    several shapes `buckets` lists each with its sizes (`dims`), and `padding` says what is done with
    sizes in between; the other entries are the first one's, `parameters` what all need together. The
    members' hashes are not checked (`mlc run` and `mlc verify` do), and the artifact may be for
    another machine.

    Raises:
        ArtifactError: no artifact, damaged, or of a newer format.
    """
    from mlc import bundle

    if target is not None or not bundle.is_bundle(path):
        manifests = [bundle.read_manifest(path, target)]
    else:
        manifests = bundle.read_manifests(path)
    try:
        found = [_facts(path, manifest) for manifest in manifests]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise ArtifactError(
            f"{path} cannot be shown: its manifest has another form than its format says",
            "compile it again",
        ) from None
    if len(found) == 1:
        return found[0]
    return {
        "kind": "bundle",
        "path": str(path),
        "bytes": path.stat().st_size,
        "runs_here": bundle.here(manifests),
        "variants": found,
    }


def _facts(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    if not is_bucketed(manifest):
        return {**_of_all(path, manifest), **_of_one(manifest, manifest["weights"])}
    read(path, manifest)  # checks them
    entries = manifest["buckets"]
    used = [uses(manifest, entry) for entry in entries]
    every = [use for table in used for use in table]
    return {
        **_of_all(path, manifest),
        **_of_one(entries[0], every),
        "buckets": [
            {"dims": dict(entry["dims"]), **_of_one(entry, table)}
            for entry, table in zip(entries, used, strict=True)
        ],
        "padding": {
            "offered": list(manifest["padding"]["offered"]),
            "refused": {str(d): str(why) for d, why in manifest["padding"]["refused"].items()},
        },
    }


def _of_all(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what holds for all buckets."""
    return {
        "kind": "artifact",
        "path": str(path),
        "bytes": path.stat().st_size,
        "format": manifest["format"],
        "mlc": manifest.get("mlc"),
        "versions": dict(manifest["versions"]),
        "model": dict(manifest.get("model", {})),
        "target": {**manifest["target"], "features": list(manifest["target"]["features"])},
        "opt_level": manifest.get("opt_level"),
        "precision": manifest.get("precision"),
        "verification": manifest.get("verification"),
        "dynamic": manifest.get("dynamic", []),
        "members": {name: dict(facts) for name, facts in manifest["members"].items()},
    }


def _of_one(entry: dict[str, Any], weights: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the manifest says of one bucket (of an artifact without: of itself)."""
    kernels: list[dict[str, Any]] = [
        {
            "symbol": str(symbol),
            "operators": [str(name) for name in kernel["operators"]],
            "calls": int(kernel["calls"]),
            "flops": int(kernel["flops"]),
            "resources": {
                str(name): {str(what): int(number) for what, number in found.items()}
                for name, found in kernel.get("resources", {}).items()
            },
        }
        for symbol, kernel in entry.get("kernels", {}).items()
    ]
    signature = entry["signature"]
    return {
        "inputs": [_tensor(spec) for spec in signature["inputs"]],
        "outputs": [_tensor(spec) for spec in signature["outputs"]],
        "passes": list(entry.get("passes", [])),
        "flops": sum(kernel["calls"] * kernel["flops"] for kernel in kernels),
        "kernels": sorted(kernels, key=lambda k: -k["calls"] * k["flops"]),
        "parameters": _parameters(weights),
        "buffer_bytes": entry.get("buffer_bytes"),
        "tuning": entry.get("tuning"),
        "index_bounds": entry.get("index_bounds"),
    }


def _parameters(weights: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many weights there are, what they take in the file and, made, in memory."""
    stored = {(int(w["offset"]), int(w["nbytes"])) for w in weights}
    ready = {
        (w["offset"], w["nbytes"], str(w.get("made"))): nbytes(w["made"])
        if "made" in w
        else w["nbytes"]
        for w in weights
    }
    return {
        "tensors": len(stored),
        "bytes": sum(size for _, size in stored),
        "bytes_in_memory": sum(ready.values()),
    }


def _tensor(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": str(spec["name"]),
        "dtype": str(spec["dtype"]),
        "shape": [size if isinstance(size, int) else text(size) for size in spec["shape"]],
    }
