"""`mlc tune` from end to end, inside the isolated process.

model -> untuned artifact -> tasks with measured shares -> loop -> final choice -> tuned artifact
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import artifact, driver, target
from mlc.cache import open_cache
from mlc.cpu import host_cpu, physical_cores
from mlc.errors import TargetError, TuningError, UsageError
from mlc.events import Notice, OnEvent
from mlc.options import CompileOptions, TuneOptions
from mlc.tune import baseline, loop
from mlc.tune.budget import Scheduler, TaskState
from mlc.tune.device import Device, device_for
from mlc.tune.final import Choice, choose_winners, is_open, take_back
from mlc.tune.record import FALLBACK
from mlc.tune.store import Store
from mlc.tune.tasks import Task, autotvm_task, choose, tasks_of, template_hash

if TYPE_CHECKING:
    from mlc.driver import Built

_PROFILE_S = 0.5
_COMPARE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is tuned: the options, target and device, its tasks, the untuned artifact."""

    options: TuneOptions
    chosen: target.Target
    device: Device
    tasks: tuple[Task, ...]
    untuned: Path


def list_tasks(fields: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Return the tasks of a model as JSON data (`mlc tune --list`)."""
    options = _options(fields)
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        subject = prepare(options, Path(folder), on_event)
        store = Store(logs_root(options))
        known = {task.key: store.measured(task.key, subject.device, template_hash(task.template))
                 for task in subject.tasks}  # fmt: skip
    return {
        "device": subject.device.id,
        "tasks": [
            {**asdict(task), "id": task.id, "template": task.template, "shapes": task.shapes,
             "measured": len(known[task.key])}
            for task in subject.tasks
        ],
    }  # fmt: skip


def tune_model(fields: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Tune as `TuneOptions(**fields)` says; return the report as JSON data.

    Raises:
        UsageError: an option is wrong.
        TargetError: this machine cannot run code for the target.
        TuningError: there is nothing to tune, or every candidate failed.
        MlcError: the model cannot be compiled.
    """
    options = _options(fields)
    check_options(options)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        subject = prepare(options, Path(folder), on_event)
        run = Run(subject, on_event)
        with run.measurer:
            run.measure()
            choices = choose_winners(run)
        report = run.report(choices)
        report["model"] = model_times(run, choices, Path(folder))
    report["seconds"] = time.perf_counter() - started
    return report


def check_options(options: TuneOptions) -> None:
    """Raise UsageError for options that cannot work, before the long work starts."""
    if options.trials < 0:
        raise UsageError("--trials needs 0 or more")
    if options.budget is not None and options.budget <= 0:
        raise UsageError("--budget needs a time above 0, such as 20m")
    if options.batch < 1:
        raise UsageError("--batch needs at least 1")
    if not 0 < options.run_timeout < math.inf:
        raise UsageError("--run-timeout needs seconds above 0")


def logs_root(options: TuneOptions) -> Path:
    """Return the folder of tuning logs.

    Raises:
        UsageError: `--logs` names a file.
    """
    root = Path(options.logs or "tuning_logs")
    if root.exists() and not root.is_dir():
        raise UsageError(f"--logs {root} is no folder")
    return root


def prepare(options: TuneOptions, folder: Path, on_event: OnEvent) -> Subject:
    """Compile the model untuned, time its kernels, and return its tasks.

    Raises:
        TargetError: this machine cannot run code for the target.
        TuningError: the model has no task (the message says why), or the filter leaves none.
    """
    chosen = target.resolve(options.target)
    _require_device(chosen)
    threads = options.threads or physical_cores()
    built = build_with(options, chosen, lambda _key: None, on_event)
    untuned = folder / "untuned.mlc"
    artifact.save(built.contents, untuned)
    seconds = driver.timed(
        "profile", on_event, lambda: baseline.kernel_seconds(untuned, threads, _PROFILE_S)
    )
    tasks = tasks_of(built.library.kernels, built.library.plan.calls, built.dispatch, seconds)
    if not tasks:
        kernels = sorted({op for k in built.library.kernels for op in k.operators})
        raise TuningError(
            "no tunable task was found: no operator of this model has an AutoTVM template "
            f"(its operators are {', '.join(kernels[:12])})",
            "compile it as it is; convolutions, dense layers and batched products can be tuned",
        )
    return Subject(
        options=options,
        chosen=chosen,
        device=device_for(chosen, host_cpu(), threads),
        tasks=tuple(choose(tasks, options.tasks)),
        untuned=untuned,
    )


def build_with(
    options: TuneOptions,
    chosen: target.Target,
    lookup: Callable[[str], Any],
    on_event: OnEvent,
) -> Built:
    """Return the model compiled with the records that `lookup` offers.

    The file is read each time: converting takes its weights over, and tuning should not hold them.
    """
    from mlc.frontend import onnx_file

    asked = CompileOptions(
        model=str(options.model),
        target=options.target,
        opt_level=options.opt_level,
        shapes=options.shapes,
    )
    file = onnx_file.read(Path(str(options.model)))
    return driver.build_model(asked, chosen, file, open_cache(), lookup, on_event)


def model_times(run: Run, choices: Sequence[Choice], folder: Path) -> dict[str, float] | None:
    """Return how the model with the chosen configs compares with the untuned one, end to end.

    None when this run chose nothing. When it is not faster, the choices of this run are taken back:
    the default is recorded for its tasks.
    """
    if not choices:
        return None
    subject = run.subject
    hits = run.store.best(list(run.by_key), subject.device, run.hashes)
    records = {key: hit.record for key, hit in hits.items()}
    built = build_with(subject.options, subject.chosen, records.get, run.on_event)
    tuned = folder / "tuned.mlc"
    artifact.save(built.contents, tuned)
    found = baseline.versus(subject.untuned, tuned, subject.device.threads, _COMPARE_S)
    if found.ratio < 1 and take_back(run, choices):
        run.on_event(
            Notice(
                text=f"the tuned model takes {1 / found.ratio:.2f} times as long as the untuned "
                "one: its configs are not used",
                level="warning",
            )
        )
    return asdict(found)


def _options(fields: dict[str, Any]) -> TuneOptions:
    return TuneOptions(**{**fields, "shapes": tuple(fields["shapes"])})


def _require_device(chosen: target.Target) -> None:
    cpu = host_cpu()
    missing = target.missing_features(chosen.features, cpu)
    if chosen.arch != cpu.arch or missing:
        why = f"it lacks {', '.join(missing)}" if missing else f"it is {cpu.arch}"
        raise TargetError(
            f"this machine cannot run code for {chosen.name} ({why}), so there is nothing to "
            "measure on",
            "tune on such a machine, and bring its records with `mlc logs import`",
        )


class Run:
    """A tuning run: its parts made, the loop run, the winners chosen.

    Made before this process starts any thread: measuring forks.
    """

    def __init__(self, subject: Subject, on_event: OnEvent):
        from mlc.build import tvm_target
        from mlc.tune.measure import Measurer, Settings

        options = subject.options
        self.subject = subject
        self.on_event = on_event
        self.id = uuid.uuid4().hex[:12]
        self.by_key = {task.key: task for task in subject.tasks}
        self.store = Store(logs_root(options))
        llvm = tvm_target(subject.chosen, options.opt_level)
        self.autotvm = {task.key: autotvm_task(task.key, llvm) for task in subject.tasks}
        self.hashes = {task.template: template_hash(task.template) for task in subject.tasks}
        settings = Settings(
            workers=len(os.sched_getaffinity(0)),
            threads=subject.device.threads,
            build_timeout=options.build_timeout,
            run_timeout=options.run_timeout,
            memory_bytes=options.memory_bytes,
            seed=options.seed,
        )
        self.measurer = Measurer(self.autotvm, settings)
        self.scheduler = Scheduler(
            [self._state(task) for task in subject.tasks],
            trials=options.trials,
            batch=options.batch,
            seed=options.seed,
        )
        self.progress = loop.Progress(seen={})
        self.undecided: set[str] = set()  # tasks with trials since their last choice
        for template in self.hashes:
            self._resume(template)

    def _state(self, task: Task) -> TaskState:
        return TaskState(
            key=task.key,
            calls=task.calls,
            space=len(self.autotvm[task.key].config_space),
            untuned=task.seconds or None,
            template=task.template,
            flops=float(task.flops),
            rival=task.rival,
        )

    def _resume(self, template: str) -> None:
        """Take in what is known: no config is measured twice, and it counts as spent."""
        found = self.store.history(template, self.subject.device)
        current = [r for r in found if r.template_hash == self.hashes[template]]
        for task in self.subject.tasks:
            if task.template != template:
                continue
            mine = [r for r in current if r.workload == task.key]
            known = {r.index: r for r in mine if not r.chosen}
            if is_open(mine):
                self.undecided.add(task.key)
            self.progress.seen[task.key] = set(known)
            costs = [record.cost if record.ok else None for record in known.values()]
            self.scheduler.report(task.key, costs)

    def measure(self) -> None:
        """Run the loop until trials or budget are spent.

        Raises:
            TuningError: every candidate failed; the reasons are counted.
        """
        options = self.subject.options
        parts = loop.Parts(
            tasks=self.by_key,
            scheduler=self.scheduler,
            searchers=Lazily(self._searcher),
            measurer=self.measurer,
            store=self.store,
            context=loop.Context(
                target=self.subject.chosen.tvm,
                device=self.subject.device.id,
                run=self.id,
                template_hash=self.hashes.__getitem__,
                config=self.config,
                transfer=options.transfer,
            ),
        )
        loop.run(parts, self.progress, budget=options.budget, on_event=self.on_event)
        if self.progress.done and all(s.best is None for s in self.scheduler.states.values()):
            reasons = ", ".join(f"{n}x {why}" for why, n in sorted(self.progress.reasons.items()))
            raise TuningError(
                f"all {self.progress.done} candidates failed: {reasons}",
                "`mlc logs show` has the messages; --run-timeout sets their time limit",
            )

    def _searcher(self, key: str) -> loop.Searches:
        from mlc.tune.tuners import make_tuner

        options, task = self.subject.options, self.by_key[key]
        found = self.store.history(task.template, self.subject.device)
        history = [r for r in found if r.template_hash == self.hashes[task.template]]
        if not options.transfer:
            history = [record for record in history if record.workload == key]
        return make_tuner(
            options.tuner,
            self.autotvm[key],
            seed=options.seed,
            features=options.features,
            loss=options.loss,
            history=history,
        )

    def config(self, key: str, index: int) -> dict[str, Any]:
        """Return AutoTVM's JSON of a config."""
        if index == FALLBACK:
            return {"index": FALLBACK, "code_hash": None, "entity": []}
        config: dict[str, Any] = self.autotvm[key].config_space.get(index).to_json_dict()
        return config

    def best_indices(self, key: str) -> list[int]:
        """Return the configs of a task with the lowest known costs, best first: `top_k` of them."""
        task, top = self.by_key[key], self.subject.options.top_k
        found = self.store.history(task.template, self.subject.device)
        costs = {
            r.index: r.cost
            for r in found
            if r.workload == key and r.ok and r.template_hash == self.hashes[task.template]
        }
        costs.pop(FALLBACK, None)
        return sorted(costs, key=lambda index: (costs[index], index))[:top]

    def report(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return what the run did, as JSON data.

        `untuned` is None for a task that had nothing to choose: only times that were taken side by
        side compare.
        """
        subject, states = self.subject, self.scheduler.states
        hits = self.store.best(list(self.by_key), subject.device, self.hashes)
        costs = {key: hit.record.cost for key, hit in hits.items() if hit.level == "exact"}
        by_key = {choice.key: choice for choice in choices}
        return {
            "run": self.id,
            "device": subject.device.id,
            "logs": str(self.store.root),
            "measured": self.progress.done,
            "known": self.scheduler.spent - self.progress.done,
            "failures": dict(sorted(self.progress.reasons.items())),
            "tasks": [
                {
                    "id": task.id, "template": task.template, "shapes": task.shapes,
                    "calls": task.calls, "flops": task.flops, "share": task.share,
                    "trials": states[task.key].trials,
                    "untuned": by_key[task.key].untuned if task.key in by_key else None,
                    "best": by_key[task.key].tuned if task.key in by_key else costs.get(task.key),
                    "checked": by_key[task.key].checked if task.key in by_key else "",
                }
                for task in subject.tasks
            ],
        }  # fmt: skip


class Lazily(Mapping[str, loop.Searches]):
    """Searchers by task key, each made when it is first needed."""

    def __init__(self, make: Callable[[str], loop.Searches]):
        self.make = make
        self.made: dict[str, loop.Searches] = {}

    def __getitem__(self, key: str) -> loop.Searches:
        if key not in self.made:
            self.made[key] = self.make(key)
        return self.made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)
