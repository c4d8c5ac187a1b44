"""`mlc bisect`: all steps in order, and what they found."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from mlc import isolate, ort_env, tvm_env
from mlc.bisection.cut import whole
from mlc.bisection.diverging import Cutter, Part
from mlc.bisection.graph import Graph, Step
from mlc.bisection.levels import Blame, blame, lowest
from mlc.bisection.search import BAD, GOOD, UNCLEAR
from mlc.bisection.trial import OK, Outcome, Trials, check_fit
from mlc.errors import ModelError, UsageError
from mlc.events import OnEvent, Stage
from mlc.frontend import shapes
from mlc.new_file import new_file
from mlc.options import OPT_LEVELS, BisectOptions, CompileOptions
from mlc.passes.table import pipeline
from mlc.target import resolve


@dataclass(frozen=True, kw_only=True)
class BisectReport:
    """What a bisection found; JSON data but for its type.

    `kind` is "ok", "mismatch" or "failure" (the compiler, or the code, failed or crashed) of the
    model as asked, `message` its figures. Where it is not "ok": the lowest `level` that shows it;
    `operators` of which the first that diverges is one (labels of the imported graph; one, but
    where neighbours cannot be told apart; none where no part shows the fault by itself); `passes`
    of which one brings it in (none: no graph pass does), `why` in words; `culprit`, the small model
    that was written, with `nodes` operators, and its `inputs` where random ones do not show it;
    `reproduce`, the commands that show it; `workaround`, a command that was tried and is right.
    Where dimensions stay open, the graph was cut, and the culprit is, at fixed `sizes` of them.
    """

    model: str
    opt_level: int
    kind: str
    message: str = ""
    level: int | None = None
    operators: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    why: str = ""
    culprit: str | None = None
    nodes: int = 0
    inputs: str | None = None
    reproduce: tuple[str, ...] = ()
    workaround: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    trials: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.kind == OK


def answer(data: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Bisect as `BisectOptions(**data)` says, in a process of its own; see `from_answer`."""
    lists = {name: tuple(data[name]) for name in ("shapes", "dynamic")}
    options = BisectOptions(**{**data, **lists})
    return asdict(bisect(options, on_event))


def from_answer(data: dict[str, Any]) -> BisectReport:
    """Return the report that `answer` made JSON data of, which has no tuples."""
    lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return BisectReport(**{**data, **lists})


def bisect(options: BisectOptions, on_event: OnEvent) -> BisectReport:
    """Narrow what is wrong with a model; every candidate runs in a fork of this process.

    Raises:
        ModelError: the model cannot be imported, or not be run by the reference.
        UsageError: an option is wrong, `output` cannot be written, or this machine cannot run code
            for the target.
        TargetError, MissingToolError: the target is unknown, or cannot be compiled for.
    """
    _check(options)
    tvm_env.tvm()  # imported once, for all forks
    ort_env.onnxruntime()
    with tempfile.TemporaryDirectory(prefix="mlc-", ignore_cleanup_errors=True) as folder:
        return _Bisection(options, Path(folder), on_event).report()


def _check(options: BisectOptions) -> None:
    from mlc import driver

    output = Path(options.output)
    shapes.parse(options.shapes)
    driver.check_open(options.target, options.shapes, options.dynamic)
    target = resolve(options.target)
    # Before a cross linker is looked for; what its CPU has beyond that is known when code is made.
    check_fit({"kind": target.kind, "triple": target.triple, "features": target.features})
    if options.opt_level not in OPT_LEVELS:
        raise UsageError(f"there is no level -O{options.opt_level}", "use -O0, -O1, -O2 or -O3")
    if output.suffix != ".onnx":
        raise UsageError(f"the culprit is an ONNX model, not {output}", "give `-o NAME.onnx`")
    if output.exists() and not output.is_file():
        raise UsageError(f"cannot write {output}: it is no plain file", "give a file with `-o`")
    parent = output.resolve().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write {output}", "choose a place with `-o`")
    if output.resolve() == Path(options.model).resolve():
        raise UsageError("the culprit would overwrite the model", "choose a name with `-o`")


