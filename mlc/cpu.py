"""The CPU of this machine: what it is called and which instructions it has, in LLVM's names.

Reads text that the operating system offers and loads nothing else, so that an artifact can be
refused before any native code is mapped.

What counts as a feature here is deliberately narrow, see `CODEGEN_FEATURES`; the names of those are
the same on every kernel, so two machines of one kind always compare equal.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlc import triple
from mlc.cpu_names import (
    ARM_PARTS,
    ARM_VENDORS,
    FEATURES,
    HWCAP,
    HWCAP2,
    MACOS_RENAMES,
    RENAMES,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

CODEGEN_FEATURES = frozenset().union(*FEATURES.values())
"""Features for which a compiler emits instructions by itself, in LLVM's names.

They are what LLVM selects from plain code, and what TVM's own schedules call (VNNI, AMX, dotprod).
A machine that opens an artifact must have each of them that its target has. Left out: tuning flags
(`fast-gather`), what only the operating system uses (`shstk`, `pku`, `wbnoinvd`, `xsaves`), and what
only explicit intrinsics reach (`aes`, `sha`, `rdrnd`, `clzero`, `rdpru`): hypervisors hide those
often, and refusing a machine for them would be wrong.
"""


@dataclass(frozen=True, kw_only=True)
class HostCpu:
    """A CPU as its operating system describes it.

    `family` and `model` are the numbers that the vendor tells its designs apart by (on aarch64 the
    architecture version and the part number), 0 where unknown. `features` are those of
    `CODEGEN_FEATURES` that it has, `cores` the logical ones that this process may use. `system` is
    the operating system, as `mlc.triple.system` calls it.
    """

    arch: str
    vendor: str
    family: int
    model: int
    name: str
    features: frozenset[str]
    cores: int
    system: str = "linux"


@functools.cache
def host_cpu() -> HostCpu:
    """Return the CPU of this machine; what cannot be read is left empty, nothing is raised."""
    if sys.platform == "darwin":
        return parse_sysctl(_sysctl(), host_arch())
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    cpu = replace(parse_cpuinfo(text, host_arch()), cores=usable_cores())
    # The kernel's own word to this process. The text may be another machine's: under an emulator
    # it is that of the machine outside.
    return replace(cpu, features=_hwcap_features() or cpu.features)


def host_arch() -> str:
    """Return the instruction set of this machine as `mlc.triple.arch` calls it."""
    return triple.arch(platform.machine().lower())


def usable_cores() -> int:
    """Return how many logical cores the scheduler lets this process use (at least 1).

    A container's CPU quota is not part of it: that limits time, not cores.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def physical_cores() -> int:
    """Return how many distinct cores this process may use: hyper-threads of one count once."""
    affinity = getattr(os, "sched_getaffinity", None)
    if not affinity:
        return usable_cores()
    siblings = set()
    for cpu in affinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text(encoding="ascii").strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


def parse_cpuinfo(text: str, arch: str) -> HostCpu:
    """Return the CPU that the text of Linux's /proc/cpuinfo describes; `cores` counts its entries.

    The first entry speaks for all: the kernel shows only features that every core has.
    """
    fields: dict[str, str] = {}
    cores = 0
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        cores += key == "processor"
        fields.setdefault(key, value)
    if arch in ("aarch64", "arm"):
        return _arm_cpu(fields, cores, arch)
    return HostCpu(
        arch=arch,
        vendor=fields.get("vendor_id", "unknown"),
        family=_number(fields.get("cpu family", "")),
        model=_number(fields.get("model", "")),
        name=fields.get("model name") or "unknown",
        features=_features(fields.get("flags", "").split(), arch),
        cores=max(cores, 1),
    )


def parse_sysctl(text: str, arch: str) -> HostCpu:
    """Return the CPU that the output of macOS's `sysctl hw machdep.cpu` describes (Apple silicon)."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    prefix = "hw.optional.arm.feat_"
    flags = {
        key.lower().removeprefix(prefix)
        for key, value in fields.items()
        if key.lower().startswith(prefix) and value.strip() == "1"
    }
    if arch == "aarch64":
        flags |= {"neon", "fp-armv8"}  # part of every 64-bit Apple core, so not listed
    return HostCpu(
        arch=arch,
        vendor="Apple" if arch == "aarch64" else "unknown",
        family=_number(fields.get("hw.cpufamily", "")),
        model=_number(fields.get("hw.cpusubfamily", "")),
        name=fields.get("machdep.cpu.brand_string", "unknown").strip(),
        features=_features((MACOS_RENAMES.get(flag, flag) for flag in flags), arch),
        cores=max(_number(fields.get("hw.logicalcpu", "")), 1),
        system="darwin",
    )


def parse_hwcap(hwcap: int, hwcap2: int) -> frozenset[str]:
    """Return the features that aarch64 Linux's AT_HWCAP and AT_HWCAP2 stand for, in LLVM's names."""
    bits = ((HWCAP, hwcap), (HWCAP2, hwcap2))
    flags = (name for names, word in bits for bit, name in enumerate(names) if word >> bit & 1)
    return _features(flags, "aarch64")


def _hwcap_features() -> frozenset[str]:
    """Return what the kernel tells this process; nothing where it is not aarch64 Linux."""
    if sys.platform != "linux" or host_arch() != "aarch64":
        return frozenset()
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
    return parse_hwcap(getauxval(16), getauxval(26))  # AT_HWCAP, AT_HWCAP2


def _arm_cpu(fields: dict[str, str], cores: int, arch: str) -> HostCpu:
    implementer, part = (_number(fields.get(key, "")) for key in ("CPU implementer", "CPU part"))
    vendor = ARM_VENDORS.get(implementer, "unknown")
    known = ARM_PARTS.get(part) if vendor == "ARM" else None
    return HostCpu(
        arch=arch,
        vendor=vendor,
        family=_number(fields.get("CPU architecture", "")),
        model=part,
        name=fields.get("model name") or known or f"{vendor} part {part:#x}",
        features=_features(fields.get("Features", "").split(), arch),
        cores=max(cores, 1),
    )


def _features(flags: Iterable[str], arch: str) -> frozenset[str]:
    renames = RENAMES.get(arch, {})
    known = FEATURES.get(arch, frozenset())
    return frozenset(renames.get(flag, flag) for flag in flags) & known


def _number(text: str) -> int:
    try:
        return int(text.strip(), 0)
    except ValueError:
        return 0


def _sysctl() -> str:
    command = ["/usr/sbin/sysctl", "hw", "machdep.cpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
