"""The child's side of measuring: a process that does one job and ends.

It is forked from a warm process by `mlc.tune.foreman`, so that whatever a kernel does to it (crash,
hang, eat memory, leave threads spinning) ends with it.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.tune.compare import LAYOUTS, agree, not_checked
from mlc.tune.on_gpu import OnGpu
from mlc.tune.place import SessionEnded
from mlc.tune.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from socket import socket

    from mlc.tune.place import Place
    from mlc.tune.trial import Settings


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process does: time `candidates` in turn, `rounds` times, or compare the first two.

    A candidate is a workload key and the index of a config; None is the template's fallback.
    """

    candidates: Sequence[tuple[str, int | None]]
    rounds: int = 1
    compare: bool = False


class Channel:
    """JSON messages, each behind its length in four bytes, over one end of a socket pair."""

    def __init__(self, end: socket):
        self.end = end

    def send(self, message: Any) -> None:
        """Send a message; OSError when the other end is gone."""
        data = json.dumps(message).encode()
        self.end.sendall(struct.pack(">I", len(data)) + data)

    def receive(self) -> Any:
        """Wait for a message and return it; None when the other end is gone."""
        head = self._read(4)
        body = head and self._read(struct.unpack(">I", head)[0])
        return json.loads(body) if body else None

    def close(self) -> None:
        """Close this end."""
        self.end.close()

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                part = self.end.recv(count - len(data))
            except ConnectionError:
                return b""
            if not part:
                return b""
            data += part
        return data


def serve(
    job: Job, tasks: Mapping[str, Any], settings: Settings, place: Place, channel: Channel
) -> None:
    """Do a job: build, say so, wait for the word, run at the place, answer.

    The answer is `{"results": [...]}`: an object with the fields of `measure.Outcome` for each
    candidate, or for a comparison one with those of `measure.Check`. It comes at once when nothing
    could be built. `{"ended": reason, "message": ...}` says that a session with a device is over.
    """
    _limit(settings.memory_bytes, place.file_bytes)
    if isinstance(place, OnGpu):  # an assembler that is left behind ends as well
        seconds = math.ceil(settings.build_timeout * len(job.candidates))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    # TVM's thread pool belongs to the thread that first uses it: in a thread that starts after the
    # fork it is new, even when the parent has used its own (whose threads are not here).
    thread = threading.Thread(target=_serve, args=(job, tasks, settings, place, channel))
    thread.start()
    thread.join()


def warm_up(target: Any, place: Place) -> None:
    """Compile a trivial kernel, so that LLVM is set up before processes are forked."""
    from tvm import te

    source = te.placeholder((16,), name="source")
    result = te.compute((16,), lambda i: source[i] + 1, name="result")
    with contextlib.suppress(Exception):  # where a target cannot work, each candidate says so
        place.compile(te.create_schedule(result.op), [source, result], target)


def _limit(memory_bytes: int, file_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    limit_memory(memory_bytes)


def limit_memory(memory_bytes: int) -> None:
    """Bound what this process may take, and offer it first when the machine runs out of memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Without /proc (macOS) memory has no limit: RLIMIT_DATA does not cover mappings there.
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
        allowed = pages * resource.getpagesize() + memory_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or allowed < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _serve(
    job: Job, tasks: Mapping[str, Any], settings: Settings, place: Place, channel: Channel
) -> None:
    trials = [
        Trial(task=tasks[key], index=index, settings=settings, place=place)
        for key, index in job.candidates
    ]
    name = trials[0].task.name
    if job.compare and name not in LAYOUTS and not isinstance(place, OnGpu):
        channel.send({"results": [not_checked(f"the layouts of {name} are not known")]})
        return
    for trial in trials:
        trial.guard("compile", trial.build)
    if any(trial.error is None for trial in trials):
        channel.send({"built": True})
        word = channel.receive()
        if word is None:
            return
        try:
            place.enter(word["run"], trials, settings)
            channel.send(_run(job, trials, settings, place))
        except SessionEnded as ended:
            channel.send({"ended": ended.reason, "message": str(ended)})
    else:
        channel.send(_run(job, trials, settings, place))


def _run(job: Job, trials: Sequence[Trial], settings: Settings, place: Place) -> dict[str, Any]:
    if isinstance(place, OnGpu):
        return {"results": place.results(job, trials, settings)}
    if job.compare:
        return {"results": [agree(trials[0], trials[1])]}
    _time(trials, job.rounds, settings.run_timeout)
    return {"results": [trial.to_json() for trial in trials]}


def _time(trials: Sequence[Trial], rounds: int, run_timeout: float) -> None:
    """Time candidates in turn, A B C A B C ...; fewer rounds when they would run too long."""

    def step(trial: Trial, action: Callable[[], None]) -> None:
        began = time.perf_counter()
        trial.guard("runtime", action)
        trial.run_seconds += time.perf_counter() - began

    deadline = time.perf_counter() + run_timeout * len(trials) / 4
    for trial in trials:
        step(trial, trial.warm_up)
    for position in range(rounds):
        if position and time.perf_counter() > deadline:
            break
        for trial in trials:
            step(trial, trial.time)
