"""Time several artifacts of one model in turn, in one process, and compare them.

A round is a block of each. Every other round goes backwards, so that a machine that gets slower
steadily favours nobody; ratios are taken within a round.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import isolate
from mlc.events import Progress, ignore
from mlc.runtime.timing import BLOCK_S, CROWDED, SETTLE_S, Side

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mlc.events import OnEvent

WARM_UP_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Entrants:
    """What to time: (name, artifact), on how many threads, for how many rounds."""

    artifacts: tuple[tuple[str, str], ...]
    threads: int
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Race:
    """Median seconds of each block by name, one per round; whether each thread had a core."""

    blocks: dict[str, list[float]]
    reliable: bool

    def seconds(self, name: str) -> float:
        """Return the median time of an artifact."""
        return statistics.median(self.blocks[name])

    def speedup(self, name: str, against: str) -> dict[str, float]:
        """Return time of `against` / time of `name`: median over the rounds, 10th and 90th percentile."""
        pairs = zip(self.blocks[against], self.blocks[name], strict=True)
        low, ratio, high = np.percentile([other / ours for other, ours in pairs], [10, 50, 90])
        return {"ratio": float(ratio), "low": float(low), "high": float(high)}


def race(
    artifacts: Mapping[str, Path], threads: int, rounds: int, on_event: OnEvent = ignore
) -> Race:
    """Time artifacts against each other, in a process of its own."""
    named = tuple((name, str(path)) for name, path in artifacts.items())
    asked = Entrants(artifacts=named, threads=threads, rounds=rounds)
    return Race(**isolate.call("benchmarks.tune.race:time_all", asked, on_event))


def time_all(fields: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Answer `race`, in the child."""
    from mlc.runtime import inputs
    from mlc.runtime.session import open as open_session

    asked = Entrants(**fields)
    with contextlib.ExitStack() as stack:
        sides = []
        for name, path in asked.artifacts:
            session = stack.enter_context(open_session(path, threads=asked.threads))
            arrays = inputs.random(session.inputs, 0, session.manifest.get("index_bounds", {}))
            for spec, view in zip(session.inputs, session.input_views, strict=True):
                view[...] = arrays[spec.name]
            sides.append(Side(name, session.run_in_place))
            sides[-1].warm_up(WARM_UP_S)
        take_turns(sides, asked.rounds, on_event)
    return {
        "blocks": {
            side.name: [statistics.median(block) for block in side.blocks] for side in sides
        },
        "reliable": all(side.waited <= CROWDED * side.seconds for side in sides),
    }


def take_turns(
    sides: Sequence[Side], rounds: int, on_event: OnEvent = ignore, settle: float = SETTLE_S
) -> None:
    """Measure a block of each side per round, there and back again."""
    for done in range(rounds):
        for side in sides if done % 2 == 0 else reversed(sides):
            time.sleep(settle)
            side.run()  # wakes the threads, and does not count
            side.measure(BLOCK_S if settle else 0.0)
        on_event(Progress(name="race", done=done + 1, total=rounds))
