"""`python -m benchmarks.log_store [RECORDS]`: the log store with a million records.

Synthetic records of four devices are written to a temporary folder; each step then runs in a fresh
process, so that its peak memory is its own. Seconds and MB are printed, nothing is judged.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mlc.tune import logs
from mlc.tune.record import Record, workload_key
from mlc.tune.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

TASKS = 500  # workloads in all, of which a model asks for 50
DEVICES = tuple(
    f"x86-64-v{level}-0123456789ab.{isa}.cpu-{name}.8t"
    for level, isa, name in ((3, "avx2", "a"), (3, "avx2", "b"), (4, "avx512", "c"), (2, "sse4", "d"))
)  # fmt: skip
TEMPLATE = "conv2d_NCHWc.x86"


def workload(task: int) -> str:
    """Return the key of a convolution that no other task has."""
    data, kernel = [1, 64, 7 + task, 56], [64, 64, 3, 3]
    tensors = [["TENSOR", shape, "float32"] for shape in (data, kernel)]
    return workload_key(
        [TEMPLATE, *tensors, [1, 1], [1, 1, 1, 1], [1, 1], "NCHW", "NCHW", "float32"]
    )


def records(count: int, seed: int = 0) -> Iterator[Record]:
    """Yield records in the order in which tuning writes them: batches of 16, one in eight fails."""
    rng = random.Random(seed)
    keys = [workload(task) for task in range(TASKS)]
    for k in range(count):
        batch = k // 16
        failed = rng.random() < 0.125
        yield Record(
            workload=keys[batch % TASKS],
            config={
                "index": rng.randrange(10**6),
                "code_hash": None,
                "entity": [
                    ["tile_ic", "sp", [-1, rng.randrange(64)]],
                    ["tile_oc", "sp", [-1, rng.randrange(64)]],
                    ["tile_ow", "sp", [-1, 7]],
                    ["unroll_kw", "ot", True],
                ],
            },
            target="llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v3",
            device=DEVICES[batch // TASKS % len(DEVICES)],
            template_hash="0123456789ab",
            costs=() if failed else tuple(rng.uniform(1e-4, 1e-3) for _ in range(3)),
            reason="crash" if failed else "",
            timestamp=1.7e9 + k,
            run="benchmark",
        )


def write(root: Path, count: int) -> None:
    """Append the records in batches of 20,000."""
    store, batch = Store(root), []
    for record in records(count):
        batch.append(record)
        if len(batch) == 20_000:
            store.append(batch)
            batch = []
    store.append(batch)


def best(root: Path, _count: int) -> None:
    """Look up the 50 tasks of a model; the first call in a folder builds the index."""
    keys = [workload(task) for task in range(50)]
    hits = Store(root).best(keys, DEVICES[0], {TEMPLATE: "0123456789ab"})
    assert len(hits) == 50, len(hits)


def append_and_look(root: Path, _count: int) -> None:
    """Append a batch of 16, then look one task up, as a tuning run does."""
    store = Store(root)
    store.append(list(records(16, seed=1)))
    assert store.best([workload(0)], DEVICES[0], {TEMPLATE: "0123456789ab"})


def measured(root: Path, _count: int) -> None:
    """Ask for the known configs of 50 tasks: what resuming costs."""
    store = Store(root)
    for task in range(50):
        assert store.measured(workload(task), DEVICES[0], "0123456789ab")


def read(root: Path, count: int) -> None:
    """Stream every record."""
    assert sum(1 for _ in Store(root).read()) >= count


def prune(root: Path, _count: int) -> None:
    """Keep the best four of each task and device."""
    assert logs.prune(Store(root), keep=4).dropped


STEPS = {
    "write, fsync every 20,000": write,
    "best of 50 tasks, building the index": best,
    "best of 50 tasks, index fresh": best,
    "append 16, index them, best of 1": append_and_look,
    "known configs of 50 tasks": measured,
    "stream all": read,
    "prune to the best 4": prune,
}


def timed(name: str, root: Path, count: int) -> tuple[float, float]:
    """Return the seconds of a step and the peak MB of this process."""
    started = time.perf_counter()
    STEPS[name](root, count)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(count: int) -> dict[str, Any]:
    """Return seconds and peak MB by step, and the sizes of logs and index in MB."""
    figures: dict[str, Any] = {"records": count}
    with tempfile.TemporaryDirectory(prefix="mlc-bench-") as name:
        root, cache = Path(name) / "logs", Path(name) / "cache"
        os.environ["MLC_CACHE_DIR"] = str(cache)
        for step in STEPS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                figures[step] = pool.apply(timed, (step, root, count))
            print(f"{step}: {figures[step][0]:.3f} s", file=sys.stderr, flush=True)
            if "logs MB" not in figures:
                figures["logs MB"] = _size(root)
            figures["index MB"] = max(figures.get("index MB", 0.0), _size(cache))
    return figures


def _size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    figures = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
    title = (
        f"{figures['records']:,} records, logs {figures['logs MB']:.0f} MB, "
        f"index {figures['index MB']:.0f} MB"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("step")
    for column in ("seconds", "peak MB"):
        table.add_column(column, justify="right")
    for step in STEPS:
        table.add_row(step, f"{figures[step][0]:.3f}", f"{figures[step][1]:.0f}")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
