"""The parts of the benchmark; each returns JSON data, times in seconds."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.tune import curves, equal
from benchmarks.tune.curves import Weight
from benchmarks.tune.race import race
from benchmarks.tune.setup import Setup, compiled, mlc, once, progress, say
from mlc.errors import UsageError
from mlc.tune.record import workload_id
from mlc.tune.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlc.tune.record import Record

ROOT = Path(__file__).resolve().parents[2]
NEAR = 1.05  # part c: how near to the best final latency counts as reached
REPEATS = 3  # part d
LIMIT_S = 5.0  # part d, without imports
IMPORTS = (
    "from mlc import tvm_env; tvm_env.tvm(); import mlc.tune.run, mlc.tune.tuners, onnx, xgboost"
)
KILLS = "tests/e2e/test_tune_killed.py"


def weights_of(setup: Setup, model: str) -> dict[str, Weight]:
    """Return calls and untuned seconds of a model's tasks, by workload, heaviest first."""
    path = setup.path_of(model)

    def listed() -> Any:
        say(f"tasks of {path.stem}")
        empty = setup.out / "no-logs"
        empty.mkdir(exist_ok=True)
        found = mlc(setup, "tune", path, "--list", "--target", setup.target, "--logs", empty)
        return [
            [task["key"], task["calls"], task["seconds"], task["rival"]] for task in found["tasks"]
        ]

    rows = once(setup.out / f"tasks-{path.stem}.json", listed)
    return {
        key: Weight(calls=calls, untuned=seconds, rival=rival)
        for key, calls, seconds, rival in rows
    }


def tuned(setup: Setup, model: str, seed: int, folder: Path, *flags: str) -> dict[str, Any]:
    """Run `mlc tune`, its logs in `folder`/logs, and return its report with the batches' ends."""
    path, log = setup.path_of(model), folder / "events.jsonl"
    folder.mkdir(parents=True, exist_ok=True)

    def run() -> Any:
        say(f"mlc tune {path.stem}, seed {seed} {' '.join(flags)}".rstrip())
        report = mlc(setup, *tune_command(setup, path, seed, folder), *flags, log=log)
        said = [json.loads(line) for line in log.read_text().splitlines() if line[:1] == "{"]
        ends = sorted({event["done"] for event in said if event["event"] == "tuning"})
        return {**report, "ends": ends}

    return dict(once(folder / "report.json", run))


def timed_defaults(weights: Mapping[str, Weight], report: Mapping[str, Any]) -> dict[str, Weight]:
    """Return the weights with the times of the defaults that `mlc tune` took beside its winners.

    Those are of the kernel that was tuned; the profile's hold what is fused into it as well.
    """
    found = {task["id"]: task["untuned"] for task in report["tasks"]}
    return {
        key: replace(weight, untuned=found.get(workload_id(key)) or weight.untuned)
        for key, weight in weights.items()
    }


def tune_command(setup: Setup, model: Path, seed: int, folder: Path) -> list[object]:
    """Return the arguments of the `mlc tune` of part a."""
    return ["tune", model, "--target", setup.target, "--trials", setup.trials,
            "--seed", seed, "--logs", folder / "logs"]  # fmt: skip


def seed_folder(setup: Setup, seed: int) -> Path:
    """Return where the runs of a seed lie."""
    return setup.out / f"seed{seed}"


