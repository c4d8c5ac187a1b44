"""`mlc rpc`: a tracker, servers, and a look at both."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from mlc.cli.options import device
from mlc.options import RpcServerOptions, RpcTrackerOptions

if TYPE_CHECKING:
    from mlc.rpc.address import Address
    from mlc.rpc.tracker import Status

TRACKER = RpcTrackerOptions()
SERVER = {field.name: field.default for field in fields(RpcServerOptions)}


@click.group()
def rpc() -> None:
    """Offer machines to `mlc tune` to measure on, and list them.

    This is TVM's RPC: no password, no encryption, and whoever reaches a port can run code on the
    machine. Both commands listen at 127.0.0.1 only; reach other machines through an SSH tunnel.

    \b
      mlc rpc tracker                            knows which devices are free
      mlc rpc server --key rpi4                  offers this machine to it
      mlc rpc server --key a100 --device cuda    and its GPU
      mlc tune model.onnx --tracker 127.0.0.1:9190 --key rpi4
    """


_HOST = click.option(
    "--host", default=TRACKER.host, show_default=True, help="Address to listen at; see above."
)
_JSON = click.option("--json", "json_mode", is_flag=True, help="As JSON.")


@rpc.command()
@_HOST
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=TRACKER.port,
    show_default=True,
    help="Port to listen at; 0: any free one.",
)
@_JSON
def tracker(host: str, port: int, json_mode: bool) -> None:
    """Run a tracker until Ctrl-C.

    TVM's RPC has no password: whoever reaches its port can offer devices and use them.
    """
    from mlc.rpc import serve

    def ready(address: Address) -> None:
        _say({"tracker": str(address)}, f"tracker at {address}", json_mode)

    _warn(host, port)
    options = RpcTrackerOptions(host=host, port=port)
    _until_told(lambda: serve.serve_tracker(options, ready))


@rpc.command()
@click.option("--key", required=True, help="The kind of device, the same for equal machines.")
@click.option(
    "--tracker",
    metavar="HOST:PORT",
    default=SERVER["tracker"],
    show_default=True,
    help="Whom to offer this machine to.",
)
@_HOST
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=SERVER["port"],
    show_default=True,
    help="Port to listen at; 0: any free one.",
)
@device("cuda offers the GPU as well: `mlc tune --target cuda` measures there.")
@_JSON
def server(key: str, tracker: str, host: str, port: int, device: str, json_mode: bool) -> None:
    """Offer this machine to a tracker until Ctrl-C.

    TVM's RPC has no password: whoever reaches the port can run code here, as this user.
    """
    from mlc.rpc import serve

    def ready(address: Address) -> None:
        facts = {"server": str(address), "key": key, "tracker": tracker}
        _say(facts, f"server at {address}, key {key}, tracker {tracker}", json_mode)

    _warn(host, port)
    options = RpcServerOptions(key=key, device=device, tracker=tracker, host=host, port=port)
    _until_told(lambda: serve.serve_device(options, ready))


@rpc.command()
@click.option(
    "--tracker",
    "at",
    metavar="HOST:PORT",
    default=SERVER["tracker"],
    show_default=True,
    help="Whom to ask.",
)
@_JSON
def status(at: str, json_mode: bool) -> None:
    """Show which devices a tracker has, how many are free, and how many requests wait."""
    from mlc.rpc import address
    from mlc.rpc.tracker import Tracker

    with Tracker(address.parse(at)) as found:
        rows = _rows(found.status())
    if json_mode:
        click.echo(json.dumps({"tracker": at, "keys": rows}))
    elif not rows:
        click.echo(f"the tracker at {at} has no devices; add one: mlc rpc server --key K")
    else:
        _show(at, rows)


def _rows(found: Status) -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "devices": [str(device) for device in found.servers.get(key, ())],
            "free": found.free.get(key, 0),
            "waiting": found.waiting.get(key, 0),
        }
        for key in sorted(found.servers.keys() | {k for k, n in found.waiting.items() if n})
    ]


def _show(at: str, rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from mlc.cli.render import console
    from mlc.errors import printable

    table = Table(title=f"devices of {at}", title_justify="left", box=None)
    for column in ("key", "devices", "free", "waiting", "addresses"):
        left = column in ("key", "addresses")
        table.add_column(column, justify="left" if left else "right")
    for row in rows:
        table.add_row(
            escape(printable(row["key"])), str(len(row["devices"])), str(row["free"]),
            str(row["waiting"]), escape(printable(" ".join(row["devices"]))),
        )  # fmt: skip
    console().print(table)


def _say(facts: dict[str, Any], text: str, json_mode: bool) -> None:
    """Print the one line that says where it listens, at once: programs wait for it."""
    print(json.dumps(facts) if json_mode else text, flush=True)


def _warn(host: str, port: int) -> None:
    from mlc.rpc import address

    if not address.is_loopback(host):
        click.echo(
            f"warning: whoever reaches port {port} of {host} can run code on this machine: TVM's RPC "
            "has no password. An SSH tunnel to 127.0.0.1 is safer; the README shows one",
            err=True,
        )


def _until_told(work: Any) -> None:
    """Run a server; Ctrl-C and SIGTERM are how it is meant to end."""
    try:
        work()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
