"""`mlc compile` from end to end, inside the isolated process.

model.onnx -> frontend -> passes -> build -> artifact -> verified artifact
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlc import artifact, target, tvm_env
from mlc.cache import Cache, key_of, open_cache, source_digest
from mlc.errors import UsageError
from mlc.events import Notice, OnEvent, Stage
from mlc.options import OPT_LEVELS, CompileOptions, VerifyOptions
from mlc.tune.dispatch import dispatch_context, read_best

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.build import Library
    from mlc.frontend.onnx_file import OnnxFile
    from mlc.tune.dispatch import Lookup

_T = TypeVar("_T")


def compile_model(fields: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Compile as `CompileOptions(**fields)` says; return the report of `mlc.api.CompileReport`.

    Runs in a process of its own (see `isolate`). `output` must be set.
    """
    from mlc.frontend import onnx_file
    from mlc.tune import applied

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
    lookup = _lookup(options, chosen, on_event)
    built = [build_model(options, chosen, file, cache, lookup, on_event).contents]
    applied.require(built[0].manifest["tuning"], options.require_tuned)
    _write(built.pop(), options, output, on_event)  # popped: its weights go once they are written
    if cache.directory is not None and output.stat().st_size <= cache.max_bytes // 4:
        cache.put("artifacts", key, output.read_bytes())
        cache.prune()
    return _report(output, started, from_cache=False)


def check_options(options: CompileOptions, output: Path) -> None:
    """Raise UsageError for what can be known to fail before the long work starts."""
    from mlc.frontend import shapes

    shapes.parse(options.shapes)
    if options.opt_level not in OPT_LEVELS:
        raise UsageError(f"there is no level -O{options.opt_level}", "use -O0, -O1, -O2 or -O3")
    if options.jobs is not None and options.jobs < 1:
        raise UsageError("--jobs needs at least 1")
    if options.kernel is not None and options.dump_ir is None:
        raise UsageError("--kernel chooses what --dump-ir writes", "add `--dump-ir DIR`")
    folder = output.resolve().parent
    if output.exists() and not output.is_file():
        raise UsageError(f"cannot write {output}: it is no plain file", "give a file with `-o`")
    if not folder.is_dir():
        raise UsageError(f"cannot write {output}: no such folder", "give a file with `-o`")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {output}: permission denied", "choose a place with `-o`")
    if output.resolve() == Path(options.model).resolve():
        raise UsageError("the artifact would overwrite the model", "choose a name with `-o`")


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model that was compiled: what the artifact will hold, its code, the configs it asked for."""

    contents: artifact.Contents
    library: Library
    dispatch: Any


def build_model(
    options: CompileOptions,
    chosen: target.Target,
    file: OnnxFile,
    cache: Cache,
    lookup: Lookup,
    on_event: OnEvent,
) -> Built:
    """Return the model of a file compiled with the records that `lookup` offers, not verified yet.

    Raises:
        MlcError: the model cannot be imported or built.
    """
    from mlc import build
    from mlc.codegen.kernels import Settings
    from mlc.frontend.bounds import index_bounds
    from mlc.passes.run import optimize
    from mlc.tune import applied

    timed("load TVM", on_event, tvm_env.tvm)
    llvm = build.tvm_target(chosen, options.opt_level)
    loaded = [*load(file, options.shapes, on_event)]
    file.weights.clear()  # they are in `loaded`; this unmaps the file
    simplified = loaded.pop()
    dispatch = dispatch_context(lookup)
    settings = Settings(target=llvm, level=options.opt_level, dispatch=dispatch)
    ran: list[str] = []
    observe = _observer(options, ran)
    started = time.perf_counter()
    with dispatch:
        # Popped, so that nobody holds on to the weights as they were in the file.
        fused = optimize(loaded.pop(), llvm, options.opt_level, observe)
    on_event(Stage(name="passes", seconds=time.perf_counter() - started, note=f"{len(ran)} ran"))
    library = build.build(fused, settings, cache, options.jobs, on_event)
    if options.dump_ir is not None:
        from mlc.inspection import dump_kernel

        dump_kernel(library.plan, settings, Path(options.dump_ir), options.kernel)
    facts = {
        "opt_level": options.opt_level,
        "passes": ran,
        "tuning": applied.coverage(library.kernels, library.plan.calls, dispatch, chosen),
        "index_bounds": index_bounds(simplified),
        "verification": None,
    }
    features = build.required_features(chosen, llvm)
    contents = build.contents(fused, library, chosen, features, facts)
    return Built(contents=contents, library=library, dispatch=dispatch)


def _write(
    contents: artifact.Contents, options: CompileOptions, output: Path, on_event: OnEvent
) -> None:
    """Write the artifact under a temporary name, verify that very file, then give it its name."""
    temporary = _beside(output)
    try:
        timed("write", on_event, partial(artifact.save, contents, temporary))
        del contents
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
    from mlc.frontend import control, convert, expand, simplify
    from mlc.frontend import shapes as fixing

    fixed = fixing.fix(file, fixing.parse(shapes), on_event)
    expanded = timed("expand", on_event, lambda: expand.expand(fixed))
    simplified = timed("simplify", on_event, lambda: simplify.simplify(expanded, on_event))
    flat = control.flatten(simplified)
    model = timed("convert", on_event, lambda: convert.convert(flat))
    return model, flat


def _lookup(options: CompileOptions, chosen: target.Target, on_event: OnEvent) -> Lookup:
    """Return what finds the record of a workload: in `--records`, else in the tuning logs."""
    from mlc.tune import applied

    if options.records is None:
        return applied.from_logs(options.logs, chosen)
    best = read_best(Path(options.records), chosen.mcpu)
    on_event(
        Notice(
            text=f"tuning records: {len(best.records)} workloads apply; left out: "
            f"{best.other_cpu} of another CPU, {best.failed} failed, {best.damaged} damaged"
        )
    )
    return best.records.get


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
    for irrelevant in ("model", "output", "cache", "jobs", "dump_ir", "kernel", "target", "logs"):
        del asked[irrelevant]
    asked["records"] = _records_state(options)
    return key_of(model_sha256, asked, chosen.tvm, tvm_env.versions(), source_digest())


def _records_state(options: CompileOptions) -> Any:
    """Return what tells whether tuning records changed: a file's hash, or the logs' sizes."""
    from mlc.tune import applied

    if options.records is None:
        return applied.state(options.logs)
    try:
        return hashlib.sha256(Path(options.records).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"cannot read tuning records {options.records}: {error.strerror}", "check `--records`"
        ) from None


def _restore(stored: bytes, output: Path) -> bool:
    temporary = _beside(output)
    try:
        temporary.write_bytes(stored)
        temporary.replace(output)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}", "free some space") from None
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _beside(output: Path) -> Path:
    """Return a temporary name in the output's folder; `api.compile_with` deletes what has it."""
    return output.with_name(f".{output.name}.{Path(tempfile.gettempdir()).name}-{os.getpid()}")


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
