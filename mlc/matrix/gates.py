"""What an artifact must keep, besides computing what its model does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc import bundle
from mlc.errors import GateError

if TYPE_CHECKING:
    from pathlib import Path

    from mlc.matrix.entries import Gates

MB = 1_000_000


def require(path: Path, gates: Gates) -> dict[str, bool]:
    """Return which targets of an artifact were verified, by name.

    That its outputs are the model's, and that it is tuned as required, was decided when it was
    compiled.

    Raises:
        GateError: it is larger than allowed, or not verified where it must be.
        ArtifactError: it cannot be read.
    """
    manifests = bundle.read_manifests(path)
    verified = {
        manifest["target"]["name"]: manifest.get("verification") is not None
        for manifest in manifests
    }
    size = path.stat().st_size
    if gates.max_mb is not None and size > gates.max_mb * MB:
        raise GateError(
            f"it takes {size / MB:.1f} MB, and max_mb is {gates.max_mb:g}",
            "raise max_mb in mlc.toml; `mlc inspect` shows what takes the space",
        )
    unverified = [name for name, done in verified.items() if not done]
    if gates.require_verified and unverified:
        raise GateError(
            f"not verified for {', '.join(unverified)}: this machine cannot run that code",
            "build it on such a machine, or leave require_verified out and use "
            "`mlc verify ARTIFACT MODEL --emulate`",
        )
    return verified