class _Bisection:
    def __init__(self, options: BisectOptions, folder: Path, on_event: OnEvent):
        self.options = options
        self.folder = folder
        self.on_event = on_event
        shared = {f.name for f in fields(CompileOptions)} & {f.name for f in fields(BisectOptions)}
        asked = {name: getattr(options, name) for name in shared if name != "output"}
        self.compile = CompileOptions(**asked)
        self.trial = Trials(self.compile, folder, on_event)
        self.sought = OK
        self.sizes: dict[str, int] = {}  # at which the graph is cut
        self.levels: dict[int, Outcome] = {}  # of the whole model

    def report(self) -> BisectReport:
        started = time.perf_counter()
        asked = self.options.opt_level
        first = self._at(asked)
        if first.error is not None:
            raise first.error
        self.sought = first.kind
        found = {} if first.kind == OK else self._narrow(asked)
        return BisectReport(
            model=self.options.model,
            opt_level=asked,
            kind=first.kind,
            message=first.message,
            sizes=self.sizes,
            trials=self.trial.count,
            seconds=time.perf_counter() - started,
            **found,
        )

    def _narrow(self, asked: int) -> dict[str, Any]:
        level = lowest(asked, lambda k: self._verdict(self._at(k)))
        graph, different = self._graph()
        if different:
            why = "the imported graph differs already, before any pass:\n" + "\n".join(different)
            return {"level": level, "why": why}
        part = self._part(graph, level) if graph is not None else None
        blamed = self._blame(level, part)
        found: dict[str, Any] = {"level": level, "passes": blamed.rows, "why": blamed.why}
        if part is not None and graph is not None:
            steps = [graph.steps[k] for k in part.suspects]
            found["operators"] = tuple(f"{s.label} ({s.operator})" for s in steps)
            found |= self._keep(part, level)
        return found | {"workaround": self._workaround(blamed, level)}

    def _at(self, level: int) -> Outcome:
        if level not in self.levels:
            self.levels[level] = self.trial(f"the model at -O{level}", level=level)
        return self.levels[level]

    def _verdict(self, outcome: Outcome) -> str:
        if outcome.kind == self.sought:
            return BAD
        return GOOD if outcome.kind == OK else UNCLEAR

    def _graph(self) -> tuple[Graph | None, list[str]]:
        """Return the imported graph (None: the reference cannot run it), and how it differs."""
        started = time.perf_counter()
        asked = self.options
        work = partial(
            whole, Path(asked.model), asked.shapes, asked.dynamic, asked.seed, self.folder
        )
        try:
            found = isolate.forked(work)
        except ModelError as error:
            self._say(started, error.message)
            return None, []
        self.sizes = found["sizes"]
        steps = tuple(
            Step(**{**step, "inputs": tuple(step["inputs"]), "outputs": tuple(step["outputs"])})
            for step in found["steps"]
        )
        self._say(started, f"{len(steps)} nodes")
        graph = Graph(
            steps=steps, inputs=frozenset(found["inputs"]), outputs=tuple(found["outputs"])
        )
        return graph, found["different"]

    def _part(self, graph: Graph, level: int) -> Part | None:
        def attempt(what: str, model: Path, inputs: Path) -> Outcome:
            return self.trial(what, model=model, inputs=inputs, level=level)

        return Cutter(graph, self.folder, self.sought, attempt).narrow()

    def _blame(self, level: int, part: Part | None) -> Blame:
        """Return the pass: looked for in the small part where there is one, it is the quickest."""

        def probe(without: tuple[str, ...]) -> str:
            what = f"-O{level} without {len(without)} passes"
            if part is None:
                return self._verdict(self.trial(what, level=level, without=without))
            return self._verdict(
                self.trial(what, model=part.model, inputs=part.inputs, level=level, without=without)
            )

        return blame(pipeline(level, exact=self.options.exact), probe)

    def _keep(self, part: Part, level: int) -> dict[str, Any]:
        """Write the small model, with its inputs where seeded random ones do not show the fault."""
        outcome = self.trial("the culprit on random inputs", model=part.model, level=level)
        output = Path(self.options.output)
        _copy(part.model, output)
        compiling = ["mlc", "compile", str(output), *self._words(level)]
        found: dict[str, Any] = {"culprit": str(output), "nodes": len(part.steps)}
        if outcome.kind == self.sought:
            return {**found, "reproduce": (shlex.join(compiling),)}
        stored, artifact = output.with_suffix(".npz"), output.with_suffix(".mlc")
        _copy(part.inputs, stored)
        steps = (
            [*compiling, "--no-verify", "-o", str(artifact)],
            ["mlc", "verify", str(artifact), str(output), "--input", str(stored)],
        )
        return {**found, "inputs": str(stored), "reproduce": tuple(map(shlex.join, steps))}

    def _workaround(self, blamed: Blame, level: int) -> str | None:
        """Return a command for the whole model that was tried and is right."""
        asked = self.options.opt_level
        shaped = [word for shape in self.options.shapes for word in ("--shape", shape)]
        shaped += [f"--dynamic={name}" for name in self.options.dynamic]
        command = ["mlc", "compile", self.options.model, *shaped]
        if len(blamed.rows) == 1:
            outcome = self.trial(f"the model without {blamed.rows[0]!r}", without=blamed.rows)
            if outcome.kind == OK:
                left_out = ["--without-pass", blamed.rows[0]]
                return shlex.join([*command, *self._words(asked), *left_out])
        if level > 0 and self._at(level - 1).kind == OK:
            return shlex.join([*command, *self._words(level - 1)])
        return None

    def _words(self, level: int) -> list[str]:
        """Return the options of `mlc compile` that were asked for, at a level."""
        words = ["-O", str(level)]
        for name in ("target", "seed", "records", "logs"):
            value = getattr(self.options, name)
            if value != getattr(BisectOptions, name):
                words += [f"--{name}", str(value)]
        return words + ["--exact"] * self.options.exact

    def _say(self, started: float, note: str) -> None:
        self.on_event(Stage(name="import", seconds=time.perf_counter() - started, note=note))


def _copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with source.open("rb") as original, new_file(target) as file:
        shutil.copyfileobj(original, file)
