"""What a list of trials is worth: the best configs after n of them, and the latency they promise.

Pure arithmetic on records, the same for every tool that wrote them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlc.tune.record import FALLBACK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlc.tune.record import Record

SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # of the trials: where artifacts are compiled


@dataclass(frozen=True, kw_only=True)
class Weight:
    """What a task weighs: `calls` per run of the model, `untuned` seconds a call by default.

    `rival` is the task that computes the same (empty: none), of which the model uses the faster one;
    `untuned` is 0 where the default was not timed, since the model does not use it.
    """

    calls: int
    untuned: float
    rival: str = ""


def trials_of(records: Iterable[Record], keys: Iterable[str]) -> list[Record]:
    """Return the measurements of the workloads `keys` in the order in which they were made."""
    wanted = set(keys)
    found = [r for r in records if not r.chosen and r.workload in wanted]
    return sorted(found, key=lambda record: record.timestamp)


def best_of(
    trials: Iterable[Record], default: Mapping[str, Weight] | None = None
) -> dict[str, Record]:
    """Return the fastest record by workload: lowest mean cost, as `ApplyHistoryBest` takes it.

    With `default`, a workload whose default is faster, or alone was timed, gets a record that says so,
    as `mlc tune` writes it: without one a slower rival that has a record would be taken instead.
    """
    best: dict[str, Record] = {}
    for record in trials:
        if record.ok and (record.workload not in best or record.cost < best[record.workload].cost):
            best[record.workload] = record
    if not best or default is None:
        return best
    like = next(iter(best.values()))
    for key, weight in default.items():
        if weight.untuned and (key not in best or best[key].cost >= weight.untuned):
            config = {"index": FALLBACK, "code_hash": None, "entity": []}
            best[key] = replace(like, workload=key, config=config, costs=(weight.untuned,))
    return best


def estimate(best: Mapping[str, Record], weights: Mapping[str, Weight]) -> float:
    """Return the latency of the tunable part in seconds: calls times cost, summed over the tasks.

    A task without a record costs what it costs untuned; of two rivals the faster one counts.
    """
    layers: dict[frozenset[str], float] = {}
    for key, weight in weights.items():
        cost = best[key].cost if key in best else weight.untuned
        if cost:
            layer = frozenset({key, weight.rival})
            layers[layer] = min(weight.calls * cost, layers.get(layer, math.inf))
    return sum(layers.values())


def curve(
    trials: Sequence[Record],
    ends: Iterable[int],
    weights: Mapping[str, Weight],
    default: Mapping[str, Weight] | None = None,
) -> list[tuple[int, float]]:
    """Return (trials, estimate in seconds) at the start and at each of `ends`, the batches' ends.

    `default` as for `best_of`.
    """
    points = sorted({0, *(end for end in ends if end <= len(trials)), len(trials)})
    return [(end, estimate(best_of(trials[:end], default), weights)) for end in points]


def reached(points: Iterable[tuple[int, float]], seconds: float) -> int | None:
    """Return after how many trials, at least one, a curve is at most `seconds`; None: never."""
    return next((trials for trials, found in points if trials and found <= seconds), None)


def checkpoints(trials: int) -> list[int]:
    """Return the numbers of trials, in order, after which an artifact is compiled."""
    return sorted({max(1, round(share * trials)) for share in SHARES})
