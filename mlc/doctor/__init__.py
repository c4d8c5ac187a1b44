"""Whether this machine is fit to compile, tune and time models, and what to do where it is not.

One small function a check, all in the table `CHECKS`: `install` has those of what is installed,
`machine` those of the hardware and of what else it is doing, `cross` those for another target. A
check answers with a status, what it found and, where something should be done, the exact next
command or edit. What cannot be read on this system is "not available", never an error.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlc.doctor import cross
from mlc.doctor.install import (
    PACKAGES,
    Package,
    cxx_compiler,
    no_apache_tvm,
    package,
    python_version,
    tvm_loads,
)
from mlc.doctor.machine import (
    THREAD_VARIABLES,
    cache_folder,
    cores,
    cpu_name,
    cpu_quota,
    cpu_quota_of,
    disk,
    environment_variables,
    frequency_governor,
    host_target,
    load,
    memory,
    smt,
    steal_share,
    steal_time,
)
from mlc.errors import MlcError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CHECKS",
    "PACKAGES",
    "THREAD_VARIABLES",
    "Check",
    "Finding",
    "Package",
    "Status",
    "cache_folder",
    "cores",
    "cpu_name",
    "cpu_quota",
    "cpu_quota_of",
    "cxx_compiler",
    "diagnose",
    "disk",
    "environment_variables",
    "frequency_governor",
    "host_target",
    "load",
    "memory",
    "no_apache_tvm",
    "package",
    "python_version",
    "run_check",
    "smt",
    "steal_share",
    "steal_time",
    "tvm_loads",
]

Status = Literal["ok", "warn", "fail"]
Finding = tuple[Status, str, str]
"""What a check function returns: status, value, advice."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of one check; `advice` is empty where nothing needs doing."""

    name: str
    status: Status
    value: str
    advice: str = ""


def diagnose(target: str | None = None) -> list[Check]:
    """Run every check of `CHECKS` in order (about three seconds, most of it loading TVM).

    With a `target`, those of `cross` follow: what compiling for it takes.

    Raises:
        TargetError: there is no such target.
    """
    wanted = cross.checks(target) if target is not None else ()
    return [run_check(name, function) for name, function in (*CHECKS, *wanted)]


def run_check(name: str, function: Callable[[], Finding]) -> Check:
    """Run one check; one that breaks has found nothing: "not available"."""
    try:
        status, value, advice = function()
    except MlcError as error:
        status, value, advice = "fail", error.message, error.hint or ""
    except Exception:  # noqa: BLE001 - a doctor that falls ill over an odd system helps nobody
        status, value, advice = "ok", "not available", ""
    return Check(name=name, status=status, value=value, advice=advice)


CHECKS: tuple[tuple[str, Callable[[], Finding]], ...] = (
    ("Python", python_version),
    *((wanted.name, partial(package, wanted)) for wanted in PACKAGES),
    ("apache-tvm", no_apache_tvm),
    (
        "TVM runtime",
        partial(tvm_loads, "import tvm; print(tvm.__version__)", runtime_only=True),
    ),
    (
        "TVM compiler",
        partial(
            tvm_loads,
            "from tvm.target import codegen; print('LLVM', codegen.llvm_version_major())",
            runtime_only=False,
        ),
    ),
    ("C++ compiler", cxx_compiler),
    ("CPU", cpu_name),
    ("target", host_target),
    ("cores", cores),
    ("CPU quota", cpu_quota),
    ("frequency", frequency_governor),
    ("load", load),
    ("steal time", steal_time),
    ("SMT", smt),
    ("memory", memory),
    ("cache folder", lambda: disk(cache_folder())),
    ("temporary files", lambda: disk(Path(tempfile.gettempdir()))),
    ("environment", environment_variables),
)
