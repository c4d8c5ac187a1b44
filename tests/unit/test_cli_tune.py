"""`mlc tune`: what reaches the library from the command line and mlc.toml, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlc import isolate
from mlc.cli.tune import seconds, trust_lines, tune
from mlc.errors import Interrupted, MissingToolError, UsageError
from mlc.options import TuneOptions
from mlc.tune.subject import check_options

PROJECT = """
[model]
path = "net.onnx"
shapes = ["batch=2"]

[tune]
trials = 77
target = "x86-64-v3"
logs = "records"
"""
TASK = {
    "id": "dense_pack.x86-01234567", "template": "dense_pack.x86", "shapes": "1x8 4x8",
    "calls": 2, "flops": 64_000, "share": 0.5, "trials": 6, "failed": 1,
    "untuned": 2e-6, "best": 1e-6, "checked": "agrees",
}  # fmt: skip
REPORT = {
    "run": "r1", "device": "here", "logs": "tuning_logs", "measured": 6, "known": 2,
    "failures": {}, "seconds": 3.0,
    "tasks": [TASK, {**TASK, "untuned": 0.0, "best": None, "checked": ""}],
    "peak_gflops": 256.0,
    "curve": [
        {"trials": 2, "seconds": 0.0, "estimate": 4e-6, "task": "", "parts": [4e-6, 0.0]},
        {"trials": 8, "seconds": 3.0, "estimate": 2e-6, "task": "a", "parts": [2e-6, 0.0]},
    ],
    "model": {"before": 2e-3, "after": 1e-3, "ratio": 2.0, "low": 1.9, "high": 2.1},
    "trust": {
        "conv": {"records": 60, "rank_correlation": 0.81, "top_k_recall": 0.5, "regret": 0.04},
        "dense": None,
    },
}  # fmt: skip
LISTED = {
    "device": "here",
    "tasks": [{**TASK, "key": "[]", "seconds": 1e-6, "measured": 3, "kernels": []}],
}


class Child:
    """Stands for the isolated process: notes the request, checks it as that does, answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, TuneOptions]] = []
        self.error: BaseException | None = None
        self.answers: dict[str, Any] = {"tune_model": REPORT, "list_tasks": LISTED}

    def __call__(self, function: str, options: TuneOptions, on_event: Any = None) -> Any:
        self.asked.append((function, options))
        json.dumps(asdict(options))
        if self.error is not None:
            raise self.error
        check_options(options)
        return self.answers[function.partition(":")[2]]

    @property
    def options(self) -> TuneOptions:
        ((_, options),) = self.asked
        return options


@pytest.fixture
def child(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> Child:
    made = Child()
    monkeypatch.setattr(isolate, "call", made)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(tune, list(arguments))


def refused(*arguments: str) -> UsageError:
    result = ask(*arguments)
    assert isinstance(result.exception, UsageError), result.output
    return result.exception


# -- times --


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("20m", 1200.0),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        ("0.5 m", 30.0),
        (" 2s ", 2.0),
        ("0", 0.0),
    ],
)
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "nonsense", "-5", "5d", "1h30m", "m", "1e3", "inf", "nan", "1.", "5 m s"]
)
def test_no_times(text: str) -> None:
    with pytest.raises(UsageError, match="is no time") as error:
        seconds(text)
    assert error.value.hint == "write 90s, 20m or 1.5h"


def test_trust_is_said_for_each_cost_model() -> None:
    conv, dense = trust_lines(REPORT["trust"])
    assert conv == (
        "cost model of conv: rank correlation 0.81, finds 50% of the fastest fifth (noise: 0 and "
        "20%), its favourite 4% slower than the best of 60 held-out records"
    )
    assert dense == "cost model of dense: too few records to say how well it predicts"


# -- what reaches the library --


def test_the_defaults(child: Child, folder: Path) -> None:
    result = ask("net.onnx")
    assert result.exception is None
    assert child.asked[0][0] == "mlc.tune.run:tune_model"
    logs = str(folder / "tuning_logs")
    assert child.options == TuneOptions(model="net.onnx", logs=logs)


