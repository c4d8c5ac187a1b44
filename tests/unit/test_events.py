"""Events survive the way through JSON."""

from __future__ import annotations

import json
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc import events
from mlc.events import Baseline, Event, Notice, Progress, Stage, TuneTask, Tuning

EVENTS = [
    Stage(name="read", seconds=0.25),
    Stage(name="kernels", seconds=1e-7, note="3 compiled, 0 from the cache"),
    Progress(name="kernels", done=0, total=7),
    Progress(name="kernels", done=7, total=7, item="mlc_conv2d_0123"),
    Notice(text="input 'x': größe is set to 1"),
    Notice(text="two\nlines \x1b", level="warning"),
    Baseline(model=0.25, known=3, peak_gflops=None),
    Tuning(
        done=3, trials=9, seconds=1.5, budget=None, estimate=0.1, before=0.2, active="a",
        tasks=(
            TuneTask(id="a", calls=2, trials=3, failed=1, best=1e-3, untuned=None, flops=7),
            TuneTask(id="b", calls=1, trials=0, failed=0, best=None, untuned=2e-3, flops=0, state="flat"),
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_equal(event: Event) -> None:
    line = json.dumps(events.to_json(event))
    assert "\n" not in line
    back = events.from_json(json.loads(line))
    assert back == event
    assert type(back) is type(event)


@pytest.mark.parametrize("kind", typing.get_args(Event))
def test_every_kind_can_travel(kind: type[Event]) -> None:
    row = TuneTask(id="a", calls=1, trials=2, failed=0, best=None, untuned=0.5, flops=3)
    values = {
        "str": "text", "int": 3, "float": 0.5, "float | None": None, "tuple[TuneTask, ...]": (row,),
    }  # fmt: skip
    event = kind(**{name: values[hint] for name, hint in kind.__annotations__.items()})
    assert events.from_json(events.to_json(event)) == event


def test_the_kind_stands_under_event() -> None:
    assert events.to_json(Progress(name="n", done=1, total=2)) == {
        "event": "progress", "name": "n", "done": 1, "total": 2, "item": "",
    }  # fmt: skip


def test_reading_leaves_the_data_alone() -> None:
    data = events.to_json(EVENTS[0])
    events.from_json(data)
    assert data["event"] == "stage"


def test_a_wrong_event_is_refused() -> None:
    with pytest.raises(KeyError):
        events.from_json({"event": "other"})
    with pytest.raises(TypeError):
        events.from_json({"event": "stage", "name": "n", "seconds": 1.0, "more": 1})
    with pytest.raises(KeyError):
        events.from_json({"result": 1})


@settings(max_examples=50, deadline=None, database=None)
@given(text=st.text(), seconds=st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_time_survive(text: str, seconds: float) -> None:
    event = Stage(name=text, seconds=seconds, note=text[::-1])
    assert events.from_json(json.loads(json.dumps(events.to_json(event)))) == event


def test_ignoring_returns_nothing() -> None:
    assert [events.ignore(event) for event in EVENTS] == [None] * len(EVENTS)
