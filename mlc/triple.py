"""What a target triple (`aarch64-linux-gnu`) says: instruction set, system, and kind of file.

Triples have many spellings; here they become the few words that `HostCpu` and the linker use.
"""

from __future__ import annotations

import re

_ARCHES = {"arm64": "aarch64", "amd64": "x86_64", "i586": "i386", "i686": "i386"}
_ARM = re.compile(r"(arm|thumb)(v[4-9].*)?$")
_SYSTEMS = {"linux": "linux", "darwin": "darwin", "macos": "darwin"}


def arch(triple: str) -> str:
    """Return the instruction set: `x86_64`, `aarch64`, `arm` (32 bits), else as it is written."""
    first = triple.partition("-")[0]
    return "arm" if _ARM.fullmatch(first) else _ARCHES.get(first, first)


def system(triple: str) -> str:
    """Return the operating system: `linux`, `darwin` (macOS), or "" for any other."""
    words = triple.split("-")[1:]
    found = (_SYSTEMS.get(word.rstrip("0123456789.")) for word in words)
    return next((name for name in found if name), "")
