"""Configs of AutoTVM tasks as rows of named numbers, and what records say about them.

Columns have names (`tile_ow.1`), so that workloads whose templates define different knobs still line
up, and the sizes of the workload are columns as well.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.tune.tasks import autotvm_task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from mlc.tune.record import Record

    Matrix = npt.NDArray[np.float32]

FEATURES = ("knob", "itervar")
MAX_WORKLOADS = 64  # that one model learns from, those with most records first
MAX_ROWS = {"knob": 4096, "itervar": 256}  # records of them, shared evenly


class FeatureTable:
    """The configs of one task as numbers: a row per config, columns with names.

    `knob` features: for every split log2 of each part (the outer one worked out, AutoTVM leaves
    -1), log2 of the axis and the share of padding; for every two splits the sum of their innermost
    log2 sizes (the size of a register tile); other knobs as AutoTVM flattens them; log2(1 + x) of
    every number in the workload and of its FLOPs. They are looked up: a microsecond a row.

    `itervar` features: AutoTVM's features of the loops of the lowered candidate, some 30 ms a row
    (kept once computed); a candidate that cannot be lowered is a row of NaN.
    """

    def __init__(self, task: Any, kind: str = "knob"):
        self.task = task
        self.space = task.config_space
        self.kind = kind
        numbers = [math.log2(1 + max(0.0, number)) for number in _numbers([*task.args, task.flop])]
        self._sizes = np.array(numbers, np.float32)
        self._blocks = [_knob_block(name, knob) for name, knob in self.space.space_map.items()]
        self._inner = {
            (position, name): np.log2([max(1, entity.size[-1]) for entity in knob.entities])
            for position, (name, knob) in enumerate(self.space.space_map.items())
            if hasattr(knob, "product")
        }
        self.lowered: dict[int, Matrix] = {}

    def rows(self, indices: Sequence[int]) -> tuple[list[str], Matrix]:
        """Return the names of the columns, and a row per config index."""
        return self._loop_rows(indices) if self.kind == "itervar" else self._knob_rows(indices)

    def holds(self, record: Record) -> bool:
        """Whether the record's config is the one that the space has at its index."""
        if not 0 <= record.index < self.space.range_length:
            return False
        if not self.space.is_index_valid(record.index):
            return False
        entity = self.space.get(record.index).to_json_dict()["entity"]
        written: Any = record.config.get("entity")
        return bool(json.loads(json.dumps(entity)) == json.loads(json.dumps(written)))

    def _knob_rows(self, indices: Sequence[int]) -> tuple[list[str], Matrix]:
        rest = np.array(indices, np.int64)
        digits = []
        for size in self.space.dims:
            digits.append(rest % size)
            rest = rest // size
        names: list[str] = []
        columns: list[npt.NDArray[Any]] = []
        for digit, (block_names, block) in zip(digits, self._blocks, strict=True):
            names += block_names
            columns.append(block[digit])
        for (one, a), (other, b) in itertools.combinations(self._inner, 2):
            names.append(f"{a}*{b}")
            tile = self._inner[one, a][digits[one]] + self._inner[other, b][digits[other]]
            columns.append(tile[:, None])
        names += [f"workload.{position}" for position in range(len(self._sizes))]
        columns.append(np.tile(self._sizes, (len(indices), 1)))
        return names, np.concatenate(columns, axis=1).astype(np.float32)

    def _loop_rows(self, indices: Sequence[int]) -> tuple[list[str], Matrix]:
        for index in indices:
            if index not in self.lowered:
                self.lowered[index] = _loop_features(self.task, index)
        rows = [self.lowered[index] for index in indices]
        width = max((len(row) for row in rows), default=0)
        matrix = np.full((len(rows), width), np.nan, np.float32)
        for target, row in zip(matrix, rows, strict=True):
            target[: len(row)] = row
        return [f"loop.{position}" for position in range(width)], matrix


