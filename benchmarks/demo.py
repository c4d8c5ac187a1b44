"""`make demo`: the main job on a real network, command by command, as a new user would type it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.zoo import MODELS

ROOT = Path(__file__).resolve().parent.parent


def mlc(*arguments: str, capture: bool = False) -> Any:
    """Run an mlc command in the open; with `capture`, return its JSON result."""
    print(f"\n$ mlc {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "mlc", *arguments]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE if capture else None, text=True, cwd=ROOT
    )
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout) if capture else None


def main() -> None:
    spec = MODELS["resnet18"]
    with tempfile.TemporaryDirectory(prefix="mlc-demo-") as folder:
        model, art = str(Path(folder) / "resnet18.onnx"), str(Path(folder) / "resnet18.mlc")
        inputs = [word for text in spec.inputs for word in ("--input", text)]
        mlc("export", spec.factory, *inputs, "-o", model)
        report = mlc("compile", model, "-o", art, "--no-cache", "--json", capture=True)
        again = mlc("compile", model, "-o", art, "--json", capture=True)
        again = mlc("compile", model, "-o", art, "--json", capture=True)
        mlc("run", art, "--random")
        mlc("verify", art, model)
        peers = ("--against", "onnxruntime", "--model", model)
        timing = mlc("bench", art, *peers, "--json", capture=True)
        show(model, report, again, timing)


def show(model: str, report: Any, again: Any, timing: Any) -> None:
    """Print the closing table."""
    ours, theirs, comparison = timing["mlc"], timing["peer"], timing["comparison"]
    check = report["manifest"]["verification"]
    worst = max(check["outputs"], key=lambda output: output["max_abs"])
    table = Table(title="ResNet-18, 224x224, batch 1, fp32", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    rows = [
        ("ONNX file", f"{Path(model).stat().st_size / 1e6:.1f} MB"),
        ("artifact", f"{report['bytes'] / 1e6:.1f} MB"),
        ("target", report["manifest"]["target"]["name"]),
        ("compile, cold", f"{report['seconds']:.1f} s"),
        ("compile, again", f"{again['seconds']:.2f} s"),
        ("latency, mlc (untuned)", f"{ours['median'] * 1e3:.1f} ms"),
        (f"latency, {theirs['name']}", f"{theirs['median'] * 1e3:.1f} ms"),
        (
            "ONNX Runtime's time / ours",
            f"{comparison['ratio']:.2f} ({comparison['low']:.2f} to {comparison['high']:.2f})",
        ),
        ("that ratio is reliable", "yes" if comparison["reliable"] else "no: the machine is busy"),
        ("verified, largest error", f"{worst['max_abs']:.1e}, cosine {worst['cosine']:.7f}"),
        ("verification", "passed" if check["passed"] else "FAILED"),
    ]
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
