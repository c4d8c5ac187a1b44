"""Where candidate kernels run: here (`Here`), or on a device over RPC (`mlc.tune.session.There`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlc.codegen import kernels
from mlc.runtime.session import set_threads
from mlc.runtime.timing import waiting_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.tune.trial import Settings, Trial

Array = np.ndarray[Any, Any]

SYMBOL = "candidate"
_LEVEL = 3
_PATTERN = 65_521  # time does not depend on the values: so many random ones, again and again


class SessionEnded(Exception):  # noqa: N818 - it says what happened, to whomever it was due
    """The session with a device is over, and with it all that was to be done in it.

    `reason` is one of `record.REASONS` when the device itself says that the candidate ended it, else
    "" (the device did not answer) or "misfit" (it is not what was asked for).
    """

    def __init__(self, reason: str, message: str):
        self.reason = reason
        super().__init__(message)


class Place(Protocol):
    """What a trial needs of the place where its kernel runs, in the order of use."""

    @property
    def distant(self) -> bool:
        """Whether a call from this process takes longer than the kernel does."""

    @property
    def file_bytes(self) -> int:
        """How large a file may become that a building process writes."""

    def compile(self, schedule: Any, tensors: Sequence[Any], target: Any) -> Any:
        """Return what `enter` needs of a kernel, compiled from a TE schedule.

        Raises:
            UnfitError: it does not fit the device; with other tiles it may.
        """

    def defaults(self) -> list[Any]:
        """Return new configs of AutoTVM that stand for no config: the first one that fits counts."""

    def enter(self, word: Any, trials: Sequence[Trial], settings: Settings) -> None:
        """Make the trials' modules ready to run, as the foreman's `word` says."""

    def device(self) -> Any:
        """Return the device as TVM's time evaluator wants it."""

    def tensor(self, array: Array) -> Any:
        """Return a copy of an array as a tensor there, 64-byte aligned."""

    def filled(self, shape: tuple[int, ...], dtype: str, seed: int) -> Any:
        """Return a tensor there with some seeded random values, again and again."""

    def waiting_seconds(self) -> float:
        """Return how long the threads of the process there have waited for a core."""

    def judge(self, error: Exception) -> None:
        """Raise SessionEnded where an exception says that, and nothing of the kernel."""


class Here:
    """This very process."""

    distant = False
    file_bytes = 1 << 20  # what a child may print

    def compile(self, schedule: Any, tensors: Sequence[Any], target: Any) -> Any:
        """Return the module, its machine code in memory: only asking for a function emits it."""
        module = compile_kernel(schedule, tensors, target)
        module.get_function(SYMBOL)
        return module

    def defaults(self) -> list[Any]:
        """Return AutoTVM's fallback, which templates fill."""
        from tvm.autotvm.task.space import FallbackConfigEntity

        return [FallbackConfigEntity()]

    def enter(self, word: Any, trials: Sequence[Trial], settings: Settings) -> None:
        """Set the number of threads."""
        del word, trials
        set_threads(settings.threads)

    def device(self) -> Any:
        """Return the CPU."""
        import tvm

        return tvm.cpu(0)

    def tensor(self, array: Array) -> Any:
        """Return a TVM tensor."""
        from tvm import nd

        return nd.array(array)

    def filled(self, shape: tuple[int, ...], dtype: str, seed: int) -> Any:
        """Return a TVM tensor of random values."""
        return self.tensor(pattern(shape, dtype, seed))

    def waiting_seconds(self) -> float:
        """Return this process's."""
        return waiting_seconds()

    def judge(self, error: Exception) -> None:
        """Do nothing: here is no session."""


def lower(schedule: Any, tensors: Sequence[Any], target: Any) -> Any:
    """Return the TIR of a TE schedule, lowered as kernels of a model are."""
    import tvm

    with target, kernels.pass_context(_LEVEL):
        return tvm.lower(schedule, list(tensors), name=SYMBOL)


def compile_kernel(schedule: Any, tensors: Sequence[Any], target: Any) -> Any:
    """Return the LLVM module of a schedule for a CPU."""
    settings = kernels.Settings(target=target, level=_LEVEL, dispatch=None)
    tir = lower(schedule, tensors, target)
    return kernels.build(kernels.Job(symbol=SYMBOL, key="", function=None), tir, settings)


def pattern(shape: Sequence[int], dtype: str, seed: int) -> Array:
    """Return an array of the same seeded random values again and again: quick to make."""
    return np.resize(random_values((_PATTERN,), dtype, seed), tuple(shape))


def random_values(shape: Sequence[int], dtype: str, seed: int) -> Array:
    """Return seeded values that no arithmetic of a kernel overflows: floats in [-1, 1)."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    if kind == "f":
        return (rng.random(shape, np.float32) * 2 - 1).astype(dtype)
    return rng.integers(-8 if kind == "i" else 0, 2 if kind == "b" else 8, shape).astype(dtype)
