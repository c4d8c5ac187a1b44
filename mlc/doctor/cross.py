"""Checks of what compiling for another machine takes: a linker, and for `--emulate` an emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc import target as targets
from mlc.cache import open_cache
from mlc.codegen.link import find_linker
from mlc.cpu import host_cpu
from mlc.emulate import can_run_in_qemu, runner, runtime
from mlc.errors import MissingToolError
from mlc.gpu import ptxas
from mlc.runtime.driver_api import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.doctor import Finding
    from mlc.target import Target


def checks(name: str) -> tuple[tuple[str, Callable[[], Finding]], ...]:
    """Return the checks for a target, by name.

    Raises:
        TargetError: there is no such target.
    """
    chosen = targets.resolve(name)
    if chosen.gpu is not None:
        return (("NVIDIA's assembler", assembler), ("NVIDIA's driver", driver))
    rows: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("runs here", lambda: runs_here(chosen)),
        ("linker", lambda: linker(chosen)),
    )
    if not targets.is_foreign(chosen, host_cpu()) or not can_run_in_qemu(chosen.triple):
        return rows
    return (*rows, ("emulator", emulator), ("runtime library", runtime_library))


def runs_here(chosen: Target) -> Finding:
    """Report whether this machine runs code for the target."""
    if targets.is_foreign(chosen, host_cpu()):
        what = f"no: {chosen.name} is {chosen.arch} {chosen.system}".rstrip()
        return "ok", f"{what}, this machine {host_cpu().arch} {host_cpu().system}", ""
    missing = targets.missing_features(chosen.features, host_cpu())
    return "ok", f"no: it lacks {', '.join(missing)}" if missing else "yes", ""


def assembler() -> Finding:
    """Check for NVIDIA's assembler and mathematical functions; missing ones fail."""
    return "ok", f"ptxas {ptxas.version()}, {ptxas.find().ptxas}", ""


def driver() -> Finding:
    """Report whether artifacts for GPUs can be run here; compiling needs no driver."""
    try:
        card = describe()
    except MissingToolError as error:
        return "ok", f"no: {error.message}", ""
    return "ok", f"yes, {card['name']} ({card['sm']})", ""


def linker(chosen: Target) -> Finding:
    """Check for a linker for the target; a missing one fails, with its package."""
    return "ok", find_linker(chosen.triple).name, ""


def emulator() -> Finding:
    """Check for the tools of `mlc verify --emulate`; compiling needs none of them."""
    try:
        tools = runner.find_tools()
    except MissingToolError as error:
        return "warn", error.message, error.hint or ""
    return "ok", f"{tools.emulator}, libraries in {tools.sysroot}", ""


def runtime_library() -> Finding:
    """Report whether TVM's runtime library for the emulator was fetched."""
    if runtime.cached(open_cache()) is not None:
        return "ok", "fetched", ""
    return "ok", "not fetched yet: the first `mlc verify --emulate` does", ""
