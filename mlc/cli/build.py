"""`mlc build`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from mlc.options import BuildOptions

if TYPE_CHECKING:
    from mlc.matrix.report import Report, Result


@click.command()
@click.option("-o", "--output", metavar="DIR", help="Where artifacts go [default: mlc.toml's].")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    help="Compiles at work at a time [default: mlc.toml's, else cores]; never more than fit into "
    "free memory.",
)
@click.option("--fail-fast", is_flag=True, help="Start no other after one that failed.")
@click.option(
    "--dry-run", "--list", "dry_run", is_flag=True, help="Show what would be built, and why."
)
@click.option("--cache/--no-cache", default=True, show_default=True, help="As for `mlc compile`.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings on stderr.")
@click.option("--json", "json_mode", is_flag=True, help="Report and progress as JSON.")
def build(json_mode: bool, quiet: bool, **asked: Any) -> None:
    """Make the artifacts that mlc.toml asks for: models times targets, what is out of date only.

    \b
      [build]
      output = "dist"                            # artifacts, report.json, junit.xml
      targets = ["llvm", "rpi4", "cuda:sm_80"]   # `mlc targets` lists them
      bundle = false                             # true: one artifact a model, for all its targets
      jobs = 2                                   # compiles at a time
    \b
      require_verified = false                   # gates: exit code 9 where one is not kept
      require_tuned = 0.95                       #   as `mlc compile --require-tuned`
      max_mb = 100
    \b
      [[build.model]]                            # one or more; without any, [model] is meant
      path = "resnet18.onnx"
    \b
      [[build.model]]
      path = "bert.onnx"
      shapes = ["batch=1", "seq=128"]            # as `mlc compile --shape`
      dynamic = ["batch", "seq"]                 # or instead: as --dynamic; true: all dimensions
      targets = ["llvm"]                         # instead of those above
      name = "bert-128"                          # dist/bert-128-llvm.mlc

    What is up to date is told by content, not by time: the model with its external data, the
    options, the tuning records, mlc itself, and the artifact's own bytes. Outputs are compared with
    ONNX Runtime's where this machine can run the code; what was not is said. One that fails keeps
    no other from being built, and an interrupted build goes on where it was.

    The exit code is that of the first failure in the order of mlc.toml: 9 for a mismatch or a gate,
    otherwise what `mlc compile` would end with.

    \b
      mlc build --dry-run
      mlc build -j 2 --json | jq '.entries[] | {name, state, bytes}'
    """  # fmt: skip
    from mlc.cli.render import reporter
    from mlc.matrix import report as reports
    from mlc.matrix import run

    report = run.build(BuildOptions(**asked), reporter(json_mode, quiet))
    if json_mode:
        click.echo(json.dumps(report.to_json()))
    else:
        _show(report, asked["dry_run"])
    reports.require(report)


def _show(report: Report, dry_run: bool) -> None:
    from mlc.cli.render import size
    from mlc.cli.tables import show_table

    rows = [
        [
            result.name,
            ("to build" if result.why else result.state) if dry_run else result.state,
            size(result.bytes) if result.bytes else "",
            "" if dry_run else f"{result.seconds:.1f}",
            _remark(result),
        ]
        for result in report.results
    ]
    show_table(
        f"{len(rows)} artifacts, {report.seconds:.1f} s", "artifact state -size -s remark", rows
    )


def _remark(result: Result) -> str:
    """Return why, or what is wrong; that a target was not verified is worth a word, too."""
    if result.failure is not None:
        return result.failure.message.split("\n")[0]
    unverified = [name for name, done in result.verified.items() if not done]
    said = [result.why, f"not verified for {', '.join(unverified)}" if unverified else ""]
    return "; ".join(filter(None, said))
