"""Compile kernels: primitive Relay function -> TIR -> object file, in parallel, with a cache.

A kernel's first key covers its function, the target and all versions; it names the code's symbol.
Which AutoTVM workloads its schedules ask for depends on that key alone and is stored under it; the
second key adds the configs that answer them now. So after new tuning records only the kernels whose
configs changed are compiled again, without scheduling the others to find out.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import re
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import tvm_env
from mlc.cache import Cache, key_of, source_digest
from mlc.codegen import flops, open_kernel
from mlc.errors import BuildError
from mlc.events import OnEvent, Progress
from mlc.gpu import ptxas
from mlc.gpu.device import encode
from mlc.isolate import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.target_file import Gpu


@dataclass(frozen=True, kw_only=True)
class Job:
    """A kernel to compile: the symbol of its code and its primitive function."""

    symbol: str
    key: str
    function: Any = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A compiled kernel: an object file in memory (for a GPU a program), and what a reader wants to know of it."""

    symbol: str
    operators: tuple[str, ...]
    flops: int
    workloads: tuple[str, ...]
    seconds: float
    cached: bool
    code: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How kernels are compiled: the TVM target, the level, the configs that apply; a GPU's limits."""

    target: Any
    level: int
    dispatch: Any
    gpu: Gpu | None = None


class Namer:
    """Gives each distinct kernel its symbol; equal kernels share one."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.jobs: dict[str, Job] = {}

    def __call__(self, function: Any) -> str:
        """Return the symbol of a primitive function, and remember the job."""
        job = self._job(function)
        self.jobs.setdefault(job.symbol, job)
        return job.symbol

    def _job(self, function: Any) -> Job:
        from tvm import ir

        # The text tells shapes, operators and attributes, but prints floats to six digits; the
        # structural hash covers their exact values.
        text = function.astext(show_meta_data=False)
        key = key_of(
            text,
            ir.structural_hash(function, map_free_vars=open_kernel.is_open(function)),
            str(self.settings.target),
            str(self.settings.gpu),
            self.settings.level,
            versions(self.settings.target),
            source_digest(),
        )
        name = "_".join(short(op) for op in operators(function))[:60]
        return Job(symbol=f"mlc_{name}_{key[:12]}", key=key, function=function)


def operators(function: Any) -> tuple[str, ...]:
    """Return the operators of a primitive function, in the order they are computed."""
    from tvm import ir, relay

    names: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, relay.Call) and isinstance(node.op, ir.Op):
            names.append(node.op.name)

    relay.analysis.post_order_visit(function.body, visit)
    return tuple(names)


def short(operator: str) -> str:
    """Return an operator's name as part of a symbol: `nn.contrib_conv2d_NCHWc` -> `conv2d`."""
    name = operator.rsplit(".", 1)[-1].removeprefix("contrib_").removesuffix("_NCHWc")
    return re.sub(r"\W", "_", name)


def lower(job: Job, settings: Settings, instruments: Sequence[Any] = ()) -> Any:
    """Return the kernel's TIR: one function, named by the symbol, loops scheduled and lowered.

    `instruments` (TVM pass instruments) see every TIR pass.

    Raises:
        BuildError: there is no schedule for it, or lowering failed.
    """
    from tvm import IRModule, ir
    from tvm.relay.backend import te_compiler

    with settings.target, pass_context(settings.level, instruments):
        try:
            # TVM would hand out what it lowered before, whatever the configs are now.
            te_compiler.get().clear()
            lowered = te_compiler.get().lower(job.function, settings.target).funcs
        except Exception as error:
            raise failed(job, error) from error
    functions = list(lowered.functions.values())
    if len(functions) != 1:
        raise BuildError(f"kernel {job.symbol} was lowered to {len(functions)} functions")
    function = functions[0].with_attr("global_symbol", job.symbol)
    return IRModule({ir.GlobalVar(job.symbol): function})


def build(job: Job, tir: Any, settings: Settings) -> Any:
    """Return the LLVM runtime module of a lowered kernel."""
    from tvm.driver import _ffi_api
    from tvm.target import Target

    with settings.target, pass_context(settings.level):
        try:
            # Not `tvm.build`: it lowers once more what is lowered already.
            modules, host = Target.canon_target_map_and_host({settings.target: tir})
            return _ffi_api.tir_to_runtime(modules, host or settings.target)
        except Exception as error:
            raise failed(job, error) from error


def pass_context(level: int, instruments: Sequence[Any] = ()) -> Any:
    """Return TVM's pass context for kernels of a level: at -O0 loops are not vectorised."""
    from tvm.ir.transform import PassContext

    from mlc.schedules.compact import compact
    from mlc.schedules.registers import write_out_functions
    from mlc.schedules.serial import serialize_short_loops
    from mlc.schedules.shuffles import shuffle_loads
    from mlc.schedules.stack import keep_on_stack
    from mlc.schedules.tails import version_loops

    # After TVM's phase 1, after vectors are made, after the last phase.
    passes = [
        [1, compact()],
        [1, version_loops()],
        [1, serialize_short_loops()],
        [2, shuffle_loads()],
        [2, write_out_functions()],
        [3, keep_on_stack()],
    ]
    # TVM's common subexpressions cost more than all other passes, LLVM finds the same ones, and it
    # refuses the vectors that TVM binds to names.
    config: dict[str, Any] = {"tir.add_lower_pass": passes, "tir.disable_cse_tir": True}
    if level == 0:
        config["tir.disable_vectorize"] = True
    return PassContext(opt_level=3, config=config, instruments=list(instruments))


