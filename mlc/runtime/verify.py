"""Compare an artifact with ONNX Runtime on the original model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import bundle, emulate
from mlc.errors import MismatchError, UsageError, one_line
from mlc.events import Notice, OnEvent, ignore
from mlc.fit import is_for_gpu
from mlc.runtime.codes import Spread
from mlc.runtime.reference import Reference
from mlc.sizes import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlc.model import TensorSpec
    from mlc.options import VerifyOptions
    from mlc.runtime.buckets import AnySession

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """|a - b| <= relative * |b| + absolute * max(1, largest |b| of the output), element-wise.

    The absolute part grows with the output's scale: rounding errors of a sum do not shrink where
    its terms happen to cancel.
    """

    relative: float
    absolute: float


# Per float type. fp32: about 100 roundings in a row; fp16: its 11 bits, accumulated in fp32 or
# not, differ by backend. Integers and booleans must agree exactly.
TOLERANCES = {
    "float64": Tolerance(relative=1e-7, absolute=1e-9),
    "float32": Tolerance(relative=1e-3, absolute=1e-5),
    "float16": Tolerance(relative=1e-2, absolute=2e-3),
}
EXACT = Tolerance(relative=0.0, absolute=0.0)


@dataclass(frozen=True, kw_only=True)
class OutputCheck:
    """How one output compares: largest errors, cosine similarity, non-finite counts, verdict."""

    name: str
    dtype: str
    max_abs: float
    max_rel: float
    cosine: float
    nan: int
    inf: int
    nan_reference: int
    inf_reference: int
    passed: bool
    spread: float | None = (
        None  # largest difference of the reference from itself: see `runtime.codes`
    )

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "MISMATCH"
        return (
            f"{one_line(self.name)} ({self.dtype}): {verdict}, max abs {self.max_abs:.2e}, "
            f"max rel {self.max_rel:.2e}, cosine {self.cosine:.8f}, "
            f"NaN {self.nan}/{self.nan_reference}, Inf {self.inf}/{self.inf_reference}"
            + (f", reference from itself {self.spread:.2e}" if self.spread is not None else "")
        )


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of comparing every output on `rounds` seeded inputs (worst round each)."""

    reference: str
    seed: int
    rounds: int
    outputs: tuple[OutputCheck, ...]
    sizes: tuple[dict[str, int], ...] = ()  # of open dimensions, `rounds` seeds at each

    @property
    def passed(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(check.passed for check in self.outputs)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data, which has no infinity: that becomes the text "inf"."""
        facts = asdict(self)
        if not self.sizes:
            del facts["sizes"]
        for check in facts["outputs"]:
            if check["spread"] is None:
                del check["spread"]
            for key in ("max_abs", "max_rel"):
                check[key] = check[key] if np.isfinite(check[key]) else str(check[key])
        return {"passed": self.passed, **facts}


def compare(name: str, ours: Array, reference: Array, precision: str = "") -> OutputCheck:
    """Return how an output compares with its reference.

    NaN and infinity must stand at the same places (infinities with the same sign); finite values
    must be within the tolerance of their dtype, or of `precision`, the coarser float type that they
    were computed from (`frontend.precision`). A shape or dtype that differs is a mismatch.
    """
    if ours.shape != reference.shape or ours.dtype != reference.dtype:
        return _check(name, ours, reference, np.inf, np.inf, passed=False)
    if ours.dtype.kind != "f":
        same = bool(np.array_equal(ours, reference))
        wide_ours, wide_reference = ours.astype(np.float64), reference.astype(np.float64)
        worst = float(np.max(np.abs(wide_ours - wide_reference), initial=0.0))
        return _check(name, ours, reference, worst, worst, passed=same)
    tolerance = TOLERANCES[precision or ours.dtype.name]
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(b)
    same_places = bool(np.array_equal(a[~finite], b[~finite], equal_nan=True))
    a, b = a[finite], b[finite]
    if not np.isfinite(a).all():
        return _check(name, ours, reference, np.inf, np.inf, passed=False)
    error = np.abs(a - b)
    scale = max(1.0, float(np.max(np.abs(b), initial=0.0)))
    allowed = tolerance.relative * np.abs(b) + tolerance.absolute * scale
    relative = error / np.maximum(np.abs(b), tolerance.absolute * scale)
    passed = same_places and bool((error <= allowed).all())
    return _check(
        name, ours, reference, float(np.max(error, initial=0.0)),
        float(np.max(relative, initial=0.0)), passed=passed,
    )  # fmt: skip


def _check(
    name: str, ours: Array, reference: Array, max_abs: float, max_rel: float, *, passed: bool
) -> OutputCheck:
    def count(array: Array, what: Any) -> int:
        return int(np.count_nonzero(what(array))) if array.dtype.kind == "f" else 0

    return OutputCheck(
        name=name,
        dtype=ours.dtype.name,
        max_abs=max_abs,
        max_rel=max_rel,
        cosine=_cosine(ours, reference),
        nan=count(ours, np.isnan),
        inf=count(ours, np.isinf),
        nan_reference=count(reference, np.isnan),
        inf_reference=count(reference, np.isinf),
        passed=passed,
    )


def _cosine(ours: Array, reference: Array) -> float:
    if ours.size != reference.size:
        return 0.0
    a, b = ours.astype(np.float64).reshape(-1), reference.astype(np.float64).reshape(-1)
    good = np.isfinite(a) & np.isfinite(b)
    a, b = a[good], b[good]
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(np.dot(a, b) / norms, -1, 1)) if norms else float(np.array_equal(a, b))


def verify(
    options: VerifyOptions,
    on_event: OnEvent = ignore,
    then: Callable[[Any], None] | None = None,
    *,
    same_model: bool = False,
) -> Verification:
    """Compare an artifact with the model that it was compiled from, in every bucket it has.

    A quantised network may differ by what the reference differs from itself (`runtime.codes`).
    With `same_model` the caller knows that it is that model; else its hash tells, and another one is
    warned of. With several buckets the outputs' names say which; inputs that are given go to the
    bucket of their shapes. `then` gets each session (each bucket's) while it is open, its inputs
    filled, the reference gone.

    Raises:
        ArtifactError: the artifact cannot be opened.
        ModelError: the reference cannot load the model.
        MismatchError: the model has other inputs or outputs. Otherwise look at
            `Verification.passed`, or call `require`.
        UsageError, MissingToolError: `emulate` is asked, and cannot be done (see `mlc.emulate`).
    """
    from mlc.runtime import inputs as sources

    with _opened(options, on_event) as session:
        if not same_model:
            warn_if_other_model(session.manifest, Path(options.model), on_event)
        reference = Reference(Path(options.model))
        _require_same_names(session, reference, options)
        given = sources.read(options.inputs, session.inputs) if options.inputs else None
        sizes = _sizes(session, options)
        sessions = _parts(session, options, sizes) if given is None else [("", session)]
        spread = Spread(Path(options.model))
        found: dict[str, list[OutputCheck]] = {}
        for label, one in sessions:
            precision = one.manifest.get("precision", {})
            for feed in _feeds(one, options) if given is None else [given]:
                ours, theirs = one.run(feed), reference.run(feed)
                checks = compare_outputs(one.outputs, ours, theirs, precision)
                for check in spread.judged(checks, ours, theirs, feed):
                    found.setdefault(check.name + label, []).append(check)
        name = reference.name
        del reference, spread  # with its threads, which wait for work by spinning
        if then is not None:
            for _, one in sessions:
                then(one)
    return Verification(
        reference=name,
        seed=options.seed,
        rounds=1 if given is not None else options.rounds,
        sizes=sizes,
        outputs=tuple(replace(_worst(checks), name=label) for label, checks in found.items()),
    )


def _parts(
    session: AnySession, options: VerifyOptions, sizes: Sequence[dict[str, int]]
) -> list[tuple[str, AnySession]]:
    """Return what is verified one by one, with what the names of its outputs end in."""
    from mlc.runtime.buckets import BucketSession, choose
    from mlc.runtime.open_session import DynamicSession

    if isinstance(session, DynamicSession):
        return [("", session.at(chosen)) for chosen in sizes]
    if not isinstance(session, BucketSession):
        return [("", session)]
    wanted = [choose(session, options.shapes)] if options.shapes else range(len(session.buckets))
    return [(f" ({session.buckets[k]})", session.bucket(k)) for k in wanted]


def _sizes(session: AnySession, options: VerifyOptions) -> tuple[dict[str, int], ...]:
    """Return the sizes of open dimensions to compare at; none where shapes are fixed, or by inputs."""
    from mlc.runtime.buckets import BucketSession
    from mlc.runtime.open_session import DynamicSession, asked_sizes, fixed

    if isinstance(session, BucketSession):
        return ()
    if not isinstance(session, DynamicSession):
        fixed(session, options.shapes)
        return ()
    if options.inputs:
        return ()
    asked = asked_sizes(session, options.shapes)
    chosen = [{**sizes, **asked} for sizes in samples(session.dims)]
    return tuple(sizes for k, sizes in enumerate(chosen) if sizes not in chosen[:k])


def _feeds(session: AnySession, options: VerifyOptions) -> list[dict[str, Array]]:
    from mlc.runtime import inputs as sources

    bounds = session.manifest.get("index_bounds", {})
    seeds = range(options.seed, options.seed + options.rounds)
    return [sources.random(session.inputs, seed, bounds) for seed in seeds]


def _opened(options: VerifyOptions, on_event: OnEvent) -> AnySession:
    from mlc.runtime import buckets

    path = Path(options.artifact)
    if options.device == "cuda":
        from mlc.runtime.cuda import CudaSession

        return buckets.over(path, lambda bucket: CudaSession(path, bucket=bucket))
    if not options.emulate:
        return buckets.open(path, target=options.target)
    target = options.target or emulate.only_variant(path)
    manifest = bundle.read_manifest(path, target)
    if "dynamic" in manifest:
        raise UsageError(
            "--emulate takes artifacts of fixed shapes",
            "compile it with --shape instead of --dynamic",
        )
    if is_for_gpu(manifest["target"]):
        from mlc.emulate.cuda import SimulatedSession

        return buckets.over(path, lambda bucket: SimulatedSession(path, target, bucket), target)
    from mlc.emulate.session import EmulatedSession

    return buckets.over(
        path, lambda bucket: EmulatedSession(path, on_event, target, bucket), target
    )


def compare_outputs(
    specs: Sequence[TensorSpec],
    ours: Mapping[str, Array],
    reference: Mapping[str, Array],
    precision: Mapping[str, str],
) -> list[OutputCheck]:
    """Return the check of each output, in the order of `specs`."""
    names = [spec.name for spec in specs]
    return [compare(n, ours[n], reference[n], precision.get(n, "")) for n in names]


def require(verification: Verification, what: str) -> None:
    """Raise MismatchError, with every output's figures, unless the verification passed."""
    if not verification.passed:
        listing = "\n".join(f"  {check}" for check in verification.outputs)
        raise MismatchError(
            f"{what} differs from {verification.reference} (seed {verification.seed}):\n{listing}",
            "a lower level may show which pass is wrong: `mlc compile -O0`, `-O1`, `-O2`",
        )


def _require_same_names(session: AnySession, reference: Reference, options: VerifyOptions) -> None:
    ours = [spec.name for spec in (*session.inputs, *session.outputs)]
    theirs = [*reference.inputs, *reference.outputs]
    if sorted(ours) != sorted(theirs):
        raise MismatchError(
            f"{options.artifact} has the inputs and outputs {', '.join(ours)}, but {options.model} "
            f"has {', '.join(theirs)}",
            "give the model that the artifact was compiled from",
        )


def _worst(checks: Sequence[OutputCheck]) -> OutputCheck:
    return max(checks, key=lambda check: (not check.passed, check.max_abs))


def warn_if_other_model(manifest: Mapping[str, Any], model: Path, on_event: OnEvent) -> None:
    """Say so where an artifact was compiled from another file than `model`."""
    from mlc.frontend import onnx_file

    if onnx_file.read(model).sha256 != manifest["model"]["sha256"]:
        on_event(
            Notice(
                text=f"{model} is not the file that the artifact was compiled from "
                f"({manifest['model']['path']})",
                level="warning",
            )
        )
