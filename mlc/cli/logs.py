"""`mlc logs`: what is in the tuning logs, and why a task hits or misses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlc.options import TuneOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlc.tune.lines import Damage
    from mlc.tune.logs import Best
    from mlc.tune.record import Record
    from mlc.tune.store import Store

FOLDER = "tuning_logs"
_ROWS = 20  # that `show` prints unless told otherwise

_logs = click.option(
    "--logs", "folder", metavar="DIR", help=f"The folder of logs [default: {FOLDER} here]."
)
_json = click.option("--json", "json_mode", is_flag=True, help="As JSON.")


def _choice(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which records are meant."""
    for name, text in (
        ("--task", "Only tasks whose id contains this."),
        ("--template", "Only templates whose name contains this."),
        ("--device", "Only devices whose id contains this: avx2, a CPU's name, 8t."),
    ):
        command = click.option(name, metavar="PART", default="", help=text)(command)
    return command


@click.group()
def logs() -> None:
    """Look after tuning records: what is kept, what is best, why a task hits or misses.

    \b
      mlc logs list                             devices, records, tasks
      mlc logs best --device avx2               the fastest config of each task
      mlc logs explain conv2d_NCHWc.x86-3f9a1c02
      mlc logs merge ../other/tuning_logs       take over what a colleague measured
      mlc logs export best.json                 one file that AutoTVM reads

    A record applies on the device that it was measured on, or on another one of the same vector
    class (which is said), and only while TVM and the schedule's source are the same. Logs are plain
    text, one record per line: they may be copied, merged and put under version control.
    """


@logs.command("list")
@_logs
@_json
def list_command(folder: str | None, json_mode: bool) -> None:
    """List the logs: device, records, failures, tasks, and when they were measured."""
    from dataclasses import asdict

    from mlc.tune import logs as operations
    from mlc.tune.explain import day

    store = _store(folder)
    rows = operations.list_files(store)
    damage = operations.damage(store)
    if json_mode:
        facts = {"folder": str(store.root), "files": [asdict(row) for row in rows]}
        click.echo(json.dumps({**facts, "damage": asdict(damage)}))
        return
    cells = (
        (row.device or f"(none) {row.file}", row.records, row.failed, row.tasks,
         f"{day(row.since)} to {day(row.until)}") for row in rows
    )  # fmt: skip
    _table(store, "device -records -failed -tasks measured", cells)
    _say_damage(damage)


@logs.command()
@_logs
@_choice
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=_ROWS, show_default=True, help="At most N."
)
@_json
def show(folder: str | None, limit: int, json_mode: bool, **choice: str) -> None:
    """Show single records, the newest first; failures with their reason."""
    from mlc.tune import logs as operations
    from mlc.tune.explain import day

    store = _store(folder)
    records = operations.newest(store, operations.Choice(**choice), limit)
    if json_mode:
        click.echo(json.dumps([_facts(record) for record in records]))
        return
    cells = (
        (
            _task(record),
            record.device,
            _config(record),
            _result(record),
            day(record.timestamp),
        )
        for record in records
    )
    _table(store, "task device -config result measured", cells)


@logs.command("best")
@_logs
@_choice
@_json
def best_command(folder: str | None, json_mode: bool, **choice: str) -> None:
    """Show the best record of each task and device.

    The template hash stands for the schedule's source; a record applies only while it is current,
    which `mlc logs explain` compares.
    """
    from mlc.tune import logs as operations

    store = _store(folder)
    found = operations.best(store, operations.Choice(**choice))
    if json_mode:
        click.echo(json.dumps([_best_facts(row) for row in found]))
        return
    cells = (
        (row.task, row.record.device, _config(row.record), _result(row.record), row.records,
         row.record.template_hash) for row in found
    )  # fmt: skip
    _table(store, "task device -config -cost -records template_hash", cells)


@logs.command("merge")
@click.argument("source", metavar="FOLDER|FILE", type=click.Path(path_type=Path))
@_logs
@_json
def merge_command(source: Path, folder: str | None, json_mode: bool) -> None:
    """Add the records of another FOLDER of logs, or of one FILE; known ones are skipped."""
    _merge(source, folder, json_mode)


@logs.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@_logs
@_json
def import_command(file: Path, folder: str | None, json_mode: bool) -> None:
    """Add the records of a plain AutoTVM log FILE.

    Such a log does not say which machine it was measured on, so its records never apply by
    themselves: they are hints for the cost model. `mlc compile --records FILE` applies them on your
    word.
    """
    from mlc.errors import UsageError

    if not file.is_file():
        raise UsageError(f"{file} is no file", "for a folder of logs: `mlc logs merge FOLDER`")
    _merge(file, folder, json_mode)


@logs.command("prune")
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many records of each task and device stay, the best first.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_logs
@_json
def prune_command(keep: int, dry_run: bool, folder: str | None, json_mode: bool) -> None:
    """Keep only the best records of each task and device.

    All others, failures and damaged lines go: a later `mlc tune` may measure those configs again,
    and the cost model has less to learn from.
    """
    from dataclasses import asdict

    from mlc.cli.render import size
    from mlc.tune import logs as operations

    done = operations.prune(_store(folder), keep=keep, dry_run=dry_run)
    if json_mode:
        click.echo(json.dumps({**asdict(done), "dry_run": dry_run}))
        return
    verb = "would be dropped" if dry_run else "dropped"
    click.echo(f"{done.kept} records kept, {done.dropped} {verb} in {done.files} files")
    if done.damaged:
        click.echo(f"{done.damaged} lines without a record {verb}")
    if not dry_run:
        click.echo(f"{size(done.saved_bytes)} saved")


