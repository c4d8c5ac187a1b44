"""An artifact's manifest in readable form; neither TVM nor the artifact's code is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.errors import ArtifactError
from mlc.sizes import text

if TYPE_CHECKING:
    from pathlib import Path


def inspect_artifact(path: Path) -> dict[str, Any]:
    """Return what an artifact holds, as JSON data; sizes in bytes, FLOPs per run.

    The members' hashes are not checked (`mlc run` and `mlc verify` do), and the artifact may be for
    another machine.

    Raises:
        ArtifactError: no artifact, damaged, or of a newer format.
    """
    from mlc import artifact

    manifest = artifact.read_manifest(path)
    try:
        return _facts(path, manifest)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ArtifactError(
            f"{path} cannot be shown: its manifest has another form than its format says",
            "compile it again",
        ) from None


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
        "dynamic": manifest.get("dynamic", []),
        "members": {name: dict(facts) for name, facts in manifest["members"].items()},
    }


def _tensor(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": str(spec["name"]),
        "dtype": str(spec["dtype"]),
        "shape": [size if isinstance(size, int) else text(size) for size in spec["shape"]],
    }
