"""`mlc logs`: what each subcommand prints, writes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlc.cli import logs as cli
from mlc.errors import MlcError, UsageError
from mlc.tune import applied, explain
from mlc.tune.record import FALLBACK, Record, encode, workload_id, workload_key
from mlc.tune.store import Store

TEMPLATE = "dense_pack.x86"
TASK = workload_key([TEMPLATE, ["TENSOR", [1, 512], "float32"], "float32"])
HERE = "x86-64-v3-0123456789ab.avx2.here.8t"
THERE = "x86-64-v3-0123456789ab.avx2.there.8t"
PLAIN = {
    "input": ["llvm -keys=cpu -mcpu=core-avx2", "conv.x86", [["TENSOR", [1], "float32"]], {}],
    "config": {"index": 3, "code_hash": None, "entity": []},
    "result": [[0.0002], 0, 1.5, 1600000000.5],
    "version": 0.2,
    "tvm_version": "0.19.0",
}


def record(config: int, cost: float = 1e-3, **changes: Any) -> Record:
    return Record(
        workload=TASK,
        config={"index": config, "code_hash": None, "entity": [["tile_y", "sp", [-1, 8]]]},
        target="llvm -mcpu=x86-64-v3",
        template_hash="8ca9d8be4fd8",
        timestamp=1.7e9 + config,
        **{"costs": (cost,), "device": HERE, **changes},
    )


FAILURE = record(3, costs=(), reason="crash", message="signal 11 \x1b[31m")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and template hashes that need no TVM."""
    monkeypatch.chdir(tmp_path)
    hashes = {TEMPLATE: "8ca9d8be4fd8"}
    monkeypatch.setattr(explain, "template_hashes", lambda names: {n: hashes[n] for n in names})
    return tmp_path


@pytest.fixture
def store(here: Path) -> Store:
    filled = Store(here / "tuning_logs")
    filled.append([record(1, 2e-3), record(2, 1e-3), FAILURE, record(4, device=THERE)])
    return filled


def call(*arguments: str) -> str:
    result = attempt(*arguments)
    assert result.exit_code == 0, result.exception
    return result.output


def attempt(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli.logs, arguments)


def refused(*arguments: str) -> MlcError:
    error = attempt(*arguments).exception
    assert isinstance(error, MlcError), error
    return error


def test_the_help_teaches() -> None:
    text = call("--help")
    for name in ("list", "show", "best", "merge", "prune", "export", "import", "explain"):
        assert f"  {name}  " in text
        assert call(name, "--help").startswith("Usage: logs " + name)
    assert "mlc logs explain conv2d" in text


