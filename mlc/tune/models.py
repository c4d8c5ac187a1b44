"""Cost models that outlive a run: one JSON file per template and device, beside the records.

A run that measured something fits them anew and says how far they can be trusted. `--trials 0` asks
them for configs that nobody has measured yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc.errors import MissingToolError, TuningError
from mlc.events import Notice
from mlc.tune.costmodel import CostModel
from mlc.tune.features import samples_of
from mlc.tune.trust import Trust, trust
from mlc.tune.tuners import MIN_TRANSFER, predict_best

if TYPE_CHECKING:
    from pathlib import Path

    from mlc.tune.record import Record
    from mlc.tune.run import Run
    from mlc.tune.store import Level

MAX_RECORDS = 5000  # newest of a template, that a model is fitted on: seconds, not minutes
_LEVELS: tuple[Level, ...] = ("exact", "same-isa", "hint")


def path_of(run: Run, template: str) -> Path:
    """Return where the model of a template is kept, on the device of a run."""
    device = run.subject.device.id
    return run.store.root / device.partition(".")[0] / device / f"{template}.json"


def update(run: Run) -> dict[str, Trust | None]:
    """Fit and save the model of every template that this run measured; return what they are worth.

    None for a template with too few records to judge. Without xgboost there are no models.
    """
    found: dict[str, Trust | None] = {}
    options = run.subject.options
    measured = {run.by_key[key].template for key, count in run.progress.trials.items() if count}
    for template in sorted(measured):
        records = _records(run, template, "exact")
        try:
            model = _fitted(run, template, records)
        except MissingToolError:
            return {}
        if model.trained:
            try:
                model.save(path_of(run, template))
            except TuningError as error:
                run.on_event(Notice(text=str(error), level="warning"))
        found[template] = trust(
            records, template, features=options.features, loss=options.loss, seed=options.seed
        )
    return found


def predicted(run: Run) -> dict[str, list[int]]:
    """Return by task the configs that the models call fastest, best first: `top_k` of each.

    Tasks that have measurements of their own waiting for a choice are offered those; tasks with a
    choice, or whose template has no model, are left out.

    Raises:
        MissingToolError: xgboost is not installed.
    """
    options, found = run.subject.options, {}
    hits = run.store.best(list(run.by_key), run.subject.device, run.hashes)
    decided = {key for key, hit in hits.items() if hit.level == "exact"} - run.undecided
    models: dict[str, CostModel | None] = {}
    for key, task in run.by_key.items():
        if key in run.undecided:
            found[key] = run.best_indices(key)
        elif key not in decided:
            if task.template not in models:
                models[task.template] = _model(run, task.template)
            model = models[task.template]
            if model is not None:
                count = options.top_k
                found[key] = predict_best(model, run.autotvm[key], count, options.seed)
    return found


def _model(run: Run, template: str) -> CostModel | None:
    """Return the saved model of a template, else one fitted on the nearest records there are."""
    path = path_of(run, template)
    if path.exists():
        try:
            model = CostModel.load(path, template, run.subject.device.id)
        except TuningError as error:
            run.on_event(Notice(text=f"{error}; records are used", level="warning"))
        else:
            run.on_event(
                Notice(
                    text=f"{template}: configs are predicted by the saved cost model "
                    f"({model.records} records of {model.workloads} tasks)"
                )
            )
            return model
    for level in _LEVELS:
        records = _records(run, template, level)
        if sum(record.ok for record in records) >= MIN_TRANSFER:
            model = _fitted(run, template, records)
            if model.trained:
                where = {"exact": "this device", "same-isa": "devices of its vector class"}
                run.on_event(
                    Notice(
                        text=f"{template}: configs are predicted from {model.records} records of "
                        f"{where.get(level, 'other devices')}"
                    )
                )
                return model
    run.on_event(
        Notice(
            text=f"{template}: no cost model and fewer than {MIN_TRANSFER} records to make one "
            "from; its tasks keep the default (`mlc tune --trials 500` measures)",
            level="warning",
        )
    )
    return None


def _records(run: Run, template: str, level: Level) -> list[Record]:
    found = run.store.history(template, run.subject.device, level, MAX_RECORDS)
    wanted = run.hashes[template]
    return [r for r in found if r.template_hash == wanted and not r.chosen]


def _fitted(run: Run, template: str, records: list[Record]) -> CostModel:
    options = run.subject.options
    model = CostModel(
        template,
        device=run.subject.device.id,
        features=options.features,
        loss=options.loss,
        seed=options.seed,
    )
    model.fit(samples_of(records, template, options.features).values())
    return model
