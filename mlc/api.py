"""The verbs as functions: what the command line does, from Python.

    report = mlc.compile("resnet18.onnx", target="llvm")
    with mlc.open(report.path) as session:
        outputs = session.run({"input": x})

Arrays are numpy's, with exactly the shapes and dtypes of the signature; every failure is an
`mlc.errors.MlcError` with `message`, `hint` and `exit_code`. Compiling and inspecting run in a child
process: a crash of the compiler becomes a `BuildError`, and this process stays small.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import events, isolate, sizes
from mlc.options import (
    BenchOptions,
    BisectOptions,
    CheckOptions,
    CompileOptions,
    ExportOptions,
    InspectOptions,
    VerifyOptions,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.bisection.run import BisectReport
    from mlc.multi_target import BundleReport
    from mlc.runtime.bench import BenchResult
    from mlc.runtime.buckets import BucketSession
    from mlc.runtime.open_session import DynamicSession
    from mlc.runtime.session import Session
    from mlc.runtime.verify import Verification
    from mlc.target import Target
    from mlc.torch_export import ExportReport


@dataclass(frozen=True, kw_only=True)
class CompileReport:
    """What `compile` made: the artifact's path and size, wall time (s), and its manifest.

    `coverage` says how much of the work in tunable kernels is tuned: shares `tuned` on this device,
    on an `other_device` of its class, by default (`fallback`); `by` "time" where the compiled model
    was run and they differ, else by "FLOPs". Of several buckets it is that of the least tuned one.
    """

    path: Path
    bytes: int
    seconds: float
    from_cache: bool
    coverage: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def verification(self) -> dict[str, Any] | None:
        """How the artifact compares with ONNX Runtime; None when not verified."""
        return self.manifest["verification"]  # type: ignore[no-any-return]


def compile(  # noqa: A001 - the verb
    model: str | Path,
    output: str | Path | None = None,
    *,
    on_event: events.OnEvent = events.ignore,
    **options: Any,
) -> CompileReport:
    """Compile an ONNX model to one verified artifact.

    Args:
        model: the `.onnx` file; its external data must lie beside it.
        output: where the artifact goes (default: the model's name with `.mlc`, here).
        on_event: called with progress (`mlc.events`), from this thread.
        options: further fields of `mlc.options.CompileOptions`: `target` ("llvm"), `opt_level` (3),
            `shapes` (("input:1,3,224,224",), or with a bucket for each size ("batch=1,4",)),
            `dynamic` (True: all open dimensions stay open; or their names), `records`,
            `verify` (True), `seed`, `cache`, `jobs`.

    Raises:
        ModelError, UnsupportedError: the model cannot be used.
        TargetError: the target is unknown.
        BuildError: a pass or the code generator failed or crashed.
        MismatchError: the result differs from ONNX Runtime's; nothing was written.
        UsageError: an option is wrong, or `output` cannot be written.
    """
    asked = _asked(model, output, options)
    return compile_with(asked, on_event)


def compile_with(options: CompileOptions, on_event: events.OnEvent) -> CompileReport:
    """Compile as the options say; `options.output` must be set."""
    output = Path(str(options.output))
    # Whatever happens to the child, its temporary files lie in a folder that goes with this call,
    # or beside the output with that folder's name in theirs.
    with tempfile.TemporaryDirectory(prefix="mlc-", ignore_cleanup_errors=True) as scratch:
        try:
            answer = isolate.call("mlc.driver:compile_model", options, on_event, scratch=scratch)
        finally:
            for left in output.parent.glob(f".*.{Path(scratch).name}-*"):
                left.unlink(missing_ok=True)
    return CompileReport(**{**answer, "path": Path(answer["path"])})


def compile_bundle(
    model: str | Path,
    targets: Sequence[str],
    output: str | Path | None = None,
    *,
    on_event: events.OnEvent = events.ignore,
    **options: Any,
) -> BundleReport:
    """Compile an ONNX model for several targets, to one artifact; see `compile`.

    Opening it takes the variant that fits the machine; weights that are equal are stored once.

    Raises:
        MlcError: as `compile`, for any of the targets; nothing was written.
    """
    from mlc import multi_target

    return multi_target.compile_bundle(_asked(model, output, options), targets, on_event)


def _asked(model: str | Path, output: str | Path | None, options: dict[str, Any]) -> CompileOptions:
    """Return the options of a compile; `dynamic` may also be one name, or True for all."""
    kept = sizes.open_names(options.get("dynamic", ()))
    place = default_output(Path(model)) if output is None else output
    return CompileOptions(**{**options, "model": str(model), "output": str(place), "dynamic": kept})


def default_output(model: Path) -> Path:
    """Return the artifact's name for a model: its stem with `.mlc`, in the current folder."""
    return Path(f"{model.stem or 'model'}.mlc")


def open(  # noqa: A001 - the verb
    path: str | Path, *, threads: int | None = None
) -> Session | BucketSession | DynamicSession:
    """Open an artifact for running; see `mlc.runtime.session.Session.run`.

    One that was compiled for several shapes gives a `mlc.runtime.buckets.BucketSession`, one with
    open dimensions a `mlc.runtime.open_session.DynamicSession`: their `run` takes inputs of any of them.

    Raises:
        ArtifactError: it is damaged, of a newer format, or for another machine.
    """
    from mlc.runtime import buckets

    return buckets.open(path, threads=threads)


def verify(
    artifact: str | Path,
    model: str | Path,
    *,
    on_event: events.OnEvent = events.ignore,
    **options: Any,
) -> Verification:
    """Compare an artifact with ONNX Runtime on the original model; see `Verification.passed`.

    Raises:
        ArtifactError: the artifact cannot be opened.
        ModelError: the reference cannot load the model.
    """
    from mlc.runtime import verify as verification

    asked = VerifyOptions(artifact=str(artifact), model=str(model), **options)
    return verification.verify(asked, on_event)


def bench(
    artifact: str | Path, *, on_event: events.OnEvent = events.ignore, **options: Any
) -> BenchResult:
    """Time an artifact, by itself or interleaved with a peer; fields of `BenchOptions`.

    Raises:
        ArtifactError: the artifact cannot be opened.
        UsageError: an unknown peer, or one that needs the model.
    """
    from mlc.runtime import bench as benching

    return benching.bench(BenchOptions(artifact=str(artifact), **options), on_event)


def inspect(
    path: str | Path, *, on_event: events.OnEvent = events.ignore, **options: Any
) -> dict[str, Any]:
    """Return what a model or an artifact holds, as JSON data; fields of `InspectOptions`.

    Of an artifact for several targets that is each variant; with `target` the one for it.

    Raises:
        ModelError, ArtifactError: the file cannot be used.
    """
    from mlc.artifact import is_artifact

    if is_artifact(Path(path)):
        from mlc.inspection import inspect_artifact

        return inspect_artifact(Path(path), options.get("target"))
    asked = InspectOptions(path=str(path), **options)
    answer: dict[str, Any] = isolate.call("mlc.inspection:inspect_model", asked, on_event)
    return answer


def check(
    model: str | Path, *, on_event: events.OnEvent = events.ignore, **options: Any
) -> dict[str, Any]:
    """Say in a second what would happen if a model were compiled; fields of `CheckOptions`.

    Returns JSON data, see `mlc.inspection.check.check_model`: `compiles` and all `problems`, what
    converts each operator, sizes to choose, an estimate of FLOPs and memory. `mlc.inspect` compiles
    the graph to say what it costs exactly; this does not. `dynamic` as for `compile`.

    Raises:
        ModelError: the file cannot be read.
        UsageError: a shape is wrong, or `dynamic` names no open dimension.
    """
    kept = sizes.open_names(options.get("dynamic", ()))
    asked = CheckOptions(**{**options, "path": str(model), "dynamic": kept})
    answer: dict[str, Any] = isolate.call("mlc.inspection.check:check_model", asked, on_event)
    return answer


def bisect(
    model: str | Path, *, on_event: events.OnEvent = events.ignore, **options: Any
) -> BisectReport:
    """Narrow a wrong answer to a level, an operator and a pass; fields of `BisectOptions`.

    Writes a small model that shows it to `output` ("culprit.onnx"); nothing where the model is
    right.

    Raises:
        ModelError: the model cannot be imported, or not be run by ONNX Runtime.
        UsageError: an option is wrong.
    """
    from mlc.bisection import run

    kept = sizes.open_names(options.get("dynamic", ()))
    asked = BisectOptions(**{**options, "model": str(model), "dynamic": kept})
    with tempfile.TemporaryDirectory(prefix="mlc-", ignore_cleanup_errors=True) as scratch:
        answer = isolate.call("mlc.bisection.run:answer", asked, on_event, scratch=scratch)
    return run.from_answer(answer)


def export(
    factory: str,
    inputs: Sequence[str],
    output: str | Path,
    *,
    on_event: events.OnEvent = events.ignore,
    **options: Any,
) -> ExportReport:
    """Export a PyTorch module to ONNX (needs the torch extra); fields of `ExportOptions`.

    Raises:
        MissingToolError: torch is not installed.
        ModelError: the exporter failed.
    """
    from mlc import torch_export

    asked = ExportOptions(factory=factory, inputs=tuple(inputs), output=str(output), **options)
    return torch_export.export(asked, on_event)


def targets() -> list[Target]:
    """Return the named targets."""
    from mlc.target import all_targets

    return all_targets()
