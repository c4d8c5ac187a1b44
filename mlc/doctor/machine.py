"""Checks of the machine: its CPU, limits, load, memory and disks, and what makes timings mislead."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlc.cache import default_directory
from mlc.cpu import host_cpu, usable_cores
from mlc.target import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlc.doctor import Finding

PROC = Path("/proc")
SYS = Path("/sys")
GIB = 1 << 30
MIN_FREE_BYTES = 2 * GIB  # below it, a large model may not get through
MAX_LOAD = 0.5  # running tasks per core
MAX_STEAL = 0.02  # share of time
STEAL_SECONDS = 0.2

TELLING_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512vnni",
    "avx512bf16",
    "avx512fp16",
    "avxvnni",
    "amx-int8",
    "neon",
    "dotprod",
    "fullfp16",
    "i8mm",
    "bf16",
    "sve",
)
"""The features that decide how fast a model can be."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "TVM_NUM_THREADS",
    "TVM_BIND_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
)
"""Environment variables that silently change what a timing says."""


def cpu_name() -> Finding:
    """Report the CPU and the features that decide how fast a model can be."""
    cpu = host_cpu()
    features = ", ".join(name for name in TELLING_FEATURES if name in cpu.features)
    value = f"{cpu.name} ({cpu.vendor} family {cpu.family} model {cpu.model:#x})"
    return "ok", f"{value}: {features or 'no vector extension that mlc uses'}", ""


def host_target() -> Finding:
    """Report what `--target llvm` means here."""
    target = resolve("llvm")
    return "ok", f"llvm is {target.name}: {target.tvm}", ""


def cores() -> Finding:
    """Report the cores that this process may use, of those that the machine has."""
    return "ok", f"{usable_cores()} usable of {os.cpu_count()}", ""


def cpu_quota() -> Finding:
    """Check that no container limit cuts into the usable cores (cgroup v2)."""
    quotas = [cpu_quota_of(text) for text in _cgroup_limits("cpu.max")]
    limits = [quota for quota in quotas if quota is not None]
    if not limits:
        return "ok", "no limit seen", ""
    quota, usable = min(limits), usable_cores()
    if quota >= usable:
        return "ok", f"{quota:g} cores' worth of time", ""
    return (
        "warn",
        f"{quota:g} cores' worth of time for {usable} cores: threads get stopped in turn",
        f"export TVM_NUM_THREADS={max(int(quota), 1)}",
    )


def frequency_governor() -> Finding:
    """Check that the clock does not wait for load before it rises."""
    path = SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"
    if not path.exists():
        return "ok", "not exposed", ""
    governor = path.read_text().strip()
    if governor == "performance":
        return "ok", governor, ""
    return "warn", governor, "sudo cpupower frequency-set --governor performance"


def load() -> Finding:
    """Check that nothing else keeps the cores busy (1 minute load average)."""
    average = os.getloadavg()[0]
    value = f"{average:.2f} on {usable_cores()} cores"
    if average <= MAX_LOAD * usable_cores():
        return "ok", value, ""
    return "warn", value, "see what runs with `top`; timings are trustworthy on an idle machine"


def steal_time() -> Finding:
    """Check, over 0.2 s, that the hypervisor gives this machine the time that it asks for."""
    before = (PROC / "stat").read_text()
    time.sleep(STEAL_SECONDS)
    share = steal_share(before, (PROC / "stat").read_text())
    if share <= MAX_STEAL:
        return "ok", f"{share:.1%}", ""
    return "warn", f"{share:.1%}", "the host is crowded: time on a dedicated machine, or later"


def smt() -> Finding:
    """Report whether logical cores of this machine share a physical one."""
    topology = (SYS / "devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    siblings = [path.read_text().strip() for path in topology]
    if not siblings:
        return "ok", "not available", ""
    physical = len(set(siblings))
    if physical == len(siblings):
        return "ok", "off: each core is a physical one", ""
    return "ok", f"on: {len(siblings)} logical cores on {physical} physical ones", ""


def memory() -> Finding:
    """Check the memory that is free, and what a container's limit allows of it."""
    free = free_memory()
    advice = "close other programs or raise the container's limit; or compile with --jobs 1"
    return _enough(free, f"{free / GIB:.1f} GiB usable", advice)


def free_memory() -> int:
    """Return the bytes of memory that can still be used, by Linux and a container's limit.

    Raises:
        OSError: the system does not say.
    """
    rows = (PROC / "meminfo").read_text().splitlines()
    available = next(row for row in rows if row.startswith("MemAvailable"))
    limits = [int(text) for text in _cgroup_limits("memory.max") if text != "max"]
    return min([int(available.split()[1]) * 1024, *limits])


def disk(folder: Path) -> Finding:
    """Check the free space where `folder` is, or will be created."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    advice = f"free some space: du -xsh {shlex.quote(str(there))}/*"
    return _enough(free, f"{free / GIB:.1f} GiB free in {folder}", advice)


def environment_variables() -> Finding:
    """Check for environment variables that change what a timing says."""
    found = [name for name in THREAD_VARIABLES if name in os.environ]
    if not found:
        return "ok", "no thread settings", ""
    value = ", ".join(f"{name}={os.environ[name]}" for name in found)
    return "warn", value, f"unless they are meant: unset {' '.join(found)}"


def cpu_quota_of(text: str) -> float | None:
    """Return the cores' worth of time in the text of a `cpu.max`; None for no limit."""
    quota, _, period = text.strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def steal_share(before: str, after: str) -> float:
    """Return the share of stolen time, 0 to 1, between two texts of /proc/stat."""
    # user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user.
    rows = [[int(number) for number in text.split()[1:9]] for text in (before, after)]
    spent = [late - early for early, late in zip(*rows, strict=True)]
    return max(spent[7], 0) / sum(spent) if sum(spent) > 0 else 0.0


def cache_folder() -> Path:
    """Return the folder that compiled kernels are kept in."""
    return default_directory()


def _enough(free: int, value: str, advice: str) -> Finding:
    return ("ok", value, "") if free >= MIN_FREE_BYTES else ("warn", value, advice)


def _cgroup_limits(name: str) -> Iterator[str]:
    """Yield the text of `name` in each control group around this process that has such a file."""
    root = SYS / "fs/cgroup"
    own = PROC / "self/cgroup"
    lines = own.read_text().splitlines() if own.exists() else []
    inside = next((line[3:] for line in lines if line.startswith("0::")), "/").strip("/")
    folder = root / inside
    for group in (folder, *folder.parents):
        if (group / name).is_file():
            yield (group / name).read_text().strip()
        if group == root:
            return
