"""Which task gets the next batch of trials: pure arithmetic on costs, without TVM or a clock.

The rule is the gradient-based task scheduler of Ansor (Zheng et al., OSDI 2020, section 6 and
appendix A), on AutoTVM tasks. The model's latency is `sum(calls * cost)`; a batch goes to the task
whose next batch promises to lower that sum most. For a task with `c` calls, best cost `g` after
`t` batches, `C` FLOPs, and `V` the highest FLOP/s reached by a task of the same template::

    gain = c * (ALPHA * backward + (1 - ALPHA) * max(forward, g - BETA * C / V))

- `backward`: what the last WINDOW batches brought, in seconds a batch. It starts after the first
  batch: the drop from the fallback's cost to the first trials says nothing about what comes next.
- `forward`: g / t, the optimistic guess that the batch takes the cost down by one part in `t`. While
  nothing else is known it makes trials go by weight, each further one of a task worth less.
- `g - BETA * C / V`: a task far slower than its like can probably be brought near to them.

Two tasks may be rivals: they compute the same, and the model uses the faster one. What a batch
promises to the slower one counts only as far as it gets ahead of the other.

What differs from Ansor: `t` is trials / batch, a fraction after a small seed round, so that batches
of any size weigh right; a task is never worse than its fallback, so `g` is the lesser of both; a
flat task leaves the race; the choice depends on nothing but the costs reported so far and the seed,
so that a resumed run decides as the one that was killed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ALPHA = 0.2
BETA = 2.0
WINDOW = 3  # batches
EPSILON = 0.05  # share of batches that go to a random live task, as in Ansor
SEED_SHARE = 4  # the seed round takes about one trial in this many
MAX_SEED = 8  # trials of one task in the seed round
MIN_GAIN = 0.01  # a smaller improvement counts as none
PATIENCE = 3  # batches without improvement that every task is granted


@dataclass(kw_only=True)
class TaskState:
    """One tuning task: what is known beforehand, and `history`, the best cost after each trial.

    `calls` is how often the model runs the kernel, `space` the number of configs, `untuned` the
    cost of the fallback config (seconds a call; None when unknown), `flops` the work of one call,
    `rival` the key of the task that computes the same (empty: none).
    """

    key: str
    calls: int
    space: int
    untuned: float | None = None
    template: str = ""
    flops: float | None = None
    history: list[float | None] = field(default_factory=list)
    rival: str = ""
    flat: bool = False

    @property
    def trials(self) -> int:
        """How many configs were measured, failures included."""
        return len(self.history)

    @property
    def best(self) -> float | None:
        """The lowest cost measured, in seconds a call; None before the first success."""
        return self.history[-1] if self.history else None

    @property
    def exhausted(self) -> bool:
        """Whether every config was measured."""
        return self.trials >= self.space

    def cost_after(self, trials: int) -> float | None:
        """Return the cost that the model would use after so many trials, in seconds a call."""
        best = self.history[min(trials, self.trials) - 1] if trials > 0 and self.history else None
        known = [cost for cost in (best, self.untuned) if cost is not None]
        return min(known, default=None)

    @property
    def cost(self) -> float | None:
        """The lesser of `best` and `untuned`; None while neither is known."""
        return self.cost_after(self.trials)

    def add(self, costs: Iterable[float | None]) -> None:
        """Note the costs of further trials, None for a failure."""
        best = self.best
        for cost in costs:
            if cost is not None and (best is None or cost < best):
                best = cost
            self.history.append(best)


class Scheduler:
    """Divides `trials` over the tasks; call `next`, measure, `report`, until `next` gives None.

    Known costs of an earlier run are reported before the first `next`; they count as spent. More
    than one batch may be out at a time, for several measuring devices.
    """

    def __init__(self, states: Sequence[TaskState], trials: int, batch: int = 16, seed: int = 0):
        assert batch > 0
        self.states = {state.key: state for state in states}
        self.trials = trials
        self.batch = batch
        self.seed = seed
        self._out = dict.fromkeys(self.states, 0)  # trials handed out and not yet reported
        seeds = trials // (SEED_SHARE * max(1, len(states)))
        self._seeds = min(max(1, seeds), MAX_SEED, batch)

    @property
    def spent(self) -> int:
        """Trials reported or out."""
        return sum(state.trials for state in self.states.values()) + sum(self._out.values())

    @property
    def finished(self) -> bool:
        """Whether no trial is left, or no task that one could go to."""
        live = any(self._is_live(state) for state in self.states.values())
        return self.spent >= self.trials or not live

    def next(self) -> tuple[str, int] | None:
        """Return a task and how many trials it gets; None when none is worth or left to give."""
        if self.finished:
            return None
        left = self.trials - self.spent
        live = [state for state in self.states.values() if self._is_live(state)]
        fresh = [state for state in live if self._used(state) < self._seeds]
        if fresh:
            chosen, count = max(fresh, key=self._weight), self._seeds
            count -= self._used(chosen)
        else:
            chosen, count = self._choose(live), self.batch
        count = min(count, left, chosen.space - self._used(chosen))
        self._out[chosen.key] += count
        return chosen.key, count

    def report(self, key: str, costs: Sequence[float | None]) -> None:
        """Note the costs of trials of a task, in seconds a call, None for each that failed."""
        state = self.states[key]
        self._out[key] = max(0, self._out[key] - len(costs))
        state.add(costs)
        state.flat = self._is_flat(state)

    def withdraw(self, key: str, count: int) -> None:
        """Take back trials that were handed out and will not be measured (a device died)."""
        self._out[key] = max(0, self._out[key] - count)

    def close(self, key: str) -> None:
        """Take a task out of the race: its tuner has no config left to propose."""
        state = self.states[key]
        state.space = min(state.space, self._used(state))

    def estimate(self) -> float:
        """Return the latency of the tasks' share of the model, in seconds.

        Tasks whose cost is not known yet count as nothing; of two rivals the faster one counts.
        """
        counted: dict[frozenset[str], float] = {}
        for state in self.states.values():
            if state.cost is not None:
                layer = frozenset({state.key, state.rival})
                found = state.calls * state.cost
                counted[layer] = min(found, counted.get(layer, found))
        return sum(counted.values())

    def gain(self, state: TaskState) -> float:
        """Return what a batch promises to save, in seconds of model latency (see the module)."""
        now = state.cost
        if now is None:
            return math.inf
        used = self._used(state)
        start = min(max(self.batch, used - WINDOW * self.batch), used)
        before = state.cost_after(start)
        backward = ((before or now) - now) * self.batch / max(self.batch, used - start)
        forward = now * self.batch / max(1, used)
        rate = self._best_rate(state.template)
        if rate and state.flops:
            forward = max(forward, now - BETA * state.flops / rate)
        promised = ALPHA * backward + (1 - ALPHA) * forward
        return state.calls * max(0.0, promised - self._behind(state))

    def _behind(self, state: TaskState) -> float:
        """Return how much longer than its rival a task takes, in seconds a call; 0.0: not longer."""
        rival = self.states.get(state.rival)
        if rival is None or rival.cost is None or state.cost is None:
            return 0.0
        return max(0.0, state.cost - rival.cost)

    def _choose(self, live: list[TaskState]) -> TaskState:
        dice = random.Random(f"{self.seed}:{self.spent}")  # noqa: S311 - a choice, not a secret
        if dice.random() < EPSILON:
            return dice.choice(live)
        return max(live, key=self.gain)

    def _used(self, state: TaskState) -> int:
        return state.trials + self._out[state.key]

    def _is_live(self, state: TaskState) -> bool:
        return self._used(state) < state.space and not state.flat

    def _weight(self, state: TaskState) -> float:
        """Return the task's share of the untuned model, in seconds; unknown shares come first."""
        return math.inf if state.untuned is None else state.calls * state.untuned

    def _best_rate(self, template: str) -> float:
        """Return the highest FLOP/s among measured tasks of this template (0.0: none)."""
        return max(
            (
                state.flops / state.best
                for state in self.states.values()
                if state.template == template and state.flops and state.best
            ),
            default=0.0,
        )

    def _is_flat(self, state: TaskState) -> bool:
        """Whether the last N batches improved the task by less than MIN_GAIN.

        N grows with what was spent: at least PATIENCE batches and at least half of all, for late
        improvements come rarely, and dropping a heavy task early costs more than a few batches.
        """
        window = max(PATIENCE * self.batch, state.trials // 2)
        if state.trials < window + self._seeds:
            return False
        now, before = state.cost, state.cost_after(state.trials - window)
        if now is None or before is None:
            return now is None  # it fails every time, and there is no fallback to fall back on
        return now > before * (1 - MIN_GAIN)
