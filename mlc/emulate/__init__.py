"""Run an artifact for 64-bit Arm Linux on another machine, in the emulator qemu.

    session -- the artifact's library, graph and weights, run by
    runner.cc -- a small program, compiled with the cross compiler on first use, against
    runtime -- TVM's runtime library for that machine, fetched once, its hash pinned

For checking results, not for timing: emulated time says nothing about the real machine.
"""

from __future__ import annotations

from mlc import triple as triples


def can_emulate(triple: str) -> bool:
    """Return whether code for a triple can be run in the emulator: 64-bit Arm Linux, glibc."""
    wanted = (triples.arch(triple), triples.system(triple))
    return wanted == ("aarch64", "linux") and "musl" not in triple
