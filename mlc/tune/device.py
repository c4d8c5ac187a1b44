"""Which machine a record was measured on, and which others it says something about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlc.cpu import HostCpu
    from mlc.target import Target

ANY = "any"  # GPU of an architecture
_SM = re.compile(r"sm_\d+")
# Widest vector class first: a record says something about machines of the same class.
_CLASSES = (("avx512", "avx512f"), ("avx2", "avx2"), ("sse4", "sse4.2"), ("neon", "neon"))


@dataclass(frozen=True, kw_only=True)
class Device:
    """A measuring machine for one target: CPU model, threads, vector class of the target's code.

    Of a GPU: its name (`ANY`: whichever has the target's architecture), 0, the architecture.
    """

    cpu: str
    threads: int
    isa: str
    target: Target

    @property
    def id(self) -> str:
        """The id that records carry: target, CPU and threads, safe as a file name."""
        threads = [f"{self.threads}t"] if self.threads else []
        return ".".join([self.target.id, self.isa, _slug(self.cpu), *threads])

    def is_measured_by(self, device: str) -> bool:
        """Whether a record of a device (its id; "": of a log that was named) was measured on this one.

        Nobody knows on which GPU code for an architecture will run: any of that one counts. Of a card,
        those that bear its name.
        """
        if device in ("", self.id) or self.target.gpu is None:
            return device in ("", self.id)
        words = device.rpartition(".")[2].split("-")
        runs = {"".join(words[a:b]) for b in range(len(words) + 1) for a in range(b)}
        generic = self.target.name == f"cuda-{self.isa}"
        return isa_of(device) == self.isa and (generic or self.target.name.split("-")[-1] in runs)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def isa_class(features: tuple[str, ...] | frozenset[str]) -> str:
    """Return the vector class of code that may use these features."""
    return next((name for name, feature in _CLASSES if feature in features), "scalar")


def isa_of(device: str) -> str:
    """Return the vector class in a device id, or a GPU's architecture ("" when it has none)."""
    known = {name for name, _ in _CLASSES} | {"scalar"}
    found = (part for part in device.split(".") if part in known or _SM.fullmatch(part))
    return next(found, "")


def device_for(target: Target, cpu: HostCpu, threads: int) -> Device:
    """Return the device that `cpu` is when it runs code for `target`; for a GPU any of its kind."""
    if target.gpu is not None:
        return gpu_device(target, ANY)
    # A raw target string names no features: LLVM knows them, and the machine must have them.
    features = target.features or frozenset(cpu.features)
    return Device(cpu=cpu.name, threads=threads, isa=isa_class(features), target=target)


def gpu_device(target: Target, name: str) -> Device:
    """Return the device that a GPU of this name is when it runs code for `target`."""
    return Device(cpu=name, threads=0, isa=target.mcpu, target=target)
