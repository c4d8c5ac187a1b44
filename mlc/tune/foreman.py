"""The process that measuring is forked from: it starts a child for each job, and watches it.

It is forked from the tuning process while TVM and the tasks are in memory and few threads run, and
never runs a kernel itself. The tuning process soon has threads (XGBoost's, the display's) and many
records, and should not fork any more; the foreman can at any time.

A batch has two phases. Children build, several at a time, and then wait; one after the other they
run, while everything else sleeps. A child ends after its run, and with it what would disturb the
next one: TVM's idle threads spin for 160 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from dataclasses import dataclass
from socket import socket, socketpair
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

from mlc import isolate, tvm_env
from mlc.tune import worker
from mlc.tune.place import Here
from mlc.tune.worker import Channel, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mlc.tune.place import Place
    from mlc.tune.trial import Settings

_ALIVE = 32  # children that hold a built kernel at a time


class _Hangup(Exception):  # noqa: N818 - it is how the parent says that it is over
    """The parent has closed its end, or is gone."""


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


Source = TypeVar("Source", bound=_HasFileno)


@dataclass
class Child:
    """A process with a job, as the foreman sees it; times by the monotonic clock."""

    position: int
    job: Job
    pid: int
    channel: Channel
    log: IO[bytes]
    deadline: float
    started: float
    build_seconds: float = 0.0
    run: float = 0.0

    def fileno(self) -> int:
        """Return the number of its channel, for selectors."""
        return self.channel.end.fileno()

    def failure(self, reason: str, how: str) -> list[dict[str, Any]]:
        """Return the results of a job whose process did not answer."""
        now = time.monotonic()
        said = tail(self.log).strip()
        told = [tvm_env.reason(RuntimeError(said))] if said else []
        result = {
            "reason": reason,
            "message": ": ".join([how, *told])[:500],
            "build_seconds": self.build_seconds or now - self.started,
            "run_seconds": now - self.run if self.run else 0.0,
        }
        return [result] * len(self.job.candidates)

    def end(self) -> str:
        """Kill and reap the process, if it still runs, and return how it ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.channel.close()
        if not os.WIFSIGNALED(status):
            return f"exit status {os.waitstatus_to_exitcode(status)}"
        number = os.WTERMSIG(status)
        known = {s.value: s.name for s in signal.Signals}
        return known.get(number, f"signal {number}")


