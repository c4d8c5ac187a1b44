"""What a device says of itself, and whether to believe it.

A server answers `mlc.device_facts` with JSON. It may be anybody's: sizes and types are checked, and
features that we do not know do not count.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from mlc import tvm_env
from mlc.cpu import CODEGEN_FEATURES, HostCpu, host_cpu, physical_cores
from mlc.errors import TuningError, printable

FUNCTION = "mlc.device_facts"
_FORMAT = 1
_MAX_BYTES = 64 << 10
_MAX_NAME = 200
_MAX_CORES = 1 << 14
SM = re.compile(r"sm_[1-9][0-9]{1,2}")


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """A GPU: what NVIDIA calls it, its architecture (`sm_80`)."""

    name: str
    sm: str


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """A device: its CPU, its distinct cores, the version of TVM that serves it; the GPU it offers."""

    cpu: HostCpu
    physical_cores: int
    tvm: str
    gpu: GpuFacts | None = None

    def __str__(self) -> str:
        if self.gpu is not None:
            return f"{self.gpu.name} ({self.gpu.sm})"
        return f"{self.cpu.name}, {self.physical_cores} cores"


def here(gpu: dict[str, str] | None = None) -> str:
    """Return the facts of this machine, as JSON; `gpu` has the fields of `GpuFacts`."""
    cpu = host_cpu()
    return json.dumps(
        {
            "format": _FORMAT,
            "tvm": tvm_env.VERSION,
            "physical_cores": physical_cores(),
            "cpu": {**asdict(cpu), "features": sorted(cpu.features)},
            "gpu": gpu,
        }
    )


def read(text: str) -> DeviceFacts:
    """Return the facts in a device's answer.

    Raises:
        TuningError: it is not what a server of mlc answers, or TVM there is another version.
    """
    try:
        found = _read(text)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TuningError(
            f"the device's description of itself cannot be used ({printable(str(error), 200)})",
            "serve it with `mlc rpc server` of the same version as this mlc",
        ) from error
    if found.tvm != tvm_env.VERSION:
        raise TuningError(
            f"the device runs TVM {printable(found.tvm)}, here is {tvm_env.VERSION}",
            "install the same mlc on both",
        )
    return found


def _read(text: str) -> DeviceFacts:
    if len(text) > _MAX_BYTES:
        raise ValueError(f"it has {len(text)} characters")
    row = json.loads(text)
    if row["format"] != _FORMAT:
        raise ValueError(f"its format is {row['format']!r}, not {_FORMAT}")
    cpu = row["cpu"]
    return DeviceFacts(
        cpu=HostCpu(
            arch=_word(cpu["arch"]),
            vendor=_word(cpu["vendor"]),
            family=_number(cpu["family"], 0, 1 << 40),
            model=_number(cpu["model"], 0, 1 << 40),
            name=_word(cpu["name"]),
            features=CODEGEN_FEATURES & {_word(feature) for feature in cpu["features"]},
            cores=_number(cpu["cores"], 1, _MAX_CORES),
        ),
        physical_cores=_number(row["physical_cores"], 1, _MAX_CORES),
        tvm=_word(row["tvm"]),
        gpu=_gpu(row.get("gpu")),
    )


def _gpu(row: Any) -> GpuFacts | None:
    if row is None:
        return None
    if not SM.fullmatch(_word(row["sm"])):
        raise ValueError("a GPU's architecture is none")
    return GpuFacts(name=_word(row["name"]), sm=row["sm"])


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_NAME:
        raise ValueError("a name is no short text")
    return printable(value)


def _number(value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"a number is not from {low} to {high}")
    return value
