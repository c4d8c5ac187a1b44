"""Measure on devices behind an RPC tracker, all of one kind, as many at a time as it has.

The same interface as `mlc.tune.measure`, and the same processes: the foreman's children build and
then wait, but instead of running one after the other each gets a device as soon as the tracker has
one. A device that dies takes no result with it: its candidate is built again and goes to another.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlc.errors import TuningError
from mlc.events import Notice
from mlc.gpu import ptxas
from mlc.rpc.tracker import Tracker
from mlc.tune.foreman import Child, Foreman
from mlc.tune.measure import Measurer
from mlc.tune.on_gpu import OnGpu
from mlc.tune.roster import Roster
from mlc.tune.session import There, linker_for, session_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlc.events import OnEvent
    from mlc.rpc.tracker import Grant
    from mlc.tune.farm import Farm
    from mlc.tune.trial import Settings
    from mlc.tune.worker import Channel, Job

GRACE_S = 5.0  # the server ends a session in time, and says so; a device that is gone does not
PATIENCE_S = 5.0  # without any device at work, until the tracker is asked what there is
ROUNDS = 3  # in which a fallback is timed, to weigh its task
TRIES = 3  # devices that a candidate may be lost with before that counts against it


class RemoteMeasurer(Measurer):
    """Measures configs of tasks on the devices of a farm; see `Measurer`.

    TuningError also when the tracker is gone, or no device is left.
    """

    def __init__(self, tasks: Mapping[str, Any], settings: Settings, farm: Farm, on_event: OnEvent):
        super().__init__(tasks, settings)
        self.farm = farm
        self.on_event = on_event

    def __enter__(self) -> RemoteMeasurer:
        """Fork the process that measurements are forked from.

        Raises:
            MissingToolError: this platform cannot fork, or there is no linker (for a GPU no assembler).
        """
        if self.settings.gpu is None:
            for task in self.tasks.values():
                linker_for(task.target)
        else:
            ptxas.find()
        self._scratch = tempfile.TemporaryDirectory(prefix="mlc-")
        super().__enter__()
        return self

    def close(self) -> None:
        """End all processes here; a device ends its session when it notices."""
        super().close()
        self._scratch.cleanup()

    def _foreman(self, channel: Channel) -> Foreman:
        return RemoteForeman(self.tasks, self.settings, channel, self.farm, self._scratch.name)

    def _heard(self, message: Mapping[str, Any]) -> None:
        if "notice" in message:
            self.on_event(Notice(text=message["notice"], level="warning"))
        else:
            raise TuningError(message["error"], message["hint"])


def untuned_seconds(measurer: Measurer) -> dict[str, float]:
    """Return the seconds per call of each task's fallback, where it works: they weigh the tasks."""
    timed = measurer.interleaved([[(key, None)] for key in measurer.tasks], ROUNDS)
    found = zip(measurer.tasks, timed, strict=True)
    return {key: min(outcome.costs) for key, (outcome,) in found if outcome.costs}


@dataclass
class _Session:
    """A child at work on a device."""

    child: Child
    grant: Grant
    deadline: float