class Foreman:
    """Does jobs for the process at the other end of `channel`.

    A request is a list of jobs (`Job` as an object); each is answered, in any order, by
    `{"position": ..., "results": [...]}` as soon as it is done.
    """

    def __init__(
        self,
        tasks: Mapping[str, Any],
        settings: Settings,
        channel: Channel,
        place: Place | None = None,
    ):
        self._tasks = tasks
        self._settings = settings
        self._channel = channel
        self._place = place or Here()
        self._children: dict[int, Child] = {}

    def serve(self) -> None:
        """Do the parent's jobs until it closes its end; then end every child."""
        from tvm import autotvm

        autotvm.GLOBAL_SCOPE.in_tuning = True  # templates take packed arguments, as AutoTVM's do
        for target in {str(task.target): task.target for task in self._tasks.values()}.values():
            worker.warm_up(target, self._place)
        gc.collect()  # so that children, who keep what they inherit, inherit less
        try:
            while (request := self._channel.receive()) is not None:
                waiting = deque((position, Job(**job)) for position, job in enumerate(request))
                while waiting:
                    batch = [waiting.popleft() for _ in range(min(_ALIVE, len(waiting)))]
                    waiting.extend(self._run(self._build(batch)))
        except _Hangup:
            pass
        finally:
            for child in self._children.values():
                child.end()

    def _build(self, batch: Iterable[tuple[int, Job]]) -> list[Child]:
        """Start a child for each job, a few at a time, and return those that have built it."""
        waiting = deque(batch)
        building: list[Child] = []
        built: list[Child] = []
        while waiting or building:
            while waiting and len(building) < self._settings.workers:
                building.append(self._spawn(*waiting.popleft()))
            for child in self._wait(building, min(child.deadline for child in building)):
                building.remove(child)
                message = child.channel.receive()
                if message and "built" in message:
                    child.build_seconds = time.monotonic() - child.started
                    built.append(child)
                else:
                    self._finish(child, message)
            for child in [c for c in building if time.monotonic() > c.deadline]:
                building.remove(child)
                self._time_out(child, "build timeout", self._settings.build_timeout)
        return built

    def _run(self, built: Sequence[Child]) -> list[tuple[int, Job]]:
        """Run what was built and answer; return the jobs that are to be done again."""
        for child in built:
            self._run_one(child)
        return []

    def _run_one(self, child: Child) -> None:
        time.sleep(self._settings.cooldown)
        limit = self._settings.run_timeout
        child.run = time.monotonic()
        with contextlib.suppress(OSError):  # it may have died while it waited
            child.channel.send({"run": True})
        if self._wait([child], child.run + limit * len(child.job.candidates)):
            self._finish(child, child.channel.receive())
        else:
            self._time_out(child, "run timeout", limit)

    def _spawn(self, position: int, job: Job) -> Child:
        ours, theirs = socketpair()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_answer`

        def work() -> None:
            worker.serve(job, self._tasks, self._settings, self._place, Channel(theirs))

        started = time.monotonic()
        pid = fork(work, log, [theirs])
        theirs.close()
        child = Child(
            position=position, job=job, pid=pid, channel=Channel(ours), log=log, started=started,
            deadline=started + self._settings.build_timeout * len(job.candidates),
        )  # fmt: skip
        self._children[pid] = child
        return child

    def _wait(self, sources: Sequence[Source], deadline: float) -> list[Source]:
        """Return the sources with something to read; none when `deadline` comes first."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel.end, selectors.EVENT_READ)
            for source in sources:
                selector.register(source, selectors.EVENT_READ, source)
            ready = [key.data for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
        if None in ready:
            raise _Hangup
        return ready

    def _finish(self, child: Child, message: Any) -> None:
        """Hand on a child's last message; without one it has crashed."""
        how = child.end()
        if message:
            self._answer(child, message["results"])
            return
        if how == "SIGKILL":
            how += " (out of memory?)"
        doing = "running" if child.build_seconds else "building"
        self._answer(child, child.failure("crash", f"{how} while {doing}"))

    def _time_out(self, child: Child, reason: str, limit: float) -> None:
        child.end()
        self._answer(child, child.failure(reason, f"not finished after {limit:g} s"))

    def _answer(self, child: Child, results: list[dict[str, Any]]) -> None:
        self._forget(child)
        self._tell({"position": child.position, "results": results})

    def _forget(self, child: Child) -> None:
        del self._children[child.pid]
        child.log.close()

    def _tell(self, message: dict[str, Any]) -> None:
        """Send the parent a message."""
        try:
            self._channel.send(message)
        except OSError:
            raise _Hangup from None


def fork(
    work: Callable[[], None], log: IO[bytes], keep: Iterable[socket], *, leader: bool = False
) -> int:
    """Run `work` in a child process that shares nothing but `keep`, and return its id.

    What it prints goes to `log`. It ends with its parent, where the system can do that (Linux); a
    `leader` has its own process group and session, out of reach of the terminal's Ctrl-C.
    """
    parent = os.getpid()
    pid = isolate.fork()
    if pid:
        return pid
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        faulthandler.disable()
        if leader:
            os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)
        for fd in (1, 2):
            os.dup2(log.fileno(), fd)
        _close_files({end.fileno() for end in keep})
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _close_files(keep: set[int]) -> None:
    """Close inherited files: a copy would hold the parent's locks and pipes open."""
    first = 3
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def tail(log: IO[bytes]) -> str:
    """Return the end of a log."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 4000))
    return log.read().decode(errors="replace")
