"""Searchers and cost model on real AutoTVM tasks; costs are a scripted function of the knobs."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlc.errors import MissingToolError, TuningError, UsageError
from mlc.tune import costmodel, features, tuners
from mlc.tune import search as searching
from mlc.tune import trust as trusting
from mlc.tune.costmodel import CostModel
from mlc.tune.features import FeatureTable, samples_of
from mlc.tune.record import Record, workload_key
from mlc.tune.tasks import autotvm_task
from mlc.tune.trust import trust
from mlc.tune.tuners import Tuner, make_tuner, predict_best

TEMPLATE = "conv2d_NCHWc.x86"
TARGET = "llvm -mtriple=x86_64-linux-gnu -mcpu=haswell"
DEVICE = "x86-64.avx2.test.2t"
NAMES = ("xgb", "random", "grid", "ga")


def conv(inputs: int, outputs: int, size: int, kernel: int = 3) -> Any:
    """Return the task of a convolution with padding, stride 1."""
    pad = kernel // 2
    workload = (
        TEMPLATE,
        ("TENSOR", (1, inputs, size, size), "float32"),
        ("TENSOR", (outputs, inputs, kernel, kernel), "float32"),
        (1, 1),
        (pad, pad, pad, pad),
        (1, 1),
        "NCHW",
        "NCHW",
        "float32",
    )
    return autotvm_task(workload_key(workload), TARGET)


@pytest.fixture(scope="module")
def task(tvm: Any) -> Any:
    """784 configs."""
    return conv(64, 64, 28)


@pytest.fixture(scope="module")
def others(tvm: Any) -> list[Any]:
    """Other shapes, one of them with another knob (1x1)."""
    return [conv(32, 128, 28), conv(128, 32, 14), conv(64, 256, 14, kernel=1)]


@pytest.fixture(scope="module")
def tiny(tvm: Any) -> Any:
    """54 configs."""
    return conv(4, 4, 4)


def cost(task: Any, index: int) -> float | None:
    """Seconds of a machine with 16 registers of 8 lanes: what a register tile wants, and caches."""
    config = task.config_space.get(index)
    rows, lanes = config["tile_ow"].size[-1], config["tile_oc"].size[-1]
    depth = config["tile_ic"].size[-1]
    if rows * lanes > 1024:
        return None
    registers = rows * math.ceil(lanes / 8)
    slow = 1.0 + abs(math.log2(registers / 12)) * (1.0 if registers > 12 else 0.5)
    slow *= 1.0 + 2.0 * (lanes % 8 > 0)
    slow *= 1.0 + 0.1 * abs(math.log2(depth / 16))
    if "unroll_kw" in config and not config["unroll_kw"].val:
        slow *= 1.05
    return slow * task.flop / 50e9


def costs(task: Any, indices: Sequence[int]) -> list[float | None]:
    return [cost(task, index) for index in indices]


def record(task: Any, index: int, seconds: float | None) -> Record:
    config = task.config_space.get(index).to_json_dict()
    return Record(
        workload=workload_key(task.workload),
        config=json.loads(json.dumps(config)),
        target=TARGET,
        device=DEVICE,
        template_hash="abc",
        costs=() if seconds is None else (seconds,),
        reason="" if seconds is not None else "runtime",
    )


def records(task: Any, count: int, seed: int = 0) -> list[Record]:
    """Records of random configs."""
    picks = random.Random(seed).sample(range(len(task.config_space)), count)
    return [record(task, index, cost(task, index)) for index in picks]


def search(tuner: Tuner, task: Any, trials: int, batch: int = 8) -> list[float]:
    """Play the loop; return the cost of every trial (infinite for a failure)."""
    seen: set[int] = set()
    found = []
    while len(seen) < trials:
        indices = tuner.propose(min(batch, trials - len(seen)), seen)
        assert len(set(indices)) == len(indices)
        assert not seen.intersection(indices)
        assert all(type(index) is int for index in indices)
        seen.update(indices)
        tuner.learn(indices, costs(task, indices))
        found += [math.inf if c is None else c for c in costs(task, indices)]
        if not indices:
            break
    return found


def optimum(task: Any) -> float:
    return min(c for c in costs(task, range(len(task.config_space))) if c is not None)


def trials_until(found: list[float], bound: float) -> int:
    return next((n for n, c in enumerate(found, 1) if c <= bound), 2 * len(found))


# The model's search is better than chance


@pytest.mark.parametrize("loss", ["rank", "reg"])
def test_xgb_needs_far_fewer_trials_than_random(task: Any, loss: str) -> None:
    bound = 1.05 * optimum(task)
    needed: dict[str, list[int]] = {"xgb": [], "random": []}
    for name, values in needed.items():
        for seed in range(5):
            tuner = make_tuner(name, task, seed=seed, loss=loss)
            values.append(trials_until(search(tuner, task, 160), bound))
    assert statistics.median(needed["xgb"]) < 0.6 * statistics.median(needed["random"])


def test_ga_beats_random(task: Any) -> None:
    def best_fifth(name: str) -> float:
        late = [search(make_tuner(name, task, seed=seed), task, 192)[128:] for seed in range(3)]
        return statistics.median(c for run in late for c in run if c < math.inf)

    assert best_fifth("ga") < 0.9 * best_fifth("random")


def test_annealing_serves_spaces_too_large_to_rank(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "ENUMERABLE", 100)
    found = search(make_tuner("xgb", task), task, 96)
    assert len(found) == 96
    chance = search(make_tuner("random", task), task, 96)
    assert min(found) <= 1.05 * optimum(task)
    assert statistics.median(found[48:]) < 0.7 * statistics.median(chance[48:])


def test_annealing_leaves_no_score_out(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoTVM drops candidates with a negative score, which half of all ranking scores are."""
    monkeypatch.setattr(searching, "ENUMERABLE", 100)
    model = fitted([task], 100)
    table = FeatureTable(task)
    best = min(range(784), key=lambda i: cost(task, i) or math.inf)
    found = searching.search(model, table, 600, {best}, [best], np.random.default_rng(0))
    assert len(found) == len(set(found)) == 600
    assert best not in found
    assert model.predict(table, found).mean() > model.predict(table, range(784)).mean()


