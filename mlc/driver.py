"""`mlc compile` from end to end, inside the isolated process.

model.onnx -> frontend -> passes -> build -> artifact -> verified artifact
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import artifact, buckets, target, tvm_env
from mlc import output as place
from mlc.cache import Cache, key_of, open_cache, source_digest
from mlc.cpu import host_cpu
from mlc.emulate import can_emulate
from mlc.errors import UsageError
from mlc.events import Notice, OnEvent, Stage, timed
from mlc.fit import misfit
from mlc.gpu import ptxas
from mlc.options import OPT_LEVELS, CompileOptions, VerifyOptions
from mlc.tune.dispatch import dispatch_context, read_best

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.build import Library
    from mlc.codegen.kernels import Settings
    from mlc.frontend.onnx_file import OnnxFile
    from mlc.runtime.session import Session
    from mlc.tune.applied import Coverage
    from mlc.tune.dispatch import Lookup
    from mlc.tune.dispatcher import Dispatch

_PROFILE_S, _PROFILE_RUNS = 0.1, 2  # of a run's time by kernel, where coverage needs it


def compile_model(fields: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Compile as `CompileOptions(**fields)` says; return the report of `mlc.api.CompileReport`.

    Runs in a process of its own (see `isolate`). `output` must be set.
    """
    from mlc import bucket_driver
    from mlc.frontend import onnx_file

    options = from_fields(fields)
    started = time.perf_counter()
    output = Path(str(options.output))
    check_options(options, output)
    chosen = target.resolve(options.target)
    cache = open_cache() if options.cache else Cache(None)
    file = timed("read", on_event, lambda: onnx_file.read(Path(options.model)))
    key = artifact_key(options, chosen, file.sha256)
    stored = cache.get("artifacts", key) if options.dump_ir is None else None
    if stored is not None and _restore(stored, output):
        report = _report(output, started, cache.get("coverage", key), from_cache=True)
        _say_notes(report["manifest"], on_event)
        if options.verify and report["manifest"]["verification"] is None:
            _say_unverified(report["manifest"], on_event)
        return report
    lookup = _lookup(options, chosen, on_event)
    built = [bucket_driver.contents(options, chosen, file, cache, lookup, on_event)]
    if options.verify and misfit(built[0].manifest["target"], host_cpu()):
        _say_unverified(built[0].manifest, on_event)
        options = replace(options, verify=False)
    # Popped: its weights go once they are written.
    found = asdict(_write(built.pop(), options, output, on_event))
    coverage = json.dumps(found).encode() if found["by"] == "time" else None
    if cache.directory is not None and output.stat().st_size <= cache.max_bytes // 4:
        cache.put("artifacts", key, output.read_bytes())
        if coverage is not None:
            cache.put("coverage", key, coverage)
        cache.prune()
    return _report(output, started, coverage, from_cache=False)


def from_fields(fields: dict[str, Any]) -> CompileOptions:
    """Return the options that came as JSON, which has no tuples."""
    lists = {name: tuple(fields[name]) for name in ("shapes", "without", "dynamic")}
    return CompileOptions(**{**fields, **lists})


def check_options(options: CompileOptions, output: Path) -> None:
    """Raise UsageError for what can be known to fail before the long work starts."""
    from mlc.frontend import shapes
    from mlc.passes.table import pipeline

    if len(shapes.combinations(options.shapes)) > 1 and options.dump_ir is not None:
        raise UsageError("--dump-ir shows one bucket", "give each dimension one size with --shape")
    if options.opt_level not in OPT_LEVELS:
        raise UsageError(f"there is no level -O{options.opt_level}", "use -O0, -O1, -O2 or -O3")
    pipeline(options.opt_level, without=options.without)
    check_open(options.target, options.shapes, options.dynamic)
    if options.jobs is not None and options.jobs < 1:
        raise UsageError("--jobs needs at least 1")
    if options.kernel is not None and options.dump_ir is None:
        raise UsageError("--kernel chooses what --dump-ir writes", "add `--dump-ir DIR`")
    place.check(output, Path(options.model))


def check_open(target: str, listed: tuple[str, ...], dynamic: tuple[str, ...]) -> None:
    """Raise UsageError where dimensions are to stay open and cannot, for a target or listed sizes."""
    from mlc.frontend import shapes

    shapes.check_open(shapes.combinations(listed), dynamic)
    if dynamic and target.startswith("cuda"):
        raise UsageError("--dynamic is for CPUs", "fix the sizes with --shape for a GPU")