def test_every_option(child: Child, folder: Path) -> None:
    ask(
        *("net.onnx", "--trials", "9", "--budget", "2m", "--target", "x86-64-v2", "-O", "2"),
        *("--shape", "batch=1", "--shape", "x:1,2", "--logs", "elsewhere", "--tasks", "0,2-4"),
        *("--tuner", "ga", "--features", "itervar", "--loss", "reg", "--no-transfer"),
        *("--seed", "7", "--threads", "3", "--run-timeout", "1.5"),
    )
    assert child.options == TuneOptions(
        model="net.onnx",
        trials=9,
        budget=120.0,
        target="x86-64-v2",
        opt_level=2,
        shapes=("batch=1", "x:1,2"),
        logs="elsewhere",
        tasks="0,2-4",
        tuner="ga",
        features="itervar",
        loss="reg",
        transfer=False,
        seed=7,
        threads=3,
        run_timeout=1.5,
    )


def test_the_project_file(child: Child, folder: Path) -> None:
    (folder / "mlc.toml").write_text(PROJECT)
    ask()
    assert child.options == TuneOptions(
        model=str(folder / "net.onnx"),
        shapes=("batch=2",),
        trials=77,
        target="x86-64-v3",
        logs=str(folder / "records"),
    )


def test_the_command_line_goes_before_the_project_file(child: Child, folder: Path) -> None:
    (folder / "mlc.toml").write_text(PROJECT)
    ask("--trials", "0", "--target", "llvm", "--shape", "batch=4", "--logs", "mine")
    assert child.options == TuneOptions(
        model=str(folder / "net.onnx"), shapes=("batch=4",), trials=0, target="llvm", logs="mine"
    )


def test_another_model_than_the_project_s(child: Child, folder: Path) -> None:
    """Shapes and target are the project's model's, as for `mlc compile`; trials and logs stand."""
    (folder / "mlc.toml").write_text(PROJECT)
    ask("other.onnx")
    assert child.options == TuneOptions(model="other.onnx", trials=77, logs=str(folder / "records"))


def test_the_only_model_here(child: Child, folder: Path) -> None:
    (folder / "only.onnx").touch()
    ask("--trials", "5")
    assert child.options.model == str(folder / "only.onnx")


def test_no_trials_in_the_project_file(child: Child, folder: Path) -> None:
    (folder / "mlc.toml").write_text("[tune]\ntrials = 0\n")
    ask("net.onnx")
    assert child.options.trials == 0


def test_list(child: Child, folder: Path) -> None:
    result = ask("net.onnx", "--list")
    assert child.asked[0][0] == "mlc.tune.run:list_tasks"
    assert TASK["id"] in result.stdout
    assert "50.0%" in result.stdout


def test_every_option_has_its_default_in_one_place(child: Child, folder: Path) -> None:
    ask("net.onnx")
    chosen = asdict(child.options)
    for field in fields(TuneOptions):
        if field.name not in ("model", "logs"):
            assert chosen[field.name] == field.default, field.name


# -- what is refused --


@pytest.mark.parametrize("text", ["nonsense", "-5", "", "0", "0m"])
def test_a_budget_that_is_none(child: Child, folder: Path, text: str) -> None:
    assert "--budget" in refused("net.onnx", "--budget", text).message


def test_negative_trials(child: Child, folder: Path) -> None:
    assert refused("net.onnx", "--trials", "-5").message == "--trials needs 0 or more"


def test_negative_trials_in_the_project_file(child: Child, folder: Path) -> None:
    (folder / "mlc.toml").write_text("[tune]\ntrials = -1\n")
    assert "0 or more" in refused("net.onnx").message


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none(child: Child, folder: Path, text: str) -> None:
    assert "--run-timeout" in refused("net.onnx", "--run-timeout", text).message