def test_loop_features(task: Any) -> None:
    tuner = make_tuner("xgb", task, features="itervar")
    found = search(tuner, task, 40)
    assert statistics.median(found[16:]) < statistics.median(found[:8])


# What is proposed


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_space_is_exhausted_exactly(tiny: Any, name: str) -> None:
    tuner = make_tuner(name, tiny)
    assert len(tiny.config_space) == 54
    assert len(search(tuner, tiny, 1000, batch=7)) == 54
    assert tuner.propose(4, set(range(54))) == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_proposed_twice_even_if_it_was_never_measured(tiny: Any, name: str) -> None:
    tuner = make_tuner(name, tiny)
    first = [index for _ in range(6) for index in tuner.propose(8, set())]
    assert len(set(first)) == 48
    rest = tuner.propose(8, {53, *first})
    assert not set(rest) & {53, *first}
    assert 5 <= len(rest) <= 6


@pytest.mark.parametrize("name", NAMES)
def test_what_a_former_run_saw_is_never_proposed(tiny: Any, name: str) -> None:
    seen = set(range(0, 54, 2))
    tuner = make_tuner(name, tiny, history=[record(tiny, i, cost(tiny, i)) for i in seen])
    found: list[int] = []
    while batch := tuner.propose(5, seen | set(found)):
        tuner.learn(batch, costs(tiny, batch))
        found += batch
    assert sorted(found) == list(range(1, 54, 2))


