"""A model that ranks the configs of a template, learned from records of many workloads.

Gradient-boosted trees (xgboost) on features of configs, as in AutoTVM (Chen et al., NeurIPS 2018),
with two differences that let one model serve every shape:

- Columns have names (`tile_ow.1`), so that workloads whose templates define different knobs still
  line up (a missing one is NaN), and the sizes of the workload are columns as well.
- The target is relative to the task: the task's best cost divided by the config's, 0 for a failure.

AutoTVM's `XGBoostCostModel` is not used: with xgboost 2 and later its rank loss raises, it lowers
candidates in a process pool that nobody closes, and it silently ignores fewer than 500 records.
Everything here runs in this process and one thread: no worker is left behind, equal input gives
equal trees, and no OpenMP thread exists that a later fork could hang on.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import MissingToolError, TuningError, UsageError, did_you_mean
from mlc.tune.features import FEATURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlc.tune.features import FeatureTable, Matrix, Samples

LOSSES = {"rank": "rank:pairwise", "reg": "reg:squarederror"}
FORMAT = 1
MAX_MODEL_BYTES = 64 << 20
_FIELDS = ("template", "device", "features", "loss", "seed", "records", "workloads")
_RENEW = "delete it: the next `mlc tune` writes a new one from the records"
ROUNDS = 100
_TREES = {"max_depth": 6, "eta": 0.1, "nthread": 1, "verbosity": 0}


class CostModel:
    """Predicts which configs of a template are fast; compares configs of one task only.

    Raises UsageError for unknown features or losses, MissingToolError without xgboost.
    """

    def __init__(
        self,
        template: str,
        *,
        device: str = "",
        features: str = "knob",
        loss: str = "rank",
        seed: int = 0,
    ):
        if features not in FEATURES:
            raise UsageError(f"unknown features {features!r}", did_you_mean(features, FEATURES))
        if loss not in LOSSES:
            raise UsageError(f"unknown loss {loss!r}", did_you_mean(loss, LOSSES))
        self.template = template
        self.device = device
        self.features = features
        self.loss = loss
        self.seed = seed
        self.records = 0
        self.workloads = 0
        self._columns: list[str] = []
        self._booster: Any = None
        _xgboost()

    @property
    def trained(self) -> bool:
        """Whether the model has seen any data."""
        return self._booster is not None

    def fit(self, groups: Iterable[Samples]) -> None:
        """Learn from scratch; tasks without a success teach nothing and are left out."""
        xgboost = _xgboost()
        taught = [group for group in groups if group.usable]
        if not taught:
            self._booster = None
            return
        parts = [group.table.rows(list(group.costs)) for group in taught]
        self._columns = sorted({name for names, _ in parts for name in names})
        rows = np.concatenate([self._align(names, matrix) for names, matrix in parts])
        labels = np.concatenate([_speed(group.costs) for group in taught])
        sizes = [len(group.costs) for group in taught]
        weights = [group.weight for group in taught]
        data = xgboost.DMatrix(rows, labels, nthread=1)
        if self.loss == "rank":  # only configs of one task are compared; one weight per task
            data.set_group(sizes)
            data.set_weight(weights)
        else:
            data.set_weight(np.repeat(weights, sizes))
        settings = {**_TREES, "objective": LOSSES[self.loss], "seed": self.seed}
        self._booster = xgboost.train(settings, data, ROUNDS)
        self.records = len(labels)
        self.workloads = len(taught)

    def predict(self, table: FeatureTable, indices: Sequence[int]) -> Matrix:
        """Return a score per config, higher for faster; scores of two tasks do not compare."""
        assert self._booster is not None, "the model has not been fitted"
        rows = self._align(*table.rows(indices))
        scores: Matrix = self._booster.inplace_predict(rows, predict_type="margin")
        return scores

    def save(self, path: Path) -> None:
        """Write the model as JSON, whole or not at all.

        Raises:
            TuningError: the file cannot be written.
        """
        assert self._booster is not None, "the model has not been fitted"
        data = {
            "mlc_cost_model": FORMAT,
            **{name: getattr(self, name) for name in _FIELDS},
            "columns": self._columns,
            "booster": json.loads(self._booster.save_raw("json")),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            with contextlib.ExitStack() as stack:
                stack.callback(Path(name).unlink, missing_ok=True)
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(data, file, separators=(",", ":"))
                Path(name).replace(path)
        except OSError as error:
            raise TuningError(f"cannot save the cost model {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path, template: str, device: str) -> CostModel:
        """Return the model that `save` wrote for this template and device.

        Raises:
            TuningError: the file is missing, damaged, too large, or for something else.
        """
        data = _read(path)
        if (data["template"], data["device"]) != (template, device):
            raise TuningError(
                f"{path} is a cost model for {data['template']} on {data['device']}, "
                f"not for {template} on {device}",
                _RENEW,
            )
        model = cls(
            template,
            device=device,
            features=data["features"],
            loss=data["loss"],
            seed=data["seed"],
        )
        model.records, model.workloads = data["records"], data["workloads"]
        model._columns = data["columns"]
        xgboost = _xgboost()
        # Loading starts a thread per core unless told not to, which not every version can be.
        known = "nthread" in xgboost.get_config()
        quiet = xgboost.config_context(nthread=1) if known else contextlib.nullcontext()
        try:
            with quiet:
                booster = xgboost.Booster({"verbosity": 0})
                booster.load_model(bytearray(json.dumps(data["booster"]).encode()))
            booster.set_param({"nthread": 1})
            width = booster.num_features()
        except xgboost.core.XGBoostError:
            raise TuningError(f"{path} is a damaged cost model", _RENEW) from None
        if width != len(model._columns):
            raise TuningError(f"{path} is a damaged cost model", _RENEW)
        model._booster = booster
        return model

    def _align(self, names: Sequence[str], matrix: Matrix) -> Matrix:
        """Return the matrix with the model's columns, NaN where the task has none of the name."""
        position = {name: column for column, name in enumerate(names)}
        aligned = np.full((len(matrix), len(self._columns)), np.nan, np.float32)
        for column, name in enumerate(self._columns):
            if name in position:
                aligned[:, column] = matrix[:, position[name]]
        return aligned


