"""Tasks of small models, and how records in a folder of logs are used when those are compiled."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import helper

from mlc import artifact, driver, tvm_env
from mlc.build import tvm_target
from mlc.cache import Cache
from mlc.driver import Built
from mlc.errors import GateError, UsageError
from mlc.events import ignore
from mlc.frontend import onnx_file
from mlc.options import CompileOptions
from mlc.target import Target, resolve
from mlc.tune import applied, baseline
from mlc.tune.record import FALLBACK, Record, workload_key
from mlc.tune.store import Store
from mlc.tune.subject import symbols_of
from mlc.tune.tasks import Task, autotvm_task, choose, tasks_of
from mlc.tune.template import template_hash
from tests import models

Build = Callable[..., Built]


def dense_net() -> onnx.ModelProto:
    """Three layers: two of one shape, one of another."""
    weights = {
        "w1": models.floats(16, 16, seed=1),
        "w2": models.floats(16, 16, seed=2),
        "w3": models.floats(16, 4, seed=3),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], "second"),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("MatMul", ["d", "w3"], ["y"], "third"),
    ]
    return models.model(nodes, {"x": [2, 16]}, ["y"], weights)


def plain_net() -> onnx.ModelProto:
    """No operator that has a template."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "relu"),
        helper.make_node("Softmax", ["a"], ["y"], "softmax"),
    ]
    return models.model(nodes, {"x": [2, 16]}, ["y"])


@pytest.fixture(scope="module")
def chosen(tvm: Any, quick_target: str) -> Target:
    return resolve(quick_target)


