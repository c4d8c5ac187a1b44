"""Options that several verbs take."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import click

from mlc.options import OPT_LEVELS
from mlc.sizes import EVERY

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
    """Return the options with `--target cuda --arch sm_80` as the one target `cuda:sm_80`.

    `target` may be a name (or None), or a tuple of names.
    """
    from mlc.errors import UsageError

    found = dict(asked)
    chosen, given = found.pop("arch"), found["target"]
    if chosen is None:
        return found
    names = given if isinstance(given, tuple) else (given,)
    if "cuda" not in names:
        raise UsageError("--arch goes with --target cuda", "or name a card: `mlc targets`")
    named = tuple(f"cuda:{chosen}" if name == "cuda" else name for name in names)
    return {**found, "target": named if isinstance(given, tuple) else named[0]}


def device(
    text: str = "Where to run: an artifact for a GPU takes cuda, and NVIDIA's driver.",
) -> Decorator:
    """Return the option `--device`, described by `text`."""
    return click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
        help=text,
    )  # fmt: skip


def sizes() -> Decorator:
    """Return the option `-s` of verbs that run an artifact."""
    return click.option(
        "-s", "--shape", "shapes", multiple=True, metavar="DIM=1",
        help="Of an artifact for several shapes, or with open dimensions (`mlc compile --dynamic`), the size. "
        "Repeatable.",
    )  # fmt: skip


def shapes(
    text: str = "Fix an input's shape, or a named dimension wherever it occurs. Repeatable.",
) -> Decorator:
    """Return the option `-s`, described by `text`."""
    return click.option(
        "-s", "--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224|DIM=1[,4]", help=text
    )


MODEL_SUFFIX = ".onnx"


class TakesDynamic(click.Command):
    """A command with a MODEL and `--dynamic [DIM]`, behind which the MODEL is no DIM.

    The rule: a word behind a bare `--dynamic` that ends in `.onnx` is not its value.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the value out (`--dynamic=*`) where click would take the next word for it."""
        options = args[: args.index("--")] if "--" in args else args
        for position, (word, following) in enumerate(itertools.pairwise(options)):
            if word == "--dynamic" and following.lower().endswith(MODEL_SUFFIX):
                args[position] = f"--dynamic={EVERY}"
        return super().parse_args(ctx, args)


def dynamic(text: str, *, hidden: bool = False) -> Decorator:
    """Return the option `--dynamic` of a `TakesDynamic` command, described by `text`."""
    return click.option(
        "--dynamic", multiple=True, is_flag=False, flag_value=EVERY, metavar="[DIM[,DIM]]",
        callback=_dims, hidden=hidden, help=text,
    )  # fmt: skip


def _dims(_ctx: click.Context, _option: click.Parameter, asked: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for part in asked for name in part.split(","))
