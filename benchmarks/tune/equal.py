"""AutoTVM with trials spread evenly over the tasks, as `tvmc tune` does it.

Search and allocation are AutoTVM's: an `XGBTuner` per task with tvmc's arguments, trials / tasks
each, one task after the other. That is regression: the rank loss raises with xgboost 2 and later.
The stopwatch is ours unless asked otherwise, so that both sides' costs are equally good and no time
is lost; AutoTVM's own is slower and measures the same (`python -m benchmarks.measure_rate`).

The tasks are ours, too. tvmc would extract `dense_nopack.x86` beside each `dense_pack.x86` and have
fewer trials for the rest.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import isolate
from mlc.cpu import physical_cores
from mlc.events import Progress, ignore
from mlc.options import TuneOptions
from mlc.tune.record import REASONS, Record, decode, encode, workload_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.events import OnEvent
    from mlc.tune.measure import Measurer

PLAN = 64  # AutoTVM's default: trials of a task before its model is fitted
BATCH = 16  # trials measured at a time, a divisor of PLAN; it has no part in the search


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to do: `trials` in all over the workloads `keys`; a log per task goes to `folder`.

    `plan` is AutoTVM's plan_size. With `stock`, LocalBuilder and LocalRunner measure. A candidate gets
    `build_timeout` seconds.
    """

    keys: tuple[str, ...]
    target: str
    trials: int
    seed: int
    folder: str
    plan: int = PLAN
    stock: bool = False
    build_timeout: float = TuneOptions.build_timeout


def equal_split(asked: Search, on_event: OnEvent = ignore) -> list[Record]:
    """Return all measurements in order; tasks whose log is in the folder are not searched again."""
    Path(asked.folder).mkdir(parents=True, exist_ok=True)
    isolate.call("benchmarks.tune.equal:search", asked, on_event)
    logs = sorted(Path(asked.folder).glob("*.jsonl"))
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return [record for record in map(decode, lines) if record is not None]


def fits(records: Sequence[Record], plan: int) -> int:
    """Return how often AutoTVM fitted a cost model: after each `plan` trials of a task."""
    keys = [record.workload for record in records]
    return sum(keys.count(key) // plan for key in set(keys))


def search(fields: dict[str, Any], on_event: OnEvent) -> None:
    """Answer `equal_split`, in the child."""
    from mlc.build import tvm_target
    from mlc.target import resolve
    from mlc.tune.measure import Measurer
    from mlc.tune.tasks import autotvm_task

    asked = Search(**fields)
    threads = physical_cores()
    os.environ["TVM_NUM_THREADS"], os.environ["TVM_BIND_THREADS"] = str(threads), "0"
    chosen = resolve(asked.target)
    llvm = tvm_target(chosen, TuneOptions().opt_level)
    tasks = {key: autotvm_task(key, llvm) for key in asked.keys}
    with Measurer(tasks, _settings(threads, asked)) as measurer:
        for position, key in enumerate(asked.keys):
            log = Path(asked.folder) / f"{position:03}.jsonl"
            if not log.exists():
                records = _tune(tasks[key], asked, measurer, chosen.tvm)
                write(log, records)
            on_event(Progress(name="equal split", done=position + 1, total=len(asked.keys)))


def _tune(task: Any, asked: Search, measurer: Measurer, target: str) -> list[Record]:
    """Return what AutoTVM measures for one task."""
    import numpy as np
    from tvm.autotvm.tuner import XGBTuner

    random.seed(asked.seed)
    np.random.seed(asked.seed)
    records: list[Record] = []

    def note(_tuner: Any, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        records.extend(map(_record, inputs, results))

    def _record(given: Any, result: Any) -> Record:
        failed = result.error_no != 0
        return Record(
            workload=workload_key(task.workload),
            config={**given.config.to_json_dict(), "index": int(given.config.index)},
            target=target,
            device="",
            template_hash="",
            costs=() if failed else tuple(map(float, result.costs)),
            reason="runtime" if failed else "",
            timestamp=result.timestamp,
        )

    count = max(1, asked.trials // len(asked.keys))
    tuner = XGBTuner(task, plan_size=asked.plan, loss_type="reg")
    option = stock_option(asked) if asked.stock else our_option(measurer)
    tuner.tune(min(count, len(task.config_space)), option, callbacks=[note])
    return records


def our_option(measurer: Measurer) -> dict[str, Any]:
    """Return an AutoTVM measure option that measures through mlc's measurer."""
    stopwatch = _Stopwatch(measurer)
    return {"builder": stopwatch, "runner": stopwatch}


class _Stopwatch:
    """AutoTVM's builder (does nothing) and runner (builds and runs) in one."""

    n_parallel = BATCH

    def __init__(self, measurer: Measurer):
        self.measurer = measurer
        self.key = ""

    def set_task(self, task: Any, _build_kwargs: Any = None) -> None:
        self.key = workload_key(task.workload)

    def get_build_kwargs(self) -> dict[str, Any]:
        return {}

    def build(self, inputs: Sequence[Any]) -> Sequence[Any]:
        return inputs

    def run(self, inputs: Sequence[Any], _built: Any) -> list[Any]:
        from tvm.autotvm.measure import MeasureResult

        found = []
        for outcome in self.measurer.measure([(self.key, int(i.config.index)) for i in inputs]):
            error = REASONS[outcome.reason]
            costs = ("", outcome.message) if error else outcome.costs  # AutoTVM unpacks a pair
            spent = outcome.build_seconds + outcome.run_seconds
            found.append(MeasureResult(costs, error, spent, time.time()))
        return found


def stock_option(asked: Search) -> dict[str, Any]:
    """Return AutoTVM's own, with our limits and repeats."""
    from tvm import autotvm

    ours = _settings(1, asked)
    option: dict[str, Any] = autotvm.measure_option(
        builder=autotvm.LocalBuilder(timeout=ours.build_timeout),
        runner=autotvm.LocalRunner(
            timeout=ours.run_timeout,
            number=1,
            repeat=ours.repeat,
            min_repeat_ms=int(ours.min_repeat_ms),
        ),
    )
    return option


def _settings(threads: int, asked: Search) -> Any:
    """Return how `mlc tune` measures."""
    from mlc.tune.measure import Settings

    defaults = TuneOptions()
    return Settings(
        workers=len(os.sched_getaffinity(0)),
        threads=threads,
        build_timeout=asked.build_timeout,
        run_timeout=defaults.run_timeout,
        memory_bytes=defaults.memory_bytes,
        seed=asked.seed,
    )


def write(path: Path, records: Sequence[Record]) -> None:
    """Write records, a line each: the whole file or none of it."""
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(encode(record) + "\n" for record in records))
    temporary.replace(path)
