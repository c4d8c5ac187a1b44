"""The arithmetic, the table and the bookkeeping of `benchmarks.suite`, on scripted results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.suite import __main__ as program
from benchmarks.suite import chart, models, peers, race, setup, stats, table, worker
from mlc.cpu import host_cpu, physical_cores
from mlc.errors import BuildError, MismatchError, RunError, UsageError

FACTS: dict[str, Any] = {
    "target": "llvm -mcpu=x", "trials": 0, "threads": 2, "avx2": False, "rounds": 2, "seconds": 0.25,
    "cpu": "a CPU", "versions": {"mlc": "0.1.0", "ort": "1.0", "torch": "2.0"}, "mlc": "abc",
}  # fmt: skip
INSPECTED = {"flops": 7, "bytes": 5, "tuning": {"share_of_flops": {"tuned": 0.5}}}


def entrant(*medians: float, waited: float = 0.0, idle: float = 0.0) -> dict[str, Any]:
    """Blocks of three runs with these medians (s)."""
    blocks = [
        {"runs": [median * 0.5, median, median * 9], "waited": waited, "idle": idle}
        for median in medians
    ]
    return {"rss": 50_000_000, "settings": "", "seconds": 1.0, "blocks": blocks}


def result(name: str = "net", **entrants: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "facts": FACTS, "entrants": entrants, "flops": 4e9, "peak_gflops": 100.0,
        "onnx_bytes": 2_000_000, "artifact_bytes": 3_000_000,
    }  # fmt: skip


def made_setup(folder: Path, **more: Any) -> setup.Setup:
    return setup.Setup(**{"out": folder, "logs": folder, "peers": ("ort",), "threads": 1, **more})


def test_a_larger_batch_replaces_the_first_dimension_only():
    assert models.at_batch("input:1,3,224,224", 8) == "input:8,3,224,224"
    assert models.at_batch("ids:int64:1,32", 8) == "ids:int64:8,32"
    assert models.at_batch("1,10", 2) == "2,10"


def test_unknown_names_are_refused_with_the_nearest():
    assert [subject.name for subject in models.chosen("mlp,resnet50@8")] == ["mlp", "resnet50@8"]
    assert models.chosen("") == list(models.SUBJECTS.values())
    with pytest.raises(UsageError, match="resnet19") as error:
        models.chosen("resnet19")
    assert "resnet18" in str(error.value.hint)
    with pytest.raises(UsageError, match="'mlc'"):
        peers.chosen("ort,mlc")


def test_a_ratio_is_taken_within_rounds():
    """The machine gets four times slower; both sides alike."""
    found = stats.ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)
    assert found.clear
    assert not stats.ratio([1.0, 1.0], [0.5, 2.0]).clear


def test_the_best_peer_is_the_fastest_that_ran():
    found = result(mlc=entrant(1, 1), ort=entrant(3, 3), torch=entrant(2, 2))
    assert stats.best_peer(found) == "torch"
    found["entrants"]["torch"] = {"failed": "no"}
    assert stats.best_peer(found) == "ort"
    assert stats.best_peer(result(mlc=entrant(1), ort={"failed": "no"})) is None
    found["entrants"]["untuned"] = entrant(1, 1)
    assert stats.best_peer(found) == "ort", "mlc without its records is no peer"


def test_means_and_shares():
    assert stats.geometric_mean([0.5, 8.0]) == pytest.approx(2.0)
    assert stats.geometric_mean([]) is None
    found = result(mlc=entrant(0.1, 0.1))
    assert stats.share_of_limit(found, 100.0) == pytest.approx(0.4)  # 40 of 100 GFLOP/s
    assert stats.limit([found, {"peak_gflops": 120.0}, {"peak_gflops": None}]) == 120.0
    assert stats.limit([{"peak_gflops": None}]) is None


def test_waiting_and_idling_threads_disqualify():
    quiet = entrant(1.0, 1.0)  # 10.5 s a block
    assert not stats.disturbed(result(mlc=quiet, ort=quiet))
    waiting = entrant(1.0, 1.0, waited=1.2)
    assert ["ort waited" in said for said in stats.disturbed(result(mlc=quiet, ort=waiting))] == [
        True
    ]
    spinning = entrant(1.0, 1.0, idle=1.2)
    assert ["ort used" in said for said in stats.disturbed(result(mlc=quiet, ort=spinning))] == [
        True
    ]


def test_the_table_says_who_is_faster():
    won = result("won", mlc=entrant(0.010, 0.010), ort=entrant(0.020, 0.020), torch=entrant(1, 1))
    lost = result("lost", mlc=entrant(0.1, 0.1), ort=entrant(0.05, 0.05), torch={"failed": "no"})
    even = result("even", mlc=entrant(0.1, 0.1), ort=entrant(0.09, 0.12, waited=9), torch={})
    rows = table.rows([won, lost, even], ["ort", "torch"])
    assert rows[0] == [
        "won", "10", "20", "1e+03", "2.00 (2.00 to 2.00)", "mlc", "400%", "50 / 50", "3.0 / 2.0",
    ]  # fmt: skip
    assert rows[1][2:6] == ["50", "failed", "0.50 (0.50 to 0.50)", "ONNX Runtime"]
    assert rows[2][0] == "even *"
    assert rows[2][3] == "-"
    assert rows[2][5] == "mlc or ONNX Runtime"
    # 2, 0.5 and 1.05 against ONNX Runtime; torch ran once.
    assert rows[3] == ["geometric mean / mlc", "1", "1.02", "100.00 (1 of 3)", "1.02", *[""] * 4]
    assert {len(row) for row in rows} == {len(table.headings(["ort", "torch"]))}


def test_markdown_names_versions_and_warns():
    quiet = result(mlc=entrant(1, 1), ort=entrant(2, 2))
    text = table.markdown([quiet], ["ort"])
    assert text.splitlines()[2].startswith("| net | 1e+03 | 2e+03 | 2.00")
    assert "ONNX Runtime 1.0" in text
    assert "2 threads" in text
    assert "QUOTED" not in text
    busy = result(mlc=entrant(1, 1, waited=9), ort=entrant(2, 2))
    assert "NOT TO BE QUOTED" in table.markdown([busy], ["ort"])


def test_the_chart_is_relative_to_the_best_peer():
    found = result(mlc=entrant(1, 1), ort=entrant(2, 2), torch=entrant(4, 4))
    assert chart.speeds(found) == {"mlc": 2.0, "ort": 1.0, "torch": 0.5}
    assert chart.speeds(result(mlc=entrant(1))) == {}
    pytest.importorskip("matplotlib")
    png = chart.draw([found, result("alone", mlc=entrant(1))], ["ort", "torch"])
    assert png.startswith(b"\x89PNG")
    assert png == chart.draw([found, result("alone", mlc=entrant(1))], ["ort", "torch"])


def test_an_entrant_that_computes_something_else_is_an_error(tmp_path: Path):
    reference, ours = tmp_path / "reference.npz", tmp_path / "ours.npz"
    array = np.linspace(-1, 1, 7, dtype=np.float32)
    peers.write_arrays(reference, [array, array])
    peers.write_arrays(ours, [array, array * np.float32(1 + 1e-5)])
    race.require_equal("ort", ours, reference)
    peers.write_arrays(ours, [array, array * np.float32(1.01)])
    with pytest.raises(MismatchError, match="ONNX Runtime computes something else: output 1"):
        race.require_equal("ort", ours, reference)
    peers.write_arrays(ours, [array])
    with pytest.raises(MismatchError, match="1 outputs"):
        race.require_equal("ort", ours, reference)


def test_options_that_cannot_work(tmp_path: Path):
    setup.check(made_setup(tmp_path))
    for wrong in ({"trials": -1}, {"rounds": 0}, {"threads": 0}, {"seconds": 0.0}):
        with pytest.raises(UsageError):
            setup.check(made_setup(tmp_path, **wrong))
    tvmc = {"peers": ("tvmc",), "trials": 1}
    setup.check(made_setup(tmp_path, **tvmc, threads=physical_cores()))
    with pytest.raises(UsageError, match="all cores"):
        setup.check(made_setup(tmp_path, **tvmc, threads=physical_cores() + 1))
    with pytest.raises(UsageError, match="timed tuned"):
        setup.check(made_setup(tmp_path, peers=("tvmc",), threads=physical_cores()))


def test_a_model_that_tvmc_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def package(*_: Any) -> Path:
        raise BuildError("no such operator")

    monkeypatch.setattr(setup.tvmc, "package", package)
    subject = models.SUBJECTS["mlp"]
    found = setup._tvmc(made_setup(tmp_path, trials=1), subject, tmp_path / "mlp.onnx")
    assert not found.exists()
    assert found.parent == tmp_path


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path: Path):
    for option in ("--json", "--chart"):
        with pytest.raises(SystemExit, match="there is no folder"):
            program.main(["--models", "mlp", "--peers", "ort", option, str(tmp_path / "no/file")])


def test_a_result_is_kept_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    job = peers.Job(
        peer="mlc", onnx=str(file), artifact=str(file), factory="", inputs="", threads=1
    )
    raced: list[int] = []

    def scripted(_jobs: Any, _folder: Path, rounds: int, *_rest: Any) -> dict[str, Any]:
        raced.append(rounds)
        return {"mlc": entrant(1.0)}

    monkeypatch.setattr(program, "prepare", lambda *_: [job])
    monkeypatch.setattr(program, "race", scripted)
    monkeypatch.setattr(program.api, "inspect", lambda _path: INSPECTED)
    monkeypatch.setattr(setup.Setup, "peak", lambda _self: 1.0)
    subject = models.SUBJECTS["mlp"]
    first = program.measured(made_setup(tmp_path, rounds=3), subject)
    assert program.measured(made_setup(tmp_path, rounds=3), subject) == first
    program.measured(made_setup(tmp_path, rounds=4), subject)
    assert raced == [3, 4]
    assert (first["onnx_bytes"], first["artifact_bytes"], first["flops"]) == (5, 5, 7)
    assert json.loads((tmp_path / "mlp/trials-0.json").read_text())["facts"]["rounds"] == 4


@pytest.mark.parametrize(
    ("target", "wide", "held"),
    [("x86-64-v3", True, True), ("x86-64-v3", False, False), ("x86-64-v4", True, False),
     ("rpi4", True, False)],
)  # fmt: skip
def test_peers_are_held_to_the_vectors_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, wide: bool, held: bool
):
    features = frozenset({"avx2", "avx512f"} if wide else {"avx2"})
    cpu = dataclasses.replace(host_cpu(), features=features)
    monkeypatch.setattr(setup, "host_cpu", lambda: cpu)
    assert made_setup(tmp_path, target=target).avx2 == held
    job = peers.Job(peer="ort", onnx="", artifact="", factory="", inputs="", threads=1, avx2=held)
    assert ("ONEDNN_MAX_CPU_ISA" in peers.environment(job, tmp_path)) == held
    found = {**result(mlc=entrant(1.0), ort=entrant(2.0)), "facts": {**FACTS, "avx2": held}}
    assert ("held to AVX2" in table.caption([found])) == held


def test_a_worker_reports_failure_and_goes(tmp_path: Path):
    job = peers.Job(
        peer="mlc", onnx="", artifact="", factory="", inputs=str(tmp_path / "none"), threads=1
    )
    log = tmp_path / "log"
    with worker.Worker(job, peers.environment(job, tmp_path), log) as started:
        with pytest.raises(RunError, match="mlc failed: FileNotFoundError") as error:
            started.load(tmp_path / "out.npz", 0.0)
        process = started._process
    assert process.poll() is not None
    assert "Traceback" in log.read_text()
    assert str(log) in str(error.value.hint)


def test_peak_memory_is_this_programs():
    before = worker.peak_memory()
    if not before:
        pytest.skip("needs Linux")
    block = np.ones(1 << 26, np.uint8)  # 67 MB
    assert worker.peak_memory() >= before
    assert worker.peak_memory() >= block.nbytes