@pytest.fixture(scope="module")
def build(chosen: Target, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compile a model in this process, with the records of a folder of logs (none: no records)."""

    def build_model(proto: onnx.ModelProto, logs: Path | None = None) -> Built:
        path = models.save(proto, tmp_path_factory.mktemp("model"))
        lookup = applied.from_logs(str(logs), chosen) if logs else lambda _key: None
        options = CompileOptions(model=str(path), jobs=1)
        file = onnx_file.read(path)
        return driver.build_model(options, chosen, file, Cache(None), lookup, ignore)

    return build_model


@pytest.fixture(scope="module")
def dense(build: Build) -> Built:
    return build(dense_net())


@pytest.fixture(scope="module")
def conv(build: Build) -> Built:
    return build(models.conv_net())


@pytest.fixture(scope="module")
def plain(build: Build) -> Built:
    return build(plain_net())


def found(built: Built, seconds: dict[str, float] | None = None) -> list[Task]:
    library = built.library
    return tasks_of(library.kernels, library.plan.calls, built.dispatch, seconds)


# -- what the tasks of a model are --


def test_calls_are_counted(dense: Built) -> None:
    by_shape = {task.shapes: task for task in found(dense)}
    assert {shape: task.calls for shape, task in by_shape.items()} == {
        "2x16 16x16": 2,
        "2x16 4x16": 1,
    }
    layer = by_shape["2x16 16x16"]
    assert 2 * 2 * 16 * 16 <= layer.flops <= 2 * 2 * 16 * 16 + 2 * 16  # of one call, relu included
    assert layer.template == "dense_mlc.x86"


def test_convolutions_are_in_their_logical_layout(conv: Built) -> None:
    assert sorted(task.shapes for task in found(conv)) == [
        "1x3x9x9 8x3x3x3",
        "1x8 5x8",
        "1x8x9x9 8x8x3x3",
    ]
    assert {task.shapes: task.template for task in found(conv)} == {
        "1x3x9x9 8x3x3x3": "conv2d_direct_mlc.x86",
        "1x8x9x9 8x8x3x3": "conv2d_NCHWc.x86",
        "1x8 5x8": "dense_mlc.x86",
    }


def test_no_tasks(plain: Built) -> None:
    assert found(plain) == []


@pytest.mark.parametrize("which", ["dense", "conv"])
def test_shares_by_work(which: str, request: pytest.FixtureRequest) -> None:
    built = request.getfixturevalue(which)
    shares = [task.share for task in found(built)]
    assert shares == sorted(shares, reverse=True)
    assert 0.9 < sum(shares) <= 1.0 + 1e-9
    assert {task.seconds for task in found(built)} == {0.0}


def test_shares_by_time(dense: Built) -> None:
    """Seconds of a kernel are those of all its calls in a run."""
    library = dense.library
    seconds = {kernel.symbol: 1e-3 for kernel in library.kernels}
    tasks = found(dense, seconds)
    assert sum(task.share for task in tasks) <= 1.0 + 1e-9
    for task in tasks:
        assert task.seconds * task.calls == pytest.approx(1e-3 * len(task.kernels))
        assert task.share == pytest.approx(len(task.kernels) / len(library.kernels))


def test_ids_are_the_same_in_every_build(build: Build, conv: Built) -> None:
    first, second = found(conv), found(build(models.conv_net()))
    assert [task.id for task in first] == [task.id for task in second]
    assert len({task.id for task in first}) == len(first)


@pytest.mark.parametrize("which", ["dense", "conv"])
def test_keys_make_autotvm_tasks(
    which: str, chosen: Target, request: pytest.FixtureRequest
) -> None:
    for task in found(request.getfixturevalue(which)):
        made = autotvm_task(task.key, tvm_target(chosen, 3))
        assert workload_key(made.workload) == task.key
        assert made.name == task.template
        assert len(made.config_space) > 1


# -- the hash of a template --


def test_every_template_has_a_hash(conv: Built) -> None:
    for task in found(conv):
        assert len(template_hash(task.template)) == 12


def test_an_unknown_template() -> None:
    with pytest.raises(UsageError, match=r"no AutoTVM template 'conv3d\.none'"):
        template_hash("conv3d.none")


def test_the_hash_covers_the_folder(
    tvm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvm.autotvm.task.task import TASK_TABLE

    source, beside = tmp_path / "scripted_template.py", tmp_path / "helper.py"
    source.write_text("def compute():\n    pass\n")
    beside.write_text("TILE = 8\n")
    spec = importlib.util.spec_from_file_location("scripted_template", source)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    entry = SimpleNamespace(fcompute=loaded.compute, fcustomized=None)
    monkeypatch.setitem(TASK_TABLE, "scripted.x86", entry)
    digest = template_hash.__wrapped__  # not the cached answer
    hashes = [digest("scripted.x86")]
    (tmp_path / "notes.txt").write_text("not code")
    assert digest("scripted.x86") == hashes[0]
    beside.write_text("TILE = 16\n")
    hashes.append(digest("scripted.x86"))
    beside.rename(tmp_path / "renamed.py")
    hashes.append(digest("scripted.x86"))
    monkeypatch.setattr(tvm_env, "VERSION", "0.20.0")
    hashes.append(digest("scripted.x86"))
    assert len(set(hashes)) == 4


# -- --tasks --


def task(number: int) -> Task:
    template = "conv2d_NCHWc.x86" if number < 3 else "dense_mlc.x86"
    return Task(key=json.dumps([template, number]), calls=1, flops=1)


TASKS = [task(number) for number in range(5)]


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("0", [0]),
        ("0,2-4", [0, 2, 3, 4]),
        ("4, 0", [4, 0]),
        ("1-1", [1]),
        ("3-99", [3, 4]),
        ("3-99999999999999", [3, 4]),
        ("0,0,0-1", [0, 1]),
        ("dense", [3, 4]),
        ("dense,1", [3, 4, 1]),
        (TASKS[2].id, [2]),
        (TASKS[2].id[-8:], [2]),
    ],
)
def test_choosing(text: str | None, positions: list[int]) -> None:
    assert choose(TASKS, text) == [TASKS[position] for position in positions]


@pytest.mark.parametrize("text", ["", ",", "0,", "5", "99-100", "4-2", "1-", "pool", "0,pool"])
def test_choosing_what_is_not_there(text: str) -> None:
    with pytest.raises(UsageError, match="names no task") as error:
        choose(TASKS, text)
    assert all(f"{k}: {one.id}" in str(error.value.hint) for k, one in enumerate(TASKS))


# -- how records are used --


def config_with(key: str, chosen: Target, knob: str, innermost: int) -> dict[str, Any]:
    """Return the first config of a workload whose split has such an innermost part."""
    space = autotvm_task(key, tvm_target(chosen, 3)).config_space
    for index in range(len(space)):
        if space.get(index)[knob].size[-1] == innermost:
            config: dict[str, Any] = space.get(index).to_json_dict()
            return config
    raise AssertionError(f"no config has {knob} {innermost}")


def record_for(one: Task, chosen: Target, config: dict[str, Any], **changes: Any) -> Record:
    record = Record(
        workload=one.key,
        config=config,
        target=chosen.tvm,
        device=applied.device_of(chosen).id,
        template_hash=template_hash(one.template),
        costs=(1e-6,),
        timestamp=1.0,
        run="r1",
    )
    return replace(record, **changes)


FALLBACK_CONFIG: dict[str, Any] = {"index": FALLBACK, "code_hash": None, "entity": []}


@pytest.fixture
def heaviest(conv: Built) -> Task:
    """The second convolution, most of the work; its default blocking of channels is 8."""
    one = found(conv)[0]
    assert one.shapes == "1x8x9x9 8x8x3x3"
    assert '"NCHW8c","NCHW8c"' in conv_workload(conv)
    return one


def conv_workload(built: Built) -> str:
    """Return the workload, layout altered, that the heaviest kernel was built from."""
    kernel = max(built.library.kernels, key=lambda kernel: kernel.flops)
    return kernel.workloads[-1]


def tuning(built: Built) -> dict[str, Any]:
    facts: dict[str, Any] = built.contents.manifest["tuning"]
    return facts


def test_without_records_all_is_by_default(conv: Built, plain: Built) -> None:
    facts = tuning(conv)
    assert facts["kernels"] == {"tuned": 0, "other_device": 0, "fallback": 3}
    assert facts["share_of_flops"] == {"tuned": 0.0, "other_device": 0.0, "fallback": 1.0}
    assert facts["records"] == []
    assert tuning(plain)["kernels"] == {"tuned": 0, "other_device": 0, "fallback": 0}


def test_a_record_of_this_device(
    build: Build, chosen: Target, heaviest: Task, tmp_path: Path
) -> None:
    config = config_with(heaviest.key, chosen, "tile_oc", 4)
    record = record_for(heaviest, chosen, config)
    Store(tmp_path).append([record])
    built = build(models.conv_net(), tmp_path)
    assert '"NCHW4c","float32"' in conv_workload(built)
    facts = tuning(built)
    assert facts["kernels"] == {"tuned": 1, "other_device": 0, "fallback": 2}
    assert facts["share_of_flops"]["tuned"] == pytest.approx(heaviest.share, abs=0.01)
    assert facts["records"] == [
        {
            "task": heaviest.id,
            "device": record.device,
            "config": record.index,
            "seconds": 1e-6,
        }
    ]
    assert [one.id for one in found(built)] == [one.id for one in found(build(models.conv_net()))]


def test_kernels_of_a_task_are_known_and_timed_in_both_models(
    build: Build, chosen: Target, conv: Built, heaviest: Task, tmp_path: Path
) -> None:
    """Also where the record gives the layer another layout, and so another kernel."""
    Store(tmp_path).append(
        [record_for(heaviest, chosen, config_with(heaviest.key, chosen, "tile_oc", 4))]
    )
    tuned = build(models.conv_net(), tmp_path)
    before, after = symbols_of(conv), symbols_of(tuned)
    assert set(before) == set(after) == {task.key for task in found(conv)}
    assert before[heaviest.key] == heaviest.kernels != after[heaviest.key]
    paths = tmp_path / "before.mlc", tmp_path / "after.mlc"
    for built, path in zip((conv, tuned), paths, strict=True):
        artifact.save(built.contents, path)
    turns = baseline.kernels_in_turn(*paths, threads=1)
    assert len(turns) > 2
    for first, second in turns:
        assert {s for own in before.values() for s in own} <= set(first)
        assert {s for own in after.values() for s in own} <= set(second)
        assert min(*first.values(), *second.values()) >= 0


def other_device(chosen: Target, isa: str) -> str:
    here = applied.device_of(chosen)
    return replace(here, cpu="Another CPU @ 1 GHz", isa=isa).id


def test_a_record_of_another_device_of_the_class(
    build: Build, chosen: Target, heaviest: Task, tmp_path: Path
) -> None:
    config = config_with(heaviest.key, chosen, "tile_oc", 4)
    other = other_device(chosen, applied.device_of(chosen).isa)
    Store(tmp_path).append([record_for(heaviest, chosen, config, device=other)])
    built = build(models.conv_net(), tmp_path)
    assert '"NCHW4c","float32"' in conv_workload(built)
    assert tuning(built)["kernels"] == {"tuned": 0, "other_device": 1, "fallback": 2}
    with pytest.raises(GateError, match=r"0\.0% of the model's work is tuned"):
        applied.require(applied.by_flops(tuning(built)), 0.5)


@pytest.mark.parametrize(
    "why", ["another class", "another template hash", "another TVM", "a failure"]
)
def test_a_record_that_does_not_apply(
    build: Build, chosen: Target, heaviest: Task, tmp_path: Path, why: str
) -> None:
    isa = applied.device_of(chosen).isa
    changes: dict[str, Any] = {
        "another class": {"device": other_device(chosen, "sse4" if isa != "sse4" else "avx2")},
        "another template hash": {"template_hash": "0" * 12},
        "another TVM": {"tvm_version": "0.18.0"},
        "a failure": {"costs": (), "reason": "crash"},
    }[why]
    config = config_with(heaviest.key, chosen, "tile_oc", 4)
    Store(tmp_path).append([record_for(heaviest, chosen, config, **changes)])
    built = build(models.conv_net(), tmp_path)
    assert '"NCHW8c","NCHW8c"' in conv_workload(built)
    assert tuning(built)["kernels"] == {"tuned": 0, "other_device": 0, "fallback": 3}


def test_records_that_come_with_mlc(
    build: Build,
    chosen: Target,
    heaviest: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They apply to machines of their class; the user's own go before them."""
    monkeypatch.setattr(applied, "shipped", lambda: tmp_path / "shipped")
    other = other_device(chosen, applied.device_of(chosen).isa)
    theirs = record_for(heaviest, chosen, config_with(heaviest.key, chosen, "tile_oc", 4))
    Store(tmp_path / "shipped").append([replace(theirs, device=other)])
    (tmp_path / "own").mkdir()
    built = build(models.conv_net(), tmp_path / "own")
    assert '"NCHW4c","float32"' in conv_workload(built)
    assert tuning(built)["kernels"] == {"tuned": 0, "other_device": 1, "fallback": 2}
    ours = record_for(heaviest, chosen, config_with(heaviest.key, chosen, "tile_oc", 2))
    Store(tmp_path / "own").append([ours])
    built = build(models.conv_net(), tmp_path / "own")
    assert '"NCHW2c","float32"' in conv_workload(built)
    assert tuning(built)["kernels"] == {"tuned": 1, "other_device": 0, "fallback": 2}


def test_the_default_was_chosen(
    build: Build, chosen: Target, heaviest: Task, conv: Built, tmp_path: Path
) -> None:
    """It goes before faster records, gives the code of the default, and counts as tuned."""
    fast = record_for(heaviest, chosen, config_with(heaviest.key, chosen, "tile_oc", 4))
    slow = record_for(heaviest, chosen, FALLBACK_CONFIG, costs=(5e-6,), timestamp=2.0)
    default = replace(slow, chosen=True)
    Store(tmp_path).append([fast, default])
    built = build(models.conv_net(), tmp_path)
    assert conv_workload(built) == conv_workload(conv)
    assert {k.symbol: k.code for k in built.library.kernels} == {
        k.symbol: k.code for k in conv.library.kernels
    }
    assert tuning(built)["kernels"]["tuned"] == 1


def test_equal_layers_share_a_record(
    build: Build, chosen: Target, dense: Built, tmp_path: Path
) -> None:
    layer = next(one for one in found(dense) if one.calls == 2)
    space = autotvm_task(layer.key, tvm_target(chosen, 3)).config_space
    config = space.get(len(space) - 1).to_json_dict()
    Store(tmp_path).append([record_for(layer, chosen, config)])
    facts = tuning(build(dense_net(), tmp_path))
    assert facts["share_of_flops"]["tuned"] == pytest.approx(layer.share, abs=0.01)
    assert [row["config"] for row in facts["records"]] == [config["index"]]


# -- the same by time --


def test_coverage_by_time(
    build: Build, chosen: Target, heaviest: Task, conv: Built, tmp_path: Path
) -> None:
    Store(tmp_path).append(
        [record_for(heaviest, chosen, config_with(heaviest.key, chosen, "tile_oc", 4))]
    )
    facts = tuning(build(models.conv_net(), tmp_path))
    levels = facts["levels"]
    assert sorted(levels.values()) == ["fallback", "fallback", "tuned"]
    assert applied.is_mixed(facts)
    assert not applied.is_mixed(tuning(conv))
    seconds = {symbol: 3.0 if level == "tuned" else 0.5 for symbol, level in levels.items()}
    seconds["a kernel that cannot be tuned"] = 100.0
    found = applied.by_time(facts, seconds)
    assert found == applied.Coverage(by="time", tuned=0.75, other_device=0.0, fallback=0.25)
    applied.require(found, 0.75)
    with pytest.raises(GateError, match=r"75\.0% of .* 76\.0% was required \(by time"):
        applied.require(found, 0.76)


def test_kernels_too_short_to_time_are_weighed_by_flops(
    build: Build, chosen: Target, heaviest: Task, tmp_path: Path
) -> None:
    Store(tmp_path).append(
        [record_for(heaviest, chosen, config_with(heaviest.key, chosen, "tile_oc", 4))]
    )
    facts = tuning(build(models.conv_net(), tmp_path))
    found = applied.by_time(facts, dict.fromkeys(facts["levels"], 0.0))
    assert found == applied.by_flops(facts)
    assert found.by == "FLOPs"


# -- the gate --


@pytest.mark.parametrize("share", [None, 0.0])
def test_a_gate_that_is_open(conv: Built, share: float | None) -> None:
    applied.require(applied.by_flops(tuning(conv)), share)


def test_a_gate_that_is_shut(conv: Built) -> None:
    with pytest.raises(GateError, match=r"0\.0% of .* 95\.0% was required") as error:
        applied.require(applied.by_flops(tuning(conv)), 0.95)
    assert "mlc tune" in str(error.value.hint)


def test_where_nothing_can_be_tuned_the_gate_is_open(plain: Built) -> None:
    applied.require(applied.by_flops(tuning(plain)), 1.0)


# -- the folder --


def test_the_folder_of_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert applied.root_of(None) is None
    shipped = applied.state(None)  # what comes with mlc is always looked at
    assert len(shipped) == len(list(applied.shipped().glob("*/*.jsonl")))
    (tmp_path / "tuning_logs").mkdir()
    assert applied.root_of(None) == Path("tuning_logs")
    assert applied.root_of(str(tmp_path)) == tmp_path


def test_a_named_folder_that_is_missing(tmp_path: Path, chosen: Target) -> None:
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(UsageError, match="there is no folder of tuning logs"):
            applied.from_logs(str(tmp_path / name), chosen)


def test_the_state_changes_with_the_logs(chosen: Target, tmp_path: Path) -> None:
    one = Task(key='["dense_mlc.x86",1]', calls=1, flops=1)
    record = record_for(one, chosen, {"index": 3, "code_hash": None, "entity": []})
    store = Store(tmp_path)
    states = [applied.state(str(tmp_path))]
    for _ in range(2):
        store.append([record])
        states.append(applied.state(str(tmp_path)))
    assert states[0] == applied.state(str(applied.shipped()))
    assert states[1] != states[2]
    for file in tmp_path.rglob("*.jsonl"):
        os.utime(file, (0, 0))  # as a fresh checkout has other times
    assert applied.state(str(tmp_path)) == states[2]
    assert str(tmp_path) not in states[1][0][0]  # the folder may move


def test_records_that_come_with_mlc_are_of_the_templates_as_they_are(tvm: Any) -> None:
    """Records of another source are not applied: an edit of a template would silently void them.

    Then: `make records`; or, where the edit leaves the kernels as they were, the new digest in the lines.
    """
    lines = [
        json.loads(line)
        for path in Path(str(applied.shipped())).glob("*/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    kept = {(line["input"][1], line["mlc"]["template_hash"]) for line in lines}
    assert kept == {(template, template_hash(template)) for template, _ in kept}
    assert kept
