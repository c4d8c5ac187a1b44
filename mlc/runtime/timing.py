"""Measure runs in blocks, of one side or of two in turn, and say what the samples mean.

Needs no TVM: a side is a name and a function.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlc.events import OnEvent, Progress, ignore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIN_PAIRS = 5
BLOCK_S = 0.25
SETTLE_S = 0.1  # idle workers of TVM and of ONNX Runtime both spin for less
CROWDED = 0.1  # seconds that threads wait for a core, per second


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long runs took: seconds, but for `runs`, `spread`, `throughput` and `waited`.

    `spread` is the interquartile range over the median; `throughput` is samples per second, `batch`
    of them in a run. `waited` is how long threads that were ready to run waited for a core, in
    seconds per second, all threads of the process together: near 0 when each has a core of its own.
    """

    name: str
    runs: int
    median: float
    mean: float
    p90: float
    p99: float
    min: float
    max: float
    spread: float
    throughput: float
    waited: float

    @classmethod
    def from_samples(
        cls, name: str, samples: Sequence[float], *, batch: int = 1, waited: float = 0.0
    ) -> Timing:
        """Return the statistics of at least one run; `samples` and `waited` in seconds."""
        seconds = np.asarray(samples, np.float64)
        low, median, high, p90, p99 = map(float, np.percentile(seconds, [25, 50, 75, 90, 99]))
        total = max(float(seconds.sum()), 1e-9)
        return cls(
            name=name,
            runs=len(seconds),
            median=median,
            mean=float(seconds.mean()),
            p90=p90,
            p99=p99,
            min=float(seconds.min()),
            max=float(seconds.max()),
            spread=(high - low) / max(median, 1e-9),
            throughput=len(seconds) * batch / total,
            waited=waited / total,
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`ratio` is the peer's time over mlc's (above 1: mlc is faster).

    It is the median over `pairs` adjacent blocks; `low` and `high` are the 10th and the 90th
    percentile. `reliable` is False when threads waited for cores (see `CROWDED`): that hurts the
    side whose idle threads spin more, so the ratio is not to be quoted. `verdict` says all this in
    a sentence.
    """

    peer: str
    pairs: int
    ratio: float
    low: float
    high: float
    reliable: bool
    verdict: str


class Side:
    """One of the things compared: `run()` does one run; `blocks` holds seconds, by block."""

    def __init__(self, name: str, run: Callable[[], object]):
        self.name = name
        self.run = run
        self.blocks: list[list[float]] = []
        self.waited = 0.0

    @property
    def seconds(self) -> float:
        """The time of all measured runs."""
        return sum(map(sum, self.blocks))

    def warm_up(self, seconds: float) -> None:
        """Run for so long, at least once, and forget it."""
        deadline = time.perf_counter() + seconds
        self.run()
        while time.perf_counter() < deadline:
            self.run()

    def measure(self, seconds: float, runs: int = 1) -> None:
        """Add a block of at least so many seconds and runs."""
        clock, run = time.perf_counter_ns, self.run
        block: list[int] = []
        waited = waiting_seconds()
        deadline = clock() + int(seconds * 1e9)
        while len(block) < runs or clock() < deadline:
            started = clock()
            run()
            block.append(clock() - started)
        self.waited += max(0.0, waiting_seconds() - waited)
        self.blocks.append([nanoseconds / 1e9 for nanoseconds in block])

    def timing(self, batch: int) -> Timing:
        """Return the statistics over all blocks."""
        samples = [seconds for block in self.blocks for seconds in block]
        return Timing.from_samples(self.name, samples, batch=batch, waited=self.waited)


def interleave(
    ours: Side, peer: Side, duration: float, on_event: OnEvent = ignore, settle: float = SETTLE_S
) -> None:
    """Measure both sides in turn, in blocks, until each has run for `duration` seconds.

    Before each block: `settle` seconds of pause and one discarded run.
    """
    block = min(BLOCK_S, duration / MIN_PAIRS)
    while len(peer.blocks) < MIN_PAIRS or min(ours.seconds, peer.seconds) < duration:
        for side in (ours, peer):
            time.sleep(settle)
            side.run()
            side.measure(block)
        done = min(ours.seconds, peer.seconds, duration)
        on_event(Progress(name="measure", done=round(100 * done / duration), total=100))


def waiting_seconds() -> float:
    """Return how long this process's threads have waited for a core so far (0 but on Linux).

    It tells "other programs, or the host, take the cores" from "the model has no parallel work":
    threads that sleep do not wait.
    """
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # the thread may have ended
            total += int(file.read_text().split()[1])  # run, wait (ns), slices
    return total / 1e9


def compare(
    peer: str,
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    *,
    reliable: bool = True,
) -> Comparison:
    """Return how mlc's blocks compare with the peer's.

    Args:
        peer: the peer's name and version.
        ours: seconds of each run, by block.
        theirs: the same, of the blocks that followed: ours[0], theirs[0], ours[1], theirs[1], ...
        reliable: whether each thread had a core.
    """
    a, b = ([max(1e-9, float(np.median(x))) for x in blocks] for blocks in (ours, theirs))
    ratios = [y / x for x, y in zip(a, b, strict=True)]
    ratios += [y / x for x, y in zip(a[1:], b[:-1], strict=True)]
    low, ratio, high = map(float, np.percentile(ratios, [10, 50, 90]))
    return Comparison(
        peer=peer, pairs=len(ratios), ratio=ratio, low=low, high=high,
        reliable=reliable,
        verdict=("" if reliable else "not to be quoted: ") + _verdict(peer, low, ratio, high),
    )  # fmt: skip


def _verdict(peer: str, low: float, ratio: float, high: float) -> str:
    if low > 1:
        return f"mlc is {ratio:.2f} times as fast as {peer} ({low:.2f} to {high:.2f})"
    if high < 1:
        return f"{peer} is {1 / ratio:.2f} times as fast as mlc ({1 / high:.2f} to {1 / low:.2f})"
    return (
        f"no clear difference between mlc and {peer}: "
        f"mlc is {ratio:.2f} times as fast ({low:.2f} to {high:.2f})"
    )
