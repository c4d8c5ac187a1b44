"""`mlc tune` from end to end, inside the isolated process.

model -> untuned artifact -> tasks with measured shares -> loop -> final choice -> tuned artifact
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlc.cache import open_cache
from mlc.errors import TuningError
from mlc.events import Baseline, Notice, OnEvent
from mlc.tune import applied, loop, models, peak
from mlc.tune.budget import Scheduler, TaskState
from mlc.tune.final import Choice, choose_winners, is_open
from mlc.tune.record import FALLBACK, Record
from mlc.tune.remote import RemoteMeasurer, untuned_seconds
from mlc.tune.store import Hit, Store, best_in
from mlc.tune.subject import Subject, check_options, logs_root, options_of, prepare
from mlc.tune.tasks import Task, autotvm_task
from mlc.tune.template import template_hash
from mlc.tune.whole import model_times, settle


def list_tasks(fields: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Return the tasks of a model as JSON data (`mlc tune --list`)."""
    options = options_of(fields)
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
    options = options_of(fields)
    check_options(options)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        subject = prepare(options, Path(folder), on_event)
        limit = None  # of other machines it is not known
        if subject.farm is None:
            limit = peak.peak_gflops(subject.chosen, subject.device.threads, open_cache())
        run = Run(subject, on_event)
        on_event(Baseline(model=subject.seconds, known=run.scheduler.spent, peak_gflops=limit))
        choices: list[Choice] = []
        if run.has_work():
            with run.measurer:
                run.measure()
                candidates = run.candidates() if options.trials else models.predicted(run)
                choices = choose_winners(run, candidates)
        choices, made = settle(run, choices, Path(folder))
        report = run.report(choices)
        report["trust"] = {
            template: asdict(found) if found else None
            for template, found in models.update(run).items()
        }
        report.update(model_times(run, choices, made))
        report["peak_gflops"] = limit
        report["curve"] = [asdict(point) for point in run.progress.curve]
    report["seconds"] = time.perf_counter() - started
    return report


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
            gpu=subject.chosen.gpu,
        )
        self.measurer = (
            RemoteMeasurer(self.autotvm, settings, subject.farm, on_event)
            if subject.farm
            else Measurer(self.autotvm, settings)
        )
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
        current = self.known(template)
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

    def has_work(self) -> bool:
        """Whether there is anything to measure or to choose; finding out costs nothing."""
        if self.subject.options.trials == 0:
            return True
        return not self.scheduler.finished or bool(self.undecided)

    def measure(self) -> None:
        """Run the loop until trials or budget are spent.

        Raises:
            TuningError: every candidate failed; the reasons are counted.
        """
        options = self.subject.options
        if self.subject.farm:
            for key, seconds in untuned_seconds(self.measurer).items():
                self.scheduler.states[key].untuned = seconds
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
        tuner = make_tuner(
            options.tuner,
            self.autotvm[key],
            seed=options.seed,
            features=options.features,
            loss=options.loss,
            history=self.known(task.template, None if options.transfer else key),
        )
        if tuner.note:
            self.on_event(Notice(text=f"{task.id}: {tuner.note}"))
        return tuner

    def known(self, template: str, key: str | None = None) -> list[Record]:
        """Return the records of a template (of one workload) on this device, oldest first."""
        found = self.store.history(template, self.subject.device)
        current = [r for r in found if r.template_hash == self.hashes[template]]
        return current if key is None else [r for r in current if r.workload == key]

    def in_use(self, keys: Iterable[str]) -> dict[str, Hit]:
        """Return the records that `mlc compile` would apply, by task."""
        stores = [self.store, Store(applied.shipped())]
        return best_in(stores, keys, self.subject.device, self.hashes)

    def config(self, key: str, index: int) -> dict[str, Any]:
        """Return AutoTVM's JSON of a config."""
        if index == FALLBACK:
            return {"index": FALLBACK, "code_hash": None, "entity": []}
        config: dict[str, Any] = self.autotvm[key].config_space.get(index).to_json_dict()
        return config

    def candidates(self) -> dict[str, list[int]]:
        """Return the best known configs of the tasks with something new since their last choice.

        A run that was interrupted before its choice has left something new.
        """
        new = [key for key in self.by_key if self.progress.trials.get(key) or key in self.undecided]
        return {key: indices for key in new if (indices := self.best_indices(key))}

    def best_indices(self, key: str) -> list[int]:
        """Return the configs of a task with the lowest known costs, best first: `top_k` of them."""
        top = self.subject.options.top_k
        costs = {r.index: r.cost for r in self.known(self.by_key[key].template, key) if r.ok}
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
                    "failed": self.progress.failures.get(task.key, 0),
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