def against_untuned_and_equal(setup: Setup, seed: int, *, with_equal: bool) -> dict[str, Any]:
    """Parts a and b: our tuned model against the untuned one, and against the equal split."""
    folder, model = seed_folder(setup, seed), setup.path_of(setup.model)
    weights = weights_of(setup, setup.model)
    report = tuned(setup, setup.model, seed, folder / "ours")
    weights = timed_defaults(weights, report)
    ours = curves.trials_of(Store(folder / "ours/logs").read(), weights)
    theirs = _equal_split(setup, seed, weights) if with_equal else []

    def timed() -> Any:
        say(f"compiling what seed {seed} found")
        bests = {"untuned": {}, "equal": curves.best_of(theirs)} if theirs else {"untuned": {}}
        marks = [n for n in curves.checkpoints(setup.trials) if n <= len(ours)] if theirs else []
        bests |= {f"ours@{n}": curves.best_of(ours[:n], weights) for n in marks}
        artifacts, same = _compile_each(setup, model, bests, folder / "artifacts", weights)
        artifacts["ours"] = folder / "artifacts/ours.mlc"
        logs = ("--logs", folder / "ours/logs")
        mlc(setup, "compile", model, "-o", artifacts["ours"], "--target", setup.target, *logs)
        found = _race(setup, artifacts, f"seed {seed}")
        result = {
            "seed": seed,
            "trials": {"ours": len(ours), "equal": len(theirs)},
            "search_seconds": report["seconds"],
            "fits": equal.fits(theirs, setup.plan),
            "reliable": found.reliable,
            "seconds": {name: found.seconds(name) for name in artifacts},
            "a": found.speedup("ours", "untuned"),
            "curve": {"ours": curves.curve(ours, report["ends"], weights, weights)},
        }
        if theirs:
            reach = [{"trials": n, **found.speedup(same.get(f"ours@{n}", f"ours@{n}"), "equal")}
                     for n in marks]  # fmt: skip
            ends = range(equal.BATCH, len(theirs), equal.BATCH)
            result["b"] = {"final": found.speedup("ours", "equal"), "checkpoints": reach}
            result["curve"]["equal"] = curves.curve(theirs, ends, weights)
        return result

    name = f"timed-{_side(setup)}.json" if with_equal else "timed-alone.json"
    return dict(once(folder / name, timed))


def _side(setup: Setup) -> str:
    """Return the name of the equal split as it is asked for: its logs and timings lie under it."""
    stock = "-stock" if setup.stock else ""
    return f"equal{stock}" + (f"-plan{setup.plan}" if setup.plan != equal.PLAN else "")


def _equal_split(setup: Setup, seed: int, weights: Mapping[str, Weight]) -> list[Record]:
    say(f"AutoTVM, equal split, seed {seed}")
    asked = equal.Search(
        keys=tuple(weights),
        target=setup.target,
        trials=setup.trials,
        seed=seed,
        folder=str(seed_folder(setup, seed) / _side(setup)),
        plan=setup.plan,
        stock=setup.stock,
    )
    return equal.equal_split(asked, progress(f"equal split, seed {seed}, tasks"))


