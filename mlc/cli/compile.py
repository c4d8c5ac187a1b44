"""`mlc compile`."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click

from mlc.cli.options import TakesDynamic, arch, dynamic, opt_level, shapes, with_arch
from mlc.options import CompileOptions

DEFAULTS = {field.name: field.default for field in fields(CompileOptions)}


@click.command(cls=TakesDynamic)
@click.argument("model", required=False)
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    help="What to compile for [default: mlc.toml's, else llvm]: `llvm` is this machine, "
    "`mlc targets` lists the others; `cuda:sm_80` and TVM target strings work too. Repeated: one "
    "artifact for all of them, which opens as what fits the machine.",
)
@arch()
@click.option("-o", "--output", help="The artifact's path [default: the model's name with .mlc].")
@opt_level(
    DEFAULTS["opt_level"],
    "0: every operator a kernel, 1: fusion, 2: and scale folding, 3: and layouts.",
)
@shapes(
    "Fix an input's shape, or a named dimension wherever it occurs; DIM=1,4 compiles for each size. "
    "Repeatable."
)
@dynamic(
    "Keep an open dimension open, or, without a name, all that --shape does not fix: the "
    "artifact runs at any of their sizes. A next word that ends in .onnx is MODEL, no name. "
    "Repeatable. [default: mlc.toml's, unless --shape is given]"
)
@click.option("--records", help="Apply the tuning records in this AutoTVM log.")
@click.option("--logs", help="The folder of tuning logs [default: tuning_logs here, if any].")
@click.option(
    "--require-tuned",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Fail (exit code 9) when records of this device cover less of the time in tunable kernels "
    "(of their FLOPs with --no-verify, which runs nothing).",
)
@click.option(
    "--exact",
    is_flag=True,
    help="No algorithm that rounds otherwise than the model's own (Winograd's convolution, attention in one kernel, erf, exp, softmax on vectors).",
)
@click.option(
    "--without-pass",
    "without",
    multiple=True,
    metavar="PASS",
    help="Leave a graph pass out (`mlc inspect MODEL --passes` lists them). Repeatable.",
)
@click.option(
    "--verify/--no-verify",
    default=DEFAULTS["verify"],
    show_default=True,
    help="Compare with ONNX Runtime, and write nothing on a mismatch.",
)
@click.option(
    "--seed", default=DEFAULTS["seed"], show_default=True, help="Seed of the inputs used to verify."
)
@click.option(
    "--cache/--no-cache",
    default=DEFAULTS["cache"],
    show_default=True,
    help="Keep and reuse compiled kernels (`mlc cache stats`).",
)
@click.option("-j", "--jobs", type=int, help="Processes that compile kernels [default: cores].")
@click.option(
    "--dump-ir",
    metavar="DIR",
    help="Write Relay around every pass, and TIR, LLVM IR and assembly of a kernel.",
)
@click.option("--kernel", help="The kernel that --dump-ir shows [default: the heaviest].")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings on stderr.")
@click.option("--json", "json_mode", is_flag=True, help="Result and progress as JSON.")
def compile(json_mode: bool, quiet: bool, targets: tuple[str, ...], **asked: Any) -> None:
    """Compile an ONNX MODEL to one verified artifact.

    \b
      mlc compile resnet18.onnx
      mlc compile resnet18.onnx --target cuda --arch sm_80
      mlc compile resnet18.onnx --target x86-64-v2 --target x86-64-v4 --target rpi4
      mlc compile bert.onnx --shape batch=1 --shape seq=128 --target x86-64-v3 -o bert.mlc
      mlc compile model.onnx --shape batch=1,4,16
      mlc compile bert.onnx --dynamic
      mlc compile --dynamic batch,seq bert.onnx
      mlc compile model.onnx --json | jq .manifest.verification.passed

    With several sizes (at most 32 combinations) one artifact holds a bucket for each, and a run takes
    the one whose shapes are exactly its inputs'. Inputs of other sizes are filled up with zeros to
    the nearest larger bucket, and outputs cut, only along dimensions for which compiling found that
    to agree with ONNX Runtime at sizes in between; else they are an error that lists the sizes.
    """  # fmt: skip
    from mlc import api, multi_target
    from mlc.cli.render import reporter

    asked = with_arch({**asked, "target": targets})
    targets = asked["target"]
    options = CompileOptions(**with_project({**asked, "target": targets[0] if targets else None}))
    if options.output is None:
        options = replace(options, output=str(api.default_output(Path(options.model))))
    report: Any
    if len(targets) > 1:
        report = multi_target.compile_bundle(options, targets, reporter(json_mode, quiet))
    else:
        report = api.compile_with(options, reporter(json_mode, quiet))
    if json_mode:
        click.echo(json.dumps(asdict(report), default=str))
    elif len(targets) > 1:
        _show_bundle(report, options.verify)
    else:
        _show(report, str(report.path), options.verify)


def with_project(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the options with what mlc.toml says where the command line says nothing."""
    from mlc import project

    here = project.load(Path.cwd())
    model = asked["model"] or str(project.require_model(here))
    ours = asked["model"] is None  # the project's model: its shapes and target are meant, too
    sizes = project.sizes_of(here, asked["shapes"], asked["dynamic"]) if ours else {}
    return {
        **asked,
        **sizes,
        "model": model,
        "target": asked["target"] or (here.target if ours else None) or DEFAULTS["target"],
        "logs": asked["logs"] or (str(here.logs) if here.logs and here.logs.is_dir() else None),
    }


