"""Where the time of one run goes: each fused kernel's share, measured in place.

TVM's debug executor runs the artifact's own graph node by node, in order, so every kernel finds
caches and buffers as in a real run (a kernel timed alone, over and over, finds its weights in the
cache and looks better than it is).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import tvm_env
from mlc.artifact import GRAPH, LIBRARY, Artifact
from mlc.errors import ArtifactError, RunError
from mlc.runtime.session import Session, _view, load_library

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_RUNS = 5
_IDLE_CALLS = 200


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """One kernel of the artifact in one run of the model.

    `seconds` is the median over the measured runs of all its `calls` together; `share` is its part
    of the kernels' total (0 to 1); `gflops` is 10^9 floating-point operations per second, None
    for a kernel that computes nothing (layout transforms, copies) and for one that takes no longer
    than what a call costs by itself (`seconds` is 0).
    """

    symbol: str
    operators: tuple[str, ...]
    calls: int
    seconds: float
    share: float
    gflops: float | None


def profile(session: Session, seconds: float, runs: int = MIN_RUNS) -> list[KernelTime]:
    """Return the kernels of a session by the time that they take, the slowest first.

    Runs the model on what `session.input_views` hold, for `seconds` (at least `runs` times, and
    once before to warm up); `session.output_views` stay as they are. What a call costs by itself
    (about 2 microseconds) is measured and taken off; kernels that take less than that still look
    slower than they are, as this code uses the caches between them.

    Raises:
        RunError: the session is closed.
        ArtifactError: the artifact cannot be set up for this.
    """
    artifact = session._artifact
    if artifact is None:
        raise RunError("the session is closed")
    executor = _debug_executor(tvm_env.runtime(), artifact)
    _copy_inputs(session, executor)
    nodes = json.loads(bytes(artifact.members[GRAPH]))["nodes"]
    called = [
        (position, node["attrs"]["func_name"])
        for position, node in enumerate(nodes)
        if node["op"] == "tvm_op" and node["attrs"]["func_name"] != "__nop"
    ]
    positions = [position for position, _ in called]
    samples = _measure(executor["execute_node"], positions, seconds, runs)
    return summarize([symbol for _, symbol in called], samples, session.manifest["kernels"])


def summarize(
    symbols: Sequence[str], samples: np.ndarray[Any, Any], facts: dict[str, Any]
) -> list[KernelTime]:
    """Return the time of each kernel, the slowest first.

    Args:
        symbols: which kernel each call of a run goes to.
        samples: seconds, one row per run, one column per entry of `symbols`.
        facts: the manifest's `kernels`: FLOPs of one call and operators, by symbol.
    """
    columns: dict[str, list[int]] = {}
    for column, symbol in enumerate(symbols):
        columns.setdefault(symbol, []).append(column)
    times = {s: float(np.median(samples[:, own].sum(axis=1))) for s, own in columns.items()}
    total = sum(times.values())
    kernels = [
        KernelTime(
            symbol=symbol,
            operators=tuple(facts[symbol]["operators"]),
            calls=len(columns[symbol]),
            seconds=spent,
            share=spent / total if total else 1 / len(times),
            gflops=_gflops(facts[symbol]["flops"] * len(columns[symbol]), spent),
        )
        for symbol, spent in times.items()
    ]
    return sorted(kernels, key=lambda kernel: (-kernel.seconds, kernel.symbol))


def _gflops(flops: int, seconds: float) -> float | None:
    return flops / seconds / 1e9 if flops and seconds else None


def _measure(
    execute: Any, positions: Sequence[int], seconds: float, least: int
) -> np.ndarray[Any, Any]:
    """Return seconds by run and position, of `least` runs or more.

    `execute(k)` of the debug executor runs the nodes after the one that it ran last, up to `k`; from
    the start when `k` lies before that; nothing when it is the same. In between lie inputs, weights
    and reshapes only, which take no time.
    """
    clock = time.perf_counter_ns
    runs: list[list[int]] = []
    if not positions:
        return np.zeros((1, 0))
    deadline = None
    while deadline is None or len(runs) < least or clock() < deadline:
        if positions[0] > 0:
            execute(0)  # an input or weight: goes back to the start, even from an only kernel
        run = []
        for position in positions:
            started = clock()
            execute(position)
            run.append(clock() - started)
        if deadline is None:
            deadline = clock() + int(seconds * 1e9)
        else:
            runs.append(run)
    samples = np.array(runs, np.float64) - _idle(execute, positions[-1])
    return np.asarray(np.maximum(samples, 0.0) / 1e9)


def _idle(execute: Any, last: int) -> float:
    """Return the nanoseconds that a call takes which runs nothing."""
    clock = time.perf_counter_ns
    samples = []
    for _ in range(_IDLE_CALLS):
        started = clock()
        execute(last)
        samples.append(clock() - started)
    return float(np.median(samples))


def _copy_inputs(session: Session, executor: Any) -> None:
    for k, (spec, view) in enumerate(zip(session.inputs, session.input_views, strict=True)):
        np.copyto(_view(executor["get_input"](f"input{k}"), spec), view)


def _debug_executor(tvm: Any, artifact: Artifact) -> Any:
    """Return the executor that runs node by node: `session._executor` with another constructor."""
    weights = {
        storage: tvm.nd.from_dlpack(array.__dlpack__())
        for storage, array in artifact.weights()
        if array.size
    }

    def lookup(_module: Any, storage: int, _template: Any, _device: Any) -> Any:
        return weights.get(storage)

    library = load_library(tvm, artifact.members[LIBRARY], artifact.path)
    graph = bytes(artifact.members[GRAPH]).decode()
    device = tvm.cpu(0)
    create = tvm.get_global_func("tvm.graph_executor_debug.create")
    try:
        return create(
            graph, library, tvm.runtime.convert(lookup), device.device_type, device.device_id
        )
    except Exception as error:
        raise ArtifactError(
            f"{artifact.path} cannot be profiled: {tvm_env.reason(error)}", "compile it again"
        ) from error
