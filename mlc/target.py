"""What an artifact is compiled for: a named piece of hardware, or a TVM target string.

Targets are data: one file in `targets/` each, checked against the schema of `mlc.target_file` when
it is read. Three spellings lead to a `Target` (`resolve`): the name of such a file, `llvm` for this
very machine, and a raw TVM target string for whatever has no file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlc import target_file
from mlc import triple as triples
from mlc.cpu import CODEGEN_FEATURES, HostCpu, host_cpu
from mlc.errors import TargetError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HOST_NAMES = ("llvm", "native", "host")

_LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2")
_X86_BASELINE = ("cmov", "cx8", "sse", "sse2", "x87")  # what LLVM gives for -mcpu=x86-64
_FLOAT_ABI = "-mfloat-abi"
_RAW_KEYS = ("mtriple", "mcpu", "mattr")  # options of a raw string that have fields of their own


@dataclass(frozen=True, kw_only=True)
class Target:
    """One piece of hardware to compile for; two are equal when the same code comes out.

    `mattr` holds signed features that are set on top of `mcpu` (`+avx2`), `extra` further TVM
    options as written. `features` are those of `mlc.cpu.CODEGEN_FEATURES` that the code may use, in
    LLVM's names and sorted; an empty tuple means that nobody but LLVM knows: ask
    `llvm_get_cpu_features` before an artifact is written. A GPU (`kind` is `cuda`) has `gpu`, its
    architecture (`sm_80`) as `mcpu`, and no features.
    """

    name: str
    kind: str
    description: str = field(compare=False)
    triple: str
    mcpu: str
    mattr: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    gpu: target_file.Gpu | None = None

    @property
    def tvm(self) -> str:
        """The canonical TVM target string: the same for every spelling of one target."""
        if self.gpu is not None:
            limits = f"-max_num_threads={self.gpu.max_threads} -thread_warp_size={self.gpu.warp}"
            return f"nvptx -mtriple={self.triple} -mcpu={self.mcpu} {limits}"
        parts = ["llvm", f"-mtriple={self.triple}"]
        if self.mcpu:
            parts.append(f"-mcpu={self.mcpu}")
        if self.mattr:
            parts.append(f"-mattr={','.join(self.mattr)}")
        if self.triple.endswith("hf") and not any(
            word.startswith(_FLOAT_ABI) for word in self.extra
        ):
            parts.append(f"{_FLOAT_ABI}=hard")  # else TVM passes floats in integer registers there
        return " ".join([*parts, *self.extra])

    @property
    def id(self) -> str:
        """A short name that is safe in file names and different for every `tvm` string."""
        slug = re.sub(r"[^A-Za-z0-9._-]", "_", self.name)[:40]
        return f"{slug}-{hashlib.sha256(self.tvm.encode()).hexdigest()[:12]}"

    @property
    def arch(self) -> str:
        """The instruction set (`x86_64`, `aarch64`, `arm`), as `HostCpu.arch` calls it."""
        return triples.arch(self.triple)

    @property
    def system(self) -> str:
        """The operating system (`linux`, `darwin`, "" for others), as `HostCpu.system` calls it."""
        return triples.system(self.triple)


def resolve(text: str) -> Target:
    """Return the target that a user means with `text`.

    That is this machine (`llvm`, `native`, `host`), the name of a target file, `cuda:sm_80` for any
    GPU of an architecture (`cuda:a100`: that card), or a raw TVM target string such as `llvm -mcpu=znver4 -mattr=+avxvnni`. In a raw string -mtriple defaults to this
    machine's.

    Raises:
        TargetError: no such name (the hint has the choices), or a raw string that does not parse.
    """
    words = text.split()
    if words[:1] == ["llvm"] and len(words) > 1:
        return _parse_raw(words)
    name = " ".join(words)
    if name in HOST_NAMES:
        return for_cpu(host_cpu())
    kind, _, arch = name.partition(":")
    if kind == "cuda":
        return _gpu(arch)
    known = _files(data_dir())
    if name not in known:
        hint = did_you_mean(name, [*known, "llvm", "cuda"])
        raise TargetError(
            f"unknown target {name!r}",
            f"{hint}\n`mlc targets` describes them; llvm is this machine",
        )
    return known[name][0]


def _gpu(arch: str) -> Target:
    """Return the target of any GPU of one architecture: the cards that have it are alike to us.

    `arch` may also be a card's name.
    """
    cards = {target.name: target for target in all_targets() if target.kind == "cuda"}
    if arch in cards:
        return cards[arch]
    by_arch = {target.mcpu: target for target in cards.values()}
    if arch not in by_arch:
        said = f"unknown GPU architecture {arch!r}" if arch else "the target cuda needs --arch"
        raise TargetError(
            said, f"{did_you_mean(arch, by_arch)}\nor name a card; `mlc targets` describes them"
        )
    return dataclasses.replace(
        by_arch[arch], name=f"cuda-{arch}", description=f"any NVIDIA GPU of {arch}"
    )


def for_cpu(cpu: HostCpu) -> Target:
    """Return the target that suits `cpu` best and needs nothing that it lacks.

    1. The file whose [match] table fits; among several the one with the most features.
    2. Else the highest x86-64 level. 3. On aarch64 a generic core with the features that `cpu` has.

    Raises:
        TargetError: `cpu` is neither x86-64 nor aarch64.
    """
    if cpu.arch not in ("x86_64", "aarch64"):
        raise TargetError(
            f"mlc has no target for this machine's instruction set, {cpu.arch}",
            f"give a full one: --target 'llvm -mtriple={cpu.arch}-linux-gnu -mcpu=...'",
        )
    files = _files(data_dir())
    able = {name: row for name, row in files.items() if runs_on(row[0], cpu)}
    fitting = [target for target, match in able.values() if match and match.fits(cpu)]
    if fitting:
        target = max(fitting, key=lambda target: len(target.features))
    elif cpu.arch == "aarch64":
        target = _generic_arm(cpu)
    else:
        target = _x86_level(able)
    return dataclasses.replace(
        target, description=f"This machine ({cpu.name}): {target.description}"
    )


def all_targets() -> list[Target]:
    """Return the target of every file in `data_dir()`, sorted by name.

    Raises:
        TargetError: the folder is missing, or a file in it breaks the schema.
    """
    return [target for target, _ in _files(data_dir()).values()]


def load_target(path: Path) -> Target:
    """Read one target file.

    Raises:
        TargetError: it cannot be read, is not TOML, has unknown, missing or mistyped keys, is named
            unlike its file, or lists features that are unknown or out of order.
    """
    return Target(**target_file.read(path)[0])


def data_dir(name: str = "targets") -> Path:
    """Return a folder of data that comes with mlc: of an installed package, else of the checkout.

    Raises:
        TargetError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / f"_{name}", package.parent / name):
        if folder.is_dir():
            return folder
    raise TargetError(f"mlc's folder {name} is missing", "reinstall it: pip install mlc-compiler")


