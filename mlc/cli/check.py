"""`mlc check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mlc.cli.options import TakesDynamic, dynamic, shapes
from mlc.cli.tables import flops, show_facts, show_table, tensor

_BY = {
    "mlc": "our converter",
    "TVM": "TVM's converter",
    "body": "its function body",
    "unrolled": "unrolled",
    "": "nothing",
}
_YES = "yes, as far as names, types and shapes tell"
_REST = "; whether open sizes divide and fit, compiling tells"


@click.command(cls=TakesDynamic)
@click.argument("model", required=False)
@shapes("As for `mlc compile`; of several sizes each is checked. Repeatable.")
@dynamic("As for `mlc compile`: say which dimensions can stay open, and what refuses the others.")
@click.option("--json", "json_mode", is_flag=True, help="Result and progress as JSON.")
def check(model: str | None, json_mode: bool, **asked: Any) -> None:
    """Say what would happen if an ONNX MODEL were compiled, in a second.

    What converts each operator, all problems at once with advice, sizes to choose and the option to
    paste, an estimate of FLOPs and memory. It looks at names, types and shapes only and compiles
    nothing: a converter may still refuse an attribute. `mlc inspect` runs the passes and
    knows kernels and FLOPs exactly. Without MODEL mlc.toml's is meant, with its sizes. Exit code 0 if
    the model should compile, else 3.

    \b
      mlc check bert.onnx
      mlc check bert.onnx --shape seq=128 --json | jq .problems
      mlc check bert.onnx --dynamic --json | jq .dynamic
    """
    from mlc import api, project
    from mlc.cli.render import reporter
    from mlc.errors import UnsupportedError

    if model is None:
        here = project.load(Path.cwd())
        model = str(project.require_model(here))
        asked = project.sizes_of(here, **asked)
    found = api.check(model, on_event=reporter(json_mode, quiet=True), **asked)
    if json_mode:
        click.echo(json.dumps(found))
    else:
        _show(found)
    if not found["compiles"]:
        raise UnsupportedError(*_verdict(found["problems"]))


def _verdict(problems: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the message and hint of the error: every problem, then the first thing to do."""
    listing = [
        f"  {problem['kind']}: {problem['message']}"
        + (f"\n    {problem['hint']}" if problem["hint"] else "")
        for problem in problems
    ]
    plural = "s" if len(problems) > 1 else ""
    message = f"the model would not compile, {len(problems)} problem{plural}:\n"
    return message + "\n".join(listing), "see the advice below each"


def _show(found: dict[str, Any]) -> None:
    from mlc.cli.render import size

    weights, cost = found["parameters"], found["estimate"]
    opsets = ", ".join(f"{name} {version}" for name, version in found["opsets"].items())
    lines = {
        "format": f"ONNX IR {found['ir_version']}, opset {opsets}, {size(found['bytes'])}",
        "written by": found["producer"],
        "inputs": "\n".join(map(tensor, found["inputs"])),
        "outputs": "\n".join(map(tensor, found["outputs"])),
        "chosen": "\n".join(found["chosen"]),
        "assumed": ", ".join(found["open_shapes"]) + " below" if found["open_shapes"] else None,
        "parameters": f"{weights['elements']:,} in {weights['tensors']} tensors, "
        f"{size(weights['bytes'])}",
        "work": f"about {flops(cost['flops'])} per run" if cost else None,
        "memory": _memory(cost) if cost else None,
        "open": "\n".join(map(_open, found["dynamic"])),
        "compiles": _YES + _REST * bool(found["dynamic"]) if found["compiles"] else "no",
    }
    show_facts(found["path"], lines)
    _show_buckets(found.get("buckets", []))
    rows = [
        [f"{row['count']}x", f"{row['domain'] or 'ai.onnx'}::{row['operator']}", _BY[row["by"]]]
        for row in sorted(found["support"], key=lambda row: (row["by"] != "", -row["count"]))
    ]
    show_table("operators of the file, and what converts them", "-count operator by", rows)


def _open(dim: dict[str, Any]) -> str:
    verdict = {
        True: "can stay open, as far as names, types and shapes tell",
        False: "cannot",
        None: "compiling tells",
    }[dim["stays"]]
    return "\n  ".join([f"{dim['name']}: {verdict}", *dim["why"]])


def _show_buckets(buckets: list[dict[str, Any]]) -> None:
    rows = [
        [
            ", ".join(f"{dim}={size}" for dim, size in bucket["dims"].items()),
            "yes" if bucket["compiles"] else "no",
            flops(bucket["estimate"]["flops"]) if bucket["estimate"] else "",
            _memory(bucket["estimate"]) if bucket["estimate"] else "",
        ]
        for bucket in buckets
    ]
    if rows:
        show_table("sizes that --shape lists", "bucket compiles -work memory", rows)


def _memory(cost: dict[str, int]) -> str:
    from mlc.cli.render import size

    open_values = f", without {cost['open_values']} results of unknown shape"
    return (
        f"about {size(cost['weight_bytes'])} of weights, {size(cost['activation_bytes'])} of "
        f"intermediate results, {size(cost['input_bytes'])} of inputs"
        + (open_values if cost["open_values"] else "")
    )
