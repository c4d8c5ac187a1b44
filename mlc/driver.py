"""`mlc compile` from end to end, inside the isolated process.

model.onnx -> frontend -> passes -> build -> artifact -> verified artifact
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlc import artifact, target, tvm_env
from mlc.cache import Cache, key_of, open_cache, source_digest
from mlc.errors import UsageError
from mlc.events import Notice, OnEvent, Stage
from mlc.options import OPT_LEVELS, CompileOptions, VerifyOptions
from mlc.tune import records

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def compile_model(fields: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Compile as `CompileOptions(**fields)` says; return the report of `mlc.api.CompileReport`.

    Runs in a process of its own (see `isolate`). `output` must be set.
    """
    from mlc.frontend import onnx_file

    options = CompileOptions(**{**fields, "shapes": tuple(fields["shapes"])})
    started = time.perf_counter()
    output = Path(str(options.output))
    check_options(options, output)
    chosen = target.resolve(options.target)
    cache = open_cache() if options.cache else Cache(None)
    file = timed("read", on_event, lambda: onnx_file.read(Path(options.model)))
    key = _artifact_key(options, chosen, file.sha256)
    stored = cache.get("artifacts", key) if options.dump_ir is None else None
    if stored is not None and _restore(stored, output):
        return _report(output, started, from_cache=True)
    contents = _build(options, chosen, file, cache, on_event)
    _write(contents, options, output, on_event)
    if cache.directory is not None and output.stat().st_size <= cache.max_bytes // 4:
        cache.put("artifacts", key, output.read_bytes())
        cache.prune()
    return _report(output, started, from_cache=False)


def check_options(options: CompileOptions, output: Path) -> None:
    """Raise UsageError for what can be known to fail before the long work starts."""
    if options.opt_level not in OPT_LEVELS:
        raise UsageError(f"there is no level -O{options.opt_level}", "use -O0, -O1, -O2 or -O3")
    if options.jobs is not None and options.jobs < 1:
        raise UsageError("--jobs needs at least 1")
    folder = output.resolve().parent
    if output.is_dir() or not folder.is_dir():
        raise UsageError(f"cannot write {output}: no such folder", "give a file with `-o`")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {output}: permission denied", "choose a place with `-o`")
    if output.resolve() == Path(options.model).resolve():
        raise UsageError("the artifact would overwrite the model", "choose a name with `-o`")


def _build(
    options: CompileOptions, chosen: target.Target, file: Any, cache: Cache, on_event: OnEvent
) -> artifact.Contents:
    """Return what the artifact will hold, not verified yet."""
    from mlc import build
    from mlc.codegen.kernels import Settings
    from mlc.frontend.bounds import index_bounds
    from mlc.passes.run import optimize

    timed("load TVM", on_event, tvm_env.tvm)
    llvm = build.tvm_target(chosen, options.opt_level)
    model, simplified = load(file, options.shapes, on_event)
    best = _records(options, chosen, on_event)
    settings = Settings(
        target=llvm, level=options.opt_level, dispatch=records.dispatch_context(best)
    )
    ran: list[str] = []
    observe = _observer(options, ran)
    started = time.perf_counter()
    with settings.dispatch:
        fused = optimize(model, llvm, options.opt_level, observe)
    on_event(Stage(name="passes", seconds=time.perf_counter() - started, note=f"{len(ran)} ran"))
    del model  # the weights as they were in the file
    library = build.build(fused, settings, cache, options.jobs, on_event)
    if options.dump_ir is not None:
        from mlc.inspection import dump_kernel

        dump_kernel(library.plan, settings, Path(options.dump_ir), options.kernel)
    facts = {
        "opt_level": options.opt_level,
        "passes": ran,
        "tuning": _coverage(library.kernels, best),
        "index_bounds": index_bounds(simplified),
        "verification": None,
    }
    features = build.required_features(chosen, llvm)
    return build.contents(fused, library, chosen, features, facts)


