"""`mlc cache`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.group()
def cache() -> None:
    """Show or clear the cache of compiled kernels and artifacts.

    It lies in $MLC_CACHE_DIR, else in `mlc` in the user's cache folder, and stays below 2 GiB: the
    least recently used entries go first.
    """


@cache.command()
@click.option("--json", "json_mode", is_flag=True, help="As JSON.")
def stats(json_mode: bool) -> None:
    """Show what the cache holds."""
    from mlc.cache import open_cache
    from mlc.cli.render import size

    found = open_cache().stats()
    if json_mode:
        click.echo(json.dumps(asdict(found)))
        return
    click.echo(f"{found.directory}  (at most {size(found.max_bytes)})")
    for kind in sorted(found.entries):
        click.echo(f"  {kind:<10} {found.entries[kind]:>6} entries  {size(found.bytes[kind]):>10}")
    if not found.entries:
        click.echo("  empty")


@cache.command()
@click.option("--json", "json_mode", is_flag=True, help="As JSON.")
def clear(json_mode: bool) -> None:
    """Delete everything in the cache; artifacts that were written elsewhere stay."""
    from mlc.cache import open_cache

    store = open_cache()
    removed = store.clear()
    click.echo(json.dumps({"removed": removed}) if json_mode else f"{removed} entries deleted")
