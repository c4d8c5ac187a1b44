"""`mlc bench`."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from mlc.cli.options import device, sizes
from mlc.options import BenchOptions

if TYPE_CHECKING:
    from rich.table import Table

    from mlc.runtime.bench import BenchResult
    from mlc.runtime.profile import KernelTime

ROWS = 20  # of the profile's table; --json has every kernel
DEFAULTS = {field.name: field.default for field in fields(BenchOptions)}


@click.command()
@click.argument("artifact")
@click.option(
    "--against",
    metavar="PEER",
    help="Time this too, in alternating blocks: onnxruntime. Needs --model.",
)
@click.option("-m", "--model", help="The ONNX file that the artifact was compiled from.")
@click.option(
    "--profile",
    is_flag=True,
    default=DEFAULTS["profile"],
    help="Show where the time goes, kernel by kernel.",
)
@click.option(
    "--warmup",
    type=float,
    default=DEFAULTS["warmup"],
    show_default=True,
    metavar="S",
    help="Seconds of runs that do not count.",
)
@click.option(
    "--duration",
    type=float,
    default=DEFAULTS["duration"],
    show_default=True,
    metavar="S",
    help="Seconds of runs that count (each side; at least 5 runs).",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=DEFAULTS["threads"],
    help="Threads, for everyone [default: one per physical core].",
)
@click.option(
    "--seed", default=DEFAULTS["seed"], show_default=True, help="Seed of the random inputs."
)
@device()
@sizes()
@click.option("--json", "json_mode", is_flag=True, help="Result and progress as JSON.")
def bench(json_mode: bool, **asked: Any) -> None:
    """Time an ARTIFACT on random inputs, by itself or side by side with ONNX Runtime.

    \b
      mlc bench resnet18.mlc
      mlc bench resnet18.mlc --against onnxruntime --model resnet18.onnx
      mlc bench resnet18.mlc --profile --threads 1
      mlc bench resnet18.mlc --shape batch=4
      mlc bench resnet18.mlc --json | jq .mlc.median

    Times drift with the machine's clock and load by 10-20 %, so compare two things only in one run:
    --against alternates short blocks of both and gives the ratio of their medians with its spread.
    A ratio above 1 means that mlc is faster. Spread in the table is the interquartile range over
    the median. On a GPU (--device cuda) a run is timed by this machine's clock, from starting its
    kernels to the end of the last one, inputs and outputs staying there; --profile by the GPU's.
    """  # fmt: skip
    from mlc.cli.render import console, reporter
    from mlc.runtime import bench as benching

    options = BenchOptions(**asked)
    result = benching.bench(options, reporter(json_mode))
    if json_mode:
        click.echo(json.dumps(result.to_json()))
        return
    out = console()
    out.print(_timings(result))
    if result.comparison is not None:
        out.print(result.comparison.verdict, soft_wrap=True, markup=False)
    if result.profile is not None:
        out.print(_kernels(result.profile, result.peak_gflops))


def _timings(result: BenchResult) -> Table:
    from rich.table import Table

    table = Table(
        title=f"{result.device or f'{result.threads} thread(s)'}, batch {result.batch}, seed {result.seed}",
        title_justify="left",
    )
    sides = [side for side in (result.mlc, result.peer) if side is not None]
    table.add_column("ms")
    for side in sides:
        table.add_column(side.name, justify="right")
    for row in ("median", "mean", "p90", "p99", "min", "max"):
        table.add_row(row, *(_ms(getattr(side, row)) for side in sides))
    table.add_row("spread", *(f"{side.spread:.0%}" for side in sides))
    table.add_row("runs", *(str(side.runs) for side in sides))
    table.add_row("samples/s", *(f"{side.throughput:.4g}" for side in sides))
    return table


def _kernels(kernels: tuple[KernelTime, ...], peak: float | None) -> Table:
    from rich.table import Table

    from mlc.cli.render import share_of

    total = sum(kernel.seconds for kernel in kernels)
    limit = f"; fp32 code reaches {peak:.0f} GFLOP/s here" if peak else ""
    table = Table(title=f"kernels, {_ms(total)} ms a run together{limit}", title_justify="left")
    table.add_column("kernel", overflow="fold")
    for column in ("calls", "ms", "share", "GFLOP/s", "of peak"):
        table.add_column(column, justify="right")
    for kernel in kernels[:ROWS]:
        speed = "" if kernel.gflops is None else f"{kernel.gflops:.1f}"
        table.add_row(
            kernel.symbol, str(kernel.calls), _ms(kernel.seconds), f"{kernel.share:.1%}", speed,
            share_of(kernel.gflops, peak),
        )  # fmt: skip
    rest = kernels[ROWS:]
    if rest:
        spent, share = sum(k.seconds for k in rest), sum(k.share for k in rest)
        calls = str(sum(k.calls for k in rest))
        table.add_row(
            f"{len(rest)} more (all in --json)", calls, _ms(spent), f"{share:.1%}", "", ""
        )
    return table


def _ms(seconds: float) -> str:
    """Return seconds as milliseconds with about four digits."""
    ms = seconds * 1e3
    return f"{ms:.2f}" if ms >= 10 else f"{ms:.3f}" if ms >= 0.1 else f"{ms:.4f}"
