"""Facts and tables on stdout, for verbs that show what a model holds."""

from __future__ import annotations

from typing import Any


def tensor(spec: dict[str, Any]) -> str:
    """Return an input or output as `name dtype[dims]`."""
    dims = "any shape" if spec["shape"] is None else ", ".join(
        "?" if dim is None else str(dim) for dim in spec["shape"]
    )  # fmt: skip
    return f"{spec['name']} {spec['dtype']}[{dims}]"


def flops(count: float) -> str:
    """Return floating-point operations in a form for people."""
    for unit in ("FLOP", "kFLOP", "MFLOP"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "FLOP" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GFLOP"


def padding(found: dict[str, Any]) -> str:
    """Return what an artifact with buckets says of inputs whose sizes lie in between."""
    along = f"along {', '.join(found['offered'])}" if found["offered"] else "none"
    return "; ".join([along, *(f"not {dim}: {why}" for dim, why in found["refused"].items())])


def show_facts(title: str, lines: dict[str, str | None]) -> None:
    """Print names and values as two columns; what has no value is left out."""
    from rich.table import Table

    from mlc.cli.render import console

    table = Table(box=None, show_header=False, title_justify="left", title=safe(title))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in lines.items():
        if value:
            table.add_row(name, safe(value))
    console().print(table)


def show_table(title: str, columns: str, rows: list[list[str]]) -> None:
    """Print rows of untrusted text; a column's name begins with `-` when it holds numbers."""
    from rich import box
    from rich.table import Table

    from mlc.cli.render import console

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns.split():
        number = name.startswith("-")
        table.add_column(
            name.removeprefix("-"), justify="right" if number else "left", overflow="fold",
            no_wrap=number or name in ("pass", "stage"),
        )  # fmt: skip
    for cells in rows:
        table.add_row(*map(safe, cells))
    console().print(table)


def safe(text: str) -> str:
    """Return untrusted text as plain Rich markup without control characters."""
    from rich.markup import escape

    from mlc.errors import printable

    return escape(printable(text))