def _show_bundle(report: Any, asked_to_verify: bool) -> None:
    from rich.markup import escape

    from mlc.cli.render import console, size
    from mlc.errors import printable

    stored, shared = (size(report.weights[key]) for key in ("stored", "shared"))
    console().print(
        f"[bold]{escape(printable(str(report.path)))}[/bold]  {size(report.bytes)}, "
        f"{len(report.variants)} targets: {stored} of weights, {shared} more of them shared",
        soft_wrap=True,
    )
    for variant in report.variants:
        _show(variant, variant.manifest["target"]["name"], asked_to_verify)


def _open(manifest: dict[str, Any]) -> str:
    """Return the open dimensions with their bounds, and the sizes that were compared."""
    names = [f"{d['name']} ({d['least']} to {d['most']})" for d in manifest["dynamic"]]
    checked = (manifest["verification"] or {}).get("sizes", [])
    at = "; ".join(", ".join(f"{k}={v}" for k, v in sizes.items()) for sizes in checked)
    return ", ".join(names) + (f"; compared at {at}" if at else "")


def _show(report: Any, heading: str, asked_to_verify: bool) -> None:
    from rich.markup import escape

    from mlc.cli.render import console, size
    from mlc.errors import printable

    manifest = report.manifest
    check = manifest["verification"]
    shares = report.coverage
    tuned = (
        f"  tuning     {shares['tuned']:.0%} of the work tuned on this device, "
        f"{shares['other_device']:.0%} on others of its class, {shares['fallback']:.0%} by default "
        f"(by {shares['by']}{', of the least tuned bucket' if 'buckets' in manifest else ''})"
    )
    lines = [
        f"[bold]{escape(printable(heading))}[/bold]  {size(report.bytes)}, {manifest['target']['tvm']}",
        *_kernels(manifest),
        f"  open       {escape(printable(_open(manifest)))}" if "dynamic" in manifest else tuned,
    ]
    if check is None:
        why = "this machine cannot run it" if asked_to_verify else "--no-verify"
        lines.append(f"  [yellow]verified   no ({why})[/yellow]")
    else:
        worst = max(check["outputs"], key=lambda output: output["max_abs"])
        lines.append(
            f"  verified   against {check['reference']}: max abs {worst['max_abs']:.1e}, "
            f"cosine {worst['cosine']:.7f}"
            + (f"; it differs from itself by {worst['spread']:.1e}" if "spread" in worst else "")
        )
    how = "from the cache" if report.from_cache else "compiled"
    lines.append(f"  time       {report.seconds:.2f} s, {how}")
    for line in lines:
        console().print(line, soft_wrap=True)


def _kernels(manifest: dict[str, Any]) -> list[str]:
    """Return how many kernels there are; of an artifact with buckets also these, and padding."""
    from rich.markup import escape

    from mlc.cli.tables import padding
    from mlc.errors import printable

    if "buckets" not in manifest:
        calls = sum(kernel["calls"] for kernel in manifest["kernels"].values())
        return [f"  kernels    {len(manifest['kernels'])}, {calls} calls per run"]
    entries = manifest["buckets"]
    every = {symbol for entry in entries for symbol in entry["kernels"]}
    names = "; ".join(", ".join(f"{d}={n}" for d, n in entry["dims"].items()) for entry in entries)
    return [
        f"  buckets    {escape(printable(names))}",
        f"  kernels    {len(every)} in all",
        f"  padding    {escape(printable(padding(manifest['padding'])))}",
    ]
