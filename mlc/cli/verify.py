"""`mlc verify`."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import click

from mlc.cli.options import device, sizes
from mlc.options import VerifyOptions

DEFAULTS = {field.name: field.default for field in fields(VerifyOptions)}


@click.command()
@click.argument("artifact")
@click.argument("model")
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    metavar="FILE|NAME=FILE",
    help="Compare on these inputs instead of random ones (as for `mlc run`).",
)
@click.option("--seed", default=DEFAULTS["seed"], show_default=True, help="Seed of the inputs.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=DEFAULTS["rounds"],
    show_default=True,
    help="How many seeded inputs to compare.",
)
@click.option(
    "--emulate",
    is_flag=True,
    help="Run an artifact for 64-bit Arm Linux in qemu (the first time, pip fetches TVM's runtime "
    "library for it, 44 MB), or one for NVIDIA GPUs in a simulator.",
)
@click.option(
    "-t", "--target", help="Of an artifact for several targets, the one to run or to emulate."
)
@device()
@sizes()
@click.option("--json", "json_mode", is_flag=True, help="Result as JSON.")
def verify(json_mode: bool, **asked: Any) -> None:
    """Compare an ARTIFACT with ONNX Runtime on the ONNX MODEL it was compiled from.

    Per output: largest absolute and relative error, cosine similarity, NaN and infinity counts.
    Tolerances: float32 1e-3 relative + 1e-5 of the output's scale, float16 1e-2 + 2e-3,
    float64 1e-7 + 1e-9; integers and booleans must be equal. Exit code 9 on a mismatch.
    Of an artifact for several shapes every bucket is compared (with --input: the inputs').
    """  # fmt: skip
    from mlc.cli.render import reporter
    from mlc.runtime import verify as verification

    options = VerifyOptions(**asked)
    result = verification.verify(options, reporter(json_mode))
    if json_mode:
        click.echo(json.dumps(result.to_json()))
    else:
        _show(result)
    verification.require(result, options.artifact)


def _show(result: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from mlc.cli.render import console
    from mlc.errors import printable

    table = Table(
        title=f"against {result.reference}, {result.rounds} round(s)", title_justify="left"
    )
    for column in ("output", "dtype", "max abs", "max rel", "cosine", "NaN", "Inf", "verdict"):
        table.add_column(column, justify="left" if column in ("output", "dtype") else "right")
    for check in result.outputs:
        verdict = "[green]ok[/green]" if check.passed else "[red]MISMATCH[/red]"
        table.add_row(
            escape(printable(check.name)), check.dtype, f"{check.max_abs:.2e}",
            f"{check.max_rel:.2e}", f"{check.cosine:.8f}", f"{check.nan}/{check.nan_reference}",
            f"{check.inf}/{check.inf_reference}", verdict,
        )  # fmt: skip
    console().print(table)
