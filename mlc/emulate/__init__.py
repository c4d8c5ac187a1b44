"""Run an artifact on a machine that is not what it is for.

64-bit Arm Linux, in the emulator qemu:

    session -- the artifact's library, graph and weights, run by
    runner.cc -- a small program, compiled with the cross compiler on first use, against
    runtime -- TVM's runtime library for that machine, fetched once, its hash pinned

NVIDIA GPUs, by a simulator of our own that executes the artifact's PTX:

    cuda        -- the graph, kernel by kernel
    ptx_text    -- PTX is read
    ptx_values  -- what its arithmetic computes
    ptx_memory  -- memory, every access checked for bounds and races
    ptx_machine -- threads, blocks, barriers

For checking results, not for timing: emulated time says nothing about the real machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc import bundle
from mlc import triple as triples
from mlc.errors import UsageError
from mlc.target_file import NVIDIA

if TYPE_CHECKING:
    from pathlib import Path


def only_variant(path: Path) -> str:
    """Return the target (in TVM's words) of the one variant of an artifact that can be emulated.

    Of an artifact for one target that is its target, whatever it is.

    Raises:
        UsageError: none or several of many can be; they are listed.
    """
    targets = [manifest["target"] for manifest in bundle.read_manifests(path)]
    able = [target for target in targets if can_emulate(target["triple"])]
    if len(able) == 1 or len(targets) == 1:
        return str((able or targets)[0].get("tvm", targets[0]["name"]))
    raise UsageError(
        f"which variant of {path} shall be emulated? it holds {bundle.names(targets)}",
        "name one with `--target`; 64-bit Arm Linux and NVIDIA GPUs can be emulated",
    )


def can_emulate(triple: str) -> bool:
    """Return whether code for a triple can be run here after all: see `can_run_in_qemu`, GPUs."""
    return can_run_in_qemu(triple) or triple == NVIDIA


def can_run_in_qemu(triple: str) -> bool:
    """Return whether code for a triple can be run in the emulator: 64-bit Arm Linux, glibc."""
    wanted = (triples.arch(triple), triples.system(triple))
    return wanted == ("aarch64", "linux") and "musl" not in triple
