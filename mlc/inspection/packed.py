"""An artifact's manifest in readable form; neither TVM nor the artifact's code is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path


def inspect_artifact(path: Path, target: str | None = None) -> dict[str, Any]:
    """Return what an artifact holds, as JSON data; sizes in bytes, FLOPs per run.

    Of one for several targets: each variant and which runs here, or the one for `target`. The members' hashes are not checked (`mlc run` and `mlc verify` do), and the artifact may be for
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
    except (KeyError, TypeError, ValueError, AttributeError):
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
        for symbol, kernel in manifest.get("kernels", {}).items()
    ]
    signature, weights = manifest["signature"], manifest["weights"]
    return {
        "kind": "artifact",
        "path": str(path),
        "bytes": path.stat().st_size,
        "format": manifest["format"],
        "mlc": manifest.get("mlc"),
        "versions": dict(manifest["versions"]),
        "model": dict(manifest.get("model", {})),
        "inputs": [_tensor(spec) for spec in signature["inputs"]],
        "outputs": [_tensor(spec) for spec in signature["outputs"]],
        "target": {**manifest["target"], "features": list(manifest["target"]["features"])},
        "opt_level": manifest.get("opt_level"),
        "precision": manifest.get("precision"),
        "passes": list(manifest.get("passes", [])),
        "flops": sum(kernel["calls"] * kernel["flops"] for kernel in kernels),
        "kernels": sorted(kernels, key=lambda k: -k["calls"] * k["flops"]),
        "parameters": {
            "tensors": len(weights),
            "bytes": sum(int(weight["nbytes"]) for weight in weights),
        },
        "buffer_bytes": manifest.get("buffer_bytes"),
        "tuning": manifest.get("tuning"),
        "index_bounds": manifest.get("index_bounds"),
        "verification": manifest.get("verification"),
        "members": {name: dict(facts) for name, facts in manifest["members"].items()},
    }


def _tensor(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": str(spec["name"]),
        "dtype": str(spec["dtype"]),
        "shape": [int(size) for size in spec["shape"]],
    }
