"""The searchers over one AutoTVM task: which configs to measure next.

All are handed the configs that are known already (`seen`) with every call, so that a resumed run
goes on where the killed one stopped. Where candidates come from is `mlc.tune.search`'s matter.

AutoTVM's genetic algorithm (`GATuner`) proposes configs again and again, takes scores by position,
whatever was measured, and draws from the global random generators. The code below keeps to what
works, inside `OwnRandom`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlc.errors import UsageError, did_you_mean
from mlc.tune.costmodel import CostModel
from mlc.tune.features import FeatureTable, Samples, samples_of
from mlc.tune.record import workload_key
from mlc.tune.search import OwnRandom, draw, search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mlc.tune.record import Record

MIN_TRANSFER = 32  # successful records of other workloads that make a model before the first trial
MIN_OWN = 8  # trials of the task itself that do
OTHERS_WEIGHT = 0.3  # of another workload's records, against the task's own
EXPLORE = 0.05  # share of proposals drawn at random, to see what the model would never ask for
_GENES = 32
_BREEDINGS = 50  # generations in a row without a new config, before one is drawn instead


class Tuner(Protocol):
    """Searches the space of one task."""

    @property
    def note(self) -> str:
        """What the search starts from, for the user; "" when there is nothing to say."""

    def propose(self, count: int, seen: set[int]) -> list[int]:
        """Return up to `count` config indices, fewer only when the space has no more.

        None is in `seen` and none is ever proposed twice, measured or not.
        """

    def learn(self, indices: Sequence[int], costs: Sequence[float | None]) -> None:
        """Take in costs in seconds a call, None for a failure."""

    def transfer(self, records: Sequence[Record]) -> int:
        """Take in records of the device, of this workload or others of the template.

        Returns how many successful records of other workloads are of use. May be called again with
        more records while the run goes on.
        """


class RandomTuner:
    """Draws configs at random."""

    note = ""

    def __init__(self, task: Any, *, seed: int, **_model: Any):
        self.space = task.config_space
        self.seed = seed
        self._given: set[int] = set()

    def propose(self, count: int, seen: set[int]) -> list[int]:
        """Return configs drawn at random."""
        taken = seen | self._given
        found = draw(self.space, count, taken, _generator(self.seed, taken))
        self._given.update(found)
        return found

    def learn(self, indices: Sequence[int], costs: Sequence[float | None]) -> None:
        """Do nothing."""

    def transfer(self, records: Sequence[Record]) -> int:  # noqa: ARG002 - nothing to learn
        """Do nothing."""
        return 0


class GridTuner(RandomTuner):
    """Goes through the space in order."""

    def propose(self, count: int, seen: set[int]) -> list[int]:
        """Return the lowest indices that are left."""
        taken = seen | self._given
        left = (
            index
            for index in range(self.space.range_length)
            if index not in taken and self.space.is_index_valid(index)
        )
        found = list(itertools.islice(left, count))
        self._given.update(found)
        return found


class GeneticTuner:
    """AutoTVM's genetic algorithm, one generation at a time; blanks are filled at random."""

    note = ""

    def __init__(self, task: Any, *, seed: int, **_model: Any):
        from tvm.autotvm.tuner import GATuner

        self.task = task
        self.space = task.config_space
        self.seed = seed
        self._random = OwnRandom(seed)
        self._costs: dict[int, float | None] = {}
        self._given: set[int] = set()
        with self._random():
            self._breeder = GATuner(task, pop_size=_GENES)
        self._generation = self._indices()

    def propose(self, count: int, seen: set[int]) -> list[int]:
        """Return what is left of the generation; breed the next one when all its costs are known."""
        taken = seen | self._given
        found: list[int] = []
        for _ in range(_BREEDINGS):
            fresh = [i for i in dict.fromkeys(self._generation) if i not in taken]
            found += fresh[: count - len(found)]
            taken.update(found)
            out = self._given.intersection(self._generation) - seen - self._costs.keys()
            if len(found) == count or found or out or not self._breed():
                break
        found += draw(self.space, count - len(found), taken, _generator(self.seed, taken))
        self._given.update(found)
        return found

    def learn(self, indices: Sequence[int], costs: Sequence[float | None]) -> None:
        """Keep the costs until their generation is complete."""
        self._costs.update(zip(indices, costs, strict=True))

    def transfer(self, records: Sequence[Record]) -> int:
        """Keep what is known of this very workload."""
        table = FeatureTable(self.task)
        key = workload_key(self.task.workload)
        for record in records:
            if record.workload == key and table.holds(record):
                self._costs[record.index] = record.cost if record.ok else None
        return 0

    def _breed(self) -> bool:
        """Score the generation (unknown costs count as failures); whether there is a next one."""
        from tvm.autotvm.measure import MeasureInput, MeasureResult

        inputs, results = [], []
        for index in self._generation:
            cost = self._costs.get(index)
            inputs.append(MeasureInput(self.task.target, self.task, self.space.get(index)))
            results.append(MeasureResult((cost or 1e9,), int(cost is None), 0.0, 0.0))
        before = self._breeder.genes
        with self._random():
            self._breeder.update(inputs, results)
        self._generation = self._indices()
        return self._breeder.genes is not before

    def _indices(self) -> list[int]:
        return [int(self.space.knob2point(gene)) for gene in self._breeder.genes]


