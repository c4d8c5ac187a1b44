"""Whether a machine can run an artifact: what its manifest's target says, against the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc import triple
from mlc.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlc.cpu import HostCpu


def is_for_gpu(target: Mapping[str, Any]) -> bool:
    """Return whether a manifest's target is a GPU; artifacts of before there were any do not say."""
    return str(target.get("kind", "cpu")) == "cuda"


def misfit(target: Mapping[str, Any], cpu: HostCpu) -> str:
    """Return why `cpu` cannot run code for a manifest's target ("it is ..."); "" when it can."""
    if is_for_gpu(target):
        return "it is a CPU"
    wanted = (triple.arch(target["triple"]), triple.system(target["triple"]))
    if wanted != (cpu.arch, cpu.system):
        return f"it is {cpu.arch} {cpu.system}"
    missing = sorted(set(target["features"]) - cpu.features)
    return f"it lacks {', '.join(missing)}" if missing else ""


def check_gpu(path: Path, manifest: dict[str, Any]) -> None:
    """Raise ArtifactError for an artifact that is not for a GPU."""
    if not is_for_gpu(manifest["target"]):
        raise ArtifactError(
            f"{path} is for a CPU ({manifest['target']['name']}), not for a GPU",
            "compile it for one: `mlc compile MODEL --target cuda --arch sm_80`",
        )


def check_cpu(path: Path, manifest: dict[str, Any], cpu: HostCpu) -> None:
    """Raise ArtifactError for an artifact that `cpu` cannot run."""
    target = manifest["target"]
    if is_for_gpu(target):
        raise ArtifactError(
            f"{path} is for NVIDIA GPUs ({target['name']}), and was opened for a CPU",
            "run it on a GPU with `--device cuda`, or compile it for this machine (`--target llvm`)",
        )
    why = misfit(target, cpu)
    if why:
        wanted = f"{triple.arch(target['triple'])} {triple.system(target['triple'])}"
        raise ArtifactError(
            f"{path} is for {target['name']} ({wanted}), and this machine cannot run it: {why}",
            "copy it to such a machine; or compile for this one (`--target llvm`) or an older "
            "level (`--target x86-64-v2`)",
        )
