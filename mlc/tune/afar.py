"""Compare two artifacts on a device of a farm: both are sent there, and timed there in turn.

In a process of its own, with a limit to its time: a device that dies ends the comparison, nothing else.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.errors import TuningError, printable
from mlc.events import Notice
from mlc.rpc.artifacts import APPEND, FUNCTION
from mlc.rpc.tracker import Tracker
from mlc.tune.aside import readable, start
from mlc.tune.baseline import Pair, Versus
from mlc.tune.place import SessionEnded
from mlc.tune.session import TRANSFER_S, There

if TYPE_CHECKING:
    from mlc.events import OnEvent
    from mlc.rpc.facts import DeviceFacts
    from mlc.rpc.tracker import Grant
    from mlc.tune.farm import Farm
    from mlc.tune.worker import Channel

FREE_S = 60.0  # to wait for a device that others use
GRACE_S = 5.0  # the server ends a session in time, and says so; a device that is gone does not
LARGE_BYTES = 64 << 20  # of which the user is told before they are sent
_PART_BYTES = 8 << 20
_SLOWEST = 1 << 20  # bytes per second of a connection that is worth waiting for
_TIMING_S, _RUNS = 60.0, 100  # what timing takes: about 30 s, or 80 runs of a slow model
_MAX_ANSWER = 1 << 16


def versus(
    before: Path, after: Path, *, farm: Farm, threads: int, model_seconds: float, on_event: OnEvent
) -> Versus:
    """Return how two artifacts of one model compare on a device, timed in alternating blocks.

    `model_seconds` is about what a run takes: a device that is silent for much longer is given up.

    Raises:
        TuningError: no device is free, or the one that was did not answer, or not as it should.
    """
    size = before.stat().st_size + after.stat().st_size
    limit = TRANSFER_S + size / _SLOWEST + _TIMING_S + _RUNS * model_seconds
    asked = Pair(before=str(before), after=str(after), threads=threads)
    with ExitStack() as stack:
        grant = _granted(farm, stack)
        if size > LARGE_BYTES:
            text = f"{size >> 20} MB, the untuned and the tuned model, go to {grant.address}"
            on_event(Notice(text=f"{text} to be compared"))
        channel = start(partial(_compare, asked, grant, farm.facts, limit), stack)
        deadline = time.monotonic() + limit + GRACE_S
        said = (
            channel.receive() if readable(channel.end, deadline) else {"why": "no answer in time"}
        )
    if not said or "why" in said:
        why = said["why"] if said else "the process that spoke with it crashed"
        raise TuningError(f"the device at {grant.address} did not compare them ({why})")
    return read(said["answer"])


def read(text: str) -> Versus:
    """Return what a device answers, which may be anybody's.

    Raises:
        TuningError: it could not compare them, or answers otherwise than mlc's server does.
    """
    try:
        row = json.loads(text[:_MAX_ANSWER])
        if "error" in row:
            raise TuningError(f"the device says: {printable(str(row['error']), 500)}")
        found = Versus(**{field.name: row[field.name] for field in fields(Versus)})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TuningError("the device answers otherwise than mlc's server does") from error
    if not all(isinstance(x, float) and 0 < x < math.inf for x in asdict(found).values()):
        raise TuningError("the device gives no times")
    return found


def _granted(farm: Farm, stack: ExitStack) -> Grant:
    """Return the use of a device."""
    if not farm.devices():
        raise TuningError(f"no device {farm.key!r} is left")
    tracker = stack.enter_context(Tracker(farm.tracker))
    tracker.request(farm.key)
    if not readable(tracker, time.monotonic() + FREE_S):
        raise TuningError(f"no device {farm.key!r} was free for {FREE_S:.0f} s")
    return tracker.granted()


def _compare(
    asked: Pair, grant: Grant, expected: DeviceFacts, limit: float, channel: Channel
) -> None:
    """Send the artifacts and have them compared; say what came of it."""
    place = There(expected)
    try:
        place.open(grant, limit, None)
        channel.send({"answer": _answer(place, asked)})
    except SessionEnded as error:
        channel.send({"why": str(error)})


def _answer(place: There, asked: Pair) -> str:
    """Return the device's answer.

    Raises:
        SessionEnded: there is none.
    """
    try:
        add, compare = (place.session.get_function(name) for name in (APPEND, FUNCTION))
    except AttributeError as error:  # TVM's word for an unknown function
        raise SessionEnded("misfit", "its mlc is older than this one") from error
    try:
        for name, path in (("before.mlc", asked.before), ("after.mlc", asked.after)):
            for part in _parts(Path(path)):
                add(name, part)
        return str(compare("before.mlc", "after.mlc", asked.threads))
    except Exception as error:
        place.judge(error)
        raise SessionEnded("runtime", str(error).strip().splitlines()[-1]) from error


def _parts(path: Path) -> Any:
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            yield bytearray(part)
