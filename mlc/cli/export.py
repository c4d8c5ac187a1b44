"""`mlc export`: a PyTorch module or exported program to ONNX."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from mlc import events
from mlc.options import ExportOptions

if TYPE_CHECKING:
    from mlc.torch_export import ExportReport

EXPORTERS = ("dynamo", "torchscript")  # a test compares them with the library's
_DEFAULT: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(ExportOptions)
}


@click.command(short_help="Export a PyTorch module to ONNX.")
@click.argument("factory", metavar="PKG.MODULE:FACTORY")
@click.option(
    "-i",
    "--input",
    "inputs",
    metavar="[NAME[:DTYPE]:]SHAPE",
    multiple=True,
    help="Name, dtype (float32 unless said) and shape of one input; repeat for more. "
    "`1,3,224,224`, `image:1,3,224,224`, `ids:int64:1,128`.",
)
@click.option(
    "-o",
    "--output",
    metavar="OUT.onnx",
    help="File to write.  [default: FACTORY.onnx in the current folder]",
)
@click.option(
    "--exporter",
    type=click.Choice(EXPORTERS),
    default=_DEFAULT["exporter"],
    show_default=True,
    help="Which of torch's exporters; where one fails, the other may not.",
)
@click.option(
    "--opset",
    type=click.IntRange(min=1),
    default=_DEFAULT["opset"],
    help="ONNX opset version.  [default: torch's own]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=_DEFAULT["seed"],
    show_default=True,
    help="Seed for weights that the factory draws, and for the traced inputs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(
    factory: str,
    inputs: tuple[str, ...],
    output: str | None,
    exporter: str,
    opset: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Export a PyTorch module to ONNX.

    FACTORY is called without arguments and returns a torch.nn.Module (or a
    torch.export.ExportedProgram, which needs no --input). It is imported as Python would: from
    the current folder or an installed package. Needs the torch extra:
    pip install 'mlc-compiler[torch]'.

    \b
    Example, with a file models.py here:
        def tiny():
            return torch.nn.Sequential(torch.nn.Linear(8, 2), torch.nn.ReLU())
    \b
        mlc export models:tiny --input 1,8          writes tiny.onnx
        mlc export models:bert -i ids:int64:1,128 -i mask:int64:1,128 -o bert.onnx
        mlc compile tiny.onnx                       the next step
    """
    from mlc.torch_export import export as run
    from mlc.torch_export.arguments import default_output

    options = ExportOptions(
        factory=factory,
        inputs=inputs,
        output=output or default_output(factory),
        exporter=exporter,
        opset=opset,
        seed=seed,
    )
    report = run(options, _show_json if as_json else _show_line)
    click.echo(json.dumps(report.to_json()) if as_json else _line(report))


def _line(report: ExportReport) -> str:
    takes = ", ".join(map(str, report.inputs))
    gives = ", ".join(map(str, report.outputs))
    size = f"{report.bytes / 1e6:.1f} MB"
    return f"{report.path}: {size}, opset {report.opset}, {takes} -> {gives}"


def _show_line(event: events.Event) -> None:
    if isinstance(event, events.Stage):
        click.echo(f"{event.name:<8} {event.seconds:6.1f} s  {event.note}", err=True)
    elif isinstance(event, events.Notice):
        click.echo(f"{event.level}: {event.text}", err=True)


def _show_json(event: events.Event) -> None:
    click.echo(json.dumps(events.to_json(event)), err=True)
