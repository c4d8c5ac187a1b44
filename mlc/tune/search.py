"""Which configs a cost model calls fastest, and configs drawn at random.

AutoTVM's simulated annealing (`SimulatedAnnealingOptimizer`) serves for large spaces. It draws from
the global random generators, so it runs inside `OwnRandom`; it drops every candidate with a negative
score, and never ends in a space of one config.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from mlc.tune.costmodel import CostModel
    from mlc.tune.features import FeatureTable

ENUMERABLE = (
    1 << 17
)  # spaces up to this size are ranked whole, in a second at most; others annealed
_ANNEAL = {"n_iter": 60, "temp": (1, 0), "early_stop": 20, "log_interval": 0}
_CHAINS = 128  # points that are annealed side by side
_LOWERED = 64  # configs lowered for a batch with `itervar` features


def search(
    model: CostModel,
    table: FeatureTable,
    count: int,
    seen: set[int],
    starts: Sequence[int],
    rng: np.random.Generator,
) -> list[int]:
    """Return up to `count` configs outside `seen` with the highest predictions, best first.

    A space up to ENUMERABLE is ranked whole. A larger one is annealed from `starts` and random
    points. With itervar features, which are slow, only _LOWERED further random configs are ranked
    with those that were lowered before.
    """
    if count <= 0:
        return []
    space = table.space
    if table.kind == "itervar":
        pool = [index for index in table.lowered if index not in seen]
        pool += draw(space, _LOWERED, seen | set(pool), rng)
    elif space.range_length > ENUMERABLE:
        return _anneal(model, table, count, seen, starts, rng)
    else:
        pool = draw(space, ENUMERABLE, seen, rng)  # in random order: ties go to no corner
    if not pool:
        return []
    order = np.argsort(-model.predict(table, pool), kind="stable")[:count]
    return [pool[position] for position in order]


def draw(space: Any, count: int, seen: set[int], rng: np.random.Generator) -> list[int]:
    """Return up to `count` valid configs outside `seen`, in random order; fewer when none is left."""
    if count <= 0:
        return []
    if space.range_length <= ENUMERABLE:
        left = [i for i in range(space.range_length) if i not in seen and space.is_index_valid(i)]
        picks = rng.permutation(len(left))[:count]
        return [left[pick] for pick in picks]
    found: dict[int, None] = {}
    for _ in range(1000 * count):  # in a space so large, drawing one twice is rare
        index = int(rng.integers(space.range_length))
        if index not in seen and space.is_index_valid(index):
            found[index] = None
        if len(found) == count:
            break
    return list(found)


class _Scores:
    """A cost model as AutoTVM's annealing wants it: positive scores of about unit spread."""

    def __init__(self, model: CostModel, table: FeatureTable, sample: Sequence[int]):
        self._model = model
        self._table = table
        scores = model.predict(table, sample)
        self._centre, self._spread = float(scores.mean()), max(float(scores.std()), 1e-9)

    def predict(self, points: Sequence[int]) -> npt.NDArray[np.float64]:
        scores = self._model.predict(self._table, points).astype(np.float64)
        positive: npt.NDArray[np.float64] = np.exp(
            np.clip((scores - self._centre) / self._spread, -20, 20)
        )
        return positive


def _anneal(
    model: CostModel,
    table: FeatureTable,
    count: int,
    seen: set[int],
    starts: Sequence[int],
    rng: np.random.Generator,
) -> list[int]:
    from tvm.autotvm.tuner.sa_model_optimizer import SimulatedAnnealingOptimizer

    sample = draw(table.space, _CHAINS, set(), rng)
    points = [*starts[: _CHAINS // 4], *sample][:_CHAINS]
    optimizer = SimulatedAnnealingOptimizer(table.task, **_ANNEAL)
    optimizer.points = np.array(points, np.int64)
    with OwnRandom(int(rng.integers(1 << 32)))():
        found = optimizer.find_maximums(_Scores(model, table, sample), count, seen)
    return [int(index) for index in found]


class OwnRandom:
    """Global random generators of one's own: AutoTVM draws from `random` and `numpy.random`."""

    def __init__(self, seed: int):
        seeded = random.Random(seed)  # noqa: S311 - a search, not a secret
        self._states = seeded.getstate(), np.random.RandomState(seed).get_state()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Install them, and put those of before back at the end."""
        before = random.getstate(), np.random.get_state()
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        try:
            yield
        finally:
            self._states = random.getstate(), np.random.get_state()
            random.setstate(before[0])
            np.random.set_state(before[1])
