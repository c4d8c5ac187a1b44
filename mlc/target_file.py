"""The schema of a target file: TOML in, the checked fields of a `Target` and its [match] table out.

Strict on purpose: an unknown, missing or mistyped key is an error that names the file and the key.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc.cpu import CODEGEN_FEATURES
from mlc.errors import TargetError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

    from mlc.cpu import HostCpu

KINDS = ("cpu", "cuda")
NVIDIA = "nvptx64-nvidia-cuda"
"""The triple of every GPU target."""

_TEXT_KEYS = ("name", "kind", "description", "triple", "mcpu")
_FILE_KEYS: dict[str, type] = {**dict.fromkeys(_TEXT_KEYS, str), "features": list}
_GPU_KEYS: dict[str, type] = {
    **dict.fromkeys(("name", "kind", "description", "sm"), str),
    **dict.fromkeys(("shared_bytes", "registers", "warp", "max_threads"), int),
}
_MATCH_KEYS: dict[str, type] = {"vendor": str, "family": int, "models": list}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What one block of threads may have on a GPU.

    `shared_bytes` of static shared memory, `registers` of 32 bits in all, `max_threads`; `warp` is
    how many threads run in step.
    """

    shared_bytes: int
    registers: int
    warp: int
    max_threads: int


@dataclass(frozen=True, kw_only=True)
class Match:
    """The CPUs that a target file is meant for: model numbers as inclusive ranges."""

    vendor: str
    family: int
    models: tuple[tuple[int, int], ...]

    def fits(self, cpu: HostCpu) -> bool:
        """Return whether `cpu` is one of them."""
        return (self.vendor, self.family) == (cpu.vendor, cpu.family) and any(
            low <= cpu.model <= high for low, high in self.models
        )


def read(path: Path) -> tuple[dict[str, Any], Match | None]:
    """Return the fields of the `Target` that a file describes, and the CPUs that it is meant for.

    Raises:
        TargetError: it cannot be read, is not TOML, has unknown, missing or mistyped keys, is named
            unlike its file, or lists features that are unknown or out of order.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TargetError(f"cannot read the target file {path}: {error}") from error
    if data.get("kind") == "cuda":
        return _read_gpu(path, data), None
    match = data.pop("match", None)
    without = data.pop("without", [])
    _check_keys(path, data, _FILE_KEYS)
    _check_values(path, data)
    if not isinstance(without, list) or not all(
        name in CODEGEN_FEATURES for name in map(str, without)
    ):
        raise _bad(path, f"without must list features that code does not use, not {without!r}")
    features = {"features": tuple(data["features"]), "mattr": tuple(f"-{name}" for name in without)}
    fields = {**data, **features}
    return fields, None if match is None else _read_match(path, match)


def _read_gpu(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    _check_keys(path, data, _GPU_KEYS)
    _check_name(path, data)
    if not re.fullmatch(r"sm_[1-9][0-9]{1,2}", data["sm"]):
        raise _bad(path, f"sm must look like sm_80, not {data['sm']!r}")
    limits = {key: data[key] for key, kind in _GPU_KEYS.items() if kind is int}
    for key, number in limits.items():
        if number < 1:
            raise _bad(path, f"{key} must be positive, not {number}")
    return {
        **{key: data[key] for key in ("name", "kind", "description")},
        "triple": NVIDIA,
        "mcpu": data["sm"],
        "gpu": Gpu(**limits),
    }


def _read_match(path: Path, data: object) -> Match:
    if not isinstance(data, dict):
        raise _bad(path, "match must be a table")
    _check_keys(path, data, _MATCH_KEYS)
    for row in data["models"]:
        whole = isinstance(row, list) and [type(number) for number in row] == [int, int]
        if not whole or not 0 <= row[0] <= row[1]:
            raise _bad(path, f"models must hold [low, high] ranges, not {row!r}")
    models = tuple((low, high) for low, high in data["models"])
    return Match(vendor=data["vendor"], family=data["family"], models=models)


def _check_keys(path: Path, data: dict[str, Any], keys: dict[str, type]) -> None:
    for key in data:
        if key not in keys:
            raise _bad(path, f"unknown key {key!r}", did_you_mean(key, keys))
    for key, kind in keys.items():
        if key not in data:
            raise _bad(path, f"the key {key!r} is missing")
        if type(data[key]) is not kind or data[key] in ("", []):
            raise _bad(path, f"{key} must be of type {kind.__name__} and not empty")


def _check_name(path: Path, data: dict[str, Any]) -> None:
    if data["name"] != path.stem:
        raise _bad(path, f"name is {data['name']!r}, but the file's name says {path.stem!r}")


def _check_values(path: Path, data: dict[str, Any]) -> None:
    _check_name(path, data)
    if data["kind"] not in KINDS:
        raise _bad(path, f"unknown kind {data['kind']!r}", did_you_mean(data["kind"], KINDS))
    features = data["features"]
    for feature in map(str, features):
        if feature not in CODEGEN_FEATURES:
            near = did_you_mean(feature, CODEGEN_FEATURES)
            raise _bad(path, f"unknown feature {feature!r}", near)
    if features != sorted(set(features)):
        raise _bad(path, "features must be sorted, each once")


def _bad(path: Path, message: str, hint: str | None = None) -> TargetError:
    return TargetError(f"target file {path}: {message}", hint)
