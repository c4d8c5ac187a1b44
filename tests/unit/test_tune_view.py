"""What the live view of a tuning run says, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import pytest

from mlc.cli import tune_view
from mlc.cli.tune_view import View, heartbeat
from mlc.events import Baseline, Notice, Stage, TuneTask, Tuning

TASK = TuneTask(
    id="conv2d_NCHWc.x86-3f9a1c02",
    calls=2,
    trials=16,
    failed=1,
    best=1e-3,
    untuned=4e-3,
    flops=2_000_000,
)
EVENT = Tuning(
    done=32,
    trials=128,
    seconds=8.0,
    budget=None,
    estimate=2e-3,
    before=8e-3,
    active=TASK.id,
    tasks=(TASK,),
)
START = Baseline(model=10e-3, known=0, peak_gflops=10.0)
UNKNOWN = replace(TASK, trials=0, failed=0, best=None, untuned=None, flops=0)
NOTHING_YET = replace(
    EVENT, done=0, trials=0, seconds=0.0, estimate=0.0, before=0.0, tasks=(UNKNOWN,)
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def as_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not a fixture: pytest puts its own stderr in place after those."""
    fake = Terminal()
    monkeypatch.setattr(sys, "stderr", fake)
    monkeypatch.setenv("COLUMNS", "140")
    return fake


# -- the heartbeat --


def test_the_heartbeat() -> None:
    assert heartbeat(EVENT) == (
        "32/128 trials, 8 s, about 24 s left, tunable part 8.00 ms -> 2.00 ms (4.00x), "
        "at conv2d_NCHWc.x86-3f9a1c02"
    )


def test_the_heartbeat_of_a_known_model() -> None:
    """What cannot be tuned stays: 2 of 10 ms."""
    assert "model 10.00 ms -> 4.00 ms (2.50x)" in heartbeat(EVENT, START)


def test_a_model_that_takes_less_than_its_part() -> None:
    """Both were measured, and noise may turn them round."""
    assert "tunable part 8.00 ms" in heartbeat(EVENT, replace(START, model=7e-3))


@pytest.mark.parametrize(
    ("known", "left"), [(0, "about 24 s left"), (16, "about 48 s left"), (24, "about 96 s left")]
)
def test_trials_of_earlier_runs_took_no_time(known: int, left: str) -> None:
    assert left in heartbeat(EVENT, replace(START, known=known))


def test_all_trials_were_known() -> None:
    assert "left" not in heartbeat(EVENT, replace(START, known=32))


@pytest.mark.parametrize(
    ("budget", "left"), [(None, "about 24 s left"), (20.0, "12 s"), (100.0, "24 s"), (5.0, " 0 s")]
)
def test_the_time_left_is_the_lesser(budget: float | None, left: str) -> None:
    assert left in heartbeat(replace(EVENT, budget=budget))


def test_the_heartbeat_without_anything_known() -> None:
    assert heartbeat(NOTHING_YET) == f"0/0 trials, 0 s, at {TASK.id}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (2.5, "2500.00 ms"), (1e-3, "1.00 ms"), (1e-4, "0.10 ms"), (12.34e-6, "12.3 us")],
)
def test_times(seconds: float | None, text: str) -> None:
    assert tune_view._time(seconds) == text


# -- the curve --


@pytest.mark.parametrize(
    ("values", "curve"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([8.0, 1.0], "█▁"),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], "█▇▆▅▄▃▂▁"),
    ],
)
def test_the_curve(values: list[float], curve: str) -> None:
    assert tune_view._spark(values) == curve


def test_the_curve_shows_the_last_twelve() -> None:
    assert tune_view._spark([100.0] * 30 + [float(n) for n in range(12, 0, -1)]).startswith("█")
    assert len(tune_view._spark([1.0] * 50)) == 12


# -- elsewhere than on a terminal --


def test_lines_come_seldom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(tune_view.time, "monotonic", lambda: now[0])
    with View(json_mode=False, quiet=False) as view:
        for _ in range(30):
            now[0] += 1.0
            view(EVENT)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [heartbeat(EVENT)] * 3


def test_the_first_batch_is_shown_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune_view.time, "monotonic", lambda: 1000.0)
    View(json_mode=False, quiet=False)(EVENT)
    assert capsys.readouterr().err.splitlines() == [heartbeat(EVENT)]


def test_the_last_batch_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune_view.time, "monotonic", lambda: 1000.0)
    last = replace(EVENT, done=128)
    with View(json_mode=False, quiet=False) as view:
        view(EVENT)
        view(last)
    assert capsys.readouterr().err.splitlines() == [heartbeat(EVENT), heartbeat(last)]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with View(json_mode=False, quiet=True) as view:
        view(EVENT)
        view(Stage(name="read", seconds=0.1))
        view(Notice(text="careful", level="warning"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: careful\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    with View(json_mode=True, quiet=False) as view:
        view(START)
        view(EVENT)
        view(Stage(name="read", seconds=0.1))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["baseline", "tuning", "stage"]
    assert lines[0]["peak_gflops"] == 10.0
    assert lines[1]["tasks"][0]["best"] == 1e-3


def test_the_start_is_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    with View(json_mode=False, quiet=False) as view:
        view(START)
        view(EVENT)
    assert capsys.readouterr().err.splitlines() == [heartbeat(EVENT, START)]


def test_other_events_are_shown_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    with View(json_mode=False, quiet=False) as view:
        view(Stage(name="read", seconds=0.1))
    assert "read" in capsys.readouterr().err


# -- on a terminal --


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    with View(json_mode=False, quiet=False) as view:
        view(START)
        view(EVENT)
        view(replace(EVENT, tasks=(replace(TASK, best=0.5e-3),)))
    text = terminal.getvalue()
    assert heartbeat(EVENT, START)[:40] in text
    assert f"> {TASK.id}" in text
    assert "1.00 ms" in text
    assert "2.0" in text  # GFLOP/s
    assert "20%" in text  # of the peak
    assert "█▁" in text


def test_the_table_of_unknown_times(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    with View(json_mode=False, quiet=False) as view:
        view(NOTHING_YET)
        view(replace(EVENT, tasks=(replace(UNKNOWN, state="flat"), TASK)))
    assert "flat" in terminal.getvalue()


def test_the_table_shows_the_heaviest(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    tasks = tuple(
        replace(TASK, id=f"task-{k:02}", best=(k + 1) * 1e-3) for k in range(tune_view._ROWS + 5)
    )
    with View(json_mode=False, quiet=False) as view:
        view(replace(EVENT, tasks=tasks))
    text = terminal.getvalue()
    assert "task-28" in text
    assert "task-04" not in text


def test_the_table_is_closed_before_other_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    with View(json_mode=False, quiet=False) as view:
        view(EVENT)
        view(Notice(text="something else"))
        assert view.live is None
        view(EVENT)
    assert view.live is None
    assert "note: something else\n" in terminal.getvalue()


def test_a_terminal_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    with View(json_mode=False, quiet=True) as view:
        view(EVENT)
    assert terminal.getvalue() == ""
