"""`mlc bench`: how long an artifact takes, by itself or side by side with a peer.

How two sides are compared, so that each is at its best and drift cancels:

- same process, same inputs, same number of threads; nobody copies: mlc runs in place, ONNX Runtime
  through an IOBinding with inputs and outputs bound once, its optimizer at its highest level.
- on a GPU inputs and outputs stay there, and a run ends when the GPU says so: the host's clock around
  both, and not the GPU's own, since starting kernels is part of what a caller waits for.
- short blocks in turn, A B A B. The worker threads of both keep spinning for a while after a run
  (their own default, and best, setting), so each block begins with a pause in which the other
  side's fall asleep, and with one discarded run that wakes its own.
- the result is the ratio of adjacent blocks' medians: B1/A1, B1/A2, B2/A2, ... As each block is
  compared with those before and after it, a slow drift of the clock cancels.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import target
from mlc.bundle import read_manifest
from mlc.cache import open_cache
from mlc.cpu import physical_cores
from mlc.errors import RunError, TargetError, UsageError, did_you_mean
from mlc.events import Notice, OnEvent, Stage, ignore
from mlc.fit import is_for_gpu
from mlc.runtime import inputs as sources
from mlc.runtime import profile as profiling
from mlc.runtime.buckets import open_one
from mlc.runtime.reference import CPU, CUDA, Reference
from mlc.runtime.session import Session, threads_in_use
from mlc.runtime.timing import CROWDED, Comparison, Side, Timing, compare, interleave
from mlc.runtime.verify import warn_if_other_model
from mlc.tune.peak import peak_gflops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from mlc.options import BenchOptions
    from mlc.runtime.cuda import CudaSession

    Array = np.ndarray[Any, Any]

MIN_RUNS = 5
NOISY_SPREAD = 0.15


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What `bench` found; `batch` is the first dimension of the first input (1 without one).

    `peak_gflops` is what fp32 code for the artifact's target reaches here at most, beside a profile.
    `device` names the GPU (then `threads` is 0), and is "" for a CPU.
    """

    artifact: str
    target: str
    threads: int
    seed: int
    batch: int
    mlc: Timing
    peer: Timing | None = None
    comparison: Comparison | None = None
    profile: tuple[profiling.KernelTime, ...] | None = None
    peak_gflops: float | None = None
    device: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data, times in seconds."""
        return asdict(self)


def bench(options: BenchOptions, on_event: OnEvent = ignore) -> BenchResult:
    """Time an artifact on seeded random inputs: warm-up by time, then runs for `duration` seconds.

    At least `MIN_RUNS` runs. With `against`, `duration` seconds for each side, in short blocks
    (see `timing.interleave`).

    Raises:
        UsageError: an unknown peer, a peer without its model, a number out of range, or `shapes`
            that no bucket has.
        ArtifactError: the artifact cannot be opened.
        MissingToolError: there is no GPU or no driver, or the peer cannot use it.
        ModelError: the peer cannot load the model.
        RunError: the peer cannot run the model, or it is another model.
    """
    check_options(options)
    _warn_if_loaded(on_event)
    asked = options.threads or physical_cores()
    on_gpu = options.device == "cuda"
    with open_one(options.artifact, options.shapes, threads=asked, on_gpu=on_gpu) as session:
        threads = 0 if on_gpu else _threads(asked, on_event)
        arrays = sources.random(
            session.inputs, options.seed, session.manifest.get("index_bounds", {})
        )
        session.fill(arrays)
        ours = Side(f"mlc {session.manifest.get('mlc', '')}".strip(), session.run_in_place)
        peer = None
        if options.against is not None:
            model = Path(str(options.model))
            warn_if_other_model(session.manifest, model, on_event)
            peer = PEERS[options.against](model, session, arrays, threads)
        _measure(ours, peer, options, on_event)
        kernels = None
        if options.profile:
            started = time.perf_counter()
            kernels = tuple(_profile(session, options.duration))
            on_event(Stage(name="profile", seconds=time.perf_counter() - started))
        batch = batch_size([spec.shape for spec in session.inputs])
        result = BenchResult(
            artifact=options.artifact,
            target=session.manifest["target"]["tvm"],
            threads=threads,
            seed=options.seed,
            batch=batch,
            mlc=ours.timing(batch),
            peer=peer.timing(batch) if peer else None,
            comparison=_compare(ours, peer) if peer else None,
            profile=kernels,
            peak_gflops=_peak(session, threads) if kernels and not on_gpu else None,
            device=session.device,
        )
    _warn_if_noisy(result, on_event)
    return result


def check_options(options: BenchOptions) -> None:
    """Raise UsageError for options that cannot work, before anything is loaded."""
    if options.threads is not None and options.threads < 1:
        raise UsageError("--threads needs at least 1")
    if options.threads is not None and options.device == "cuda":
        raise UsageError("--threads is for CPUs, and --device cuda runs on a GPU", "leave it out")
    if not (math.isfinite(options.duration) and options.duration > 0):
        raise UsageError("--duration needs a number of seconds above 0")
    if not (math.isfinite(options.warmup) and options.warmup >= 0):
        raise UsageError("--warmup needs a number of seconds, 0 or more")
    if options.against is None:
        if options.model is not None:
            raise UsageError(
                "--model is for a comparison, and none was asked for",
                f"add --against: {', '.join(PEERS)}",
            )
        return
    if options.against not in PEERS:
        raise UsageError(
            f"there is no peer {options.against!r} to compare with",
            did_you_mean(options.against, PEERS),
        )
    if options.model is None:
        name = str(read_manifest(Path(options.artifact)).get("model", {}).get("path", "MODEL.onnx"))
        raise UsageError(
            f"--against {options.against} needs the model that the artifact was compiled from",
            f"mlc bench {shlex.quote(options.artifact)} --against {options.against} "
            f"--model {shlex.quote(name)}",
        )


def _profile(session: Session | CudaSession, seconds: float) -> list[profiling.KernelTime]:
    if isinstance(session, Session):
        return profiling.profile(session, seconds)
    return profiling.profile_on_gpu(session, seconds)


def _peak(session: Session | CudaSession, threads: int) -> float | None:
    with contextlib.suppress(TargetError):  # an artifact of another version may name what is gone
        chosen = target.resolve(session.manifest["target"]["tvm"])
        return peak_gflops(chosen, threads, open_cache())
    return None


def _measure(ours: Side, peer: Side | None, options: BenchOptions, on_event: OnEvent) -> None:
    started = time.perf_counter()
    sides = [ours] if peer is None else [ours, peer]
    for side in sides:
        side.warm_up(options.warmup)
    warm = time.perf_counter()
    on_event(Stage(name="warm-up", seconds=warm - started))
    if peer is None:
        ours.measure(options.duration, MIN_RUNS)
    else:
        interleave(ours, peer, options.duration, on_event)
    on_event(Stage(name="measure", seconds=time.perf_counter() - warm))


def _compare(ours: Side, peer: Side) -> Comparison:
    reliable = all(side.timing(batch=1).waited <= CROWDED for side in (ours, peer))
    return compare(peer.name, ours.blocks, peer.blocks, reliable=reliable)


def _onnxruntime(
    model: Path, session: Session | CudaSession, arrays: Mapping[str, Array], threads: int
) -> Side:
    """Return ONNX Runtime on the model, on a GPU if ours is; inputs and outputs are bound once."""
    provider = CUDA if is_for_gpu(session.manifest["target"]) else CPU
    reference = Reference(model, optimize=True, threads=threads, provider=provider)
    outputs = reference.run(arrays)
    for spec in session.outputs:
        found = outputs.get(spec.name)
        if found is None or found.shape != spec.shape or found.dtype.name != spec.dtype:
            raise RunError(
                f"{model} has no output {spec}: it is not what the artifact was compiled from",
                f"give the model that {session.path} was compiled from with --model",
            )
    binding = reference.bind(arrays, outputs)
    return Side(reference.name, lambda: reference.session.run_with_iobinding(binding))


PEERS: dict[str, Callable[[Path, Session | CudaSession, Mapping[str, Array], int], Side]] = {
    "onnxruntime": _onnxruntime,
}
"""What `--against` can name: makes the side from model, artifact's session, inputs and threads."""