@dataclass
class Samples:
    """What is known of one task: costs in seconds by config index, infinite for a failure.

    `weight` says how much the task counts in training, relative to others.
    """

    table: FeatureTable
    costs: dict[int, float] = field(default_factory=dict)
    weight: float = 1.0

    @property
    def usable(self) -> int:
        """How many configs have a cost."""
        return sum(math.isfinite(cost) for cost in self.costs.values())


def samples_of(records: Iterable[Record], template: str, features: str) -> dict[str, Samples]:
    """Return what records say about a template's workloads, by workload; later records win.

    Left out: other templates, workloads that the template cannot be built for, configs that are not
    the ones of today's space (the fallback among them), and what exceeds MAX_WORKLOADS and
    MAX_ROWS. The caller chooses the device and the template hash.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.workload, []).append(record)
    ours = [(key, group) for key, group in groups.items() if group[0].template == template]
    ours.sort(key=lambda item: (-len(item[1]), item[0]))
    ours = ours[:MAX_WORKLOADS]
    share = max(MAX_ROWS[features] // max(1, len(ours)), 16)
    found = {}
    for key, group in sorted(ours):
        table = feature_table(key, group[0].target, features)
        if table is not None:
            costs = {r.index: r.cost for r in group[-share:] if table.holds(r)}
            found[key] = Samples(table, costs)
    return {key: known for key, known in found.items() if known.costs}


@functools.lru_cache(maxsize=256)
def feature_table(workload: str, target: str, kind: str) -> FeatureTable | None:
    """Return the features of a workload's configs; None when its template refuses it."""
    try:
        return FeatureTable(autotvm_task(workload, target), kind)
    except Exception:  # noqa: BLE001 - a foreign workload may break a template in any way
        return None


def _numbers(value: Any) -> Iterator[float]:
    """Yield every number in nested workload arguments."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield float(value)


def _knob_block(name: str, knob: Any) -> tuple[list[str], Matrix]:
    """Return the names of a knob's columns, and a row of values for each of its choices."""
    rows = []
    for position, entity in enumerate(knob.entities):
        if hasattr(knob, "product"):
            rows.append(_split_row(entity.size, knob.product))
        else:
            rows.append(_flat_row(name, entity, position))
    matrix = np.array(rows, np.float32)
    return [f"{name}.{column}" for column in range(matrix.shape[1])], matrix


def _split_row(size: Sequence[int], length: int) -> list[float]:
    """Return log2 of every part (outermost first), log2 of the axis, and the share of padding."""
    length = max(1, length)
    inner = [max(1, part) for part in size[1:]]
    outer = -(-length // math.prod(inner))
    padding = outer * math.prod(inner) / length - 1
    return [*(math.log2(part) for part in (outer, *inner)), math.log2(length), padding]


def _flat_row(name: str, entity: Any, position: int) -> list[float]:
    """Return AutoTVM's own numbers for a knob's choice; its position where they are no numbers.

    Of a list of sizes (our templates' `tile`): log2 of each, then of their product, the accumulators.
    """
    from tvm.autotvm.task.space import ConfigEntity

    if isinstance(getattr(entity, "val", None), (list, tuple)):
        return [math.log2(size) for size in (*entity.val, math.prod(entity.val))]
    try:
        flat = ConfigEntity(0, None, {name: entity}, []).get_flatten_feature()
        return [float(number) for number in np.ravel(flat)]  # a knob's choice may be a list
    except (TypeError, ValueError):
        return [float(position)]


def _loop_features(task: Any, index: int) -> Matrix:
    """Return AutoTVM's loop features of a candidate, as it is lowered for measuring."""
    from tvm.autotvm import GLOBAL_SCOPE, feature

    before, GLOBAL_SCOPE.in_tuning = GLOBAL_SCOPE.in_tuning, True
    try:
        with task.target:
            schedule, arguments = task.instantiate(task.config_space.get(index))
            flat = feature.get_itervar_feature_flatten(schedule, arguments, take_log=True)
    except Exception:  # noqa: BLE001 - a config may break a schedule in any way
        return np.zeros(0, np.float32)
    finally:
        GLOBAL_SCOPE.in_tuning = before
    return np.array(flat, np.float32)
