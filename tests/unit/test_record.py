"""A record survives the way through its line; what is no record never becomes one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.tune.record import (
    FALLBACK,
    FORMAT,
    MAX_LINE,
    REASONS,
    Record,
    decode,
    encode,
    mcpu,
    workload_id,
    workload_key,
)

WORKLOAD = workload_key(
    ["conv2d_NCHWc.x86", ["TENSOR", [1, 64, 56, 56], "float32"], (1, 1), "NCHW", "float32"]
)
RECORD = Record(
    workload=WORKLOAD,
    config={
        "index": 17,
        "code_hash": None,
        "entity": [["tile_ic", "sp", [-1, 8]], ["unroll_kw", "ot", True]],
    },
    target="llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v3",
    device="x86-64-v3-0123456789ab.avx2.some-cpu.8t",
    template_hash="8ca9d8be4fd8",
    costs=(0.001, 0.0012),
    timestamp=1700000000.25,
    run="cafe",
)
FAILURE = replace(RECORD, costs=(), reason="run timeout", message="10 s were not enough")
# What AutoTVM itself writes, spaces and all.
PLAIN = (
    '{"input": ["llvm -keys=cpu -mcpu=core-avx2", "dense_pack.x86", '
    '[["TENSOR", [1, 512], "float32"], ["TENSOR", [1000, 512], "float32"], null, "float32"], {}], '
    '"config": {"index": 3, "code_hash": null, "entity": [["tile_y", "sp", [-1, 1, 1]]]}, '
    '"result": [[0.0002, 0.0004], 0, 1.5, 1600000000.5], "version": 0.2, "tvm_version": "0.19.0"}'
)


def line(**changes: Any) -> str:
    """Return the line of RECORD with other top-level values."""
    return json.dumps({**json.loads(encode(RECORD)), **changes})


@pytest.mark.parametrize("reason", REASONS)
def test_a_record_comes_back_equal(reason: str) -> None:
    record = replace(RECORD, reason=reason, costs=() if reason else RECORD.costs)
    written = encode(record)
    assert "\n" not in written
    assert decode(written) == record


@settings(deadline=None, max_examples=50)
@given(
    costs=st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=5),
    message=st.text(max_size=80),
    index=st.integers(-1, 10**12),
    timestamp=st.floats(0, 1e11),
)
def test_any_values_come_back_equal(
    costs: list[float], message: str, index: int, timestamp: float
) -> None:
    record = replace(
        RECORD,
        costs=tuple(costs),
        message=message,
        config={**RECORD.config, "index": index},
        timestamp=timestamp,
    )
    assert decode(encode(record)) == record


def test_a_chosen_default_comes_back_equal() -> None:
    config = {"index": FALLBACK, "code_hash": None, "entity": []}
    record = replace(RECORD, chosen=True, config=config)
    assert decode(encode(record)) == record
    assert decode(encode(RECORD)) == replace(RECORD, chosen=False)


def test_a_failure_keeps_its_reason_and_costs_nothing_that_counts() -> None:
    assert not FAILURE.ok
    assert FAILURE.cost == math.inf
    back = decode(encode(FAILURE))
    assert back is not None
    assert (back.reason, back.message) == ("run timeout", "10 s were not enough")
    # AutoTVM sees a failure too: its error number, and the cost that it gives failures.
    costs, error_no, _, _ = json.loads(encode(FAILURE))["result"]
    assert (costs, error_no) == ([1e9], 7)


def test_a_long_message_is_cut() -> None:
    back = decode(encode(replace(FAILURE, message="x" * 1000)))
    assert back is not None
    assert back.message == "x" * 200


def test_a_plain_autotvm_line_names_no_device() -> None:
    record = decode(PLAIN)
    assert record is not None
    assert (record.device, record.template_hash, record.run) == ("", "", "")
    assert record.template == "dense_pack.x86"
    assert record.index == 3
    assert record.costs == (0.0002, 0.0004)
    assert record.cost == pytest.approx(0.0003)
    assert record.timestamp == 1600000000.5
    assert record.tvm_version == "0.19.0"
    assert mcpu(record.target) == "core-avx2"
    assert workload_key(json.loads(record.workload)) == record.workload


def test_a_plain_failure_gets_the_name_of_its_number() -> None:
    row = json.loads(PLAIN)
    row["result"] = [[1e9], 6, 10.0, 1.0]
    record = decode(json.dumps(row))
    assert record is not None
    assert (record.reason, record.ok) == ("build timeout", False)


def test_a_newer_format_is_refused() -> None:
    ours = json.loads(encode(RECORD))["mlc"]
    assert decode(line(mlc={**ours, "format": FORMAT + 1})) is None
    assert decode(line(mlc={**ours, "format": FORMAT, "novel": 1})) == RECORD


def test_another_tvm_version_is_read_and_said() -> None:
    record = decode(line(tvm_version="0.20.0"))
    assert record is not None
    assert record.tvm_version == "0.20.0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "null",
        "17",
        '"text"',
        "[]",
        "{}",
        "# a comment",
        "\x00" * 40,
        "llvm\tgASV\tgASV\tgASV\t0.2\t0.7.0",  # AutoTVM's pickle protocol: never unpickled
        encode(RECORD)[:-1],
        encode(RECORD) + "}",
        line(input=None),
        line(input=["llvm", "t"]),
        line(input=["llvm", "t", 5, {}]),
        line(config=None),
        line(config={"index": "x", "entity": []}),
        line(config={"index": 1}),
        line(config={"index": 1, "entity": [5]}),
        line(result=[]),
        line(result=[[1.0], 0, 1.0]),
        line(result=[5, 0, 1.0, 1.0]),
        line(result=[["x"], 0, 1.0, 1.0]),
        line(result=[[-1.0], 0, 1.0, 1.0]),
        line(result=[[0.0], 0, 1.0, 1.0]),
        line(result=[[math.nan], 0, 1.0, 1.0]),
        line(result=[[math.inf], 0, 1.0, 1.0]),
        line(mlc=5),
        line(mlc={"format": "1"}),
        line(mlc={"reason": "no such reason"}),
        line(padding="x" * MAX_LINE),
        '{"input": ' + "9" * 5000 + "}",
    ],
)
def test_what_is_no_record_is_none(text: str) -> None:
    assert decode(text) is None


def test_a_workload_has_one_key_and_one_id() -> None:
    args = (("TENSOR", (1, 64), "float32"), "NCHW")
    assert workload_key(["t", *args]) == workload_key(["t", ["TENSOR", [1, 64], "float32"], "NCHW"])
    assert workload_id(WORKLOAD).startswith("conv2d_NCHWc.x86-")
    assert workload_id(WORKLOAD) != workload_id(workload_key(["conv2d_NCHWc.x86"]))
