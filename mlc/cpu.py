"""The CPU of this machine: what it is called and which instructions it has, in LLVM's names.

Reads text that the operating system offers and loads nothing else, so that an artifact can be
refused before any native code is mapped.

What counts as a feature here is deliberately narrow, see `CODEGEN_FEATURES`; the names of those are
the same on every kernel, so two machines of one kind always compare equal.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# The first line is APX: no kernel flag covers these one by one, so they are never detected and code
# that needs them is refused rather than risked. `prefetchi` is left out for the same lack of a flag,
# which costs nothing: only prefetches of code use it, and TVM emits none.
_X86 = """
    ccmp cf egpr ndd nf ppx push2pop2 zu
    amx-bf16 amx-complex amx-fp16 amx-int8 amx-tile
    avx avx10.1 avx10.2 avx2 avx512bf16 avx512bitalg avx512bw avx512cd avx512dq avx512f avx512fp16
    avx512ifma avx512vbmi avx512vbmi2 avx512vl avx512vnni avx512vpopcntdq
    avxifma avxneconvert avxvnni avxvnniint16 avxvnniint8
    bmi bmi2 cmov cmpccxadd cx16 cx8 f16c fma fma4 gfni lzcnt movbe popcnt prfchw sahf
    sse sse2 sse3 sse4.1 sse4.2 sse4a ssse3 tbm x87 xop
"""
_AARCH64 = """
    bf16 complxnum cssc dotprod f32mm f64mm flagm fp-armv8 fp16fml fullfp16 i8mm lse lse128 lse2
    mops neon rcpc rcpc-immo rcpc3 rdm sha3 sve sve-bitperm sve2 sve2p1
"""
X86_FEATURES = frozenset(_X86.split())
AARCH64_FEATURES = frozenset(_AARCH64.split())
CODEGEN_FEATURES = X86_FEATURES | AARCH64_FEATURES
"""Features for which a compiler emits instructions by itself, in LLVM's names.

They are what LLVM selects from plain code, and what TVM's own schedules call (VNNI, AMX, dotprod).
A machine that opens an artifact must have each of them that its target has. Left out: tuning flags
(`fast-gather`), what only the operating system uses (`shstk`, `pku`, `wbnoinvd`, `xsaves`), and what
only explicit intrinsics reach (`aes`, `sha`, `rdrnd`, `clzero`, `rdpru`): hypervisors hide those
often, and refusing a machine for them would be wrong.
"""

# What the operating system calls a feature, where that is not LLVM's name for it.
_RENAMES = {
    "x86_64": {
        "3dnowprefetch": "prfchw",
        "abm": "lzcnt",
        "amx_bf16": "amx-bf16",
        "amx_complex": "amx-complex",
        "amx_fp16": "amx-fp16",
        "amx_int8": "amx-int8",
        "amx_tile": "amx-tile",
        "avx512_bf16": "avx512bf16",
        "avx512_bitalg": "avx512bitalg",
        "avx512_fp16": "avx512fp16",
        "avx512_vbmi2": "avx512vbmi2",
        "avx512_vnni": "avx512vnni",
        "avx512_vpopcntdq": "avx512vpopcntdq",
        "avx_ifma": "avxifma",
        "avx_ne_convert": "avxneconvert",
        "avx_vnni": "avxvnni",
        "avx_vnni_int16": "avxvnniint16",
        "avx_vnni_int8": "avxvnniint8",
        "bmi1": "bmi",
        "fpu": "x87",
        "lahf_lm": "sahf",
        "pni": "sse3",
        "sse4_1": "sse4.1",
        "sse4_2": "sse4.2",
    },
    "aarch64": {
        "asimd": "neon",
        "asimddp": "dotprod",
        "asimdfhm": "fp16fml",
        "asimdhp": "fullfp16",
        "asimdrdm": "rdm",
        "atomics": "lse",
        "fcma": "complxnum",
        "fp": "fp-armv8",
        "ilrcpc": "rcpc-immo",
        "lrcpc": "rcpc",
        "lrcpc3": "rcpc3",
        "svebitperm": "sve-bitperm",
        "svef32mm": "f32mm",
        "svef64mm": "f64mm",
        "uscat": "lse2",
    },
}

# macOS has its own spelling: `hw.optional.arm.FEAT_DotProd: 1`, here without case and prefix.
_MACOS_RENAMES = {
    "advsimd": "neon",
    "fcma": "complxnum",
    "fhm": "fp16fml",
    "fp16": "fullfp16",
    "lrcpc": "rcpc",
    "lrcpc2": "rcpc-immo",
}

_ARM_VENDORS = {
    0x41: "ARM",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x51: "Qualcomm",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}

# Arm's own cores (vendor 0x41); /proc/cpuinfo gives only the part number.
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD40: "Neoverse-V1",
    0xD49: "Neoverse-N2",
    0xD4F: "Neoverse-V2",
    0xD84: "Neoverse-V3",
    0xD8E: "Neoverse-N3",
}


@dataclass(frozen=True, kw_only=True)
class HostCpu:
    """A CPU as its operating system describes it.

    `family` and `model` are the numbers that the vendor tells its designs apart by (on aarch64 the
    architecture version and the part number), 0 where unknown. `features` are those of
    `CODEGEN_FEATURES` that it has, `cores` the logical ones that this process may use.
    """

    arch: str
    vendor: str
    family: int
    model: int
    name: str
    features: frozenset[str]
    cores: int


@functools.cache
def host_cpu() -> HostCpu:
    """Return the CPU of this machine; what cannot be read is left empty, nothing is raised."""
    if sys.platform == "darwin":
        return parse_sysctl(_sysctl(), host_arch())
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return replace(parse_cpuinfo(text, host_arch()), cores=usable_cores())


def host_arch() -> str:
    """Return the instruction set of this machine as LLVM triples spell it: `x86_64`, `aarch64`."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


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
    if arch == "aarch64":
        return _arm_cpu(fields, cores)
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
        features=_features((_MACOS_RENAMES.get(flag, flag) for flag in flags), arch),
        cores=max(_number(fields.get("hw.logicalcpu", "")), 1),
    )


def _arm_cpu(fields: dict[str, str], cores: int) -> HostCpu:
    implementer, part = (_number(fields.get(key, "")) for key in ("CPU implementer", "CPU part"))
    vendor = _ARM_VENDORS.get(implementer, "unknown")
    known = _ARM_PARTS.get(part) if vendor == "ARM" else None
    return HostCpu(
        arch="aarch64",
        vendor=vendor,
        family=_number(fields.get("CPU architecture", "")),
        model=part,
        name=fields.get("model name") or known or f"{vendor} part {part:#x}",
        features=_features(fields.get("Features", "").split(), "aarch64"),
        cores=max(cores, 1),
    )


def _features(flags: Iterable[str], arch: str) -> frozenset[str]:
    renames = _RENAMES.get(arch, {})
    known = {"x86_64": X86_FEATURES, "aarch64": AARCH64_FEATURES}.get(arch, frozenset())
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