def _compile_each(
    setup: Setup,
    model: Path,
    bests: Mapping[str, Mapping[str, Record]],
    folder: Path,
    weights: Mapping[str, Weight],
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the artifacts by name, and for what would be the same one the name of the first."""
    rivals = {key: weight.rival for key, weight in weights.items() if weight.rival}
    artifacts: dict[str, Path] = {}
    same: dict[str, str] = {}
    first: dict[str, str] = {}
    for name, best in bests.items():
        configs = json.dumps({key: best[key].config for key in sorted(best)})
        if configs in first:
            same[name] = first[configs]
            continue
        first[configs] = name
        artifacts[name] = compiled(setup, model, best, folder / f"{name}.mlc", rivals)
    return artifacts, same


def _race(setup: Setup, artifacts: Mapping[str, Path], label: str) -> Any:
    say(f"timing {len(artifacts)} artifacts in turn, {label}")
    found = race(artifacts, setup.threads, setup.rounds, progress("rounds"))
    if not found.reliable:
        say("other programs took the cores: these ratios are not to be quoted")
    return found


def transfer(setup: Setup, seed: int) -> dict[str, Any]:
    """Part c: the second model, tuned with and without transfer from the store of part a."""
    first = weights_of(setup, setup.model)
    weights = weights_of(setup, setup.second)
    if shared := first.keys() & weights.keys():
        raise UsageError(f"{setup.second} shares layers with {setup.model}: {sorted(shared)}")
    base = seed_folder(setup, seed)
    tuned(setup, setup.model, seed, base / "ours")
    model = setup.path_of(setup.second)
    folder = base / f"second-{model.stem}"
    runs, points = {}, {}
    for name, flag in (("on", "--transfer"), ("off", "--no-transfer")):
        side = folder / name
        if not (side / "logs").exists():
            shutil.copytree(base / "ours/logs", side / "copy", dirs_exist_ok=True)
            (side / "copy").rename(side / "logs")
        report = tuned(setup, setup.second, seed, side, flag)
        runs[name] = curves.trials_of(Store(side / "logs").read(), weights)
        if name == "on":
            weights = timed_defaults(weights, report)
        points[name] = curves.curve(runs[name], report["ends"], weights, weights)
    goal = NEAR * min(points["on"][-1][1], points["off"][-1][1])
    reach = {name: curves.reached(points[name], goal) for name in points}

    def timed() -> Any:
        say(f"compiling what seed {seed} found with and without transfer")
        marks = {f"{name}@{n}": runs[name][:n] for name in runs
                 for n in {*(n for n in reach.values() if n), len(runs[name])}}  # fmt: skip
        bests = {mark: curves.best_of(found, weights) for mark, found in marks.items()}
        artifacts, same = _compile_each(setup, model, bests, folder / "artifacts", weights)
        found = _race(setup, artifacts, f"transfer, seed {seed}")
        finals = {same.get(mark, mark) for mark in (f"{name}@{len(runs[name])}" for name in runs)}
        best = min(finals, key=found.seconds)
        return {
            "seed": seed,
            "reliable": found.reliable,
            "best": best,
            "seconds": {mark: found.seconds(same.get(mark, mark)) for mark in bests},
            "within": {mark: found.speedup(best, same.get(mark, mark)) for mark in bests},
        }

    result = dict(once(folder / "timed-c.json", timed))
    return {**result, "goal": goal, "reach": reach, "curve": points}


def warm_store(setup: Setup) -> dict[str, Any]:
    """Part d: the command of part a, seed 0, once more, as whole processes."""
    folder = seed_folder(setup, 0) / "ours"
    tuned(setup, setup.model, 0, folder)
    command = tune_command(setup, setup.path_of(setup.model), 0, folder)

    def run() -> Any:
        say("the same command on a warm store")
        found = []
        for number in range(REPEATS):
            log = setup.out / f"warm-{number}.jsonl"
            log.unlink(missing_ok=True)
            started = time.perf_counter()
            report = mlc(setup, *command, log=log)
            wall = time.perf_counter() - started
            said = [json.loads(line) for line in log.read_text().splitlines()]
            stages = [(e["name"], e["seconds"]) for e in said if e["event"] == "stage"]
            found.append({"wall": wall, "run": report["seconds"], "measured": report["measured"],
                          "stages": stages})  # fmt: skip
        middle = sorted(found, key=lambda one: one["wall"])[REPEATS // 2]
        return {
            **middle,
            "measured": max(one["measured"] for one in found),
            "walls": [one["wall"] for one in found],
            "help": _seconds(setup, "-m", "mlc", "tune", "--help"),
            "imports": _seconds(setup, "-c", IMPORTS),
            "limit": LIMIT_S,
        }

    return dict(once(setup.out / "d.json", run))


def _seconds(setup: Setup, *arguments: str) -> float:
    """Return the median seconds of a Python process."""
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, env=setup.environment, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def killed(setup: Setup) -> dict[str, Any]:
    """Part e: the test that kills `mlc tune` at 20 random moments."""

    def run() -> Any:
        say("killing mlc tune at 20 random moments")
        started = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", KILLS]
        done = subprocess.run(command, check=False, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise UsageError(f"a killed run lost something:\n{done.stdout[-2000:]}")
        return {"kills": 20, "seconds": time.perf_counter() - started}

    return dict(once(setup.out / "e.json", run))