@pytest.mark.parametrize("name", NAMES)
def test_filtered_spaces(tvm: Any, name: str) -> None:
    """AutoTVM's multi-filter leaves holes in the range of indices."""
    task = conv(4, 4, 4)
    task.config_space.multi_filter(lambda e: e["tile_ic"].size[-1] <= e["tile_oc"].size[-1])
    size = len(task.config_space)
    assert 0 < size < task.config_space.range_length
    assert len(search(make_tuner(name, task), task, 1000)) == size


@pytest.mark.parametrize("name", NAMES)
def test_a_space_of_one_config(tvm: Any, name: str) -> None:
    task = conv(1, 1, 1, kernel=1)
    tuner = make_tuner(name, task)
    assert tuner.propose(8, set()) == [0]
    tuner.learn([0], [1e-3])
    assert tuner.propose(8, {0}) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_trial_fails(tiny: Any, name: str) -> None:
    tuner = make_tuner(name, tiny)
    seen: set[int] = set()
    while batch := tuner.propose(8, seen):
        tuner.learn(batch, [None] * len(batch))
        seen.update(batch)
    assert len(seen) == 54


def test_grid_goes_in_order(tiny: Any) -> None:
    tuner = make_tuner("grid", tiny)
    assert tuner.propose(4, {1}) == [0, 2, 3, 4]
    assert tuner.propose(2, set()) == [1, 5]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_and_global_generators_are_left_alone(
    task: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "ENUMERABLE", 100)  # annealing draws from global generators

    def run(seed: int, disturb: bool) -> list[float]:
        random.seed(disturb)
        np.random.seed(disturb)
        before = random.getstate(), np.random.get_state()[1].tolist()
        found = search(make_tuner(name, task, seed=seed), task, 24)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
        return found

    assert run(1, disturb=False) == run(1, disturb=True)
    assert name == "grid" or run(1, disturb=False) != run(2, disturb=False)
    assert make_tuner(name, task, seed=-1).propose(2, set())


@pytest.mark.parametrize("name", ["xgb", "random", "grid"])
def test_a_resumed_search_goes_on_as_the_killed_one(
    task: Any, others: list[Any], name: str
) -> None:
    history = records(others[0], 60)
    tuner = make_tuner(name, task, history=history)
    seen: set[int] = set()
    log = list(history)
    for _ in range(4):
        batch = tuner.propose(8, seen)
        tuner.learn(batch, costs(task, batch))
        log += [record(task, index, cost(task, index)) for index in batch]
        seen.update(batch)
    resumed = make_tuner(name, task, history=log)
    assert resumed.propose(8, seen) == tuner.propose(8, seen)


# Transfer


def test_records_of_other_shapes_improve_the_first_batch(task: Any, others: list[Any]) -> None:
    history = [r for other in others for r in records(other, 100)]

    def first(history: list[Record]) -> float:
        batches = [make_tuner("xgb", task, seed=s, history=history).propose(16, set())
                   for s in range(5)]  # fmt: skip
        return statistics.mean(cost(task, i) or 1.0 for batch in batches for i in batch)

    warm = make_tuner("xgb", task, history=history)
    assert "of 3 other workloads" in warm.note
    assert warm.note.startswith("the cost model learns")
    assert first(history) < 0.5 * first([])


def test_transfer_has_a_threshold_and_says_so(task: Any, others: list[Any]) -> None:
    few = [r for r in records(others[0], 60) if r.ok][: tuners.MIN_TRANSFER - 1]
    tuner = make_tuner("xgb", task, history=few)
    assert tuner.note == "no transfer: 31 records of 1 other workloads, 32 are needed"
    cold = make_tuner("xgb", task)
    assert cold.note == ""
    assert tuner.propose(8, set()) == cold.propose(8, set())


def test_records_may_come_while_the_run_goes_on(task: Any, others: list[Any]) -> None:
    tuner = make_tuner("xgb", task)
    history = [*records(others[0], 100), *records(others[1], 40)]
    assert tuner.transfer(history[:20]) < tuners.MIN_TRANSFER
    assert tuner.transfer(history[20:]) == sum(r.ok for r in history)
    assert make_tuner("xgb", task, history=history).propose(8, set()) == tuner.propose(8, set())


