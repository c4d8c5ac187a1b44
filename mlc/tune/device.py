"""Which machine a record was measured on, and which others it says something about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlc.cpu import HostCpu
    from mlc.target import Target

# Widest vector class first: a record says something about machines of the same class.
_CLASSES = (("avx512", "avx512f"), ("avx2", "avx2"), ("sse4", "sse4.2"), ("neon", "neon"))


@dataclass(frozen=True, kw_only=True)
class Device:
    """A measuring machine for one target: CPU model, threads, vector class of the target's code."""

    cpu: str
    threads: int
    isa: str
    target: Target

    @property
    def id(self) -> str:
        """The id that records carry: target, CPU and threads, safe as a file name."""
        cpu = re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")
        return f"{self.target.id}.{self.isa}.{cpu}.{self.threads}t"


def isa_class(features: tuple[str, ...] | frozenset[str]) -> str:
    """Return the vector class of code that may use these features."""
    return next((name for name, feature in _CLASSES if feature in features), "scalar")


def isa_of(device: str) -> str:
    """Return the vector class in a device id ("" when it has none)."""
    known = {name for name, _ in _CLASSES} | {"scalar"}
    return next((part for part in device.split(".") if part in known), "")


def device_for(target: Target, cpu: HostCpu, threads: int) -> Device:
    """Return the device that `cpu` is when it runs code for `target`."""
    # A raw target string names no features: LLVM knows them, and the machine must have them.
    features = target.features or frozenset(cpu.features)
    return Device(cpu=cpu.name, threads=threads, isa=isa_class(features), target=target)
