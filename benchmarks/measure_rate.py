"""Trials per minute of `mlc.tune.measure` against AutoTVM's LocalBuilder and LocalRunner.

Both measure the same random configs of the same tasks, with the same repeats, in turn and twice
each. AutoTVM's time counts from when its servers and builders run and have measured a config. Beside the rate stands what it is worth: how well the two lists of costs agree (Spearman's rank
correlation), and how well each side agrees with itself when it measures again.

    python -m benchmarks.measure_rate [CONFIGS]     (per task; 24)
"""

from __future__ import annotations

import os
import random
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mlc import tvm_env
from mlc.cpu import host_cpu, physical_cores
from mlc.options import TuneOptions
from mlc.target import resolve
from mlc.tune.measure import Measurer, Settings
from mlc.tune.record import workload_key

# ResNet-18's stages: channels in, size, channels out, kernel, stride.
CONVOLUTIONS = [(64, 56, 64, 3, 1), (128, 28, 128, 3, 1), (256, 14, 512, 1, 2)]
REPEAT, MIN_REPEAT_MS = 3, 40
ROUNDS = 2

Costs = dict[str, list[float]]  # by task; infinite for a failure


def tasks() -> dict[str, Any]:
    from tvm import autotvm
    from tvm.target import Target

    made = {}
    target = Target(resolve("llvm").tvm)
    for channels, size, out, kernel, stride in CONVOLUTIONS:
        pad = (kernel // 2,) * 4
        data = ("TENSOR", (1, channels, size, size), "float32")
        weight = ("TENSOR", (out, channels, kernel, kernel), "float32")
        args = [data, weight, (stride, stride), pad, (1, 1), "NCHW", "NCHW", "float32"]
        task = autotvm.task.create("conv2d_NCHWc.x86", args, target=target)
        made[workload_key(task.workload)] = task
    return made


def ours(measurer: Measurer, configs: dict[str, list[int]]) -> tuple[Costs, float]:
    """Return the costs of all configs, and the seconds that measuring took."""
    found = {}
    started = time.perf_counter()
    for key, indices in configs.items():
        outcomes = measurer.measure([(key, index) for index in indices])
        found[key] = [float(np.mean(o.costs)) if o.costs else np.inf for o in outcomes]
    return found, time.perf_counter() - started


def stock(made: dict[str, Any], configs: dict[str, list[int]]) -> tuple[Costs, float]:
    """Return the same, as AutoTVM does it."""
    from tvm import autotvm
    from tvm.autotvm.measure import MeasureInput, create_measure_batch

    defaults = TuneOptions()
    found, seconds = {}, 0.0
    for key, indices in configs.items():
        task = made[key]
        option = autotvm.measure_option(
            builder=autotvm.LocalBuilder(timeout=defaults.build_timeout),
            runner=autotvm.LocalRunner(
                timeout=defaults.run_timeout, number=1, repeat=REPEAT, min_repeat_ms=MIN_REPEAT_MS
            ),
        )
        batch = create_measure_batch(task, option)
        inputs = [MeasureInput(task.target, task, task.config_space.get(i)) for i in indices]
        batch(inputs[:2])
        started = time.perf_counter()
        results = batch(inputs)
        seconds += time.perf_counter() - started
        found[key] = [float(np.mean(r.costs)) if r.error_no == 0 else np.inf for r in results]
    return found, seconds


def correlation(a: list[float], b: list[float]) -> float:
    """Return Spearman's rank correlation of the configs that both could measure."""
    both = np.isfinite(a) & np.isfinite(b)
    ranks = [np.argsort(np.argsort(np.asarray(side)[both])) for side in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    threads = physical_cores()
    os.environ["TVM_NUM_THREADS"], os.environ["TVM_BIND_THREADS"] = str(threads), "0"
    tvm_env.tvm()
    made, rng = tasks(), random.Random(0)
    configs = {key: rng.sample(range(len(task.config_space)), count) for key, task in made.items()}
    defaults = TuneOptions()
    settings = Settings(
        workers=len(os.sched_getaffinity(0)),
        threads=threads,
        build_timeout=defaults.build_timeout,
        run_timeout=defaults.run_timeout,
        memory_bytes=defaults.memory_bytes,
        repeat=REPEAT,
        min_repeat_ms=MIN_REPEAT_MS,
    )
    costs: dict[str, list[Costs]] = {"mlc": [], "AutoTVM": []}
    seconds: dict[str, list[float]] = {"mlc": [], "AutoTVM": []}
    with Measurer(made, settings) as measurer:
        sides = {"mlc": lambda: ours(measurer, configs), "AutoTVM": lambda: stock(made, configs)}
        for _ in range(ROUNDS):
            for name, side in sides.items():
                found, taken = side()
                costs[name].append(found)
                seconds[name].append(taken)
    show(costs, seconds, count)


def show(costs: dict[str, list[Costs]], seconds: dict[str, list[float]], count: int) -> None:
    trials = count * len(CONVOLUTIONS)
    rates = {name: [trials / taken * 60 for taken in times] for name, times in seconds.items()}
    title = f"{trials} configs, each side {ROUNDS} times in turn; {host_cpu().name}"
    table = Table(title=title, title_justify="left")
    for heading in ("", "mlc", "AutoTVM"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("trials per minute", *(", ".join(f"{r:.0f}" for r in rates[n]) for n in rates))
    failed = [
        sum(not np.isfinite(cost) for found in costs[name][0].values() for cost in found)
        for name in costs
    ]
    table.add_row("failed, first time", *map(str, failed))
    for key, conv in zip(costs["mlc"][0], CONVOLUTIONS, strict=True):
        again = [f"{correlation(*(c[key] for c in costs[name])):.3f}" for name in costs]
        table.add_row(f"{conv}: agrees with itself", *again)
    Console().print(table)
    for key, conv in zip(costs["mlc"][0], CONVOLUTIONS, strict=True):
        pairs = [(a[key], b[key]) for a in costs["mlc"] for b in costs["AutoTVM"]]
        found = ", ".join(f"{correlation(*pair):.3f}" for pair in pairs)
        print(f"{conv}: rank correlation of mlc with AutoTVM {found}")
    ratio = float(np.median(rates["mlc"]) / np.median(rates["AutoTVM"]))
    print(f"mlc measures {ratio:.2f} times as many trials per minute")


if __name__ == "__main__":
    main()
