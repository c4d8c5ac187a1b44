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


def arch() -> Decorator:
    """Return the option `--arch`, which belongs to `--target cuda`."""
    return click.option(
        "--arch", metavar="SM", help="With --target cuda: the GPU's architecture, such as sm_80."
    )


def with_arch(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the options with `--target cuda --arch sm_80` as the one target `cuda:sm_80`."""
    from mlc.errors import UsageError

    found = dict(asked)
    chosen = found.pop("arch")
    if chosen is None:
        return found
    if found["target"] != "cuda":
        raise UsageError("--arch goes with --target cuda", "or name a card: `mlc targets`")
    return {**found, "target": f"cuda:{chosen}"}


def device() -> Decorator:
    """Return the option `--device`."""
    return click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
        help="Where to run: an artifact for a GPU takes cuda, and NVIDIA's driver.",
    )  # fmt: skip


def sizes() -> Decorator:
    """Return the option `-s` of verbs that run an artifact."""
    return click.option(
        "-s", "--shape", "shapes", multiple=True, metavar="DIM=1",
        help="The size of an open dimension (see `mlc compile --dynamic`). Repeatable.",
    )  # fmt: skip


def shapes(
    text: str = "Fix an input's shape, or a named dimension wherever it occurs. Repeatable.",
) -> Decorator:
    """Return the option `-s`, described by `text`."""
    return click.option(
        "-s", "--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224|DIM=1", help=text
    )
