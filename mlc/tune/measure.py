"""Measure AutoTVM configs: built in parallel, timed one at a time, each in a process of its own.

Nothing is imported, written to disk, linked or serialised per trial: processes are forked with TVM
and the tasks in memory, kernels are compiled in memory, and only (workload key, config index) and
the outcome travel, as JSON. `mlc.tune.foreman` starts and watches the processes, `mlc.tune.worker`
is what runs in them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from socket import socketpair
from typing import IO, TYPE_CHECKING, Any

from mlc.errors import MissingToolError, TuningError
from mlc.tune.foreman import Foreman, fork, tail
from mlc.tune.trial import Settings
from mlc.tune.worker import Channel, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

__all__ = ["Check", "Measurer", "Outcome", "Settings"]

_CLOSE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a candidate: `costs` in seconds per call, or a reason (`record.REASONS`)."""

    costs: tuple[float, ...] = ()
    reason: str = ""
    message: str = ""
    build_seconds: float = 0.0
    run_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """Whether a kernel computes what its reference does; None: not checked, `detail` says why."""

    passed: bool | None
    detail: str


class Measurer:
    """Measures configs of tasks on this machine.

    A context manager. Enter it before the process starts threads, in a thread that lives as long.
    After any exception that leaves one of its methods (Ctrl-C, say) it is closed and its processes
    are gone.
    """

    def __init__(self, tasks: Mapping[str, Any], settings: Settings):
        """`tasks` are AutoTVM's, by `record.workload_key(task.workload)`."""
        self.tasks = dict(tasks)
        self.settings = settings
        self._pid = 0
        self._channel: Channel | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Measurer:
        """Fork the process that measurements are forked from.

        Raises:
            MissingToolError: this platform cannot fork.
        """
        if not hasattr(os, "fork"):
            raise MissingToolError(
                f"kernels are measured in forked processes, which {sys.platform} does not have",
                "tune on Linux or macOS; `mlc logs import` brings the records here",
            )
        ours, theirs = socketpair()
        self._log = tempfile.TemporaryFile()
        foreman = self._foreman(Channel(theirs))
        self._pid = fork(foreman.serve, self._log, [theirs], leader=True)
        theirs.close()
        self._channel = Channel(ours)
        return self

    def _foreman(self, channel: Channel) -> Foreman:
        return Foreman(self.tasks, self.settings, channel)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def measure(
        self,
        batch: Sequence[tuple[str, int]],
        on_outcome: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Measure configs, given as (workload key, index), and return what came of each, in order.

        Of more than two repeats the fastest and the slowest are dropped, as AutoTVM's runner does.
        `on_outcome` gets (position, outcome) as soon as one is known.

        Raises:
            KeyError: an unknown key.
            TuningError: the measurer is not open, or its process was killed (no candidate can).
        """
        found: dict[int, Outcome] = {}

        def take(position: int, results: list[dict[str, Any]]) -> None:
            outcome = _outcome(results[0])
            if len(outcome.costs) > 2:
                outcome = replace(outcome, costs=tuple(sorted(outcome.costs)[1:-1]))
            found[position] = outcome
            if on_outcome is not None:
                on_outcome(position, outcome)

        self._ask([Job(candidates=[one], rounds=self.settings.repeat) for one in batch], take)
        return [found[position] for position in range(len(batch))]

    def interleaved(
        self, groups: Sequence[Sequence[tuple[str, int | None]]], rounds: int
    ) -> list[list[Outcome]]:
        """Time the members of each group in turn, A B C A B C ..., in one process.

        A member is (workload key, index); the index None is the template's fallback. Costs are one
        per round, none dropped, and fewer than `rounds` when a quarter of the time limit is over.
        When a member crashes or hangs, its whole group has failed.

        Raises:
            KeyError, TuningError: as for `measure`.
        """
        found: dict[int, list[Outcome]] = {}

        def take(position: int, results: list[dict[str, Any]]) -> None:
            found[position] = [_outcome(result) for result in results]

        self._ask([Job(candidates=group, rounds=rounds) for group in groups], take)
        return [found[position] for position in range(len(groups))]

    def check(self, candidates: Sequence[tuple[str, int, int | None]]) -> list[Check]:
        """Compare the outputs of kernels, given as (key, index, reference index), on equal inputs.

        The reference index None is the template's fallback. Tolerances are those of
        `mlc.runtime.verify`. Templates outside `compare.LAYOUTS` are not checked; neither is a kernel
        whose reference does not work. One that crashes or hangs has not passed.

        Raises:
            KeyError, TuningError: as for `measure`.
        """
        found: dict[int, Check] = {}

        def take(position: int, results: list[dict[str, Any]]) -> None:
            result = results[0]
            if "reason" in result:  # the process did not live to compare
                detail = f"{result['reason']}: {result['message']}"
                result = {"passed": False, "detail": detail}
            found[position] = Check(**result)

        jobs = [
            Job(candidates=[(key, index), (key, reference)], compare=True)
            for key, index, reference in candidates
        ]
        self._ask(jobs, take)
        return [found[position] for position in range(len(jobs))]

    def close(self) -> None:
        """End all processes; what they were doing is lost. Closing twice does nothing."""
        if self._channel is None:
            return
        self._channel.close()  # the foreman ends its children, then itself
        self._channel = None
        deadline = time.monotonic() + _CLOSE_S
        while os.waitpid(self._pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
            time.sleep(0.002)
        if self._log is not None:
            self._log.close()

    def _ask(self, jobs: Sequence[Job], take: Callable[[int, list[dict[str, Any]]], None]) -> None:
        """Have jobs done; `take` gets each one's position and results as they come."""
        unknown = {key for job in jobs for key, _ in job.candidates} - self.tasks.keys()
        if unknown:
            raise KeyError(min(unknown))
        answered, said = False, ""
        try:
            answered = self._exchange(jobs, take)
            said = tail(self._log) if self._log and not answered else ""
        finally:
            if not answered:
                self.close()
        if not answered:
            raise TuningError(
                "the process that starts measurements was killed (is the machine out of memory?)",
                "run the same command again: it continues with what has been recorded",
                detail=said,
            )

    def _exchange(
        self, jobs: Sequence[Job], take: Callable[[int, list[dict[str, Any]]], None]
    ) -> bool:
        """Send jobs and take every answer; False when the foreman is gone."""
        if self._channel is None:
            raise TuningError("the measurer is not open")
        try:
            self._channel.send([asdict(job) for job in jobs])
        except OSError:
            return False
        missing = len(jobs)
        while missing:
            answer = self._channel.receive()
            if answer is None:
                return False
            if "position" in answer:
                take(answer["position"], answer["results"])
                missing -= 1
            else:
                self._heard(answer)
        return True

    def _heard(self, message: Mapping[str, Any]) -> None:
        """Take a message of the foreman that answers no job: here there is none."""
        raise AssertionError(message)


def _outcome(result: Mapping[str, Any]) -> Outcome:
    return Outcome(**{**result, "costs": tuple(result.get("costs", ()))})
