"""Model + Target + configs -> the contents of an artifact."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import __version__, tvm_env
from mlc import triple as triples
from mlc.artifact import Contents
from mlc.codegen.graph import Plan, plan, to_json
from mlc.codegen.kernels import Kernel, Namer, Settings, compile_all, is_gpu, versions
from mlc.codegen.link import Linker, find_linker, link
from mlc.cpu import CODEGEN_FEATURES
from mlc.cpu_names import FEATURES
from mlc.errors import TargetError, did_you_mean
from mlc.events import OnEvent, Stage
from mlc.gpu.device import join, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.cache import Cache
    from mlc.model import Model
    from mlc.target import Target


@dataclass(frozen=True, kw_only=True)
class Library:
    """Compiled code in memory: the linked library (for a GPU its programs), the plan that calls it, and its kernels.

    Where linking was left to the caller, `code` is empty.
    """

    code: bytes = field(repr=False)
    plan: Plan
    kernels: tuple[Kernel, ...]


def tvm_target(target: Target, level: int) -> Any:
    """Return TVM's target object; LLVM optimises less at `-O0`, unless the target says how much.

    Raises:
        TargetError: TVM does not accept the target, or LLVM does not know its CPU.
    """
    tvm = tvm_env.tvm()
    if target.gpu is not None:
        return tvm.target.Target(target.tvm, host="llvm")
    _check_triple(target)
    chosen = any(option.startswith("-opt-level") for option in target.extra)
    text = target.tvm + (" -opt-level=0" if level == 0 and not chosen else "")
    try:
        made = tvm.target.Target(text)
    except Exception as error:
        raise TargetError(
            f"TVM does not accept the target {text!r}: {tvm_env.reason(error)}",
            "`mlc targets` lists those that work",
        ) from error
    # LLVM itself would only warn, and compile for a generic CPU.
    known = [str(name) for name in tvm.target.codegen.llvm_get_cpu_archlist(made)]
    if target.mcpu and target.mcpu not in known:
        raise TargetError(
            f"LLVM knows no CPU {target.mcpu!r} for {target.triple}",
            did_you_mean(target.mcpu, known),
        )
    _check_attributes(target)
    return made


def _check_triple(target: Target) -> None:
    """Raise TargetError for an instruction set that LLVM has no code generator for here.

    TVM would crash on it, some calls later.
    """
    from tvm.target import codegen

    known = {triples.arch(str(name)) for name in codegen.llvm_get_targets()}
    if target.arch not in known:
        raise TargetError(
            f"no code can be generated for {target.triple!r}: LLVM here does not know {target.arch}",
            did_you_mean(target.arch, known),
        )


def _check_attributes(target: Target) -> None:
    """Raise TargetError for a name in -mattr that LLVM does not know: it would only ignore it."""
    from tvm.target import Target as TvmTarget

    names = {attribute[1:] for attribute in target.mattr}
    if not names:
        return
    added = ",".join(f"+{name}" for name in sorted(names))
    known = llvm_features(TvmTarget(f"llvm -mtriple={target.triple} -mattr={added}"))
    unknown = sorted(names - known)
    if unknown:
        raise TargetError(
            f"LLVM knows no feature {unknown[0]!r} for {target.triple}",
            did_you_mean(unknown[0], FEATURES.get(target.arch, ())),
        )


def llvm_features(llvm_target: Any) -> set[str]:
    """Return every feature that LLVM sets for a TVM target, in its names."""
    from tvm.target import codegen

    return {str(name) for name in codegen.llvm_get_cpu_features(llvm_target)}


def required_features(target: Target, llvm_target: Any) -> tuple[str, ...]:
    """Return the CPU features that code for a target may use, asking LLVM for unknown CPUs."""
    if target.features or target.gpu is not None:
        return target.features
    return tuple(sorted(CODEGEN_FEATURES & llvm_features(llvm_target)))


def build(
    model: Model,
    settings: Settings,
    cache: Cache,
    jobs: int | None,
    on_event: OnEvent,
    *,
    linked: bool = True,
) -> Library:
    """Return the code of a fused model: graph planned, kernels compiled in parallel, linked.

    Without `linked` the kernels of a CPU are left as they are, for `code_of` over several models.

    Raises:
        BuildError: a kernel cannot be compiled, or linking failed.
        MissingToolError: there is no linker.
    """
    started = time.perf_counter()
    namer = Namer(settings)
    as_size = int if model.dims is None else model.dims.as_size
    planned = plan(model.module["main"], namer, as_size)
    used = [namer.jobs[symbol] for symbol in planned.kernels]
    on_event(
        Stage(
            name="plan",
            seconds=time.perf_counter() - started,
            note=f"{sum(planned.calls.values())} calls of {len(used)} kernels, "
            f"{planned.buffer_bytes / 1e6:.1f} MB of buffers",
        )
    )
    started = time.perf_counter()
    kernels = compile_all(used, settings, cache, jobs, on_event)
    fresh = sum(not kernel.cached for kernel in kernels)
    on_event(
        Stage(
            name="kernels",
            seconds=time.perf_counter() - started,
            note=f"{fresh} compiled, {len(kernels) - fresh} from the cache",
        )
    )
    code = b""
    if linked or settings.gpu is not None:
        code = code_of(kernels, settings.target, on_event)
    return Library(code=code, plan=planned, kernels=tuple(kernels))


def code_of(kernels: Sequence[Kernel], target: Any, on_event: OnEvent) -> bytes:
    """Return the code of kernels for a TVM target: a shared library, or for a GPU their programs.

    Raises:
        BuildError: linking failed.
        MissingToolError: there is no linker.
    """
    if is_gpu(target):
        return join({kernel.symbol: kernel.code for kernel in kernels})
    started = time.perf_counter()
    linker = find_linker(str(target.attrs.get("mtriple", "")))
    code = _link(kernels, linker)
    on_event(
        Stage(
            name="link",
            seconds=time.perf_counter() - started,
            note=f"{len(code) / 1e6:.1f} MB, by {linker.name}",
        )
    )
    return code


def _link(kernels: Sequence[Kernel], linker: Linker) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        objects = []
        for position, kernel in enumerate(sorted(kernels, key=lambda k: k.symbol)):
            path = Path(folder) / f"{position}.o"
            path.write_bytes(kernel.code)
            objects.append(path)
        output = Path(folder) / "library.so"
        link(objects, output, linker)
        return output.read_bytes()


def _resources(library: Library) -> dict[str, dict[str, Any]]:
    """Return what the manifest says of each kernel for a GPU, by symbol."""
    return {
        symbol: {
            "resources": {name: asdict(found) for name, found in program.resources.items()},
            **({"note": program.note} if program.note else {}),
        }
        for symbol, program in read(library.code).items()
    }


def contents(
    model: Model, library: Library, target: Target, llvm_target: Any, facts: dict[str, Any]
) -> Contents:
    """Return what the artifact holds; `facts` are further manifest entries."""
    from mlc.schedules.winograd_op import algorithm

    resources = _resources(library) if target.gpu is not None else {}
    by_symbol = {kernel.symbol: kernel for kernel in library.kernels}
    manifest = {
        "mlc": __version__,
        "versions": versions(llvm_target),
        "model": asdict(model.source),
        "signature": asdict(model.signature),
        "target": {
            "name": target.name,
            "kind": target.kind,
            "tvm": target.tvm,
            "triple": target.triple,
            "features": list(required_features(target, llvm_target)),
        },
        "kernels": {
            symbol: {
                "operators": list(by_symbol[symbol].operators),
                "flops": by_symbol[symbol].flops,
                "algorithm": algorithm(library.plan.kernels[symbol]),
                "calls": calls,
                **resources.get(symbol, {}),
            }
            for symbol, calls in library.plan.calls.items()
        },
        "buffer_bytes": library.plan.buffer_bytes,
        **facts,
    }
    return Contents(
        manifest=manifest,
        library=library.code,
        graph=to_json(library.plan.graph),
        weights=[(weight.storage, weight.array) for weight in library.plan.weights],
        made={k: w.made for k, w in enumerate(library.plan.weights) if w.made is not None},
    )