class RemoteForeman(Foreman):
    """Does jobs on the devices of a farm."""

    def __init__(
        self,
        tasks: Mapping[str, Any],
        settings: Settings,
        channel: Channel,
        farm: Farm,
        scratch: str,
    ):
        limits = settings.gpu
        place = OnGpu(farm.facts, limits) if limits is not None else There(farm.facts)
        super().__init__(tasks, settings, channel, place)
        self._farm = farm
        self._scratch = scratch
        self._roster = Roster()
        self._tracker: Tracker | None = None
        self._asked = False  # whether a request is open
        self._idle = 0.0  # since when no device is at work
        self._sessions: dict[int, _Session] = {}  # by child
        self._again: list[tuple[int, Job]] = []
        self._tries: dict[int, int] = {}  # lost, by position

    def serve(self) -> None:
        """Do the parent's jobs; a TuningError is told to it, and ends this process."""
        tempfile.tempdir = self._scratch  # children that are killed leave files
        try:
            super().serve()
        except TuningError as error:
            self._tell({"error": error.message, "hint": error.hint})

    def _run(self, built: Sequence[Child]) -> list[tuple[int, Job]]:
        """Give each child a device as they come; return the jobs whose device was lost."""
        waiting = deque(built)
        self._again = []
        self._idle = time.monotonic()
        while waiting or self._sessions:
            if waiting and not self._asked:
                self._request()
            sources: list[Child | Tracker]
            sources = [session.child for session in self._sessions.values()]
            if self._asked and self._tracker:
                sources.append(self._tracker)
            deadlines = [session.deadline for session in self._sessions.values()]
            soon = time.monotonic() + PATIENCE_S
            for source in self._wait(sources, min([soon, *deadlines])):
                if isinstance(source, Child):
                    self._end(source)
                else:
                    self._start(waiting)
            for session in list(self._sessions.values()):
                if time.monotonic() > session.deadline:
                    self._lose(session, "no answer in time")
            if self._sessions:
                self._idle = time.monotonic()
            elif waiting and time.monotonic() > self._idle + PATIENCE_S:
                self._look_for_devices()
        return self._again

    def _request(self) -> None:
        # One request at a time: it is fair to other users of the tracker.
        if self._tracker is None:
            self._tracker = Tracker(self._farm.tracker)
        self._tracker.request(self._farm.key)
        self._asked = True

    def _start(self, waiting: deque[Child]) -> None:
        """Give the device that the tracker grants to the next child."""
        assert self._tracker is not None
        grant = self._tracker.granted()
        self._asked = False
        if not self._roster.usable([grant.address]):
            return  # its server notices that nobody comes, and offers itself again
        child = waiting.popleft()
        child.run = time.monotonic()
        seconds = session_seconds(len(child.job.candidates), self._settings.run_timeout)
        deadline = child.run + seconds + GRACE_S
        self._sessions[child.pid] = _Session(child, grant, deadline)
        with contextlib.suppress(OSError):  # it may have died while it waited
            child.channel.send({"run": asdict(grant)})

    def _end(self, child: Child) -> None:
        session = self._sessions[child.pid]
        message = child.channel.receive()
        if message is None:
            self._lose(session, "the process that spoke with it crashed")
        elif "results" in message:
            self._done(session)
            self._finish(child, message)
        elif message["ended"] in ("", "misfit"):
            self._lose(session, message["message"], misfit=message["ended"] == "misfit")
        else:
            self._done(session)
            child.end()
            self._answer(child, child.failure(message["ended"], message["message"]))

    def _done(self, session: _Session) -> None:
        del self._sessions[session.child.pid]
        self._tries.pop(session.child.position, None)
        self._roster.worked(session.grant.address)

    def _lose(self, session: _Session, why: str, *, misfit: bool = False) -> None:
        """Note what became of the device, and have the job done again."""
        child, device = session.child, session.grant.address
        del self._sessions[child.pid]
        child.end()
        # It may have been granted again before its end was heard of: that is no news then.
        is_news = bool(self._roster.usable([device]))
        if misfit:
            notice = self._roster.put_aside(device, why)
        else:
            notice = self._roster.lost(device, why, self._farm.devices())
        if is_news:
            self._tell({"notice": notice})
        tries = self._tries[child.position] = self._tries.get(child.position, 0) + 1
        if tries == TRIES:
            del self._tries[child.position]
            self._answer(child, child.failure("crash", f"{tries} devices in turn were lost: {why}"))
        else:
            self._forget(child)
            self._again.append((child.position, child.job))

    def _look_for_devices(self) -> None:
        """Raise TuningError when the tracker has no device that can be used; else wait on."""
        if self._roster.usable(self._farm.devices()):
            self._idle = time.monotonic()  # they are busy, with others' work
            return
        reasons = [f"{device}: {why}" for device, why in self._roster.aside.items()]
        raise TuningError(
            f"no device {self._farm.key!r} is left ({'; '.join(reasons) or 'all are gone'})",
            "start one (`mlc rpc server`), then the same command: it continues with what has been "
            "recorded",
        )
