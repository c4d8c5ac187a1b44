"""3x3 convolutions of ResNet-18 and -50: direct against Winograd's, layer by layer.

    python -m benchmarks.conv [--target NAME] [--threads N] [--trials N]

Direct is TVM's `conv2d_NCHWc.x86`, by default and the best of `--trials` random configs; F2 and F4
are ours by default, F(2x2, 3x3) and F(4x4, 3x3). GFLOP/s are effective: the operations of direct
convolution over the time. Every call takes the next of several copies of the weights, so that they
come from memory as in a network, where the other layers push them out of the caches; --hot uses one.
Candidates are timed in turn, the lowest time of each counts. With one thread that is CPU time, which
other programs on the machine hardly disturb.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mlc import tvm_env
from mlc.cpu import host_cpu
from mlc.runtime.session import set_threads
from mlc.target import resolve
from mlc.tune.place import Here, random_values
from mlc.tune.trial import shape_of

LAYERS = [(64, 56), (128, 28), (256, 14), (512, 7)]  # channels in and out, size; padding 1
COLD_BYTES = 64 << 20  # of weights that are cycled through, twice a common L3 cache
ROUNDS = 15
_MAX_COPIES = 8

Array = np.ndarray[Any, Any]


@dataclass
class Candidate:
    """A kernel that is ready to run, its arguments by copy of the weights, and seconds per call."""

    name: str
    function: Any
    arguments: list[list[Any]]
    times: list[float] = field(default_factory=list)

    def run(self, clock: Any) -> None:
        """Call the kernel once for each copy of the weights, and note the mean time."""
        started = clock()
        for arguments in self.arguments:
            self.function(*arguments)
        self.times.append((clock() - started) / len(self.arguments))

    @property
    def best(self) -> float:
        return min(self.times)


def candidate(name: str, task: Any, config: Any, hot: bool) -> Candidate:
    from tvm import nd

    with task.target:
        schedule, tensors = task.instantiate(config)
    function = Here().compile(schedule, tensors, task.target)
    # The output comes first; the largest of the others holds the weights, or is as good to cycle.
    arrays = [random_values(shape_of(t), t.dtype, 0) for t in tensors]
    weight = max(range(1, len(arrays)), key=lambda k: len(shape_of(tensors[k])) != 5)
    copies = 1 if hot else min(_MAX_COPIES, max(2, COLD_BYTES // arrays[weight].nbytes))
    fixed = [nd.array(array) for array in arrays]
    arguments = [
        [nd.array(arrays[weight]) if k == weight else t for k, t in enumerate(fixed)]
        for _ in range(copies)
    ]
    return Candidate(name, function, arguments)


def candidates(channels: int, size: int, target: Any, trials: int, hot: bool) -> list[Candidate]:
    """Return direct convolution (default, then random configs), F2 and F4."""
    from types import SimpleNamespace

    from tvm import autotvm
    from tvm.autotvm.task.space import ConfigEntity, FallbackConfigEntity, OtherOptionEntity

    from mlc.schedules import winograd

    data, padding = (1, channels, size, size), (1, 1, 1, 1)
    tensors = [("TENSOR", shape, "float32") for shape in (data, (channels, channels, 3, 3))]
    rest = [(1, 1), padding, (1, 1), "NCHW", "NCHW", "float32"]
    direct = autotvm.task.create("conv2d_NCHWc.x86", [*tensors, *rest], target)
    made = [candidate("direct", direct, FallbackConfigEntity(), hot)]
    space, rng = direct.config_space, random.Random(0)
    made += [
        candidate("direct, tuned", direct, space.get(index), hot)
        for index in rng.sample(range(len(space)), trials)
    ]
    with target:
        layer = winograd.layer_of(SimpleNamespace(shape=data), padding, channels)
        ours = autotvm.task.create(
            winograd.TEMPLATE, [*tensors, padding, channels, layer.out_block], target
        )
        for m in (2, 4):
            knobs = winograd.default(layer, m)
            entities = {name: OtherOptionEntity(value) for name, value in knobs.items()}
            made.append(candidate(f"F{m}", ours, ConfigEntity(0, None, entities, []), hot))
        chosen = winograd.default(layer)["outputs"] if winograd.pays(layer) else 0
    for one in made:
        one.name += (
            " *" if one.name == f"F{chosen}" or (one.name == "direct" and not chosen) else ""
        )
    return made


def measure(made: list[Candidate], threads: int) -> dict[str, float]:
    """Return the lowest seconds of each name, slow random configs given up early."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    for round_ in range(ROUNDS):
        for one in made:
            one.run(clock)
        if round_ == 0:
            tuned = sorted((c for c in made if c.name == "direct, tuned"), key=lambda c: c.best)
            made = [c for c in made if c not in tuned[3:]]
    found: dict[str, float] = {}
    for one in made:
        found[one.name] = min(one.best, found.get(one.name, one.best))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conv")
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--hot", action="store_true")
    asked = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(asked.threads)
    os.environ["TVM_BIND_THREADS"] = "0"
    tvm = tvm_env.tvm()
    set_threads(asked.threads)
    target = tvm.target.Target(resolve(asked.target).tvm)
    weights = "in cache" if asked.hot else "from memory"
    table = Table(
        title=f"{target.mcpu}, {asked.threads} thread(s), weights {weights}; {host_cpu().name}; "
        "* is the default; times are over the better direct one's",
        title_justify="left",
    )
    for heading in ("layer", "", "ms", "GFLOP/s", "time"):
        table.add_column(heading, justify="left" if heading in ("layer", "") else "right")
    for channels, size in LAYERS:
        made = candidates(channels, size, target, asked.trials, asked.hot)
        found = measure(made, asked.threads)
        best = min(seconds for name, seconds in found.items() if name.startswith("direct"))
        flops = 2 * 9 * channels**2 * size**2
        for position, (name, seconds) in enumerate(found.items()):
            table.add_row(
                "" if position else f"{channels} channels, {size}x{size}",
                name,
                f"{seconds * 1e3:.3f}",
                f"{flops / seconds / 1e9:.0f}",
                f"{seconds / best:.2f}",
            )
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