def missing_features(features: Iterable[str], cpu: HostCpu) -> tuple[str, ...]:
    """Return those of `features` that code may use and `cpu` lacks, sorted.

    `features` may be LLVM's full list: what is outside `CODEGEN_FEATURES` does not count.
    """
    return tuple(sorted(set(features) & CODEGEN_FEATURES - cpu.features))


def runs_on(target: Target, cpu: HostCpu) -> bool | None:
    """Return whether `cpu` can run code for `target`; None when only LLVM knows what it needs."""
    if is_foreign(target, cpu):
        return False
    return not missing_features(target.features, cpu) if target.features else None


def is_foreign(target: Target, cpu: HostCpu) -> bool:
    """Return whether code for `target` is of another instruction set or system than `cpu`'s."""
    return (target.arch, target.system) != (cpu.arch, cpu.system)


def _x86_level(able: dict[str, tuple[Target, target_file.Match | None]]) -> Target:
    for level in _LEVELS:
        if level in able:
            return able[level][0]
    return Target(
        name="x86-64",
        kind="cpu",
        description="any x86-64, nothing newer than SSE2",
        triple="x86_64-linux-gnu",
        mcpu="x86-64",
        features=_X86_BASELINE,
    )


_BRING_SVE = ("f32mm", "f64mm")  # in LLVM


