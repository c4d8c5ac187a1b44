"""Our dense and batch_matmul templates against TVM's and against numpy's BLAS, shape by shape.

Every candidate of a shape runs in this process in turn, short slices again and again, and the least
time counts, so that a busy machine disturbs all alike. "best" is the best of random configs of a
template, the default among them. Figures are GFLOP/s; those of one row may be compared.

    python -m benchmarks.dense [--target llvm] [--trials 48] [--only 126x512x512,8x128x128x64]
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mlc import tvm_env
from mlc.cpu import host_cpu, physical_cores
from mlc.runtime.session import set_threads
from mlc.target import resolve
from mlc.tune.measure import Measurer, Settings
from mlc.tune.record import workload_key

# (m, n, k) of dense layers: transformers, ViT-tiny, classifiers, odd ones.
DENSE = [
    (126, 512, 512), (128, 2048, 512), (128, 512, 2048), (197, 192, 192), (197, 576, 192),
    (197, 768, 192), (128, 768, 768), (128, 3072, 768), (1, 1000, 512), (1, 4096, 1024),
    (8, 1000, 2048), (7, 33, 129), (1, 1, 5), (3, 1000, 17), (31, 257, 63),
]  # fmt: skip
# (batch, m, n, k): attention's products, and an odd one.
BATCH_MATMUL = [(8, 128, 128, 64), (3, 197, 197, 64), (12, 128, 64, 128), (5, 7, 13, 11)]
OURS = {"dense": "dense_mlc.x86", "batch_matmul": "batch_matmul_mlc.x86"}
THEIRS = {"dense": ("dense_pack.x86", "dense_nopack.x86"), "batch_matmul": ("batch_matmul.x86",)}

SLICE_S = 0.002
FINAL_ROUNDS, FINALISTS = 40, 3
SETTLE_S = 0.02  # before numpy's turn: TVM's idle workers spin

Run = Callable[[int], float]  # calls -> seconds per call


@dataclass(frozen=True, kw_only=True)
class Trials:
    """How many random configs of a template are tried, and how they are measured."""

    count: int
    settings: Settings


class Candidate:
    """A kernel, and the least time that it took: seconds per call."""

    def __init__(self, name: str, run: Run, settle: float = 0.0):
        self.name, self.run, self.settle = name, run, settle
        self.best = math.inf
        run(1)
        self.calls = max(1, int(SLICE_S / max(run(1), 1e-7)))

    def slice(self) -> None:
        time.sleep(self.settle)
        self.best = min(self.best, self.run(self.calls))


def task_args(template: str, sizes: tuple[int, ...]) -> list[Any]:
    """Return the arguments of a template's task; batch_matmul as mlc's importer writes it."""

    def tensor(*shape: int) -> tuple[str, tuple[int, ...], str]:
        return ("TENSOR", shape, "float32")

    *batch, m, n, k = sizes
    if template == "dense_mlc.x86":
        return [tensor(m, k), tensor(n, k), n]
    if template == "batch_matmul_mlc.x86":
        return [tensor(*batch, m, k), tensor(*batch, k, n), False, False]
    if template == "batch_matmul.x86":
        return [tensor(*batch, m, k), tensor(*batch, n, k), (*batch, m, n), "float32", False, True]
    return [tensor(m, k), tensor(n, k), None, "float32"]


def candidates(
    template: str, sizes: tuple[int, ...], target: Any, trials: Trials
) -> list[Candidate]:
    """Return the default of a template, then the fastest of random configs of it."""
    from tvm import autotvm

    task = autotvm.task.create(template, task_args(template, sizes), target)
    size, key = len(task.config_space), workload_key(task.workload)
    picks = random.Random(0).sample(range(size), min(trials.count, size))
    with Measurer({key: task}, trials.settings) as measurer:
        outcomes = measurer.measure([(key, index) for index in picks])
    # Unlike here, a config that takes minutes to compile is given up there.
    works = [(min(o.costs), index) for index, o in zip(picks, outcomes, strict=True) if o.costs]
    fastest = [index for _, index in sorted(works)[:FINALISTS]]
    made = (kernel(task, index) for index in [None, *fastest])
    return [candidate for candidate in made if candidate is not None]


def kernel(task: Any, index: int | None) -> Candidate | None:
    """Return a candidate, compiled as the tuner does; None when its template refuses the config."""
    import tvm
    from tvm import autotvm
    from tvm.autotvm.task.space import FallbackConfigEntity

    from mlc.tune.place import Here, random_values
    from mlc.tune.trial import shape_of

    config = FallbackConfigEntity() if index is None else task.config_space.get(index)
    autotvm.GLOBAL_SCOPE.in_tuning = True
    try:
        with task.target:
            schedule, tensors = task.instantiate(config)
        module = Here().compile(schedule, tensors, task.target)
    except Exception:  # noqa: BLE001 - a config may break TVM's schedules in any way
        return None
    arrays = [
        Here().tensor(random_values(shape_of(t), t.dtype, seed)) for seed, t in enumerate(tensors)
    ]

    def run(calls: int) -> float:
        return float(module.time_evaluator("candidate", tvm.cpu(0), number=calls)(*arrays).mean)

    return Candidate("default" if index is None else f"config {index}", run)


def numpy_matmul(sizes: tuple[int, ...]) -> Candidate:
    *batch, m, n, k = sizes
    rng = np.random.default_rng(0)
    a, b = rng.random((*batch, m, k), np.float32), rng.random((*batch, k, n), np.float32)
    out = np.empty((*batch, m, n), np.float32)

    def run(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            np.matmul(a, b, out=out)
        return (time.perf_counter() - started) / calls

    return Candidate("numpy", run, SETTLE_S)


def compare(kind: str, sizes: tuple[int, ...], target: Any, trials: Trials) -> list[float]:
    """Return GFLOP/s: ours by default, at best; TVM's by default (its strategy's), at best; numpy."""
    ours = candidates(OURS[kind], sizes, target, trials)
    theirs = [candidates(template, sizes, target, trials) for template in THEIRS[kind]]
    blas = numpy_matmul(sizes)
    everyone = [*ours, *(c for group in theirs for c in group), blas]
    for _ in range(FINAL_ROUNDS):
        for candidate in everyone:
            candidate.slice()
    flops = 2 * math.prod(sizes)

    def speed(group: list[Candidate]) -> float:
        return flops / min(candidate.best for candidate in group) / 1e9

    return [
        speed(ours[:1]), speed(ours), speed(theirs[0][:1]),
        max(speed(group) for group in theirs), speed([blas]),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--only", default="", help="sizes, separated by commas")
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()
    tvm = tvm_env.tvm()
    set_threads(options.threads)
    target = tvm.target.Target(resolve(options.target).tvm)
    title = f"{options.target} on {host_cpu().name}, {options.threads} threads, best of {options.trials}, GFLOP/s"
    table = Table(title=title)
    columns = ["shape", "mlc", "mlc best", "default/best", "TVM", "TVM best", "mlc/TVM", "numpy"]
    for column in columns:
        table.add_column(column, justify="right")
    trials = Trials(
        count=options.trials,
        settings=Settings(
            workers=2, threads=options.threads, build_timeout=20, run_timeout=10,
            memory_bytes=4 << 30, repeat=2, min_repeat_ms=4, warm_up_ms=4,
        ),
    )  # fmt: skip
    only = options.only.split(",") if options.only else []
    rows = [("dense", s) for s in DENSE] + [("batch_matmul", s) for s in BATCH_MATMUL]
    for kind, sizes in rows:
        name = "x".join(map(str, sizes))
        if only and name not in only:
            continue
        ours, ours_best, tvms, tvms_best, blas = compare(kind, sizes, target, trials)
        cells = [name, f"{ours:.1f}", f"{ours_best:.1f}", f"{ours / ours_best:.2f}", f"{tvms:.1f}",
                 f"{tvms_best:.1f}", f"{ours / tvms:.2f}", f"{blas:.1f}"]  # fmt: skip
        table.add_row(*cells)
        sys.stderr.write("  ".join(cells) + "\n")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