def _speed(costs: Mapping[int, float]) -> Matrix:
    """Return the targets: best cost over cost, 0 for a failure."""
    seconds = np.array(list(costs.values()))
    speeds: Matrix = (seconds.min() / seconds).astype(np.float32)
    return speeds


def _read(path: Path) -> dict[str, Any]:
    """Return a cost model's file as checked JSON; raise TuningError for anything else."""
    damaged = TuningError(f"{path} is a damaged cost model", _RENEW)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise TuningError(f"cannot read the cost model {path}: {error.strerror}") from None
    if len(content) > MAX_MODEL_BYTES:
        raise damaged
    try:
        data = json.loads(content)
        strings = [data["template"], data["device"], *data["columns"]]
        trees = data["booster"]["learner"]["gradient_booster"]["model"]["trees"]
        sound = (
            data["mlc_cost_model"] == FORMAT
            and all(isinstance(text, str) for text in strings)
            and all(isinstance(data[name], int) for name in ("seed", "records", "workloads"))
            and data["features"] in FEATURES
            and data["loss"] in LOSSES
            and all(_is_sound(tree, len(data["columns"])) for tree in trees)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged from None
    if not sound:
        raise damaged
    return dict(data)


def _is_sound(tree: Mapping[str, Any], columns: int) -> bool:
    """Whether a tree leads nowhere but to nodes and columns it has; xgboost itself trusts it."""
    left, right, split = (tree[k] for k in ("left_children", "right_children", "split_indices"))
    size = int(tree["tree_param"]["num_nodes"])
    if any(tree["split_type"]) or {len(left), len(right), len(split)} != {size}:
        return False
    return all(
        (one == other == -1) or (node < one < size and node < other < size)
        for node, (one, other) in enumerate(zip(left, right, strict=True))
    ) and all(0 <= column < max(1, columns) for column in split)


def _xgboost() -> Any:
    """Return the xgboost module.

    Raises:
        MissingToolError: it is not installed.
    """
    try:
        import xgboost
    except ImportError:
        raise MissingToolError(
            "the cost model needs the package xgboost, which is not installed",
            "pip install xgboost, or search without a model: `--tuner random`",
        ) from None
    return xgboost