def build_only(options: CompileOptions, on_event: OnEvent) -> Built:
    """Return the model compiled as the options say, neither verified nor written.

    Raises:
        MlcError: as `compile_model`.
    """
    from mlc.frontend import onnx_file

    chosen = target.resolve(options.target)
    cache = open_cache() if options.cache else Cache(None)
    file = timed("read", on_event, lambda: onnx_file.read(Path(options.model)))
    lookup = _lookup(options, chosen, on_event)
    return build_model(options, chosen, file, cache, lookup, on_event)


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model that was compiled: what the artifact will hold, its code, the configs it asked for."""

    contents: artifact.Contents
    library: Library
    dispatch: Dispatch


def build_model(
    options: CompileOptions,
    chosen: target.Target,
    file: OnnxFile,
    cache: Cache,
    lookup: Lookup,
    on_event: OnEvent,
    *,
    linked: bool = True,
) -> Built:
    """Return the model of a file compiled with the records that `lookup` offers, not verified yet.

    Without `linked` its contents lack the library (see `build.build`).

    Raises:
        MlcError: the model cannot be imported or built.
    """
    from mlc import build
    from mlc.codegen.kernels import Settings
    from mlc.codegen.link import find_linker
    from mlc.frontend import load
    from mlc.frontend.bounds import index_bounds
    from mlc.tune import applied

    timed("load TVM", on_event, tvm_env.tvm)
    llvm = build.tvm_target(chosen, options.opt_level)
    # What is missing is said now, not after the long work.
    find_linker(chosen.triple) if chosen.gpu is None else ptxas.find()
    imported = load.imported(file, options.shapes, on_event, options.dynamic)
    loaded = [load.converted(imported, on_event)]
    file.weights.clear()  # they are in `loaded`; this unmaps the file
    dispatch = dispatch_context(lookup, default_configs(chosen))
    settings = Settings(target=llvm, level=options.opt_level, dispatch=dispatch, gpu=chosen.gpu)
    fused, ran = _optimized(loaded, options, settings, on_event)
    library = build.build(fused, settings, cache, options.jobs, on_event, linked=linked)
    if options.dump_ir is not None:
        from mlc.inspection import dump_kernel

        dump_kernel(library.plan, settings, Path(options.dump_ir), options.kernel)
    facts = {
        "opt_level": options.opt_level,
        "exact": options.exact,
        "passes": ran,
        "tuning": applied.coverage(library.kernels, library.plan.calls, dispatch, chosen),
        "index_bounds": index_bounds(imported.file),
        "precision": imported.precision,
        "verification": None,
        **_open_dims(fused.dims),
    }
    contents = build.contents(fused, library, chosen, llvm, facts)
    _say_notes(contents.manifest, on_event)
    return Built(contents=contents, library=library, dispatch=dispatch)


def _optimized(
    loaded: list[Any], options: CompileOptions, settings: Settings, on_event: OnEvent
) -> tuple[Any, list[str]]:
    """Return what the passes make of the only model in a list, and the names of those that ran.

    It is popped, so that nobody holds on to the weights as they were in the file.
    """
    from mlc.passes.run import optimize

    ran: list[str] = []
    observe = _observer(options, ran)
    started = time.perf_counter()
    with settings.dispatch:
        fused = optimize(
            loaded.pop(),
            settings.target,
            options.opt_level,
            observe,
            exact=options.exact,
            without=options.without,
            is_open=bool(options.dynamic),
        )
    on_event(Stage(name="passes", seconds=time.perf_counter() - started, note=f"{len(ran)} ran"))
    return fused, ran


def _open_dims(dims: Any) -> dict[str, Any]:
    """Return what the manifest says of open dimensions."""
    if dims is None:
        return {}
    return {"dynamic": [{"name": name, **asdict(b)} for name, b in dims.bounds.items()]}


def _write(
    contents: artifact.Contents, options: CompileOptions, output: Path, on_event: OnEvent
) -> Coverage:
    """Write the artifact under a temporary name, verify that very file, then give it its name.

    Returns how much of it is tuned. Times differ from run to run, so they stay out of the artifact.

    Raises:
        GateError: records cover less than `require_tuned`.
        MismatchError: it computes something else than the model.
    """
    from mlc.runtime import padding
    from mlc.tune import applied

    temporary = _beside(output)
    coverage = applied.least(contents.manifest)
    try:
        timed("write", on_event, partial(artifact.save, contents, temporary))
        del contents
        if options.verify:
            result, coverage = timed("verify", on_event, lambda: _verified(temporary, options))
            found = padding.facts(temporary, options, on_event)
            artifact.rewrite_manifest(temporary, {"verification": result, **found})
        applied.require(coverage, options.require_tuned)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return coverage


def _say_notes(manifest: dict[str, Any], on_event: OnEvent) -> None:
    """Say which kernels were compiled otherwise than asked, and why."""
    kernels = {s: k for entry in buckets.manifests(manifest) for s, k in entry["kernels"].items()}
    for symbol, kernel in kernels.items():
        if "note" in kernel:
            on_event(Notice(text=f"kernel {symbol}: {kernel['note']}", level="warning"))


def _say_unverified(manifest: dict[str, Any], on_event: OnEvent) -> None:
    """Say why an artifact was not verified although that was asked, and how it can be."""
    wanted = manifest["target"]
    why = misfit(wanted, host_cpu())
    how = "run `mlc verify` on such a machine"
    if can_emulate(wanted["triple"]):
        how = "`mlc verify ARTIFACT MODEL --emulate` runs it in an emulator"
    text = f"not verified: this machine cannot run code for {wanted['name']} ({why}); {how}"
    on_event(Notice(text=text, level="warning"))


def _verified(path: Path, options: CompileOptions) -> tuple[dict[str, Any], Coverage]:
    """Return the verification, and the coverage: by time, measured in the session that is open."""
    from mlc.runtime.profile import profile
    from mlc.runtime.verify import require, verify
    from mlc.tune import applied

    found = []

    def look(session: Session) -> None:
        tuning = session.manifest["tuning"]
        if applied.is_mixed(tuning):
            kernels = profile(session, _PROFILE_S, _PROFILE_RUNS)
            found.append(applied.by_time(tuning, {k.symbol: k.seconds for k in kernels}))
        else:
            found.append(applied.by_flops(tuning))

    asked = VerifyOptions(artifact=str(path), model=options.model, seed=options.seed)
    result = verify(asked, then=look, same_model=True)
    require(result, "the compiled model")
    return result.to_json(), min(found, key=lambda coverage: coverage.tuned)


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


def default_configs(chosen: target.Target) -> Callable[[], Any] | None:
    """Return what makes the config of a template without a record (None: TVM's own)."""
    if chosen.gpu is None:
        return None
    from mlc.schedules.cuda import Default

    return Default


def _observer(options: CompileOptions, ran: list[str]) -> Callable[[Any], None]:
    from mlc.inspection import PassDump

    dump = PassDump(Path(options.dump_ir)) if options.dump_ir is not None else None

    def observe(run: Any) -> None:
        ran.append(run.row.name)
        if dump is not None:
            dump(run)

    return observe


def artifact_key(options: CompileOptions, chosen: target.Target, model_sha256: str) -> str:
    """Return what changes whenever the artifact that the options ask for may become another."""
    asked = asdict(options)
    for irrelevant in ("model", "output", "cache", "jobs", "dump_ir", "kernel", "target", "logs"):
        del asked[irrelevant]
    asked["records"] = records_state(options)
    # What one machine could not verify, another may.
    asked["verify"] = options.verify and target.runs_on(chosen, host_cpu()) is not False
    gpu = [chosen.name, str(chosen.gpu), ptxas.version()] if chosen.gpu is not None else []
    return key_of(model_sha256, asked, chosen.tvm, tvm_env.versions(), gpu, source_digest())


def records_state(options: CompileOptions) -> Any:
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


def _report(
    output: Path, started: float, coverage: bytes | None, *, from_cache: bool
) -> dict[str, Any]:
    from mlc.tune import applied

    manifest = artifact.read_manifest(output)
    known = json.loads(coverage) if coverage else asdict(applied.least(manifest))
    return {
        "path": str(output),
        "bytes": output.stat().st_size,
        "seconds": time.perf_counter() - started,
        "from_cache": from_cache,
        "coverage": known,
        "manifest": manifest,
    }
