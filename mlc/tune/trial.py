"""One candidate kernel: built, and timed where its `place` is.

Here that touches no file: LLVM compiles into the process, by the code generator that writes object
files for an artifact.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import tvm_env
from mlc.errors import BuildError
from mlc.gpu.device import UnfitError
from mlc.runtime.timing import CROWDED
from mlc.tune.place import SYMBOL, Here, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlc.target_file import Gpu

_FLUSH = "cache_flush_cpu_non_first_arg"
_MAX_COLD_RUNS = 100  # per repeat, when the caches are flushed before each run


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How candidates are measured.

    `workers` build at a time; a kernel runs on `threads` threads. `build_timeout` and `run_timeout`
    are seconds per candidate, `memory_bytes` is what it may allocate. A kernel is called until
    `warm_up_ms` are over; each of `repeat` costs is then the mean of calls over `min_repeat_ms`. A
    repeat during which its threads had to wait for cores is taken again, `retries` times at most
    for a kernel. `flush` empties the caches of all arguments but the first (in AutoTVM's order that
    is the output) before each call. `cooldown` seconds pass before each candidate runs. `gpu` holds the
    limits of the GPU that is tuned for (None: a CPU).
    """

    workers: int
    threads: int
    build_timeout: float
    run_timeout: float
    memory_bytes: int
    repeat: int = 3
    min_repeat_ms: float = 40.0
    warm_up_ms: float = 10.0
    retries: int = 2
    cooldown: float = 0.0
    flush: bool = False
    seed: int = 0
    gpu: Gpu | None = None


class CandidateError(Exception):
    """A candidate failed, for one of the reasons of `mlc.tune.record.REASONS`."""

    def __init__(self, reason: str, message: str):
        self.reason = reason
        super().__init__(message)


@dataclass(kw_only=True)
class Trial:
    """A candidate on its way: built, timed (`costs`: seconds per call), or failed (`error`).

    `index` None is the template's fallback config, `tensors` are the kernel's arguments in TE,
    `number` is how often it is called per repeat.
    """

    task: Any
    index: int | None
    settings: Settings
    place: Place = field(default_factory=Here)
    error: CandidateError | None = None
    costs: list[float] = field(default_factory=list)
    build_seconds: float = 0.0
    run_seconds: float = 0.0
    number: int = 1
    retried: int = 0
    module: Any = None
    tensors: Sequence[Any] = ()
    arguments: Sequence[Any] = ()

    def guard(self, reason: str, step: Callable[..., Any], *args: Any) -> Any:
        """Take a step, unless one has failed, and return its value; an exception goes to `error`.

        Raises:
            SessionEnded: it is not the candidate's.
        """
        if self.error is not None:
            return None
        try:
            return step(*args)
        except CandidateError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - TVM raises anything; the text is kept
            self.place.judge(error)
            self.error = CandidateError(reason, _text(error))
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the fields of `measure.Outcome`."""
        return {
            "costs": self.costs if self.error is None else [],
            "reason": self.error.reason if self.error else "",
            "message": str(self.error or ""),
            "build_seconds": self.build_seconds,
            "run_seconds": self.run_seconds,
        }

    def build(self) -> None:
        """Instantiate the template with the config and compile the schedule.

        Raises:
            CandidateError: the template or TE refuses the config.
            UnfitError: the kernel does not fit the GPU.
        """
        started = time.perf_counter()
        try:
            self.module = self._compile()
        finally:
            self.build_seconds = time.perf_counter() - started

    def _compile(self) -> Any:
        configs = [None] if self.index is not None else self.place.defaults()
        while True:
            schedule = self._instantiate(configs.pop(0))
            try:
                return self.place.compile(schedule, self.tensors, self.task.target)
            except UnfitError:
                if not configs:
                    raise

    def _instantiate(self, default: Any) -> Any:
        try:
            space = self.task.config_space
            config = space.get(self.index) if default is None else default
            with self.task.target:
                schedule, self.tensors = self.task.instantiate(config)
        except Exception as error:
            raise CandidateError("instantiation", _text(error)) from error
        if not config.valid():
            raise CandidateError("instantiation", str(config.errors[-1]))
        return schedule

    def warm_up(self) -> None:
        """Allocate the arguments, run until threads and clocks are warm, choose `number`."""
        self.arguments = [
            self.place.filled(shape_of(t), t.dtype, self.settings.seed) for t in self.tensors
        ]
        least = self.settings.min_repeat_ms / 1e3
        if self._run_once() < least:
            mean = self._evaluate(1, self.settings.warm_up_ms)
            self.number = math.ceil(least / max(mean, 1e-9))

    def time(self) -> None:
        """Add a repeat to `costs`: the least disturbed when other programs hold the cores."""
        attempts: list[tuple[float, float]] = []
        while True:
            waited, started = self.place.waiting_seconds(), time.perf_counter()
            cost = self._repeat()
            taken = time.perf_counter() - started
            waited = self.place.waiting_seconds() - waited
            attempts.append((waited / max(taken, 1e-9), cost))
            if attempts[-1][0] <= CROWDED or self.retried == self.settings.retries:
                break
            self.retried += 1
        self.costs.append(min(attempts)[1])

    def _repeat(self) -> float:
        if self.number == 1:
            return self._run_once()
        if self.settings.flush:
            return self._evaluate(1, 0, repeat=min(self.number, _MAX_COLD_RUNS), before=_FLUSH)
        return self._evaluate(self.number, self.settings.min_repeat_ms / 2)

    def _evaluate(
        self, number: int, at_least_ms: float, *, repeat: int = 1, before: str = ""
    ) -> float:
        evaluator = self.module.time_evaluator(
            SYMBOL, self.place.device(), number=number, repeat=repeat,
            min_repeat_ms=int(at_least_ms), f_preproc=before,
        )  # fmt: skip
        return float(np.mean(evaluator(*self.arguments).results))

    @property
    def function(self) -> Any:
        """The kernel, to be called with TVM tensors."""
        return self.module.get_function(SYMBOL)

    def _run_once(self) -> float:
        if self.place.distant:
            return self._evaluate(1, 0)
        function = self.function
        started = time.perf_counter()
        function(*self.arguments)
        return time.perf_counter() - started


def _text(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, BuildError) and error.__cause__ else error
    text = tvm_env.reason(cause)
    if isinstance(cause, MemoryError) or "bad_alloc" in text:
        return f"out of memory ({text})"
    return text


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a TE tensor."""
    return tuple(int(size) for size in tensor.shape)
