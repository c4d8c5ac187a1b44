"""`mlc compile`."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click

from mlc.cli.options import arch, opt_level, shapes, with_arch
from mlc.options import CompileOptions

DEFAULTS = {field.name: field.default for field in fields(CompileOptions)}


@click.command()
@click.argument("model", required=False)
@click.option(
    "-t",
    "--target",
    help="What to compile for [default: mlc.toml's, else llvm]: `llvm` is this machine, "
    "`mlc targets` lists the others; a TVM target string works too.",
)
@arch()
@click.option("-o", "--output", help="The artifact's path [default: the model's name with .mlc].")
@opt_level(
    DEFAULTS["opt_level"],
    "0: every operator a kernel, 1: fusion, 2: and scale folding, 3: and layouts.",
)
@shapes()
@click.option(
    "--dynamic",
    multiple=True,
    is_flag=False,
    flag_value="*",
    metavar="[DIM]",
    help="Keep an open dimension open, or, without a name, all that --shape does not fix: the "
    "artifact runs at any of their sizes. Repeatable.",
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
def compile(json_mode: bool, quiet: bool, **asked: Any) -> None:
    """Compile an ONNX MODEL to one verified artifact.

    \b
      mlc compile resnet18.onnx
      mlc compile resnet18.onnx --target cuda --arch sm_80
      mlc compile bert.onnx --shape batch=1 --shape seq=128 --target x86-64-v3 -o bert.mlc
      mlc compile bert.onnx --dynamic
      mlc compile model.onnx --json | jq .manifest.verification.passed
    """  # fmt: skip
    from mlc import api
    from mlc.cli.render import reporter

    options = CompileOptions(**with_project(with_arch(asked)))
    if options.output is None:
        options = replace(options, output=str(api.default_output(Path(options.model))))
    report = api.compile_with(options, reporter(json_mode, quiet))
    if json_mode:
        click.echo(json.dumps({**asdict(report), "path": str(report.path)}))
        return
    _show(report, options.verify)


def with_project(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the options with what mlc.toml says where the command line says nothing."""
    from mlc import project

    here = project.load(Path.cwd())
    model = asked["model"] or str(project.require_model(here))
    ours = asked["model"] is None  # the project's model: its shapes and target are meant, too
    return {
        **asked,
        "model": model,
        "shapes": asked["shapes"] or (here.shapes if ours else ()),
        "target": asked["target"] or (here.target if ours else None) or DEFAULTS["target"],
        "logs": asked["logs"] or (str(here.logs) if here.logs and here.logs.is_dir() else None),
    }


def _open(manifest: dict[str, Any]) -> str:
    """Return the open dimensions with their bounds, and the sizes that were compared."""
    names = [f"{d['name']} ({d['least']} to {d['most']})" for d in manifest["dynamic"]]
    checked = (manifest["verification"] or {}).get("sizes", [])
    at = "; ".join(", ".join(f"{k}={v}" for k, v in sizes.items()) for sizes in checked)
    return ", ".join(names) + (f"; compared at {at}" if at else "")


def _show(report: Any, asked_to_verify: bool) -> None:
    from rich.markup import escape

    from mlc.cli.render import console, size
    from mlc.errors import printable

    manifest = report.manifest
    check = manifest["verification"]
    shares = report.coverage
    calls = sum(kernel["calls"] for kernel in manifest["kernels"].values())
    tuned = (
        f"  tuning     {shares['tuned']:.0%} of the work tuned on this device, "
        f"{shares['other_device']:.0%} on others of its class, {shares['fallback']:.0%} by default "
        f"(by {shares['by']})"
    )
    lines = [
        f"[bold]{escape(printable(str(report.path)))}[/bold]  {size(report.bytes)}, {manifest['target']['tvm']}",
        f"  kernels    {len(manifest['kernels'])}, {calls} calls per run",
        *(
            [f"  open       {escape(printable(_open(manifest)))}"]
            if "dynamic" in manifest
            else [tuned]
        ),
    ]
    if check is None:
        why = "this machine cannot run it" if asked_to_verify else "--no-verify"
        lines.append(f"  [yellow]verified   no ({why})[/yellow]")
    else:
        worst = max(check["outputs"], key=lambda output: output["max_abs"])
        lines.append(
            f"  verified   against {check['reference']}: max abs {worst['max_abs']:.1e}, "
            f"cosine {worst['cosine']:.7f}"
        )
    how = "from the cache" if report.from_cache else "compiled"
    lines.append(f"  time       {report.seconds:.2f} s, {how}")
    for line in lines:
        console().print(line, soft_wrap=True)
