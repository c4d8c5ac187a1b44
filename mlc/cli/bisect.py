"""`mlc bisect`."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import click

from mlc.cli.options import TakesDynamic, dynamic, opt_level, shapes
from mlc.options import BisectOptions

DEFAULTS = {field.name: field.default for field in fields(BisectOptions)}


@click.command(cls=TakesDynamic)
@click.argument("model")
@click.option(
    "-o", "--output", default=DEFAULTS["output"], show_default=True, help="The small model."
)
@click.option("-t", "--target", default=DEFAULTS["target"], help="See `mlc targets`.")
@opt_level(DEFAULTS["opt_level"], "The level that is wrong; lower ones are tried.")
@shapes("As for `mlc compile`, one size for each dimension. Repeatable.")
@dynamic("As for `mlc compile`. OUTPUT has fixed sizes all the same.")
@click.option("--records", help="Apply the tuning records in this AutoTVM log.")
@click.option("--logs", help="The folder of tuning logs [default: tuning_logs here, if any].")
@click.option("--exact", is_flag=True, help="As for `mlc compile`.")
@click.option("--seed", default=DEFAULTS["seed"], show_default=True, help="Seed of the inputs.")
@click.option("--cache/--no-cache", default=DEFAULTS["cache"], help="Keep and reuse kernels.")
@click.option("-j", "--jobs", type=int, help="Processes that compile kernels [default: cores].")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings on stderr.")
@click.option("--json", "json_mode", is_flag=True, help="Result and progress as JSON.")
def bisect(model: str, json_mode: bool, quiet: bool, **asked: Any) -> None:
    """Narrow what is wrong with an ONNX MODEL once it is compiled.

    Compiles it, compares with ONNX Runtime (tolerances as `mlc verify`), and finds the lowest level
    that is wrong, the first operator that diverges and the graph pass that brings it in. OUTPUT is
    a small model that shows it by itself. Crashes are narrowed like wrong answers: every candidate
    runs in a process of its own. Exit code 0 where nothing is wrong, 9 on a mismatch, 5 if the
    compiler or the compiled code fails.

    \b
      mlc bisect model.onnx
      mlc bisect bert.onnx --dynamic
      mlc bisect bert.onnx --shape seq=128 -O2 -o small.onnx --json | jq .passes
    """
    from mlc import api
    from mlc.cli.render import reporter
    from mlc.errors import BuildError, MismatchError

    report = api.bisect(model, on_event=reporter(json_mode, quiet), **asked)
    if json_mode:
        click.echo(json.dumps(asdict(report)))
    else:
        _show(report)
    if report.ok:
        return
    wrong = MismatchError if report.kind == "mismatch" else BuildError
    hint = f"show it with: {report.reproduce[0]}" if report.reproduce else None
    raise wrong(f"{report.model} is wrong at -O{report.level}:\n{report.message}", hint)


def _show(report: Any) -> None:
    from mlc.cli.tables import show_facts

    at = ", ".join(f"{name}={size}" for name, size in report.sizes.items())
    parts = f" (parts of it were tried at {at})" if at else ""
    if report.ok:
        lines: dict[str, str | None] = {"result": f"nothing is wrong at -O{report.opt_level}"}
    else:
        lines = {
            "result": report.kind,
            "level": f"-O{report.level}, the lowest up to -O{report.opt_level}",
            "operator": "\nor ".join(report.operators)
            or f"no part of the graph shows it by itself{parts}",
            "pass": " or ".join(report.passes) or "none",
            "why": report.why,
            "culprit": f"{report.culprit}, {report.nodes} nodes" if report.culprit else None,
            "at": at or None,
            "inputs": report.inputs,
            "reproduce": "\n".join(report.reproduce),
            "workaround": report.workaround,
        }
    lines["trials"] = f"{report.trials} in {report.seconds:.1f} s"
    show_facts(report.model, lines)
