"""Which subgraphs of a model can be tuned, how often they run and what they weigh.

A task is an AutoTVM workload, the way TVM's layout pass asks for it: a convolution in its logical
layout, so that the blocking is free to choose. Kernels ask for the altered workload; the dispatch
context knows which task stands behind it. TVM's own extraction counts no calls and swallows
exceptions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlc import tvm_env
from mlc.errors import UsageError
from mlc.tune.record import workload_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlc.codegen.kernels import Kernel
    from mlc.options import TuneOptions
    from mlc.tune.dispatcher import Dispatch


@dataclass(frozen=True, kw_only=True)
class Task:
    """A tunable subgraph.

    `key` is its workload, `calls` how often one run of the model calls it, `flops` its arithmetic
    per call, `seconds` its measured time per call with the fallback config (kernel included, 0 where
    it was not measured), `share` its part of the model's time (of its FLOPs where not measured).
    `rival` is another task of the model that computes the same: the model uses the faster one, and
    both have the same share.
    """

    key: str
    calls: int
    flops: int
    seconds: float = 0.0
    share: float = 0.0
    kernels: tuple[str, ...] = field(repr=False, default=())
    rival: str = ""

    @property
    def id(self) -> str:
        """The short stable name that users see."""
        return workload_id(self.key)

    @property
    def template(self) -> str:
        """The name of the AutoTVM template."""
        return str(json.loads(self.key)[0])

    @property
    def shapes(self) -> str:
        """The shapes of the operands, for people."""
        tensors = [
            a for a in json.loads(self.key)[1:] if isinstance(a, list) and a[:1] == ["TENSOR"]
        ]
        return " ".join("x".join(map(str, tensor[1])) for tensor in tensors)


def tasks_of(
    kernels: Iterable[Kernel],
    calls: Mapping[str, int],
    dispatch: Dispatch,
    seconds: Mapping[str, float] | None = None,
) -> list[Task]:
    """Return the tasks behind the kernels of a plan, heaviest first.

    Args:
        kernels: the compiled kernels, each with the workloads that its schedules asked for.
        calls: calls per run by kernel symbol.
        dispatch: the context that was current while the model was compiled.
        seconds: measured seconds per run by kernel symbol (all its calls together), if known.
    """
    found = kernels_of(kernels, dispatch)
    everything = list(kernels)
    total = sum((seconds or {}).values()) or sum(k.flops * calls[k.symbol] for k in everything) or 1
    tasks = []
    for key, users in found.items():
        count = sum(calls[kernel.symbol] for kernel in users)
        work = sum(kernel.flops * calls[kernel.symbol] for kernel in users)
        spent = sum((seconds or {}).get(kernel.symbol, 0.0) for kernel in users)
        tasks.append(
            Task(
                key=key,
                calls=count,
                flops=work // count,
                seconds=spent / count,
                share=(spent if seconds else work) / total,
                kernels=tuple(sorted(kernel.symbol for kernel in users)),
                rival=dispatch.rivals.get(key, ""),
            )
        )
    rivals = [task for task in tasks if task.rival and task.rival not in found]
    tasks += [replace(task, key=task.rival, rival=task.key, seconds=0.0) for task in rivals]
    return sorted(tasks, key=lambda task: (-task.share, task.key))


def kernels_of(kernels: Iterable[Kernel], dispatch: Dispatch) -> dict[str, list[Kernel]]:
    """Return the kernels behind each task, by its key."""
    found: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for key in _tunable(dispatch.tuned(kernel.workloads)):
            found.setdefault(key, []).append(kernel)
    return found


def merged(parts: Sequence[tuple[list[Task], float]]) -> list[Task]:
    """Return the tasks of several models as of one that runs each of them once, heaviest first.

    Args:
        parts: the tasks of each model, and what a run of it takes: seconds of all, or FLOPs of all.
    """
    whole = sum(total for _, total in parts) or 1.0
    tasks: dict[str, Task] = {}
    for task, total in ((task, total) for own, total in parts for task in own):
        share = task.share * total / whole
        known = tasks.get(task.key)
        tasks[task.key] = replace(task, share=share) if known is None else replace(
            known,
            calls=known.calls + task.calls,
            seconds=max(known.seconds, task.seconds),  # 0: not measured there
            share=known.share + share,
            kernels=tuple(sorted({*known.kernels, *task.kernels})),
        )  # fmt: skip
    return sorted(tasks.values(), key=lambda task: (-task.share, task.key))


def _tunable(keys: Iterable[str]) -> list[str]:
    """Return the one task of a kernel: of several templates asked, the one that it was built from.

    TVM asks every template that could implement an operator; the last one asked is the one whose
    schedule was used, since scheduling asks again.
    """
    asked = list(keys)
    return asked[-1:]


def autotvm_task(key: str, target: Any) -> Any:
    """Return AutoTVM's task object of a workload, its config space defined."""
    tvm_env.tvm()
    import tvm.topi
    from tvm import autotvm, relay

    del relay, tvm  # imported so that every template is registered
    template, *args = _tuples(json.loads(key))
    return autotvm.task.create(template, args, target)


def extract_workloads(options: TuneOptions) -> list[str]:
    """Return the keys of a model's tasks, found in a process of its own.

    Raises:
        MlcError: the model cannot be compiled, or has no task.
    """
    from mlc import isolate

    found = isolate.call("mlc.tune.run:list_tasks", options)
    return [task["key"] for task in found["tasks"]]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def choose(tasks: list[Task], text: str | None) -> list[Task]:
    """Return the tasks that `--tasks` names: positions ("0,2-4") or parts of ids.

    Raises:
        UsageError: an entry names no task; the message lists them.
    """
    if text is None:
        return tasks
    chosen: list[Task] = []
    for entry in text.split(","):
        low, dash, high = entry.strip().partition("-")
        if low.isdecimal() and (not dash or high.isdecimal()):
            matching = tasks[int(low) : int(high or low) + 1]
        else:
            matching = [task for task in tasks if entry.strip() and entry.strip() in task.id]
        if not matching:
            listing = "; ".join(f"{k}: {task.id}" for k, task in enumerate(tasks))
            raise UsageError(f"--tasks {entry!r} names no task", f"the tasks are {listing}")
        chosen += [task for task in matching if task not in chosen]
    return chosen