@pytest.mark.parametrize("command", [["list"], ["show"], ["best"]])
def test_without_logs_there_is_nothing_yet(here: Path, command: list[str]) -> None:
    assert "no records yet in tuning_logs" in call(*command)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [["list"], ["show"], ["best"], ["prune"], ["export", "x"], ["explain", "t-01234567"],
     ["merge", "."], ["import", "plain.log"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_named_folder_must_be_there(here: Path, command: list[str]) -> None:
    (here / "plain.log").write_text(json.dumps(PLAIN) + "\n")
    error = refused(*command, "--logs", "nowhere")
    assert error.exit_code == 2
    assert "there is no folder nowhere" in error.message
    assert "no folder" in refused(*command, "--logs", "plain.log").message
    assert not (here / "nowhere").exists()


def test_list_shows_each_device(store: Store) -> None:
    text = call("list")
    assert HERE in text
    assert THERE in text
    assert "2023-11-14" in text
    facts = json.loads(call("list", "--json", "--logs", str(store.root)))
    rows = {row["device"]: row for row in facts["files"]}
    assert (rows[HERE]["records"], rows[HERE]["failed"], rows[HERE]["tasks"]) == (3, 1, 1)
    assert facts["damage"]["torn"] == 0


def test_list_says_what_is_left_out(store: Store) -> None:
    with store.path_of(FAILURE).open("a") as log:
        log.write("hello\n" + encode(record(9, tvm_version="0.1")) + "\n" + encode(FAILURE)[:30])
    text = call("list")
    assert "lines cut off while being written, left out: 1" in text
    assert "lines that are no tuning records, left out: 1" in text
    assert "records of another TVM version, never applied: 1" in text


def test_show_prints_the_newest_first_and_no_control_characters(store: Store) -> None:
    text = call("show")
    assert [line.split()[2] for line in text.splitlines() if HERE in line] == ["3", "2", "1"]
    assert "crash: signal 11 \\x1b[31m" in text
    assert "\x1b[31m" not in text
    assert "1 ms" in text
    rows = json.loads(call("show", "--json", "--device", "there"))
    assert [(row["device"], row["cost"], row["task"]) for row in rows] == [
        (THERE, 1e-3, workload_id(TASK))
    ]
    assert len(json.loads(call("show", "--json", "-n", "2"))) == 2
    assert "no record fits" in call("show", "--template", "conv2d")


def test_best_is_one_row_per_task_and_device(store: Store) -> None:
    rows = json.loads(call("best", "--json", "--task", workload_id(TASK)))
    assert {(row["device"], row["config"]["index"]) for row in rows} == {(HERE, 2), (THERE, 4)}
    assert "8ca9d8be4fd8" in call("best", "--device", ".here")
    default = {"index": FALLBACK, "code_hash": None, "entity": []}
    store.append([replace(record(9, 5e-3, chosen=True), config=default)])
    assert "default" in call("best", "--device", ".here")


def test_merge_says_what_was_new(store: Store, here: Path) -> None:
    other = Store(here / "other")
    other.append([record(2, 1e-3), record(7)])
    assert "1 records added, 1 known already" in call("merge", "other")
    assert json.loads(call("merge", "other", "--json"))["added"] == 0
    assert "there is no missing" in refused("merge", "missing").message


def test_import_says_that_plain_records_never_apply(here: Path) -> None:
    (here / "plain.log").write_text(json.dumps(PLAIN) + "\nhello\n")
    text = call("import", "plain.log")
    assert "1 records added" in text
    assert "1 of them name no device: hints for the cost model only" in text
    assert "no tuning records, left out: 1" in text
    assert "imported.jsonl" in call("list")
    assert refused("import", str(here)).exit_code == 2


def test_prune_keeps_the_best_and_can_only_say_so(store: Store) -> None:
    assert "2 records kept, 2 would be dropped in 1 files" in call("prune", "--dry-run")
    assert len(list(store.read())) == 4
    text = call("prune", "--keep", "1")
    assert "2 records kept, 2 dropped" in text
    assert "saved" in text
    assert sorted(r.index for r in store.read()) == [2, 4]
    assert json.loads(call("prune", "--json")) == {
        "kept": 2, "dropped": 0, "damaged": 0, "files": 0, "saved_bytes": 0, "dry_run": False,
    }  # fmt: skip
    assert attempt("prune", "--keep", "0").exit_code == 2


def test_export_writes_one_file(store: Store, here: Path) -> None:
    assert "1 records written to best.json" in call("export", "best.json", "--device", ".here")
    assert json.loads((here / "best.json").read_text())["config"]["index"] == 2
    assert json.loads(call("export", "all.json", "--all", "--json"))["records"] == 4
    assert refused("export", "x.json", "--device", "gpu").exit_code == 2
    assert not (here / "x.json").exists()


def test_explain_says_why(store: Store) -> None:
    task = workload_id(TASK)
    text = call("explain", task, "--device", HERE)
    assert f"{task} on {HERE}" in text
    assert "  hit: config 2, 1 ms" in text
    facts = json.loads(call("explain", TASK, "--device", THERE.replace("there", "x"), "--json"))
    assert facts["tasks"][0]["task"] == task
    assert facts["tasks"][0]["level"] == "same-isa"
    assert "miss: there is no record" in call("explain", "conv.x86-01234567")
    assert refused("explain", "resnet").exit_code == 2


def test_explain_looks_into_the_records_that_come_with_mlc(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applied, "shipped", lambda: here / "shipped")
    other = workload_key([TEMPLATE, 7])
    Store(here / "shipped").append([replace(record(9, device=THERE), workload=other)])
    text = call("explain", other, "--device", HERE)
    assert "miss: there is no record of" in text
    assert "among the records that come with mlc: hit from another device of the same class" in text
    (answer,) = json.loads(call("explain", other, "--device", HERE, "--json"))["tasks"]
    assert answer["level"] == "same-isa"
    assert "come with mlc" not in call("explain", TASK, "--device", HERE)


def test_explain_takes_a_model_as_the_sum_of_its_tasks(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "m.onnx").touch()
    other = workload_key([TEMPLATE, 7])
    monkeypatch.setattr(cli, "explain_model", lambda _path, _target: [TASK, other])
    text = call("explain", "m.onnx", "--device", HERE)
    assert "  hit: config 2" in text
    assert f"miss: there is no record of {other}" in text


def test_explaining_a_model_asks_for_its_tasks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlc.tune import tasks

    assert "there is no model" in refused("explain", "m.onnx", "--device", HERE).message
    (here / "m.onnx").touch()
    asked: list[Any] = []
    monkeypatch.setattr(tasks, "extract_workloads", lambda options: asked.append(options) or [TASK])
    assert "miss: there is no record" in call("explain", "m.onnx", "--device", HERE, "-t", "zen4")
    assert (asked[0].model, asked[0].target) == ("m.onnx", "zen4")


def test_hashes_that_cannot_be_known_are_not_compared(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlc.tune import template

    def unknown(_template: str) -> str:
        raise UsageError("there is no such template")

    monkeypatch.undo()
    monkeypatch.setattr(template, "template_hash", unknown)
    text = call("explain", workload_id(TASK), "--device", HERE, "--logs", str(store.root))
    assert "  hit: config 2" in text
    assert "was not compared" in text