def compile_all(
    jobs: Sequence[Job], settings: Settings, cache: Cache, workers: int | None, on_event: OnEvent
) -> list[Kernel]:
    """Return every job compiled, in the given order; what the cache has is not compiled again.

    Raises:
        BuildError: a kernel failed, or its compiler process crashed (the kernel is named).
    """
    found = {job.symbol: _from_cache(job, settings, cache) for job in jobs}
    missing = [job for job in jobs if found[job.symbol] is None]
    done = len(jobs) - len(missing)
    for kernel in _compile_missing(missing, settings, workers):
        job = next(j for j in missing if j.symbol == kernel.symbol)
        _to_cache(job, kernel, settings, cache)
        found[kernel.symbol] = kernel
        done += 1
        on_event(Progress(name="kernels", done=done, total=len(jobs), item=kernel.symbol))
    return [kernel for kernel in found.values() if kernel is not None]


_WORK: tuple[Sequence[Job], Settings] | None = None  # inherited by forked workers


def _compile_missing(jobs: Sequence[Job], settings: Settings, workers: int | None) -> Any:
    """Yield the jobs' kernels as they are finished."""
    global _WORK  # noqa: PLW0603 - Relay functions cannot be sent, only inherited by fork
    count = min(len(jobs), workers or len(os.sched_getaffinity(0)))
    if count <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield from (_compile(job, settings) for job in jobs)
        return
    # Longest first: the pool then ends about level.
    order = sorted(range(len(jobs)), key=lambda k: -len(operators(jobs[k].function)))
    _WORK = (jobs, settings)
    context = multiprocessing.get_context("fork")
    with (
        warnings.catch_warnings(),
        concurrent.futures.ProcessPoolExecutor(
            count, mp_context=context, initializer=die_with_parent
        ) as pool,
    ):
        # Forking beside OpenBLAS's idle threads is safe: the children use none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        futures: dict[concurrent.futures.Future[Kernel], Job] = {}
        try:
            for k in order:  # a crash may show here already
                futures[pool.submit(_compile_inherited, k)] = jobs[k]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool:
            done = {job.symbol for f, job in futures.items() if f.done() and not f.exception()}
            names = [job.symbol for job in jobs if job.symbol not in done]
            raise BuildError(
                "a compiler process crashed; it was working on one of: " + ", ".join(names[:8]),
                "try `-O1`, or `--jobs 1` to see which",
            ) from None
        finally:
            for future in futures:
                future.cancel()
            _WORK = None


def _compile_inherited(position: int) -> Kernel:
    assert _WORK is not None
    jobs, settings = _WORK
    return _compile(jobs[position], settings)


def _compile(job: Job, settings: Settings) -> Kernel:
    started = time.perf_counter()
    settings.dispatch.asked.clear()
    with settings.dispatch:
        code = _code(job, settings)
    # Each once, where it was asked last: scheduling asks again for the template that was chosen.
    asked = tuple(dict.fromkeys(reversed(settings.dispatch.asked)))[::-1]
    return Kernel(
        symbol=job.symbol,
        operators=operators(job.function),
        flops=flops.count(job.function),
        workloads=asked,
        seconds=time.perf_counter() - started,
        cached=False,
        code=code,
    )


def _code(job: Job, settings: Settings) -> bytes:
    """Return an object file, or for a GPU the encoded `mlc.gpu.device.Program`."""
    if settings.gpu is not None:
        from mlc.gpu import program

        return encode(program.compile_kernel(job, settings))
    library = build(job, lower(job, settings), settings)
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        path = Path(folder) / "kernel.o"
        library.save(str(path))
        return path.read_bytes()


def is_gpu(target: Any) -> bool:
    """Return whether a TVM target is a GPU."""
    return "gpu" in target.keys


def versions(target: Any) -> dict[str, str]:
    """Return the versions of what makes the code for a TVM target.

    Raises:
        MissingToolError: for a GPU, its assembler is not installed.
    """
    own = {"ptxas": ptxas.version()} if is_gpu(target) else {}
    return {**tvm_env.versions(), **own}


def _from_cache(job: Job, settings: Settings, cache: Cache) -> Kernel | None:
    facts = cache.get("facts", job.key)
    if facts is None:
        return None
    known = json.loads(facts)
    code = cache.get("code", _code_key(job, known["workloads"], settings))
    if code is None:
        return None
    return Kernel(
        symbol=job.symbol,
        operators=tuple(known["operators"]),
        flops=known["flops"],
        workloads=tuple(known["workloads"]),
        seconds=0.0,
        cached=True,
        code=code,
    )


def _to_cache(job: Job, kernel: Kernel, settings: Settings, cache: Cache) -> None:
    workloads = list(kernel.workloads)
    facts = {"operators": kernel.operators, "flops": kernel.flops, "workloads": workloads}
    cache.put("facts", job.key, json.dumps(facts).encode())
    cache.put("code", _code_key(job, workloads, settings), kernel.code)


def _code_key(job: Job, workloads: list[str], settings: Settings) -> str:
    return key_of(job.key, settings.dispatch.fingerprint(workloads))


def failed(job: Job, error: Exception) -> BuildError:
    """Return the error that names a kernel which TVM failed on."""
    if open_kernel.is_open(job.function):
        return BuildError(
            f"kernel {job.symbol} ({', '.join(operators(job.function))}) has no schedule for open sizes",
            "fix them with `--shape DIM=N`; `--dynamic NAME` keeps only some open",
            detail=str(error),
        )
    return BuildError(
        f"kernel {job.symbol} cannot be compiled: {tvm_env.reason(error)}",
        "try `-O1`; `mlc inspect MODEL --dump-ir DIR` writes what is compiled",
        detail=str(error),
    )
