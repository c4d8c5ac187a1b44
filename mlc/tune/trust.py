"""How far a cost model can be trusted: cross validation on the records of a template."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.tune.costmodel import CostModel
from mlc.tune.features import Samples, samples_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from mlc.tune.features import Matrix
    from mlc.tune.record import Record

MIN_TRUST = 32  # successful records without which nothing is said about a model
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How well a model ranks records that it was not trained on.

    `records` that were judged; `rank_correlation` (Spearman, -1 to 1; noise gives 0);
    `top_k_recall`, the share of each task's fastest fifth that the model puts in its own (noise
    gives 0.2); `regret`, how much longer than the best known the config takes that the model calls
    best (0.1: by 10 %). Each is the mean over tasks, weighted by their records.
    """

    records: int
    rank_correlation: float
    top_k_recall: float
    regret: float


def trust(
    records: Iterable[Record],
    template: str,
    *,
    features: str = "knob",
    loss: str = "rank",
    seed: int = 0,
) -> Trust | None:
    """Return how far the model can be trusted, by 5-fold cross validation within each task.

    None under MIN_TRUST successful records, counting tasks with at least one for every fold.
    Failures are left out: telling them apart would flatter the figures.
    """
    judged = []
    for samples in samples_of(records, template, features).values():
        known = {i: cost for i, cost in samples.costs.items() if math.isfinite(cost)}
        if len(known) >= _FOLDS:
            judged.append(Samples(samples.table, known))
    total = sum(samples.usable for samples in judged)
    if total < MIN_TRUST:
        return None
    rng = np.random.default_rng(seed)
    folds = [rng.permutation(len(samples.costs)) % _FOLDS for samples in judged]
    scores = [np.zeros(len(samples.costs), np.float32) for samples in judged]
    for fold in range(_FOLDS):
        model = CostModel(template, features=features, loss=loss, seed=seed)
        model.fit(_part(s, f != fold) for s, f in zip(judged, folds, strict=True))
        for samples, assigned, score in zip(judged, folds, scores, strict=True):
            held_out = _part(samples, assigned == fold)
            score[assigned == fold] = model.predict(samples.table, list(held_out.costs))
    figures = [
        _judge(score, np.array(list(samples.costs.values())))
        for score, samples in zip(scores, judged, strict=True)
    ]
    shares = [samples.usable / total for samples in judged]
    rho, recall, regret = (float(np.dot(shares, column)) for column in zip(*figures, strict=True))
    return Trust(records=total, rank_correlation=rho, top_k_recall=recall, regret=regret)


def _judge(scores: Matrix, costs: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return Spearman's correlation, recall of the fastest fifth, and regret, of one task."""
    predicted, actual = _ranks(-scores), _ranks(costs)
    spread = float(predicted.std() * actual.std())
    rho = float(np.cov(predicted, actual, bias=True)[0, 1]) / spread if spread else 0.0
    k = max(1, len(costs) // 5)
    chosen = np.argsort(-scores, kind="stable")[:k]
    fastest = np.argsort(costs, kind="stable")[:k]
    recall = len(set(chosen.tolist()) & set(fastest.tolist())) / k
    return rho, recall, float(costs[chosen[0]] / costs.min() - 1)


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the ranks of the values, equal ones sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends: npt.NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return ends[inverse]


def _part(samples: Samples, mask: npt.NDArray[np.bool_]) -> Samples:
    items = itertools.compress(samples.costs.items(), mask)
    return Samples(samples.table, dict(items), samples.weight)
