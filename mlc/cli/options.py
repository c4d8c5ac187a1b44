"""Options that several verbs take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlc.options import OPT_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    Decorator = Callable[[Any], Any]


def opt_level(default: Any, text: str) -> Decorator:
    """Return the option `-O`, described by `text`."""
    return click.option(
        "-O",
        "--opt-level",
        type=click.IntRange(OPT_LEVELS[0], OPT_LEVELS[-1]),
        default=default,
        show_default=True,
        help=text,
    )


def shapes(
    text: str = "Fix an input's shape, or a named dimension wherever it occurs. Repeatable.",
) -> Decorator:
    """Return the option `-s`, described by `text`."""
    return click.option(
        "-s", "--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224|DIM=1", help=text
    )
