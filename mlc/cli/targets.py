"""`mlc targets`: what mlc can compile for, and which of it runs here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlc.cpu import HostCpu
    from mlc.target import Target


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def targets(name: str | None, as_json: bool) -> None:
    """List the targets, or show the one called NAME in full.

    NAME is anything that --target takes: a name from the list, `llvm` for this machine, or a TVM
    target string.
    """
    import json

    from mlc.cpu import host_cpu
    from mlc.target import all_targets, for_cpu, resolve

    cpu = host_cpu()
    if name is not None:
        row = _row(resolve(name), cpu)
        click.echo(json.dumps(row, indent=2)) if as_json else _show_one(row)
        return
    host = for_cpu(cpu)
    rows = [_row(target, cpu) for target in all_targets()]
    if as_json:
        click.echo(json.dumps({"host": _row(host, cpu), "targets": rows}, indent=2))
    else:
        _show_all(rows, host)


def _row(target: Target, cpu: HostCpu) -> dict[str, Any]:
    """Return the target as a JSON object; `runs_here` is null when only LLVM can tell."""
    from dataclasses import asdict

    from mlc.target import missing_features, runs_on

    return {
        **asdict(target),
        "id": target.id,
        "tvm": target.tvm,
        "runs_here": runs_on(target, cpu),
        "missing_here": list(missing_features(target.features, cpu)),
    }


def _show_all(rows: list[dict[str, Any]], host: Target) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=box.SIMPLE)
    table.add_column("target", no_wrap=True)
    table.add_column("runs here", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for row in rows:
        mark = " (llvm)" if row["tvm"] == host.tvm else ""
        runs, style = _verdict(row)
        table.add_row(Text(row["name"] + mark), Text(runs, style=style), Text(row["description"]))
    console.print(table)
    line = f"llvm, the default, is {host.name} on this machine: {host.tvm}"
    console.print(Text(line), soft_wrap=True)


def _show_one(row: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for key, value in {**row, "runs_here": _verdict(row)[0]}.items():
        text = ", ".join(value) if isinstance(value, list | tuple) else str(value)
        table.add_row(key.replace("_", " "), Text(text or "-"))
    Console().print(table)


def _verdict(row: dict[str, Any]) -> tuple[str, str]:
    """Return whether the target runs here, in words, and the style to print that in."""
    return {
        True: ("yes", "green"),
        False: ("no", "red"),
        None: ("not known", "yellow"),
    }[row["runs_here"]]