def _write(
    contents: artifact.Contents, options: CompileOptions, output: Path, on_event: OnEvent
) -> None:
    """Write the artifact under a temporary name, verify that very file, then give it its name."""
    temporary = output.with_name(f".{output.name}.unverified-{os.getpid()}")
    try:
        timed("write", on_event, lambda: artifact.save(contents, temporary))
        if options.verify:
            result = timed("verify", on_event, lambda: _verified(temporary, options))
            artifact.rewrite_manifest(temporary, {"verification": result})
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _verified(path: Path, options: CompileOptions) -> dict[str, Any]:
    from mlc.runtime.verify import require, verify

    result = verify(VerifyOptions(artifact=str(path), model=options.model, seed=options.seed))
    require(result, "the compiled model")
    return result.to_json()


def load(file: Any, shapes: tuple[str, ...], on_event: OnEvent) -> tuple[Any, Any]:
    """Return (Model, the simplified file) of a file that was read, its shapes fixed."""
    from mlc.frontend import convert, simplify
    from mlc.frontend import shapes as fixing

    fixed = fixing.fix(file, fixing.parse(shapes), on_event)
    simplified = timed("simplify", on_event, lambda: simplify.simplify(fixed, on_event))
    model = timed("convert", on_event, lambda: convert.convert(simplified))
    return model, simplified


def _records(
    options: CompileOptions, chosen: target.Target, on_event: OnEvent
) -> records.BestConfigs:
    if options.records is None:
        return records.BestConfigs()
    best = records.read_best(Path(options.records), chosen.mcpu)
    on_event(
        Notice(
            text=f"tuning records: {len(best.configs)} workloads apply; left out: "
            f"{best.other_cpu} of another CPU, {best.failed} failed, {best.damaged} damaged"
        )
    )
    return best


def _coverage(kernels: Any, best: Any) -> dict[str, Any]:
    tunable = [kernel for kernel in kernels if kernel.workloads]
    tuned = [k for k in tunable if any(key in best.configs for key in k.workloads)]
    work = sum(kernel.flops for kernel in tunable)
    return {
        "tunable_kernels": len(tunable),
        "tuned_kernels": len(tuned),
        "tuned_share_of_flops": round(sum(k.flops for k in tuned) / work, 4) if work else 0.0,
    }


def _observer(options: CompileOptions, ran: list[str]) -> Callable[[Any], None]:
    from mlc.inspection import PassDump

    dump = PassDump(Path(options.dump_ir)) if options.dump_ir is not None else None

    def observe(run: Any) -> None:
        ran.append(run.row.name)
        if dump is not None:
            dump(run)

    return observe


def _artifact_key(options: CompileOptions, chosen: target.Target, model_sha256: str) -> str:
    asked = asdict(options)
    for irrelevant in ("model", "output", "cache", "jobs", "dump_ir", "kernel", "target"):
        del asked[irrelevant]
    if options.records is not None:
        try:
            asked["records"] = hashlib.sha256(Path(options.records).read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(
                f"cannot read tuning records {options.records}: {error.strerror}",
                "check `--records`",
            ) from None
    return key_of(model_sha256, asked, chosen.tvm, tvm_env.versions(), source_digest())


def _restore(stored: bytes, output: Path) -> bool:
    temporary = output.with_name(f".{output.name}.cached-{os.getpid()}")
    try:
        temporary.write_bytes(stored)
        temporary.replace(output)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}", "free some space") from None
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _report(output: Path, started: float, *, from_cache: bool) -> dict[str, Any]:
    return {
        "path": str(output),
        "bytes": output.stat().st_size,
        "seconds": time.perf_counter() - started,
        "from_cache": from_cache,
        "manifest": artifact.read_manifest(output),
    }


def timed(name: str, on_event: OnEvent, work: Callable[[], _T]) -> _T:
    """Return what `work` returns, and report the stage with its wall time."""
    started = time.perf_counter()
    result = work()
    on_event(Stage(name=name, seconds=time.perf_counter() - started))
    return result