def batch_size(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the first dimension of the first input, where there is one; else 1."""
    return shapes[0][0] if shapes and shapes[0] else 1


def _threads(asked: int, on_event: OnEvent) -> int:
    used = threads_in_use()
    if used != asked:
        text = (
            f"TVM's pool has {used} thread(s) where {asked} were asked for; the peer gets as many"
        )
        on_event(Notice(text=text, level="warning"))
    return used


def _warn_if_loaded(on_event: OnEvent) -> None:
    from mlc import doctor

    status, value, advice = doctor.load()
    if status != "ok":
        on_event(Notice(text=f"the load average is high ({value}): {advice}", level="warning"))


def _warn_if_noisy(result: BenchResult, on_event: OnEvent) -> None:
    """Say the worst thing that was seen: cores taken away, which biases the ratio too, or noise."""
    sides = [side for side in (result.mlc, result.peer) if side is not None]
    crowded = max(sides, key=lambda side: side.waited)
    noisy = max(sides, key=lambda side: side.spread)
    if crowded.waited > CROWDED:
        text = (
            f"the threads of {crowded.name} waited for a core {crowded.waited:.1f} s per second: "
            "there are fewer cores than threads, or other programs or the host take them, and then "
            "even a ratio says little; run it again on an idle machine"
        )
    elif noisy.spread > NOISY_SPREAD:
        advice = "quote the ratio" if result.peer else "quote no time, but the ratio of --against"
        text = f"the machine is noisy: {advice} (spread of {noisy.name}: {noisy.spread:.0%})"
    else:
        return
    on_event(Notice(text=text, level="warning"))
