"""`mlc tune`."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from mlc.cli.options import TakesDynamic, arch, dynamic, opt_level, shapes, with_arch
from mlc.errors import Interrupted, UsageError
from mlc.options import TuneOptions

_WIDE = 120  # characters, from which a table of tasks shows everything
_ONLY_WIDE = ("shapes", "GFLOP/s", "output")
DEFAULTS = {field.name: field.default for field in fields(TuneOptions)}


@click.command(cls=TakesDynamic)
@click.argument("model", required=False)
@click.option(
    "-n",
    "--trials",
    type=int,
    help="Measurements in all, known ones included; 0 asks the saved cost models only. "
    f"[default: mlc.toml's, else {DEFAULTS['trials']}]",
)
@click.option("--budget", help="Time, such as 20m, 90s or 1h; whichever ends first.")
@click.option("-t", "--target", help="What to tune for [default: mlc.toml's, else llvm].")
@arch()
@opt_level(DEFAULTS["opt_level"], "As for `mlc compile`.")
@shapes("As for `mlc compile`; of several sizes the tasks of all are tuned.")
@dynamic("Refused: kernels of open dimensions are not tuned.", hidden=True)
@click.option("--logs", help="Where records are kept [default: tuning_logs beside mlc.toml].")
@click.option("--list", "list_only", is_flag=True, help="Show the tasks and measure nothing.")
@click.option("--tasks", help="Only these: positions (0,2-4) or parts of their names.")
@click.option(
    "--tuner",
    type=click.Choice(["xgb", "random", "grid", "ga"]),
    default=DEFAULTS["tuner"],
    show_default=True,
    help="Who proposes configs.",
)
@click.option(
    "--features",
    type=click.Choice(["knob", "itervar"]),
    default=DEFAULTS["features"],
    show_default=True,
    help="What the cost model sees; itervar lowers every candidate.",
)
@click.option(
    "--loss",
    type=click.Choice(["rank", "reg"]),
    default=DEFAULTS["loss"],
    show_default=True,
    help="What the cost model learns.",
)
@click.option(
    "--transfer/--no-transfer",
    default=DEFAULTS["transfer"],
    show_default=True,
    help="Let records of other tasks train the cost model first.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=DEFAULTS["batch"],
    show_default=True,
    help="Trials that one task gets at a time.",
)
@click.option("--seed", default=DEFAULTS["seed"], show_default=True, help="Seed of the search.")
@click.option("--threads", type=click.IntRange(1), help="Threads [default: physical cores].")
@click.option(
    "--run-timeout",
    type=float,
    default=DEFAULTS["run_timeout"],
    show_default=True,
    help="Seconds that a candidate may run.",
)
@click.option(
    "--report",
    metavar="DIR|FILE.html",
    help="Write an HTML report and a PNG of the curve (extra: report).",
)
@click.option(
    "--tracker",
    metavar="HOST:PORT",
    help="Measure on the devices of this RPC tracker (see `mlc rpc`), not on this machine.",
)
@click.option("--key", help="Which kind of device, as `mlc rpc status` lists them.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings on stderr.")
@click.option("--json", "json_mode", is_flag=True, help="Result and progress as JSON.")
def tune(
    model: str | None,
    trials: int | None,
    budget: str | None,
    target: str | None,
    logs: str | None,
    list_only: bool,
    quiet: bool,
    json_mode: bool,
    **asked: Any,
) -> None:
    """Tune a MODEL's subgraphs on this machine, and keep every measurement.

    The budget goes where it pays: each batch to the task with the best expected gain for the whole
    model. Everything measured is kept in tuning_logs/, batch by batch; interrupted, the same command
    continues where it was, and `mlc compile` uses the best records from then on.

    \b
      mlc tune model.onnx --trials 500
      mlc tune --budget 20m            the model of mlc.toml, or the only .onnx file here
      mlc tune model.onnx --list
      mlc tune model.onnx --report reports/
      mlc tune model.onnx --tracker 127.0.0.1:9190 --key rpi4
      mlc tune model.onnx --target cuda --arch sm_80 --tracker 127.0.0.1:9190 --key a100
    """  # fmt: skip
    from mlc import isolate
    from mlc import report as reporting
    from mlc.cli.tune_view import View

    options = _options(model, trials, budget, target, logs, asked)
    assert options.model is not None
    place = None
    if options.report and not list_only:
        place = reporting.place_for(options.report, Path(options.model))
    with View(json_mode=json_mode, quiet=quiet) as view:
        if list_only:
            found = isolate.call("mlc.tune.run:list_tasks", replace(options, trials=0), view)
        else:
            try:
                found = isolate.call("mlc.tune.run:tune_model", options, view)
            except KeyboardInterrupt:
                again = shlex.join(["mlc", *sys.argv[1:]])
                raise Interrupted(
                    "interrupted; what was measured is kept", f"continue with `{again}`"
                ) from None
    if json_mode:
        click.echo(json.dumps(found))
    elif list_only:
        _show_tasks(found)
    else:
        _show_report(found)
    if place is not None:  # last: a full disk costs the report, not what was found
        reporting.write(found, options, place)
        click.echo(f"report: {place.page} and {place.picture}", err=True)


def _options(
    model: str | None,
    trials: int | None,
    budget: str | None,
    target: str | None,
    logs: str | None,
    asked: dict[str, Any],
) -> TuneOptions:
    """Return what the command line asks for, the rest from mlc.toml here and from the defaults.

    Raises:
        UsageError: there is no model, or one with open dimensions.
    """
    from mlc import project

    here = project.load(Path.cwd())
    path = Path(model) if model else project.require_model(here)
    here_target = None if model else here.target
    sizes = {"shapes": asked["shapes"], "dynamic": asked.pop("dynamic")}
    if not model:
        sizes = project.sizes_of(here, **sizes)
    if sizes.pop("dynamic"):
        raise UsageError(
            f"open dimensions (--dynamic, or `dynamic` in {project.NAME}): their kernels have no tasks "
            "to tune yet",
            "tune fixed sizes, which artifacts of these sizes use: for example `--shape batch=1`",
        )
    return TuneOptions(
        **{
            **with_arch({**asked, "target": target or here_target or DEFAULTS["target"]}),
            "model": str(path),
            **sizes,
            "trials": _first(trials, here.trials, DEFAULTS["trials"]),
            "logs": logs or str(here.logs or here.folder / project.LOGS),
            "budget": None if budget is None else seconds(budget),
        }
    )


def seconds(text: str) -> float:
    """Return the seconds in a time such as 90s, 20m or 1.5h; a bare number is seconds.

    Raises:
        UsageError: it is no time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None:
        raise UsageError(f"--budget {text!r} is no time", "write 90s, 20m or 1.5h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _show_tasks(found: dict[str, Any]) -> None:
    from rich.table import Table

    from mlc.cli.render import console

    table = Table(title=f"tasks on {found['device']}", title_justify="left", box=None)
    for column in ("#", "task", "shapes", "calls", "MFLOP", "ms", "share", "measured"):
        table.add_column(
            column,
            justify="left" if column in ("task", "shapes") else "right",
            no_wrap=column == "task",
        )
    for position, task in enumerate(found["tasks"]):
        table.add_row(
            str(position), task["id"], task["shapes"], str(task["calls"]),
            f"{task['flops'] / 1e6:.1f}", f"{task['seconds'] * 1e3:.3f}", f"{task['share']:.1%}",
            str(task["measured"]),
        )  # fmt: skip
    console().print(table)


def _show_report(found: dict[str, Any]) -> None:
    from rich.table import Table

    from mlc.cli.render import console, share_of

    title = f"{found['measured']} measured, {found['known']} known before, {found['seconds']:.0f} s"
    table = Table(title=title, title_justify="left", box=None)
    columns = (
        "task",
        "shapes",
        "calls",
        "trials",
        "before us",
        "after us",
        "gain",
        "GFLOP/s",
        "of peak",
        "output",
    )
    wide = console().width >= _WIDE
    shown = [column for column in columns if wide or column not in _ONLY_WIDE]
    for column in shown:
        left = column in ("task", "shapes", "output")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "shapes")
    for task in found["tasks"]:
        before, after = task["untuned"], task["best"]
        speed = task["flops"] / after / 1e9 if after else None
        cells = (
            task["id"], task["shapes"], str(task["calls"]), str(task["trials"]),
            f"{before * 1e6:.1f}" if before else "", f"{after * 1e6:.1f}" if after else "",
            f"{before / after:.2f}x" if before and after else "",
            f"{speed:.1f}" if speed else "", share_of(speed, found.get("peak_gflops")),
            task["checked"],
        )  # fmt: skip
        row = dict(zip(columns, cells, strict=True))
        table.add_row(*(row[column] for column in shown))
    console().print(table)
    model = found["model"]
    if model:
        console().print(
            f"model: {model['before'] * 1e3:.2f} ms -> {model['after'] * 1e3:.2f} ms, "
            f"{model['ratio']:.2f}x ({model['low']:.2f} to {model['high']:.2f})"
        )
    elif found.get("not_compared"):
        why = f"model: not compared end to end ({found['not_compared']})"
        console().print(why, soft_wrap=True, markup=False)
    for line in trust_lines(found["trust"]):
        console().print(line, soft_wrap=True)
    console().print(f"records: {found['logs']} ({found['device']})", soft_wrap=True)


def trust_lines(found: dict[str, dict[str, float] | None]) -> list[str]:
    """Return a line per template on how well its cost model ranks records that it has not seen."""
    lines = []
    for template, trust in found.items():
        what = "too few records to say how well it predicts"
        if trust is not None:
            what = (
                f"rank correlation {trust['rank_correlation']:.2f}, finds "
                f"{trust['top_k_recall']:.0%} of the fastest fifth (noise: 0 and 20%), its favourite "
                f"{trust['regret']:.0%} slower than the best of {trust['records']} held-out records"
            )
        lines.append(f"cost model of {template}: {what}")
    return lines
