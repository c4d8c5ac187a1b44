"""What is measured, where its results lie, and the commands it consists of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import api, events
from mlc.cache import source_digest
from mlc.cli.tune_view import heartbeat
from mlc.cpu import host_cpu, physical_cores
from mlc.errors import UsageError
from mlc.target import resolve
from mlc.tune.record import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlc.tune.record import Record

BEAT_S = 30.0  # between two lines of progress


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What to measure: `model` and `second` are rows of the zoo or .onnx files.

    `rounds` is how many blocks each artifact is timed for; `plan` is AutoTVM's plan_size, and with
    `stock` its own builder and runner measure for it.
    """

    out: Path
    model: str = "resnet18"
    second: str = "mobilenet_v2"
    target: str = "llvm"
    trials: int = 500
    seeds: int = 3
    rounds: int = 15
    plan: int = 64
    stock: bool = False

    @cached_property
    def threads(self) -> int:
        """How many threads every kernel and model runs on."""
        return physical_cores()

    def facts(self) -> dict[str, Any]:
        """Return what results in one folder have in common."""
        return {
            "model": self.model,
            "target": resolve(self.target).tvm,
            "trials": self.trials,
            "cpu": host_cpu().name,
            "threads": self.threads,
            "mlc": source_digest()[:12],
        }

    def claim(self) -> None:
        """Make the output folder, or check that what lies there belongs to this setup.

        Raises:
            UsageError: it holds results of another one.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        found = once(self.out / "setup.json", self.facts)
        wrong = [f"{key} was {found.get(key)}" for key, value in self.facts().items()
                 if found.get(key) != value]  # fmt: skip
        if wrong:
            raise UsageError(
                f"{self.out} holds results of another setup: {', '.join(wrong)}",
                "name another folder with --out, or delete that one",
            )

    def path_of(self, model: str) -> Path:
        """Return the ONNX file of a model; one of the zoo is exported when it is first needed."""
        if model.endswith(".onnx"):
            return Path(model).resolve()
        path = self.out / "models" / f"{model}.onnx"
        if not path.exists():
            from benchmarks.zoo import MODELS

            path.parent.mkdir(exist_ok=True)
            api.export(MODELS[model].factory, MODELS[model].inputs, path)
        return path

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command: a cache folder of its own."""
        return {**os.environ, "MLC_CACHE_DIR": str(self.out / "cache")}


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def once(path: Path, make: Callable[[], Any]) -> Any:
    """Return the JSON data of a step, which is taken only when its file is not there yet."""
    if not path.exists():
        data = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        temporary.replace(path)
    return json.loads(path.read_text())


def progress(label: str) -> events.OnEvent:
    """Return a callback that prints where a run stands, now and then."""
    last = time.monotonic()

    def show(event: events.Event) -> None:
        nonlocal last
        if isinstance(event, (events.Tuning, events.Progress)) and (
            time.monotonic() - last > BEAT_S
        ):
            last = time.monotonic()
            tuning = isinstance(event, events.Tuning)
            say(f"{label}: " + (heartbeat(event) if tuning else f"{event.done}/{event.total}"))

    return show


def mlc(setup: Setup, *arguments: object, log: Path | None = None) -> dict[str, Any]:
    """Run an mlc command with --json and return its result; events are appended to `log`.

    Raises:
        UsageError: it failed; the message is the end of what it said.
    """
    command = [sys.executable, "-m", "mlc", *map(str, arguments), "--json"]
    show = progress(str(arguments[0]))
    lines: list[str] = []
    with tempfile.TemporaryFile("w+") as answer:
        process = subprocess.Popen(
            command, env=setup.environment, stdout=answer, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        with (log or Path(os.devnull)).open("a", encoding="utf-8") as file:
            for line in process.stderr:
                lines.append(line)
                file.write(line)
                file.flush()
                if line.startswith('{"event"'):
                    show(events.from_json(json.loads(line)))
        if process.wait():
            raise UsageError(f"mlc {arguments[0]} failed: {' '.join(lines[-3:]).strip()}")
        answer.seek(0)
        return dict(json.load(answer))


def compiled(
    setup: Setup, model: Path, best: Mapping[str, Record], path: Path, rivals: Mapping[str, str]
) -> Path:
    """Compile a model with one record per workload, verified, and return the artifact's path.

    `rivals` maps workloads to others that compute the same: of two records the faster one applies,
    and one alone does where the compiler takes that algorithm.

    Raises:
        UsageError: it failed, or a record that should have been applied was not.
    """
    records = path.with_suffix(".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_text("".join(encode(best[key]) + "\n" for key in sorted(best)))
    found = mlc(
        setup, "compile", model, "-o", path, "--target", setup.target, "--records", records
    )  # fmt: skip
    applied = len(found["manifest"]["tuning"]["records"])
    due = {
        frozenset({k, rivals.get(k, "")}) for k in best if not rivals.get(k) or rivals[k] in best
    }
    if not len(due) <= applied <= len(best):
        raise UsageError(f"{path.name}: {applied} of {len(best)} records were applied")
    return path
