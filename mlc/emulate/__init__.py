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

from mlc import triple as triples
from mlc.target_file import NVIDIA


def can_emulate(triple: str) -> bool:
    """Return whether code for a triple can be run here after all: see `can_run_in_qemu`, GPUs."""
    return can_run_in_qemu(triple) or triple == NVIDIA


def can_run_in_qemu(triple: str) -> bool:
    """Return whether code for a triple can be run in the emulator: 64-bit Arm Linux, glibc."""
    wanted = (triples.arch(triple), triples.system(triple))
    return wanted == ("aarch64", "linux") and "musl" not in triple
