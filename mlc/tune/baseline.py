"""Time whole artifacts for tuning, each call in a process of its own.

The process that forks measuring workers must not have started TVM's thread pool, so it never runs a
model itself. On other machines a server compares artifacts by the same function
(`mlc.rpc.artifacts`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import isolate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.events import OnEvent


Turn = tuple[dict[str, float], dict[str, float]]
_TURNS, _TURN_S = 7, 0.2  # of two artifacts whose kernels are timed
_COMPARE_S = (2.0, 6.0)  # the longer time when the shorter one does not tell which is faster


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What to time: the kernels of an artifact, for so many seconds."""

    artifact: str
    threads: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What to compare: two artifacts of one model."""

    before: str
    after: str
    threads: int


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


def kernels_in_turn(before: Path, after: Path, *, threads: int) -> list[Turn]:
    """Return the seconds per run of each kernel of two artifacts, by symbol, turn by turn."""
    asked = Pair(before=str(before), after=str(after), threads=threads)
    turns = isolate.call("mlc.tune.baseline:profile_in_turn", asked)
    return [(first, second) for first, second in turns]


def versus(before: Path, after: Path, *, threads: int) -> Versus:
    """Return how two artifacts of one model compare, timed in alternating blocks."""
    asked = Pair(before=str(before), after=str(after), threads=threads)
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


def profile_in_turn(fields: dict[str, Any], _on_event: OnEvent) -> list[list[dict[str, float]]]:
    """Answer `kernels_in_turn`, in the child."""
    from mlc.runtime.profile import profile
    from mlc.runtime.session import open as open_session

    asked = Pair(**fields)
    with (
        open_session(asked.before, threads=asked.threads) as before,
        open_session(asked.after, threads=asked.threads) as after,
    ):
        sessions = before, after
        for session in sessions:
            _fill(session)
        return [
            [{k.symbol: k.seconds for k in profile(one, _TURN_S, runs=1)} for one in sessions]
            for _ in range(_TURNS)
        ]


def compare_artifacts(fields: dict[str, Any], _on_event: OnEvent) -> dict[str, float]:
    """Answer `versus`, in the child or on a device: for a longer time where a short one is unclear."""
    asked = Pair(**fields)
    with (
        _opened(asked.before, asked.threads) as before,
        _opened(asked.after, asked.threads) as after,
    ):
        for session in (before, after):
            _fill(session)
        for seconds in _COMPARE_S:
            found = _versus(before, after, seconds)
            if not found.low < 1 < found.high:
                break
    return asdict(found)


def _opened(path: str, threads: int) -> Any:
    from mlc.artifact import read_manifest
    from mlc.fit import is_for_gpu
    from mlc.runtime.buckets import open_one

    on_gpu = is_for_gpu(read_manifest(Path(path))["target"])
    return open_one(path, (), threads=threads, on_gpu=on_gpu)


def _versus(before: Any, after: Any, seconds: float) -> Versus:
    from mlc.runtime.timing import Side, compare, interleave

    tuned, untuned = Side("tuned", after.run_in_place), Side("untuned", before.run_in_place)
    for side in (tuned, untuned):
        side.warm_up(0.3)
    interleave(tuned, untuned, seconds)
    found = compare("untuned", tuned.blocks, untuned.blocks)
    return Versus(
        before=untuned.timing(1).median,
        after=tuned.timing(1).median,
        ratio=found.ratio,
        low=found.low,
        high=found.high,
    )


def _fill(session: Any) -> None:
    from mlc.runtime import inputs

    bounds = session.manifest.get("index_bounds", {})
    session.fill(inputs.random(session.inputs, 0, bounds))
