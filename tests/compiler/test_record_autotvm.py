"""AutoTVM and mlc read each other's lines, and mean the same by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlc import tvm_env
from mlc.tune import logs
from mlc.tune.record import FALLBACK, REASONS, Record, decode, encode, workload_key
from mlc.tune.store import Store

HERE = "x86-64-v3-0123456789ab.avx2.here.8t"


@pytest.fixture(scope="module")
def autotvm() -> Any:
    tvm_env.tvm()
    from tvm import autotvm

    return autotvm


@pytest.fixture(scope="module")
def task(autotvm: Any) -> Any:
    """A real task: a small dense layer."""
    from tvm import te, topi  # noqa: F401 - topi registers the templates

    tensors = [
        te.placeholder(shape, name=name) for shape, name in (((4, 16), "x"), ((32, 16), "w"))
    ]
    target = "llvm -mtriple=x86_64-linux-gnu -mcpu=core-avx2"
    return autotvm.task.create("dense_pack.x86", (*tensors, None, "float32"), target)


def record(task: Any, index: int, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "workload": workload_key(task.workload),
        "config": json.loads(json.dumps(task.config_space.get(index).to_json_dict())),
        "target": str(task.target),
        "device": HERE,
        "template_hash": "8ca9d8be4fd8",
        "costs": (0.002, 0.004),
        "timestamp": 1.7e9 + index,
        **changes,
    }
    return Record(**fields)


def test_autotvm_reads_our_line(autotvm: Any, task: Any) -> None:
    inputs, result = autotvm.record.decode(encode(record(task, 5, message="é\n")))
    assert inputs.task.workload == task.workload
    assert str(inputs.target) == str(task.target)
    assert inputs.config.to_json_dict() == task.config_space.get(5).to_json_dict()
    assert inputs.config.index == 5
    assert inputs.config.cost == pytest.approx(0.003)
    assert tuple(result.costs) == (0.002, 0.004)
    assert (result.error_no, result.timestamp) == (0, 1.7e9 + 5)


@pytest.mark.parametrize("reason", sorted(REASONS.keys() - {""}))
def test_autotvm_sees_our_failures_as_failures(autotvm: Any, task: Any, reason: str) -> None:
    _, result = autotvm.record.decode(encode(record(task, 5, costs=(), reason=reason)))
    number = autotvm.measure.MeasureErrorNo(result.error_no)
    assert number != autotvm.measure.MeasureErrorNo.NO_ERROR
    assert tuple(result.costs) == (1e9,)


def test_we_read_autotvms_line(autotvm: Any, task: Any) -> None:
    inputs = autotvm.measure.MeasureInput(task.target, task, task.config_space.get(7))
    result = autotvm.measure.MeasureResult((0.001, 0.003), 0, 1.5, 1.6e9)
    found = decode(autotvm.record.encode(inputs, result))
    assert found == record(
        task, 7, device="", template_hash="", costs=(0.001, 0.003), timestamp=1.6e9
    )


def test_we_read_autotvms_failure(autotvm: Any, task: Any) -> None:
    inputs = autotvm.measure.MeasureInput(task.target, task, task.config_space.get(7))
    number = autotvm.measure.MeasureErrorNo.RUN_TIMEOUT
    result = autotvm.measure.MeasureResult((TimeoutError("slow"),), number, 10.0, 1.6e9)
    found = decode(autotvm.record.encode(inputs, result))
    assert found is not None
    assert (found.ok, found.reason, found.costs) == (False, "run timeout", ())


def test_autotvm_applies_an_export(autotvm: Any, task: Any, tmp_path: Path) -> None:
    store, output = Store(tmp_path / "logs"), tmp_path / "best.json"
    default = {"index": FALLBACK, "code_hash": None, "entity": []}
    store.append([record(task, 3), record(task, 4, costs=(0.001,)), record(task, 5, costs=(),
                 reason="crash"), record(task, 6, config=default)])  # fmt: skip
    assert logs.export(store, output, logs.Choice(), everything=True) == 3
    assert len(list(autotvm.record.load_from_file(str(output)))) == 3
    assert logs.export(store, output, logs.Choice()) == 1
    # TVM's own lookup finds the config by our file.
    with autotvm.apply_history_best(str(output)) as best, task.target:
        assert best.query(task.target, task.workload).index == 4


def test_a_log_of_autotvm_is_imported(autotvm: Any, task: Any, tmp_path: Path) -> None:
    plain = tmp_path / "autotvm.log"
    log = autotvm.callback.log_to_file(str(plain))
    for index in (1, 2):
        inputs = autotvm.measure.MeasureInput(task.target, task, task.config_space.get(index))
        log(None, [inputs], [autotvm.measure.MeasureResult((0.001,), 0, 1.0, 1.6e9 + index)])
    store = Store(tmp_path / "logs")
    done = logs.merge(store, plain)
    assert (done.added, done.nameless, done.duplicates) == (2, 2, 0)
    assert logs.merge(store, plain).duplicates == 2
    assert [row.device for row in logs.list_files(store)] == [""]
    key = workload_key(task.workload)
    assert store.best([key], HERE, {task.name: ""}) == {}
