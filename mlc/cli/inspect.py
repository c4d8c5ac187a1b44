"""`mlc inspect`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from mlc.cli.options import arch, opt_level, shapes, with_arch
from mlc.cli.tables import flops, padding, show_facts, show_table, tensor
from mlc.options import InspectOptions

DEFAULTS = {field.name: field.default for field in fields(InspectOptions)}
_SHOWN_KERNELS = 12


@click.command()
@click.argument("path", metavar="MODEL|ARTIFACT")
@click.option("--passes", is_flag=True, help="What every pass did to operators and loops.")
@click.option("--relay", is_flag=True, help="The fused graph as Relay text, without weights.")
@click.option("--dump-ir", metavar="DIR", help="Write the IR around every pass, to assembly.")
@click.option("--kernel", help="The kernel that --dump-ir shows [default: the heaviest].")
@click.option("-t", "--target", default=DEFAULTS["target"], help="See `mlc targets`.")
@arch()
@opt_level(DEFAULTS["opt_level"], "The level whose passes run; compare 0 with 3.")
@shapes("As for `mlc compile`, one size for each dimension. Repeatable.")
@click.option("--json", "json_mode", is_flag=True, help="Result and progress as JSON.")
def inspect(path: str, json_mode: bool, **asked: Any) -> None:
    """Show what a MODEL (ONNX) or an ARTIFACT holds, and what each pass makes of a model.

    It runs the passes and plans the kernels; `mlc check` only foretells, in a second.

    \b
      mlc inspect resnet18.onnx
      mlc inspect resnet18.onnx --passes
      mlc inspect resnet18.onnx --dump-ir ir --kernel conv2d_add_add_relu_7524
      mlc inspect resnet18.mlc

    An artifact for several targets is listed; --target shows one of them.
    """
    from mlc import api
    from mlc.artifact import is_artifact
    from mlc.bundle import is_bundle
    from mlc.cli.render import reporter
    from mlc.errors import UsageError

    asked = with_arch(asked)
    if is_artifact(Path(path)):
        chosen = {"target"} if is_bundle(Path(path)) and _given({"target"}) else set()
        given = _given(set(asked) - chosen)
        asked = {name: asked[name] for name in chosen}
        if given:
            raise UsageError(
                f"{', '.join(given)} cannot be used with an artifact: it is compiled already",
                "give the ONNX model instead",
            )
    found = api.inspect(path, on_event=reporter(json_mode), **asked)
    if json_mode:
        click.echo(json.dumps(found))
    elif found["kind"] == "bundle":
        _show_bundle(found)
    elif found["kind"] == "artifact":
        _show_artifact(found)
    else:
        _show_model(found)


def _given(names: set[str]) -> list[str]:
    """Return those of the options with these parameter names that the user wrote."""
    context = click.get_current_context()
    written = click.core.ParameterSource.COMMANDLINE
    return [
        max(option.opts, key=len)
        for option in context.command.params
        if option.name in names and context.get_parameter_source(option.name) is written
    ]


def _show_model(found: dict[str, Any]) -> None:
    from mlc.cli.render import size
    from mlc.errors import printable

    counts = found["parameters"]
    operators = ", ".join(f"{name} {count}" for name, count in found["operators"].items())
    lines = {
        "format": f"ONNX opset {found['opset']}, {size(found['bytes'])}",
        "written by": found["producer"],
        "inputs": "\n".join(map(tensor, found["inputs"])),
        "outputs": "\n".join(map(tensor, found["outputs"])),
        "parameters": f"{counts['elements']:,} in {counts['tensors']} tensors, "
        f"{size(counts['bytes'])}",
        "nodes": f"{found['nodes']}: {operators}",
        "unsupported": "\n".join(map(_unsupported, found["unsupported"])),
        f"at -O{found['opt_level']}": _work(found),
        "target": found["target"],
    }
    show_facts(found["path"], lines)
    _show_kernels(found)
    if found["passes"] is not None:
        _show_passes(found)
    if found["relay"] is not None:
        click.echo(printable(found["relay"], limit=len(found["relay"])))
    if found["dump"] is not None:
        click.echo(f"IR written to {printable(found['dump']['directory'])}: see index.txt there")


def _show_bundle(found: dict[str, Any]) -> None:
    from mlc.cli.render import size

    variants = found["variants"]
    alone = sum(one["parameters"]["bytes"] for one in variants)
    lines: dict[str, str | None] = {
        "format": f"mlc artifact for {len(variants)} targets, {size(found['bytes'])}",
        "model": str(variants[0]["model"].get("path")),
        "inputs": "\n".join(map(tensor, variants[0]["inputs"])),
        "outputs": "\n".join(map(tensor, variants[0]["outputs"])),
        "weights": f"{size(alone)} if none were shared",
    }
    show_facts(found["path"], lines)
    rows = [
        [
            one["target"]["name"],
            "this one" if number == found["runs_here"] else "",
            "yes" if (one["verification"] or {}).get("passed") else "no",
            str(one["target"]["tvm"]),
        ]
        for number, one in enumerate(variants)
    ]
    show_table("targets; `--target NAME` shows one", "target here verified TVM", rows)


def _show_artifact(found: dict[str, Any]) -> None:
    from mlc.cli.render import size

    model, check, tuning = found["model"], found["verification"], found["tuning"] or {}
    weights, ready = found["parameters"], found["parameters"]["bytes_in_memory"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = {
        "format": f"mlc artifact {found['format']}, {size(found['bytes'])}",
        "written by": f"mlc {found['mlc']}, {versions}",
        "model": f"{model.get('path')}, sha256 {str(model.get('sha256'))[:16]}",
        **_shapes(found),
        "open": ", ".join(f"{d['name']} {d['least']} to {d['most']}" for d in found["dynamic"]),
        "target": found["target"]["tvm"],
        "needs": ", ".join(found["target"]["features"]),
        "weights": f"{weights['tensors']} tensors, {size(weights['bytes'])}"
        + (f", {size(ready)} in memory" if ready != weights["bytes"] else ""),
        "buffers": size(found["buffer_bytes"]) if found["buffer_bytes"] else "",
        f"at -O{found['opt_level']}": _work(found),
        "passes": ", ".join(found["passes"]),
        "tuned": ""
        if found["dynamic"]
        else f"{tuning.get('share_of_flops', {}).get('tuned', 0):.0%} of the work",
        "verified": f"{'passed' if check.get('passed') else 'FAILED'} against "
        f"{check.get('reference')}"
        if check
        else "no",
    }
    show_facts(found["path"], lines)
    _show_buckets(found)
    _show_kernels(found)
    _show_resources(found)


def _shapes(found: dict[str, Any]) -> dict[str, str]:
    """Return the lines about inputs and outputs, and padding; the table of buckets has their sizes."""
    lines = {side: "\n".join(map(tensor, found[side])) for side in ("inputs", "outputs")}
    if "buckets" not in found:
        return lines
    lines = {f"{side} (first bucket)": text for side, text in lines.items()}
    return {**lines, "padding": padding(found["padding"])}


def _show_buckets(found: dict[str, Any]) -> None:
    from mlc.cli.render import size

    rows = [
        [
            ", ".join(f"{dim}={n}" for dim, n in bucket["dims"].items()),
            flops(bucket["flops"]),
            str(sum(kernel["calls"] for kernel in bucket["kernels"])),
            size(bucket["parameters"]["bytes"]),
            size(bucket["buffer_bytes"] or 0),
        ]
        for bucket in found.get("buckets", [])
    ]
    if rows:
        title = "buckets; the kernels and figures beside are the first one's"
        show_table(title, "bucket -work -calls -weights -buffers", rows)


def _show_resources(found: dict[str, Any]) -> None:
    """Print what each function for a GPU takes, as its assembler says."""
    rows = [
        [str(taken["registers"]), str(taken["spill_bytes"]), str(taken["shared_bytes"]), name]
        for kernel in found["kernels"][:_SHOWN_KERNELS]
        for name, taken in kernel["resources"].items()
    ]
    if rows:
        title = "GPU functions: registers a thread, bytes spilled, shared memory a block"
        show_table(title, "-registers -spilled -shared function", rows)


def _work(found: dict[str, Any]) -> str:
    if found.get("incomplete"):
        return f"not known: {found['incomplete']}"
    calls = sum(kernel["calls"] for kernel in found["kernels"])
    work = (
        "FLOPs depend on the sizes" if found.get("dynamic") else f"{flops(found['flops'])} per run"
    )
    return f"{work}, {calls} calls of {len(found['kernels'])} kernels"


def _show_kernels(found: dict[str, Any]) -> None:
    rows, is_open = [], bool(found.get("dynamic"))
    for kernel in found["kernels"][:_SHOWN_KERNELS]:
        work = kernel["calls"] * kernel["flops"]
        share = f"{work / found['flops']:.1%}" if work else ""
        operators = " ".join(name.removeprefix("nn.") for name in kernel["operators"])
        shown = [] if is_open else [flops(work), share]
        rows.append([f"{kernel['calls']}x", *shown, kernel["symbol"], operators])
    if rows and is_open:
        show_table("kernels", "-calls kernel operators", rows)
    elif rows:
        show_table("kernels, the heaviest first", "-calls -work -share kernel operators", rows)
    left = len(found["kernels"]) - len(rows)
    if left:
        click.echo(f"and {left} more (--json lists all)")


def _show_passes(found: dict[str, Any]) -> None:
    graph, loops = [], []
    for row in found["passes"]:
        time = "" if row["seconds"] is None else f"{row['seconds'] * 1e3:.1f}"
        what = str(row["what"]) if row["ran"] else f"not run: {row['what']}"
        if row["stage"] == "relay":
            before, after = row["operators_before"], row["operators_after"]
            counts = f"{before} -> {after}" if before != after else str(after or "")
            graph.append([row["name"], time, counts, what])
        else:
            loops.append([row["name"], row["stage"], time, what])
    title = f"graph passes at -O{found['opt_level']}"
    show_table(title, "pass -ms -operators what", graph)
    title = f"loops of {len(found['kernels'])} kernels: schedules mark them, TIR passes write them"
    show_table(title, "pass stage -ms what", loops)
    end = found["loops"]["lowered"]
    click.echo(
        f"in the end: {end['vector_loads']} vector loads and {end['vector_stores']} vector stores "
        f"of up to {found['loops']['widest_vector_lanes']} lanes,\n"
        f"{end['parallel']} parallel and {end['serial']} serial loops"
    )


def _unsupported(entry: dict[str, Any]) -> str:
    name = f"{entry['domain'] or 'ai.onnx'}::{entry['operator']}"
    return f"{name} (opset {entry['opset']}), {entry['count']}x: {entry['advice']}"
