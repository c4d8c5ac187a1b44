"""`mlc doctor`: says whether this machine is fit to compile, tune and time models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlc.errors import MissingToolError

if TYPE_CHECKING:
    from mlc.doctor import Check

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command()
@click.option("-t", "--target", help="Check also what compiling for this target takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as one JSON object.")
@click.pass_context
def doctor(context: click.Context, target: str | None, as_json: bool) -> None:
    """Check this machine and installation, and say what to do.

    Exits with 8 when a check fails: something that mlc needs is missing or broken. Warnings are
    about speed and about timings that could mislead; they do not change the exit code.
    """
    import json
    from dataclasses import asdict

    from mlc.doctor import diagnose

    checks = diagnose(target)
    healthy = all(check.status != "fail" for check in checks)
    if as_json:
        report = {"ok": healthy, "checks": [asdict(check) for check in checks]}
        click.echo(json.dumps(report, indent=2))
    else:
        _show(checks)
    context.exit(0 if healthy else MissingToolError.exit_code)


def _show(checks: list[Check]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        status = Text(check.status, style=_STYLES[check.status])
        table.add_row(status, Text(check.name), Text(check.value))
    console.print(table)
    # Advice stands below the table, in unbroken lines: a command there can be copied whole.
    todo = [check for check in checks if check.advice]
    for check in todo:
        line = Text.assemble((check.name, _STYLES[check.status]), f": {check.advice}")
        console.print(line, soft_wrap=True)
    if not todo:
        console.print("Nothing to do.")