def _generic_arm(cpu: HostCpu) -> Target:
    # Without SVE, as the files, and what brings it: LLVM 22 fails on loops that it vectorizes with it.
    features = tuple(sorted(n for n in cpu.features if n[:3] != "sve" and n not in _BRING_SVE))
    return Target(
        name="aarch64",
        kind="cpu",
        description="64-bit Arm with the features found here",
        triple=_native_triple("aarch64"),
        mcpu="generic",
        mattr=tuple(f"+{feature}" for feature in features),
        features=features,
    )


def _native_triple(arch: str) -> str:
    if sys.platform == "darwin":
        return f"{arch}-apple-darwin"  # not `arm64`, which TVM takes for 32 bits
    return f"{arch}-linux-gnu"


def _parse_raw(words: list[str]) -> Target:
    options = dict(_options(words))
    triple, mcpu, mattr_text = (options.pop(key, None) or "" for key in _RAW_KEYS)
    triple = triple or _native_triple(host_cpu().arch)
    if mcpu in HOST_NAMES:
        raise TargetError(
            f"-mcpu={mcpu} would mean another CPU on every machine", "for this one: --target llvm"
        )
    mattr = _parse_mattr(mattr_text)
    return Target(
        name=mcpu if mcpu not in {"", "generic"} else triple.partition("-")[0],
        kind="cpu",
        description="a TVM target string",
        triple=triple,
        mcpu=mcpu,
        mattr=mattr,
        features=_raw_features(triple, mcpu, mattr),
        extra=tuple(
            f"-{key}" if value is None else f"-{key}={value}"
            for key, value in sorted(options.items())
        ),
    )


def _options(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options of a TVM target string, which may be `-key=value`, `-key value`, `-key`."""
    text = " ".join(words)
    seen = set()
    rest = words[1:]
    while rest:
        word = rest.pop(0)
        key, equals, value = word.lstrip("-").partition("=")
        if not equals and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        if not word.startswith("-") or not key or (not value and (equals or key in _RAW_KEYS)):
            raise TargetError(
                f"{word!r} is not an option, or lacks its value, in the target {text!r}",
                "options look like -mcpu=znver4 -mattr=+avx2,+fma",
            )
        if key in seen:
            raise TargetError(f"-{key} is given twice in the target {text!r}")
        seen.add(key)
        yield key, value or None


def _parse_mattr(text: str) -> tuple[str, ...]:
    """Return signed features sorted: additions, then removals (LLVM applies them in order)."""
    attributes = tuple(sorted(set(text.split(",")))) if text else ()
    for attribute in attributes:
        if attribute[:1] not in {"+", "-"} or len(attribute) < 2:
            raise TargetError(f"-mattr wants + or - before each name, not {attribute!r}")
        if attribute[0] == "+" and f"-{attribute[1:]}" in attributes:
            raise TargetError(f"-mattr both sets and removes {attribute[1:]}")
    return attributes


def _raw_features(triple: str, mcpu: str, mattr: tuple[str, ...]) -> tuple[str, ...]:
    """Return the features of a raw target; empty when only LLVM can tell (see `Target`).

    What an addition implies needs no mention: a CPU that has it has that too. What a removal takes
    along, only LLVM knows.
    """
    files = {(target.arch, target.mcpu): target for target in all_targets()}
    known = files.get((triples.arch(triple), mcpu))
    if known is None or known.mattr or any(attribute.startswith("-") for attribute in mattr):
        return ()
    added = {attribute[1:] for attribute in mattr} & CODEGEN_FEATURES
    return tuple(sorted(added.union(known.features)))


@functools.cache
def _files(folder: Path) -> dict[str, tuple[Target, target_file.Match | None]]:
    paths = sorted(folder.glob("*.toml"), key=lambda path: path.stem)
    rows = [target_file.read(path) for path in paths]
    return {fields["name"]: (Target(**fields), match) for fields, match in rows}
