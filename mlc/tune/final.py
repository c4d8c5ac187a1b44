"""The end of a tuning run: which config of each task is used from now on.

The lowest of many noisy measurements is biased ("winner's curse"). So the best few of each task are
timed once more, interleaved with the fallback, and the choice among them is recorded; the output of
the winner must agree with the fallback's.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlc.events import Notice
from mlc.tune.record import FALLBACK, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlc.tune.run import Run
    from mlc.tune.store import Hit

ROUNDS = 9


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for a task: config index (`FALLBACK`: the default), seconds of both.

    `checked` says what became of comparing the output with the default's; `before` is the record of
    the choice before this one, if there was one.
    """

    key: str
    index: int
    tuned: float
    untuned: float
    checked: str
    before: Record | None = None

    @property
    def undone(self) -> Choice:
        """What holds when it is taken back: the choice before it, else the default."""
        before = self.before
        index = FALLBACK if before is None else before.index
        if index == self.index:
            return self
        tuned = self.untuned if before is None else before.cost
        return replace(self, index=index, tuned=tuned, checked="taken back")


def is_open(records: Iterable[Record]) -> bool:
    """Whether a task, given its records, has a successful trial since its last choice."""
    found = list(records)
    decided = max((record.timestamp for record in found if record.chosen), default=0.0)
    return any(r.ok and not r.chosen and r.timestamp > decided for r in found)


def choose_winners(run: Run, candidates: Mapping[str, Sequence[int]]) -> list[Choice]:
    """Time configs of each task beside the fallback and what is used now; record and return choices.

    `candidates` are configs by task, the most promising first.
    """
    now = run.in_use(candidates)
    groups = {
        key: list(dict.fromkeys([*indices, *_used_now(now.get(key))]))
        for key, indices in candidates.items()
    }
    before = {
        key: hit.record for key, hit in now.items() if hit.level == "exact" and hit.record.chosen
    }
    keys = list(groups)
    timings = run.measurer.interleaved(
        [[(key, None), *((key, index) for index in groups[key])] for key in keys], ROUNDS
    )
    choices = []
    for key, outcomes in zip(keys, timings, strict=True):
        costs = [outcome.costs for outcome in outcomes]
        if not costs[0]:
            why = outcomes[0].reason
            run.on_event(Notice(text=f"{run.by_key[key].id}: timing again failed ({why})"))
            continue
        choices.append(_choose(run, key, groups[key], costs, before.get(key)))
    return choices


def _used_now(hit: Hit | None) -> list[int]:
    """Return the config that is used now: chosen before, or brought from another machine."""
    return [] if hit is None or hit.record.index == FALLBACK else [hit.record.index]


def _choose(
    run: Run,
    key: str,
    indices: list[int],
    costs: list[tuple[float, ...]],
    before: Record | None,
) -> Choice:
    """Take the fastest config that is right and faster than the fallback (`costs[0]`), or that."""
    untuned = statistics.median(costs[0])
    ranked = sorted(
        (statistics.median(found), index, found)
        for found, index in zip(costs[1:], indices, strict=True)
        if found
    )
    for cost, index, found in ranked:
        if cost >= untuned:
            break
        check = run.measurer.check([(key, index, None)])[0]
        if check.passed is False:
            run.on_event(
                Notice(
                    text=f"{run.by_key[key].id}: config {index} computes something else than the "
                    f"default and is not used ({check.detail})",
                    level="warning",
                )
            )
            continue
        _record(run, key, index, found)
        word = "agrees" if check.passed else check.detail
        return Choice(
            key=key, index=index, tuned=cost, untuned=untuned, checked=word, before=before
        )
    _record(run, key, FALLBACK, costs[0])
    return Choice(
        key=key, index=FALLBACK, tuned=untuned, untuned=untuned, checked="default", before=before
    )


def take_back(run: Run, choices: Sequence[Choice]) -> bool:
    """Record again what was used before these choices: the model is not faster with them.

    Where nothing had been chosen before, that is the default. Returns whether anything changes.
    """
    changed = False
    for choice in choices:
        if choice.undone != choice:
            costs = (choice.untuned,) if choice.before is None else choice.before.costs
            _record(run, choice.key, choice.undone.index, costs)
            changed = True
    return changed


def _record(run: Run, key: str, index: int, costs: tuple[float, ...]) -> None:
    config = run.config(key, index)
    run.store.append(
        [
            Record(
                workload=key,
                config=config,
                target=run.subject.chosen.tvm,
                device=run.subject.device.id,
                template_hash=run.hashes[run.by_key[key].template],
                costs=costs,
                timestamp=time.time(),
                run=run.id,
                chosen=True,
            )
        ]
    )
