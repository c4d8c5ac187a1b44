"""`mlc run`."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from mlc.cli.options import device, sizes
from mlc.options import RunOptions

if TYPE_CHECKING:
    import numpy as np

DEFAULTS = {field.name: field.default for field in fields(RunOptions)}


@click.command()
@click.argument("artifact")
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    metavar="FILE|NAME=FILE",
    help="x.npy, name=x.npy or inputs.npz (arrays by input name). Repeatable.",
)
@click.option("--random", is_flag=True, help="Fill inputs that no file gives with random values.")
@click.option("--seed", default=DEFAULTS["seed"], show_default=True, help="Seed of --random.")
@click.option("-o", "--output", help="Write the outputs to this .npz file.")
@click.option("--threads", type=click.IntRange(1), help="Size of the thread pool.")
@click.option("--allow-nan", is_flag=True, help="Accept NaN and infinity in inputs.")
@device()
@sizes()
@click.option("--json", "json_mode", is_flag=True, help="Summary as JSON.")
def run(json_mode: bool, **asked: Any) -> None:
    """Run an ARTIFACT once, and save its outputs or show a summary of them.

    \b
      mlc run resnet18.mlc --input image.npy
      mlc run bert.mlc -i ids=ids.npy -i mask=mask.npy -o out.npz
      mlc run model.mlc --random

    An artifact for several shapes runs in the bucket of the inputs' shapes (with --random alone: the
    first), and says which; see `mlc compile --help` for inputs of other sizes.
    """  # fmt: skip
    from mlc.cli.render import reporter
    from mlc.errors import printable
    from mlc.runtime.run import run as run_artifact

    options = RunOptions(**asked)
    outputs = run_artifact(options, reporter(json_mode))
    summary = [_summary(name, array) for name, array in outputs.items()]
    if json_mode:
        click.echo(json.dumps({"outputs": summary, "saved": options.output}))
        return
    for entry in summary:
        shape = ", ".join(map(str, entry["shape"]))
        click.echo(f"{entry['name']}  {entry['dtype']}[{shape}]  {entry['text']}")
    if options.output:
        click.echo(f"saved to {printable(options.output)}")


def _summary(name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    from mlc.errors import printable

    entry: dict[str, Any] = {
        "name": printable(name),
        "dtype": array.dtype.name,
        "shape": list(array.shape),
    }
    if array.size == 0 or array.dtype.kind not in "fiu":
        return {**entry, "text": f"{array.size} values"}
    low, high, mean = float(array.min()), float(array.max()), float(array.mean(dtype="float64"))
    top = [int(k) for k in array.reshape(-1).argsort()[::-1][:5]]
    text = f"min {low:.5g}, max {high:.5g}, mean {mean:.5g}, largest at {top}"
    figures = {
        key: value if math.isfinite(value) else str(value)  # JSON has no NaN and no infinity
        for key, value in {"min": low, "max": high, "mean": mean}.items()
    }
    return {**entry, **figures, "largest": top, "text": text}