def test_useless_records_are_left_out(task: Any, others: list[Any]) -> None:
    good = records(others[0], 50)
    moved = [*good]
    moved[0] = record(others[0], good[0].index, 1e-9)
    moved[0].config["entity"][0][2] = [-1, 3]  # another space than today's
    fallback = record(others[0], 0, 1e-9)
    fallback.config["index"] = -1
    beyond = record(others[0], 0, 1e-9)
    beyond.config["index"] = 1 << 40
    broken = record(others[1], 0, 1e-9)
    object.__setattr__(broken, "workload", workload_key([TEMPLATE, ["TENSOR", [1], "float32"]]))
    foreign = record(others[1], 0, 1e-9)
    object.__setattr__(foreign, "workload", workload_key(["dense_pack.x86", 1]))
    found = samples_of([*moved, fallback, beyond, broken, foreign], TEMPLATE, "knob")
    assert list(found) == [workload_key(others[0].workload)]
    known = next(iter(found.values())).costs
    assert set(known) == {r.index for r in good[1:]}
    assert 1e-9 not in known.values()


def test_what_one_model_learns_from_is_bounded(
    others: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MAX_WORKLOADS", 2)
    monkeypatch.setattr(features, "MAX_ROWS", {"knob": 80})
    history = [r for n, other in enumerate(others) for r in records(other, 60 - n)]
    found = samples_of(history, TEMPLATE, "knob")
    assert set(found) == {workload_key(other.workload) for other in others[:2]}
    assert [len(samples.costs) for samples in found.values()] == [40, 40]


def test_the_later_record_of_a_config_wins(task: Any) -> None:
    twice = [record(task, 5, 1e-3), record(task, 5, 2e-3)]
    (samples,) = samples_of(twice, TEMPLATE, "knob").values()
    assert samples.costs == {5: 2e-3}


# Features


def test_split_features_are_relative_to_the_axis(task: Any) -> None:
    table = FeatureTable(task)
    index = next(
        i for i in range(784)
        if task.config_space.get(i)["tile_ow"].size == [-1, 8]
        and task.config_space.get(i)["tile_oc"].size == [-1, 16]
    )  # fmt: skip
    names, rows = table.rows([index])
    row = dict(zip(names, rows[0].tolist(), strict=True))
    assert row["tile_oc.0"] == 2.0  # 64 = 4 * 16
    assert row["tile_oc.1"] == 4.0
    assert row["tile_oc.2"] == 6.0
    assert row["tile_oc.3"] == 0.0
    assert row["tile_ow.0"] == 2.0  # 28 in parts of 8: 4, the last half empty
    assert row["tile_ow.3"] == pytest.approx(32 / 28 - 1)
    assert row["tile_oc*tile_ow"] == 7.0
    assert len(names) == len(set(names)) == rows.shape[1]
    assert np.isfinite(rows).all()


def test_every_kind_of_knob_becomes_numbers(tvm: Any) -> None:
    from tvm.autotvm.task.space import ConfigSpace

    space = ConfigSpace()
    space.define_knob("text", ["auto", "none"])
    space.define_knob("unroll", [0, 16])
    axes = [space.axis(4), space.axis(6)]
    space.define_reorder("order", axes, policy="all")
    space.define_annotate("mark", axes, policy="try_unroll")
    fake = SimpleNamespace(config_space=space, args=(None, ("x", 3)), flop=7.0)
    names, rows = FeatureTable(fake).rows(range(len(space)))
    assert len({tuple(row) for row in rows.tolist()}) == len(space) == 32
    assert names[:2] == ["text.0", "unroll.0"]
    assert rows[0, -2:].tolist() == [2.0, 3.0]


def test_a_candidate_that_cannot_be_lowered_has_no_features(task: Any) -> None:
    def refuse(_config: Any) -> None:
        raise RuntimeError("no")

    broken = SimpleNamespace(
        config_space=task.config_space, args=(), flop=1.0, target=task.target, instantiate=refuse
    )
    names, rows = FeatureTable(broken, "itervar").rows([1, 2])
    assert (names, rows.shape) == ([], (2, 0))


# The model itself


def fitted(tasks: Sequence[Any], count: int, **options: Any) -> CostModel:
    model = CostModel(TEMPLATE, device=DEVICE, **options)
    history = [r for task in tasks for r in records(task, count)]
    model.fit(samples_of(history, TEMPLATE, model.features).values())
    return model


@pytest.mark.parametrize("loss", ["rank", "reg"])
def test_save_and_load_give_equal_predictions(task: Any, tmp_path: Path, loss: str) -> None:
    model = fitted([task], 200, loss=loss)
    path = tmp_path / "models" / "m.json"
    model.save(path)
    loaded = CostModel.load(path, TEMPLATE, DEVICE)
    table = FeatureTable(task)
    assert np.array_equal(loaded.predict(table, range(784)), model.predict(table, range(784)))
    assert (loaded.loss, loaded.records, loaded.workloads) == (loss, 200, 1)
    assert predict_best(loaded, task, 5) == predict_best(model, task, 5)
    assert [entry.name for entry in path.parent.iterdir()] == ["m.json"]


def test_predicted_best_of_a_shape_never_measured(task: Any, others: list[Any]) -> None:
    best = predict_best(fitted(others, 150), task, 8)
    assert len(set(best)) == 8
    everything = sorted(c for c in costs(task, range(784)) if c is not None)
    chosen = min(cost(task, index) or math.inf for index in best)
    assert chosen <= everything[len(everything) // 20]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def trees(data: dict[str, Any]) -> Any:
    return data["booster"]["learner"]["gradient_booster"]["model"]["trees"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("columns"),
        lambda data: data["columns"].pop(),
        lambda data: data.update(mlc_cost_model=2),
        lambda data: data.update(loss="magic"),
        lambda data: data.update(seed="1"),
        lambda data: data.update(booster={}),
        lambda data: data["booster"].update(version="new"),
        lambda data: trees(data)[0]["left_children"].__setitem__(0, 0),
        lambda data: trees(data)[0]["right_children"].__setitem__(0, 1 << 20),
        lambda data: trees(data)[0]["split_indices"].__setitem__(0, 1 << 20),
        lambda data: trees(data)[0]["left_children"].pop(),
        lambda data: trees(data).__setitem__(0, 1),
    ],
)  # fmt: skip
def test_damaged_models_are_refused(
    tiny: Any, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    path = tmp_path / "m.json"
    fitted([tiny], 40).save(path)
    edit(path, change)
    with pytest.raises(TuningError, match="damaged"):
        CostModel.load(path, TEMPLATE, DEVICE)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":1}'])
def test_files_that_are_no_models_are_refused(tvm: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(TuningError, match="damaged"):
        CostModel.load(path, TEMPLATE, DEVICE)


def test_models_of_others_missing_and_huge_ones_are_refused(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.json"
    fitted([tiny], 40).save(path)
    with pytest.raises(TuningError, match="not for"):
        CostModel.load(path, TEMPLATE, "another device")
    with pytest.raises(TuningError, match="not for"):
        CostModel.load(path, "dense_pack.x86", DEVICE)
    with pytest.raises(TuningError, match="cannot read"):
        CostModel.load(tmp_path / "none.json", TEMPLATE, DEVICE)
    monkeypatch.setattr(costmodel, "MAX_MODEL_BYTES", 1000)
    with pytest.raises(TuningError, match="damaged"):
        CostModel.load(path, TEMPLATE, DEVICE)


def test_a_model_that_cannot_be_saved_leaves_nothing(tiny: Any, tmp_path: Path) -> None:
    occupied = tmp_path / "m.json"
    occupied.mkdir()
    with pytest.raises(TuningError, match="cannot save"):
        fitted([tiny], 40).save(occupied)
    assert list(tmp_path.iterdir()) == [occupied]


def test_tasks_without_a_success_teach_nothing(tiny: Any) -> None:
    model = CostModel(TEMPLATE)
    failures = [record(tiny, index, None) for index in range(10)]
    model.fit(samples_of(failures, TEMPLATE, "knob").values())
    assert not model.trained


# Trust


@pytest.mark.parametrize("loss", ["rank", "reg"])
def test_trust_is_high_where_there_is_something_to_learn(task: Any, loss: str) -> None:
    found = trust(records(task, 300), TEMPLATE, loss=loss)
    assert found is not None
    assert found.rank_correlation > 0.8
    assert found.top_k_recall > 0.6
    assert 0 <= found.regret < 0.3
    assert 200 < found.records <= 300  # failures do not count


@pytest.mark.parametrize("loss", ["rank", "reg"])
def test_trust_is_low_for_noise(task: Any, others: list[Any], loss: str) -> None:
    dice = random.Random(0)
    noise = [
        record(one, index, dice.uniform(1e-3, 9e-3))
        for one in (task, *others) for index in range(0, 400, 4)
    ]  # fmt: skip
    found = trust(noise, TEMPLATE, loss=loss)
    assert found is not None
    assert abs(found.rank_correlation) < 0.25
    assert found.top_k_recall < 0.4
    assert found.regret > 0.5


def test_trust_needs_records(task: Any, others: list[Any]) -> None:
    ok = [r for r in records(task, 60) if r.ok]
    assert trust([], TEMPLATE) is None
    assert trust(ok[: trusting.MIN_TRUST - 1], TEMPLATE) is None
    assert trust(ok[: trusting.MIN_TRUST], TEMPLATE) is not None
    assert trust(ok, "dense_pack.x86") is None


def test_equal_values_share_their_rank() -> None:
    ranks = trusting._ranks(np.array([3.0, 1.0, 3.0, 2.0]))
    assert ranks.tolist() == [3.5, 1.0, 3.5, 2.0]


# Errors, and what is left behind


def test_wrong_names(tiny: Any) -> None:
    with pytest.raises(UsageError, match="unknown tuner 'xgboost'") as error:
        make_tuner("xgboost", tiny)
    assert "ga, grid, random, xgb" in str(error.value.hint)
    with pytest.raises(UsageError, match="unknown features") as error:
        make_tuner("xgb", tiny, features="knobs")
    assert "did you mean 'knob'" in str(error.value.hint)
    with pytest.raises(UsageError, match="unknown loss"):
        make_tuner("xgb", tiny, loss="log")


def test_without_xgboost_other_searchers_still_work(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(MissingToolError, match="xgboost") as error:
        make_tuner("xgb", tiny)
    assert "--tuner random" in str(error.value.hint)
    for name in ("random", "grid", "ga"):
        assert make_tuner(name, tiny).propose(1, set())


def test_no_process_and_no_thread_is_left(task: Any, others: list[Any], tmp_path: Path) -> None:
    def threads() -> set[str]:
        return {entry.name for entry in Path("/proc/self/task").iterdir()}

    def children() -> str:
        return "".join(
            Path(f"/proc/self/task/{thread}/children").read_text() for thread in threads()
        )

    before = threads(), children()
    history = [r for other in others for r in records(other, 100)]
    for name in NAMES:
        search(make_tuner(name, task, history=history), task, 24)
    search(make_tuner("xgb", task, features="itervar"), task, 12, batch=4)
    model = fitted([task], 100)
    model.save(tmp_path / "m.json")
    predict_best(CostModel.load(tmp_path / "m.json", TEMPLATE, DEVICE), task, 3)
    trust(history, TEMPLATE)
    assert (threads(), children()) == before
