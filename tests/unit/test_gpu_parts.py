"""Tuning for GPUs without one: what a device says, what its server does, whose records apply."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlc import target
from mlc.errors import MissingToolError, RunError, TargetError, TuningError
from mlc.options import TuneOptions
from mlc.rpc import facts, gpu
from mlc.runtime import driver_api
from mlc.runtime.driver_api import Driver
from mlc.tune import on_gpu
from mlc.tune.device import device_for, gpu_device, isa_of
from mlc.tune.farm import measuring_device
from tests.fake_gpu import FakeDriver
from tests.unit.test_cuda_session import ADD, program

A100, ANY = target.resolve("a100"), target.resolve("cuda:sm_80")


# Whose records apply


@pytest.mark.parametrize(
    ("name", "card", "same"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100", True),
        ("NVIDIA A30", "a100", False),
        ("NVIDIA A30", "cuda:sm_80", True),
        ("NVIDIA A100-SXM4-40GB", "cuda:sm_80", True),
        ("NVIDIA GeForce RTX 3090", "rtx3090", True),
        ("NVIDIA A10", "rtx3090", False),
        ("NVIDIA A10", "a10", True),
        ("NVIDIA A100-SXM4-40GB", "a10", False),
        ("NVIDIA A10", "cuda:sm_80", False),  # sm_86
        ("Orin", "jetson-orin", True),
        ("Tesla T4", "t4", True),
    ],
)
def test_whose_records_a_card_takes_for_its_own(name, card, same):
    chosen = target.resolve(card)
    arch = "sm_80" if "A100" in name or "A30" in name else "sm_86"
    arch = chosen.mcpu if name in ("Orin", "Tesla T4") else arch
    measured = gpu_device(target.resolve(f"cuda:{arch}"), name)
    here = device_for(chosen, facts.host_cpu(), 8)
    assert here.is_measured_by(measured.id) is same
    assert here.is_measured_by("")  # a log that was named
    assert isa_of(measured.id) == arch


def test_ids_name_the_gpu_and_its_architecture():
    found = gpu_device(ANY, "NVIDIA A100-SXM4-40GB").id
    assert found == f"{ANY.id}.sm_80.nvidia-a100-sxm4-40gb"
    assert isa_of(device_for(ANY, facts.host_cpu(), 4).id) == "sm_80"


def test_a_gpu_without_a_tracker_is_not_tuned_for():
    with pytest.raises(TargetError, match="times are not invented") as found:
        measuring_device(TuneOptions(model="my net.onnx", target="cuda:sm_86"), None)
    hint = str(found.value.hint)
    assert "mlc rpc server --device cuda --key K --tracker 127.0.0.1:9190" in hint
    assert "mlc tune 'my net.onnx' --target cuda --arch sm_86 --tracker 127.0.0.1:9190" in hint


# What a device says of itself


def test_a_gpu_is_part_of_what_a_device_says():
    card = {"name": "NVIDIA A30", "sm": "sm_80"}
    found = facts.read(facts.here(card))
    assert found.gpu == facts.GpuFacts(**card)
    assert str(found) == "NVIDIA A30 (sm_80)"
    assert found != facts.read(facts.here())


@pytest.mark.parametrize(
    "card",
    [7, {}, {"name": "x"}, {"name": 3, "sm": "sm_80"}, {"name": "x", "sm": "gfx90a"},
     {"name": "x", "sm": "sm_80 "}, {"name": "x" * 1000, "sm": "sm_80"}],
)  # fmt: skip
def test_a_gpu_that_is_none_is_refused(card):
    with pytest.raises(TuningError, match="description of itself cannot be used"):
        facts.read(facts.here(card))


def test_a_machine_without_a_gpu_cannot_offer_one(monkeypatch):
    monkeypatch.setattr(driver_api, "Driver", lambda: Driver("libcuda-of-nobody.so.1"))
    with pytest.raises(MissingToolError) as found:
        driver_api.describe()
    assert found.value.exit_code == 8


# What its server does


HOW = gpu.How(rounds=3, seconds=60, min_repeat_ms=6, warm_up_ms=9, seed=1, compare=False)
TENSORS = [gpu.Tensor(shape=(2, 3), dtype="int32", written=k == 2) for k in range(3)]


class Card(FakeDriver):
    """A GPU whose launches take 1 ms each."""

    now, starts = 0.0, 0

    def launch(self, *args: Any) -> None:
        super().launch(*args)
        self.now += 1e-3
        self.starts += 1

    def clock(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> type[Card]:
    monkeypatch.setattr(driver_api, "Driver", Card)
    monkeypatch.setattr(FakeDriver, "cubins", {program().cubin: ADD})
    return Card


def ask(*programs: Any, **changes: Any) -> Any:
    how = replace(HOW, **changes)
    return json.loads(gpu.answer(gpu.request([(one, TENSORS) for one in programs], how)))


def test_describing_it():
    assert driver_api.describe() == {"name": "Numpy RTX 4", "sm": "sm_86"}
    assert Card.made[-1].closed


def test_candidates_are_timed_in_turn():
    both, one = program(), program(launches=program().launches[:1])
    assert ask(both, one) == {
        "results": [{"costs": pytest.approx([2e-3] * 3)}, {"costs": pytest.approx([1e-3] * 3)}]
    }
    # once, warmed up for 9 ms, three times 6 ms
    assert Card.made[-1].starts == 2 * (1 + 5 + 3 * 3) + (1 + 9 + 3 * 6)


def test_fewer_rounds_when_they_take_too_long():
    assert len(ask(program(), seconds=0)["results"][0]["costs"]) == 1


def test_one_that_fails_leaves_the_others_alone(monkeypatch):
    broken = program(
        launches=(replace(program().launches[0], arguments=(("tensor", 9),)),)
    )  # fmt: skip
    failed, fine = ask(broken, program())["results"]
    assert failed == {"error": "a launch asks for a tensor that its kernel does not have"}
    assert fine["costs"]

    def refuse(*_: Any) -> None:
        raise RunError("cuLaunchKernel failed: out of luck")

    monkeypatch.setattr(gpu, "start", refuse)
    assert ask(program())["results"] == [{"error": "cuLaunchKernel failed: out of luck"}]


def test_outputs_are_compared_on_equal_inputs():
    same = ask(program(), program(note="x"), compare=True)["results"]
    assert same[0]["passed"] is True
    first, second = program().launches
    off = replace(second, arguments=(*second.arguments[:3], ("int32", 0)))
    (other,) = ask(program(launches=(first, off)), program(), compare=True)["results"]
    assert other["passed"] is False
    assert "MISMATCH" in other["detail"]
    broken = program(launches=(replace(first, arguments=(("tensor", 9),)),))
    assert ask(broken, program(), compare=True)["results"][0]["passed"] is False
    assert ask(program(), broken, compare=True)["results"][0]["passed"] is None


def test_inputs_are_not_all_alike():
    ask(program(), program(), compare=True)
    one, other = (Card.made[-1].memory[k].view(np.int32) for k in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("how", "rounds"), 0),
        (("how", "rounds"), 10**9),
        (("how", "seconds"), -1),
        (("how", "seconds"), "x"),
        (("how", "seed"), -1),
        (("how", "more"), 1),
        (("candidates", 0, "tensors", 0, "shape"), [1 << 41]),
        (("candidates", 0, "tensors", 0, "shape"), [1 << 30, 1 << 30]),
        (("candidates", 0, "tensors", 0, "shape"), [0]),
        (("candidates", 0, "tensors", 0, "shape"), [1] * 17),
        (("candidates", 0, "tensors", 0, "dtype"), "object"),
        (("candidates", 0, "program", "cubin"), "%"),
        (("candidates", 0, "program", "launches", 0, "block"), [2048, 1, 1]),
        (("candidates",), 7),
    ],
)
def test_requests_of_another_form_reach_no_gpu(path, value):
    row = json.loads(gpu.request([(program(), TENSORS)], HOW))
    place = row
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    before = len(Card.made)
    assert "another form" in json.loads(gpu.answer(json.dumps(row).encode()))["error"]
    assert len(Card.made) == before


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_requests_that_are_none(data):
    assert "another form" in json.loads(gpu.answer(data))["error"]


def test_a_request_that_is_too_large(monkeypatch):
    monkeypatch.setattr(gpu, "MAX_REQUEST_BYTES", 100)
    assert "another form" in ask(program())["error"]


# What is believed of its answer


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "null", "{}" * 2, '{"results": 3}', '{"results": []}', '{"results": [7]}',
     '{"results": [{}, {}]}', "[" * 100_000, " " * (1 << 21)],
)  # fmt: skip
def test_answers_of_another_form(text):
    assert on_gpu._rows(text, 1) is None


def test_an_error_is_everyones():
    assert on_gpu._rows('{"error": "no"}', 2) == [{"error": "no"}] * 2