def test_which_model(child: Child, folder: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (folder / name).touch()
    assert "a.onnx, b.onnx" in refused().message


@pytest.mark.parametrize(
    "arguments",
    [("--tuner", "nobody"), ("--trials", "many"), ("--loss", "x"), ("--threads", "0"), ("-O", "9")],
)
def test_values_that_click_refuses(child: Child, folder: Path, arguments: tuple[str, str]) -> None:
    assert ask("net.onnx", *arguments).exit_code == 2
    assert child.asked == []


# -- what is shown --


def test_the_report(child: Child, folder: Path) -> None:
    out = ask("net.onnx").stdout
    assert "6 measured, 2 known before, 3 s" in out
    assert "2.00x" in out
    assert "model: 2.00 ms -> 1.00 ms, 2.00x (1.90 to 2.10)" in out
    assert "records: tuning_logs (here)" in out


def test_the_report_without_a_measurement(child: Child, folder: Path) -> None:
    child.answers["tune_model"] = {**REPORT, "measured": 0, "tasks": [], "model": None}
    result = ask("net.onnx")
    assert result.exception is None
    assert "model:" not in result.stdout


def test_the_report_of_a_model_that_was_not_compared(child: Child, folder: Path) -> None:
    child.answers["tune_model"] = {**REPORT, "model": None, "not_compared": "[::1]:9 [/b] is gone"}
    assert "not compared end to end ([::1]:9 [/b] is gone)" in ask("net.onnx").stdout


def test_json(child: Child, folder: Path) -> None:
    assert json.loads(ask("net.onnx", "--json").stdout) == REPORT
    assert json.loads(ask("net.onnx", "--list", "--json").stdout) == LISTED


def test_interrupted(child: Child, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mlc", "tune", "my net.onnx", "--trials", "9"])
    child.error = KeyboardInterrupt()
    result = ask("my net.onnx", "--trials", "9")
    assert isinstance(result.exception, Interrupted)
    assert result.exception.hint == "continue with `mlc tune 'my net.onnx' --trials 9`"


@pytest.mark.parametrize("columns", ["80", None])
def test_the_table_fits_a_narrow_terminal_and_is_whole_in_a_pipe(
    child: Child, folder: Path, monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    out = ask("net.onnx").stdout
    row = next(line for line in out.splitlines() if TASK["id"] in line).split()
    assert ("GFLOP/s" in out, "agrees" in row) == (not columns, not columns)
    assert {TASK["id"], "2", "6", "2.0", "1.0", "2.00x", "25%"} <= set(row)


def test_the_share_of_the_peak(child: Child, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = ask("net.onnx").stdout
    assert "of peak" in out
    assert "25%" in out  # 64 GFLOP/s of 256
    child.answers["tune_model"] = {**REPORT, "peak_gflops": None}
    assert "25%" not in ask("net.onnx").stdout


# -- report files --


@pytest.mark.parametrize("place", ["reports", "reports/net-tuning.html"])
def test_report_files(child: Child, folder: Path, place: str) -> None:
    result = ask("net.onnx", "--report", place)
    assert result.exception is None
    assert child.options.report == place
    page = folder / "reports" / "net-tuning.html"
    assert "Tuning of net.onnx" in page.read_text()
    assert page.with_suffix(".png").is_file()
    assert "report: reports/net-tuning.html" in result.stderr
    assert "report:" not in result.stdout


def test_report_files_beside_json(child: Child, folder: Path) -> None:
    assert json.loads(ask("net.onnx", "--json", "--report", "out").stdout) == REPORT
    assert (folder / "out" / "net-tuning.html").is_file()


def test_a_list_has_no_report(child: Child, folder: Path) -> None:
    ask("net.onnx", "--list", "--report", "out")
    assert not (folder / "out").exists()


def test_what_the_report_lacks_is_said_before_tuning(
    child: Child, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").touch()
    assert "cannot write the report" in refused("net.onnx", "--report", "file/out.html").message
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    error = ask("net.onnx", "--report", "out").exception
    assert isinstance(error, MissingToolError)
    assert error.exit_code == 8
    assert child.asked == []


def test_open_dimensions_are_not_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").touch()
    child = Child()
    monkeypatch.setattr(isolate, "call", child)
    Path("mlc.toml").write_text('[model]\npath = "net.onnx"\ndynamic = true\n')
    for arguments in ([], ["--dynamic", "net.onnx"], ["net.onnx", "--dynamic", "batch"]):
        error = CliRunner().invoke(tune, arguments).exception
        assert isinstance(error, UsageError)
        assert "have no tasks to tune" in error.message
        assert "--shape" in str(error.hint)
    assert child.asked == []
    CliRunner().invoke(tune, ["--shape", "batch=4", "--list"])
    assert [options.shapes for _, options in child.asked] == [("batch=4",)]