@logs.command("export")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="All records, failures too.")
@_logs
@_choice
@_json
def export_command(
    output: Path, everything: bool, folder: str | None, json_mode: bool, **choice: str
) -> None:
    """Write the best records to one OUTPUT file that AutoTVM reads.

    AutoTVM does not look at the device: give --device when the logs hold several. Tasks whose best
    config is the template's default are left out: AutoTVM takes that by itself.
    """
    from mlc.tune import logs as operations

    chosen = operations.Choice(**choice)
    count = operations.export(_store(folder), output, chosen, everything=everything)
    facts = {"records": count, "path": str(output)}
    click.echo(json.dumps(facts) if json_mode else f"{count} records written to {output}")


@logs.command("explain")
@click.argument("what", metavar="TASK|MODEL")
@click.option("-t", "--target", default=TuneOptions.target, show_default=True,
              help="As for `mlc compile`.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Threads [default: one per core].")
@click.option("--device", metavar="ID", help="Another device, as `mlc logs list` shows it.")
@_logs
@_json
def explain_command(
    what: str,
    target: str,
    threads: int | None,
    device: str | None,
    folder: str | None,
    json_mode: bool,
) -> None:
    """Say why a task (or each task of a MODEL, an .onnx file) hits or misses.

    TASK is an id as `mlc logs best` and `mlc tune --list` show it, or a workload as JSON.
    """
    from mlc.errors import printable
    from mlc.tune import explain

    store = _store(folder)
    device = device or _device_id(target, threads)
    tasks = explain_model(Path(what), target) if what.endswith(".onnx") else [what]
    answers = [explain.answer(store, task, device) for task in tasks]
    if json_mode:
        click.echo(json.dumps({"device": device, "tasks": answers}))
        return
    for answer in answers:
        first, *others = map(printable, answer["why"])
        click.echo(click.style(printable(answer["task"]), bold=True) + f" on {printable(device)}")
        click.echo("\n".join([f"  {first}", *(f"    {line}" for line in others)]))


def explain_model(path: Path, target: str) -> list[str]:
    """Return the keys of a model's workloads.

    Raises:
        UsageError: the model is missing, or this version cannot extract tasks from it.
    """
    from mlc.errors import UsageError

    if not path.is_file():
        raise UsageError(f"there is no model {path}", "give a task's id or an .onnx file")
    from mlc.tune.tasks import extract_workloads

    return extract_workloads(TuneOptions(model=str(path), target=target))


def _device_id(target: str, threads: int | None) -> str:
    from mlc.cpu import host_cpu, physical_cores
    from mlc.target import resolve
    from mlc.tune.device import device_for

    return device_for(resolve(target), host_cpu(), threads or physical_cores()).id


def _store(folder: str | None) -> Store:
    """Return the store; a folder that was named must be there."""
    from mlc.errors import UsageError
    from mlc.tune.store import Store

    root = Path(folder or FOLDER)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is no folder", "--logs takes the folder that holds the logs")
    if folder and not root.exists():
        raise UsageError(f"there is no folder {root}", f"check --logs, or make it: mkdir {root}")
    return Store(root)


def _merge(source: Path, folder: str | None, json_mode: bool) -> None:
    from dataclasses import asdict

    from mlc.tune import logs as operations

    done = operations.merge(_store(folder), source)
    if json_mode:
        click.echo(json.dumps(asdict(done)))
        return
    click.echo(f"{done.added} records added, {done.duplicates} known already")
    if done.nameless:
        click.echo(f"{done.nameless} of them name no device: hints for the cost model only")
    _say_damage(done.damage)


def _say_damage(damage: Damage) -> None:
    for count, what in (
        (damage.torn, "lines cut off while being written, left out"),
        (damage.foreign, "lines that are no tuning records, left out"),
        (damage.other_version, "records of another TVM version, never applied"),
    ):
        if count:
            click.echo(f"{what}: {count}")


def _table(store: Store, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Print rows of untrusted text; a column's name begins with `-` when it holds numbers."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from mlc.cli.render import console
    from mlc.errors import printable
    from mlc.tune.index import log_files

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns.split():
        number = name.startswith("-")
        label = name.removeprefix("-").replace("_", " ")
        table.add_column(label, justify="right" if number else "left", no_wrap=number or name == "task",
                         overflow="fold")  # fmt: skip
    for cells in rows:
        table.add_row(*(escape(printable(str(cell))) for cell in cells))
    if table.row_count:
        console().print(table)
    elif log_files(store.root):
        click.echo(f"no record fits in {store.root}: `mlc logs list` shows what is there")
    else:
        click.echo(f"no records yet in {store.root}: `mlc tune MODEL` writes them")


def _task(record: Record) -> str:
    from mlc.tune.record import workload_id

    return workload_id(record.workload)


def _config(record: Record) -> str:
    from mlc.tune.record import FALLBACK

    return "default" if record.index == FALLBACK else str(record.index)


def _result(record: Record) -> str:
    if record.ok:
        return f"{record.cost * 1e3:.4g} ms"
    return f"{record.reason}: {record.message}"[:80] if record.message else record.reason


def _facts(record: Record) -> dict[str, Any]:
    from dataclasses import asdict

    return {"task": _task(record), "cost": record.cost if record.ok else None, **asdict(record)}


def _best_facts(row: Best) -> dict[str, Any]:
    return {"records": row.records, "failed": row.failed, **_facts(row.record)}
