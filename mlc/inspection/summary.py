"""`mlc inspect MODEL`, inside the isolated process: the file, its kernels, and what passes did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import target, tvm_env
from mlc.errors import BuildError, ModelError, UsageError
from mlc.events import OnEvent, Progress, timed
from mlc.frontend import shapes
from mlc.inspection.dump import PassDump, dump_kernel
from mlc.inspection.facts import facts
from mlc.inspection.graph import GraphRows
from mlc.inspection.loop_rows import loop_counts, loop_rows, loop_totals
from mlc.inspection.loops import Lowering, observe
from mlc.options import OPT_LEVELS, InspectOptions

if TYPE_CHECKING:
    from collections.abc import Callable


def inspect_model(fields: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Inspect as `InspectOptions(**fields)` says; return JSON data.

    About the file: `path`, and what `facts` returns. About what is compiled, after
    the passes of the level: `flops` and `calls` (of kernels) per run, `kernels` (FLOPs per call).
    Where the model cannot be compiled, these are null or empty and `incomplete` says why. `passes`
    with `loops`, `relay` and `dump` are null unless asked for.

    Runs in a process of its own (see `isolate`).

    Raises:
        ModelError: the file cannot be read; or, where IR is asked for, cannot be compiled.
        UsageError: an option is wrong.
        TargetError: the target is unknown.
        BuildError: a pass or the code generator failed, where IR is asked for.
    """
    from mlc.frontend import onnx_file

    options = InspectOptions(**{**fields, "shapes": tuple(fields["shapes"])})
    _check(options)
    chosen = target.resolve(options.target)
    file = timed("read", on_event, lambda: onnx_file.read(Path(options.path)))
    timed("load TVM", on_event, tvm_env.tvm)
    answer: dict[str, Any] = {
        **facts(file),
        "path": options.path,
        "target": chosen.tvm,
        "opt_level": options.opt_level,
        **dict.fromkeys(("flops", "calls", "passes", "loops", "relay", "dump", "incomplete")),
        "kernels": [],
    }
    try:
        answer.update(_compiled(options, chosen, file, on_event))
    except (ModelError, BuildError) as error:
        if options.passes or options.relay or options.dump_ir is not None:
            raise
        first = error.message.splitlines()[0].rstrip(":")
        answer["incomplete"] = first + (f" ({error.hint})" if error.hint else "")
    return answer


def _check(options: InspectOptions) -> None:
    shapes.parse(options.shapes)
    if options.opt_level not in OPT_LEVELS:
        raise UsageError(f"there is no level -O{options.opt_level}", "use -O0, -O1, -O2 or -O3")
    if options.kernel is not None and options.dump_ir is None:
        raise UsageError("--kernel chooses what --dump-ir writes", "add `--dump-ir DIR`")


def _compiled(
    options: InspectOptions, chosen: target.Target, file: Any, on_event: OnEvent
) -> dict[str, Any]:
    """Return the answer's entries that need the model fused."""
    from mlc import build
    from mlc.codegen.graph import plan
    from mlc.codegen.kernels import Namer, Settings
    from mlc.driver import default_configs
    from mlc.frontend import load
    from mlc.passes.run import optimize
    from mlc.tune.dispatch import dispatch_context

    directory = Path(options.dump_ir) if options.dump_ir is not None else None
    dump = PassDump(directory) if directory is not None else None
    graph = GraphRows(options.opt_level, gpu=chosen.gpu is not None)
    model = load.load(file, options.shapes, on_event)
    llvm = build.tvm_target(chosen, options.opt_level)
    dispatch = dispatch_context(lambda _key: None, default_configs(chosen))
    settings = Settings(target=llvm, level=options.opt_level, dispatch=dispatch, gpu=chosen.gpu)
    observers: list[Callable[[Any], None]] = [dump] if dump else []
    observers += [graph] if options.passes else []

    def watch(run: Any) -> None:
        for observer in observers:
            observer(run)

    with dispatch:
        fused = timed("passes", on_event, lambda: optimize(model, llvm, options.opt_level, watch))
    planned = timed("plan", on_event, lambda: plan(fused.module["main"], Namer(settings)))
    kernels = _kernels(planned)
    found: dict[str, Any] = {
        "unsupported": [],  # what the file lists was folded away, or this had failed
        "kernels": kernels,
        "calls": sum(planned.calls.values()),
        "flops": sum(kernel["flops"] * kernel["calls"] for kernel in kernels),
    }
    if options.passes:
        total = _lower_all(planned, settings, kernels, on_event)
        found |= {"passes": graph.rows() + loop_rows(total), "loops": loop_totals(total)}
    if options.relay:
        found["relay"] = fused.module.astext(show_meta_data=False)
    if directory is not None:
        symbol = dump_kernel(planned, settings, directory, options.kernel)
        found["dump"] = {"directory": str(directory), "kernel": symbol}
    return found


def _kernels(planned: Any) -> list[dict[str, Any]]:
    """Return the kernels, the heaviest first; `flops` is per call."""
    from mlc.codegen import flops
    from mlc.codegen.kernels import operators

    rows = [
        {
            "symbol": symbol,
            "operators": list(operators(function)),
            "calls": planned.calls[symbol],
            "flops": flops.count(function),
            "loops": None,
        }
        for symbol, function in planned.kernels.items()
    ]
    return sorted(rows, key=lambda row: -row["calls"] * row["flops"])


def _lower_all(
    planned: Any, settings: Any, kernels: list[dict[str, Any]], on_event: OnEvent
) -> Lowering:
    """Lower every kernel, note its loops in its row, and return the sums over all of them."""
    from mlc.codegen.kernels import Job

    total = Lowering()

    def work() -> None:
        for done, row in enumerate(kernels):
            symbol = row["symbol"]
            on_event(Progress(name="lower", done=done, total=len(kernels), item=symbol))
            job = Job(symbol=symbol, key="", function=planned.kernels[symbol])
            lowering = observe(job, settings)[1]
            row["loops"] = loop_counts(lowering)
            total.add(lowering)

    timed("lower", on_event, work)
    return total