class ModelTuner:
    """Measures what a cost model (`mlc.tune.costmodel`) calls fastest, and teaches it the costs.

    The model is fitted anew whenever there is something new, on the task's own costs and, at
    OTHERS_WEIGHT, those of other workloads. Until it knows MIN_TRANSFER or MIN_OWN of them,
    configs are drawn at random. What is proposed depends on records, `seen` and the seed only.
    """

    def __init__(self, task: Any, *, seed: int, features: str, loss: str):
        self.model = CostModel(task.name, features=features, loss=loss, seed=seed)
        self.table = FeatureTable(task, features)
        self.key = workload_key(task.workload)
        self.seed = seed
        self.own = Samples(self.table)
        self.others: dict[str, Samples] = {}
        self._given: set[int] = set()
        self._stale = True

    @property
    def note(self) -> str:
        """How many records the model starts from, or why it does not use them."""
        usable = self._usable()
        what = f"{usable} records of {len(self.others)} other workloads"
        if usable >= MIN_TRANSFER:
            return f"the cost model learns from {what}"
        return f"no transfer: {what}, {MIN_TRANSFER} are needed" if usable else ""

    def propose(self, count: int, seen: set[int]) -> list[int]:
        """Return what the model calls fastest, and a few configs drawn at random."""
        taken = seen | self._given
        rng = _generator(self.seed, taken)
        found: list[int] = []
        if self._fit():
            known = sorted(self.own.costs, key=lambda index: (self.own.costs[index], index))
            wanted = count - int(rng.binomial(count, EXPLORE))
            found = search(self.model, self.table, wanted, taken, known, rng)
        found += draw(self.table.space, count - len(found), taken | set(found), rng)
        self._given.update(found)
        return found

    def learn(self, indices: Sequence[int], costs: Sequence[float | None]) -> None:
        """Note costs of the task itself."""
        for index, cost in zip(indices, costs, strict=True):
            self.own.costs[index] = float("inf") if cost is None else cost
        self._stale = True

    def transfer(self, records: Sequence[Record]) -> int:
        """Note records of this and other workloads."""
        mine = [r for r in records if r.workload == self.key and self.table.holds(r)]
        self.own.costs.update((record.index, record.cost) for record in mine)
        rest = (record for record in records if record.workload != self.key)
        for key, new in samples_of(rest, self.model.template, self.model.features).items():
            known = self.others.setdefault(key, Samples(new.table, {}, OTHERS_WEIGHT))
            known.costs.update(new.costs)
        self._stale = True
        return self._usable()

    def _usable(self) -> int:
        return sum(samples.usable for samples in self.others.values())

    def _fit(self) -> bool:
        """Bring the model up to date; whether it knows enough to be asked."""
        if self._stale:
            others = self.others if self._usable() >= MIN_TRANSFER else {}
            enough = bool(others) or len(self.own.costs) >= MIN_OWN
            groups = [others[key] for key in sorted(others)] + [self.own]
            self.model.fit(groups if enough else [])
            self._stale = False
        return self.model.trained


TUNERS: dict[str, tuple[Callable[..., Tuner], str]] = {
    "xgb": (ModelTuner, "a cost model that learns from every measurement"),
    "random": (RandomTuner, "configs drawn at random"),
    "grid": (GridTuner, "configs in order"),
    "ga": (GeneticTuner, "AutoTVM's genetic algorithm"),
}


def make_tuner(
    name: str,
    task: Any,
    *,
    seed: int = 0,
    features: str = "knob",
    loss: str = "rank",
    history: Sequence[Record] = (),
) -> Tuner:
    """Return the searcher `name` for an AutoTVM task.

    Args:
        name: a row of TUNERS.
        task: `autotvm.task.Task`.
        seed: what random choices start from.
        features: knob or itervar (xgb only).
        loss: rank or reg (xgb only).
        history: records of this device with the current template hash, of any workload. Those of
            this one are known costs, others of the template train the model before the first trial.

    Raises:
        UsageError: there is no such searcher, features or loss.
        MissingToolError: xgb without the package xgboost.
    """
    if name not in TUNERS:
        raise UsageError(f"unknown tuner {name!r}", did_you_mean(name, TUNERS))
    tuner = TUNERS[name][0](task, seed=seed % (1 << 31), features=features, loss=loss)
    tuner.transfer(history)
    return tuner


def predict_best(model: CostModel, task: Any, count: int, seed: int = 0) -> list[int]:
    """Return the configs of a task that a fitted model calls fastest, best first (`--trials 0`)."""
    table = FeatureTable(task, model.features)
    return search(model, table, count, set(), [], _generator(seed, ()))


def _generator(seed: int, seen: Iterable[int]) -> np.random.Generator:
    """Return a generator that a resumed run gets again: it knows how far the search is."""
    return np.random.default_rng([seed, sum(1 for _ in seen)])
