"""Candidates for a GPU: assembled here, where those that do not fit end; timed by a device's server.

All that a job asks for is one request (`mlc.rpc.gpu`): the device times candidates in turn by its
own clock, or compares the outputs of two on equal inputs.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

from mlc.errors import printable
from mlc.gpu.program import assemble
from mlc.rpc import gpu
from mlc.rpc.tracker import Grant
from mlc.tune.place import SessionEnded, lower
from mlc.tune.session import There, session_seconds
from mlc.tune.trial import CandidateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.gpu.device import Program
    from mlc.rpc.facts import DeviceFacts
    from mlc.target_file import Gpu
    from mlc.tune.trial import Settings, Trial
    from mlc.tune.worker import Job

_MAX_ANSWER = 1 << 20


class OnGpu(There):
    """A device with a GPU over RPC; `limits` are those of a block of the target."""

    def __init__(self, expected: DeviceFacts, limits: Gpu):
        super().__init__(expected)
        self.limits = limits

    def compile(self, schedule: Any, tensors: Sequence[Any], target: Any) -> Program:
        """Return the program of a kernel.

        Raises:
            UnfitError: it takes more than a block may have.
        """
        lowered = lower(schedule, tensors, target)
        return assemble(lowered, target, self.limits)

    def defaults(self) -> list[Any]:
        """Return what compiling takes where it has no record, and where that does not fit."""
        from mlc.schedules.cuda import SMALLER, Default

        return [Default(), *(make() for make in SMALLER.values())]

    def enter(self, word: Any, trials: Sequence[Trial], settings: Settings) -> None:
        """Open the session that `word` (a grant) allows.

        Raises:
            SessionEnded: the device does not answer, or is another one.
        """
        # No limits: the driver maps more memory than it takes.
        self.open(Grant(**word), session_seconds(len(trials), settings.run_timeout), None)

    def results(
        self, job: Job, trials: Sequence[Trial], settings: Settings
    ) -> list[dict[str, Any]]:
        """Return what `worker.serve` answers: an outcome for each trial, or one check.

        Raises:
            SessionEnded: the device did, or did not answer, or not as its server does.
        """
        built = [trial for trial in trials if trial.error is None]
        if job.compare and len(built) < len(trials):
            return [_cannot_compare(*trials)]
        if built:
            how = gpu.How(
                rounds=job.rounds,
                seconds=settings.run_timeout * len(trials) / 4,
                min_repeat_ms=settings.min_repeat_ms,
                warm_up_ms=settings.warm_up_ms,
                seed=settings.seed,
                compare=job.compare,
            )
            started = time.perf_counter()
            rows = self._ask(built, how)
            taken = time.perf_counter() - started
            if job.compare:
                return [_check(rows[0])]
            for trial, row in zip(built, rows, strict=True):
                trial.run_seconds = taken / len(built)
                trial.guard("runtime", _take, trial, row)
        return [trial.to_json() for trial in trials]

    def _ask(self, built: Sequence[Trial], how: gpu.How) -> list[dict[str, Any]]:
        """Return the device's row for each trial, of a comparison one."""
        request = gpu.request([(trial.module, _tensors(trial)) for trial in built], how)
        try:
            text = str(self.session.get_function(gpu.FUNCTION)(bytearray(request)))
        except Exception as error:
            self.judge(error)
            raise SessionEnded("runtime", str(error)) from error
        rows = _rows(text, 1 if how.compare else len(built))
        if rows is None:
            raise SessionEnded("misfit", "it answers otherwise than mlc's server does")
        return rows


def _rows(text: str, count: int) -> list[dict[str, Any]] | None:
    """Return the rows of an answer, which may be anybody's; None when it is of another form."""
    if len(text) > _MAX_ANSWER:
        return None
    try:
        answer = json.loads(text)
        rows = answer["results"] if "results" in answer else [answer] * count
        good = len(rows) == count and all(isinstance(row, dict) for row in rows)
    except (ValueError, TypeError, RecursionError):
        return None
    return list(rows) if good else None


def _tensors(trial: Trial) -> list[gpu.Tensor]:
    return [
        gpu.Tensor(
            shape=tuple(int(size) for size in tensor.shape),
            dtype=str(tensor.dtype),
            written=type(tensor.op).__name__ != "PlaceholderOp",
        )
        for tensor in trial.tensors
    ]


def _take(trial: Trial, row: dict[str, Any]) -> None:
    """Note what the device says of a trial.

    Raises:
        CandidateError: it failed there.
    """
    if "error" in row:
        raise CandidateError("runtime", printable(str(row["error"]), 500))
    costs = row.get("costs")
    numbers = isinstance(costs, list) and all(
        isinstance(c, float) and 0 < c < math.inf for c in costs
    )
    if not costs or not numbers:
        raise CandidateError("runtime", "the device gives no times")
    trial.costs = costs


def _check(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `measure.Check` of what the device says."""
    passed = row.get("passed")
    detail = printable(str(row.get("detail", row.get("error", ""))), 500)
    return {"passed": passed if isinstance(passed, bool) else None, "detail": detail}


def _cannot_compare(ours: Trial, reference: Trial) -> dict[str, Any]:
    if reference.error is not None:
        return {"passed": None, "detail": f"not checked: the reference failed ({reference.error})"}
    return {"passed": False, "detail": str(ours.error)}
