"""The peer `tvmc`: TVM's own importer, templates, tuner and compiler, none of mlc's.

The steps are tvmc's functions: tasks are extracted, AutoTVM's `XGBTuner` gets the trials in equal
parts (`benchmarks.tune.equal`, which says whose stopwatch), and `compile_model` applies the best
records at its level 3. Options are its defaults; the CPU is named as mlc's target names it.

Three things are helped along, or there would be less to compare: current onnx lacks a module that
TVM's importer imports (`mlc.tvm_env`); models are brought to opset 17 where onnx's converter can
do that, as TVM's importer takes one of several axes that are an input (ReduceMean, since opset 18);
and TIR's common subexpressions stay (LLVM finds them), since LLVM refuses what TVM says of vectors
among them (MobileNetV2 did not compile).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.tune import curves, equal
from benchmarks.tune.setup import once, progress, say
from mlc import isolate, tvm_env
from mlc.cache import key_of
from mlc.target import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from mlc.events import OnEvent

OPSET = 17
SEED = 0
BUILD_S = 10.0  # tvmc's --timeout


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step needs, as JSON data; `target` is TVM's text."""

    onnx: str
    target: str
    records: str = ""
    package: str = ""


def package(onnx: Path, target: str, trials: int) -> Path:
    """Return tvmc's package (a tar file) of a model after so many trials, made once per TVM.

    Raises:
        BuildError: a step fails.
    """
    chosen = resolve(target)
    version = tvm_env.versions()
    folder = onnx.parent / f"tvmc-{key_of(chosen.tvm, trials, SEED, version)[:12]}"
    folder.mkdir(exist_ok=True)
    found = folder / "package.tar"
    if found.exists():
        return found
    step = Step(onnx=str(onnx), target=chosen.tvm)
    keys = once(folder / "tasks.json", lambda: isolate.call(f"{__name__}:tasks", step))
    say(f"{onnx.stem}: tvmc, {trials} trials over {len(keys)} tasks")
    asked = equal.Search(
        keys=tuple(keys),
        target=target,
        trials=trials,
        seed=SEED,
        folder=str(folder / "logs"),
        build_timeout=BUILD_S,
    )
    best = curves.best_of(equal.equal_split(asked, progress(f"{onnx.stem}, tasks")))
    records, made = folder / "best.jsonl", folder / "new.tar"
    equal.write(records, [best[key] for key in sorted(best)])
    say(f"{onnx.stem}: tvmc, compiling with {len(best)} records")
    whole = Step(onnx=str(onnx), target=chosen.tvm, records=str(records), package=str(made))
    isolate.call(f"{__name__}:compiled", whole)
    made.replace(found)
    return found


def tasks(fields: dict[str, Any], _on_event: OnEvent) -> list[str]:
    """Return the workloads that tvmc would tune; runs in a child."""
    step = Step(**fields)
    loaded = _loaded(step.onnx)
    from tvm.driver.tvmc import autotuner

    from mlc.tune.record import workload_key

    found = autotuner.autotvm_get_tuning_tasks(loaded.mod, loaded.params, step.target)
    return [workload_key(task.workload) for task in found]


def compiled(fields: dict[str, Any], _on_event: OnEvent) -> None:
    """Write tvmc's package; runs in a child."""
    step = Step(**fields)
    loaded = _loaded(step.onnx)
    from tvm.driver.tvmc import compiler

    compiler.compile_model(
        loaded,
        step.target,
        tuning_records=step.records,
        package_path=step.package,
        pass_context_configs=["tir.disable_cse_tir=true"],
    )


def _loaded(onnx: str) -> Any:
    """Return tvmc's model; TVM is imported without mlc's operators and strategies."""
    from onnx import load, version_converter

    os.environ["TOPHUB_LOCATION"] = "NONE"  # as `mlc.tvm_env`: no network
    tvm_env.stand_in_onnx_mapping()
    from tvm.driver.tvmc.model import TVMCModel
    from tvm.relay.frontend import from_onnx

    model = load(onnx)
    if next(o.version for o in model.opset_import if not o.domain) > OPSET:
        with contextlib.suppress(RuntimeError):  # it has operators that came later
            model = version_converter.convert_version(model, OPSET)
    return TVMCModel(*from_onnx(model))
