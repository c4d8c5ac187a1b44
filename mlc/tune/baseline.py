"""Time whole artifacts for tuning, each call in a process of its own.

The process that forks measuring workers must not have started TVM's thread pool, so it never runs a
model itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc import isolate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlc.events import OnEvent


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What to time: an artifact, perhaps another one to compare it with; seconds for each."""

    artifact: str
    other: str | None = None
    threads: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Versus:
    """Two artifacts timed in turn: median seconds of each, ratio before / after with its range."""

    before: float
    after: float
    ratio: float
    low: float
    high: float


def kernel_seconds(artifact: Path, threads: int, seconds: float) -> dict[str, float]:
    """Return the seconds per run that each kernel of an artifact takes, by symbol."""
    asked = Timed(artifact=str(artifact), threads=threads, seconds=seconds)
    answer: dict[str, float] = isolate.call("mlc.tune.baseline:profile_artifact", asked)
    return answer


def versus(before: Path, after: Path, threads: int, seconds: float) -> Versus:
    """Return how two artifacts of one model compare, timed in alternating blocks."""
    asked = Timed(artifact=str(before), other=str(after), threads=threads, seconds=seconds)
    return Versus(**isolate.call("mlc.tune.baseline:compare_artifacts", asked))


def together(parts: Sequence[Versus]) -> Versus:
    """Return how one run of each of several models compares, all taken together."""

    def over(ratios: Sequence[float]) -> float:
        before = [part.before for part in parts]
        return sum(before) / sum(t / ratio for t, ratio in zip(before, ratios, strict=True))

    return Versus(
        before=sum(part.before for part in parts),
        after=sum(part.after for part in parts),
        ratio=over([part.ratio for part in parts]),
        low=over([part.low for part in parts]),
        high=over([part.high for part in parts]),
    )


def profile_artifact(fields: dict[str, Any], _on_event: OnEvent) -> dict[str, float]:
    """Answer `kernel_seconds`, in the child."""
    from mlc.runtime.profile import profile
    from mlc.runtime.session import open as open_session

    asked = Timed(**fields)
    with open_session(asked.artifact, threads=asked.threads) as session:
        _fill(session)
        session.run_in_place()
        return {kernel.symbol: kernel.seconds for kernel in profile(session, asked.seconds)}


def compare_artifacts(fields: dict[str, Any], _on_event: OnEvent) -> dict[str, float]:
    """Answer `versus`, in the child."""
    from mlc.runtime.session import open as open_session
    from mlc.runtime.timing import Side, compare, interleave

    asked = Timed(**fields)
    with (
        open_session(asked.artifact, threads=asked.threads) as before,
        open_session(str(asked.other), threads=asked.threads) as after,
    ):
        sides = []
        for name, session in (("tuned", after), ("untuned", before)):
            _fill(session)
            sides.append(Side(name, session.run_in_place))
            sides[-1].warm_up(0.3)
        tuned, untuned = sides
        interleave(tuned, untuned, asked.seconds)
        found = compare("untuned", tuned.blocks, untuned.blocks)
        return {
            "before": untuned.timing(1).median,
            "after": tuned.timing(1).median,
            "ratio": found.ratio,
            "low": found.low,
            "high": found.high,
        }


def _fill(session: Any) -> None:
    from mlc.runtime import inputs

    bounds = session.manifest.get("index_bounds", {})
    session.fill(inputs.random(session.inputs, 0, bounds))
