"""The statistics of `mlc bench`, on scripted samples: nothing is timed here and TVM is not needed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mlc.artifact import Contents, save
from mlc.errors import ArtifactError, UsageError
from mlc.options import BenchOptions
from mlc.runtime import bench as benching
from mlc.runtime.profile import summarize
from mlc.runtime.timing import MIN_PAIRS, Comparison, Side, Timing, compare, interleave


def test_timing_of_known_samples():
    timing = Timing.from_samples("x", [0.4, 0.1, 0.2, 0.3, 0.5], batch=3, waited=0.75)
    assert (timing.name, timing.runs) == ("x", 5)
    assert timing.median == pytest.approx(0.3)
    assert timing.mean == pytest.approx(0.3)
    assert timing.p90 == pytest.approx(0.46)
    assert timing.p99 == pytest.approx(0.496)
    assert (timing.min, timing.max) == (0.1, 0.5)
    assert timing.spread == pytest.approx((0.4 - 0.2) / 0.3)
    assert timing.throughput == pytest.approx(5 * 3 / 1.5)
    assert timing.waited == pytest.approx(0.5)


def test_timing_of_one_run():
    timing = Timing.from_samples("x", [0.25])
    assert timing.median == timing.p99 == timing.min == timing.max == 0.25
    assert (timing.spread, timing.throughput) == (0.0, 4.0)


def test_ratio_is_the_peers_time_over_ours():
    result = compare("peer 1.0", [[1.0, 1.0, 9.0]] * 3, [[2.0, 2.0, 0.1]] * 3)
    assert result == Comparison(
        peer="peer 1.0", pairs=5, ratio=2.0, low=2.0, high=2.0, reliable=True,
        verdict="mlc is 2.00 times as fast as peer 1.0 (2.00 to 2.00)",
    )  # fmt: skip


def test_every_block_is_compared_with_its_neighbours():
    # In the order of measuring: 1, 2, 4, 8: the ratios of neighbours are 2, 1/2 and 2.
    result = compare("p", [[1.0], [4.0]], [[2.0], [8.0]])
    assert (result.pairs, result.ratio) == (3, 2.0)
    assert result.low == pytest.approx(np.percentile([2.0, 0.5, 2.0], 10))


def test_a_steady_drift_cancels():
    times = [1.02**k for k in range(40)]  # equal sides on a machine that gets slower and slower
    result = compare("p", [[t] for t in times[0::2]], [[t] for t in times[1::2]])
    assert result.low < 1 < result.high
    assert result.verdict.startswith("no clear difference between mlc and p: ")


def test_the_verdict_says_when_the_peer_wins():
    result = compare("p", [[3.0]] * 4, [[2.0]] * 4)
    assert result.ratio == pytest.approx(2 / 3)
    assert result.verdict == "p is 1.50 times as fast as mlc (1.50 to 1.50)"


def test_an_unreliable_ratio_is_not_to_be_quoted():
    result = compare("p", [[1.0]] * 4, [[2.0]] * 4, reliable=False)
    assert not result.reliable
    assert result.verdict == "not to be quoted: mlc is 2.00 times as fast as p (2.00 to 2.00)"


@pytest.mark.parametrize(("waited", "reliable"), [(0.05, True), (0.5, False)])
def test_a_side_that_waited_for_cores_makes_it_unreliable(waited, reliable):
    sides = [Side(name, lambda: None) for name in ("a", "b")]
    for side in sides:
        side.blocks = [[1.0], [1.0]]
    sides[1].waited = 2 * waited
    assert benching._compare(*sides).reliable is reliable


def test_sides_take_turns_and_each_block_begins_with_a_run_that_does_not_count():
    order: list[str] = []
    sides = [Side(name, lambda name=name: order.append(name)) for name in ("a", "b")]
    seen: list[object] = []
    interleave(*sides, 1e-9, seen.append, settle=0.0)
    # A block of less than a nanosecond is one run.
    assert order == ["a", "a", "b", "b"] * len(sides[0].blocks)
    assert MIN_PAIRS <= len(sides[0].blocks) == len(sides[1].blocks) == len(seen)
    assert all(len(block) == 1 for side in sides for block in side.blocks)


def test_a_side_runs_at_least_as_often_as_asked():
    side = Side("a", lambda: None)
    side.warm_up(0.0)
    assert side.blocks == []
    side.measure(0.0, runs=7)
    assert side.timing(batch=1).runs == 7


@pytest.mark.parametrize(
    ("shapes", "batch"), [([(8, 3), (1,)], 8), ([()], 1), ([], 1), ([(1,)], 1)]
)
def test_batch(shapes, batch):
    assert benching.batch_size(shapes) == batch


def test_kernels_are_summed_by_symbol():
    facts = {
        "conv": {"flops": 3_000_000_000, "operators": ["nn.conv2d", "add"]},
        "copy": {"flops": 0, "operators": ["copy"]},
    }
    samples = np.array([[1.0, 1.0, 2.0], [2.0, 1.0, 3.0], [9.0, 9.0, 9.0]])
    conv, copy = summarize(["conv", "copy", "conv"], samples, facts)
    assert (conv.symbol, conv.operators, conv.calls) == ("conv", ("nn.conv2d", "add"), 2)
    assert (conv.seconds, copy.seconds) == (5.0, 1.0)  # medians of 3, 5, 18 and of 1, 1, 9
    assert (conv.share, copy.share) == pytest.approx((5 / 6, 1 / 6))
    assert (conv.gflops, copy.gflops) == (pytest.approx(2 * 3 / 5), None)


def test_a_kernel_too_short_to_time_has_no_speed():
    samples = np.array([[0.0, 1.0], [0.0, 1.0]])
    facts = {name: {"flops": 8, "operators": ["add"]} for name in ("tiny", "long")}
    long, tiny = summarize(["tiny", "long"], samples, facts)
    assert (tiny.seconds, tiny.share, tiny.gflops) == (0.0, 0.0, None)
    assert long.gflops == pytest.approx(8e-9)


def test_a_model_without_kernels_has_an_empty_profile():
    assert summarize([], np.zeros((1, 0)), {}) == []


def test_result_is_json():
    timing = Timing.from_samples("x", [0.1, 0.2])
    result = benching.BenchResult(
        artifact="a", target="llvm", threads=2, seed=0, batch=1, mlc=timing, peer=timing,
        comparison=compare("x", [[1.0]], [[1.0]]), profile=(),
    )  # fmt: skip
    data = json.loads(json.dumps(result.to_json()))
    assert data["mlc"]["median"] == timing.median
    assert data["comparison"]["ratio"] == 1.0
    assert data["profile"] == []


def warnings_of(**changes):
    calm = Timing.from_samples("ours", [1.0] * 9)
    result = benching.BenchResult(
        artifact="a", target="llvm", threads=2, seed=0, batch=1,
        mlc=replace(calm, **changes.get("mlc", {})),
        peer=replace(calm, name="theirs", **changes["peer"]) if "peer" in changes else None,
    )  # fmt: skip
    seen = []
    benching._warn_if_noisy(result, seen.append)
    return [event.text for event in seen]


def test_a_calm_machine_is_not_worth_a_word():
    assert warnings_of(mlc={"spread": 0.15, "waited": 0.1}, peer={}) == []


def test_a_noisy_machine_is_named():
    (text,) = warnings_of(peer={"spread": 0.4})
    assert text == "the machine is noisy: quote the ratio (spread of theirs: 40%)"
    (text,) = warnings_of(mlc={"spread": 0.4})
    assert "--against" in text


def test_cores_taken_away_are_worse_than_noise():
    (text,) = warnings_of(mlc={"spread": 0.4}, peer={"waited": 1.5})
    assert text.startswith("the threads of theirs waited for a core 1.5 s per second")


def test_peers():
    assert list(benching.PEERS) == ["onnxruntime"]
    with pytest.raises(UsageError, match="no peer 'onnxrunetime'") as error:
        benching.check_options(BenchOptions(artifact="a.mlc", against="onnxrunetime"))
    assert error.value.hint == "did you mean 'onnxruntime'? choices: onnxruntime"


@pytest.mark.parametrize(
    "wrong",
    [
        {"duration": 0.0},
        {"duration": float("inf")},
        {"duration": float("nan")},
        {"warmup": -1.0},
        {"warmup": float("nan")},
        {"threads": 0},
        {"model": "m.onnx"},
    ],
)
def test_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        benching.check_options(BenchOptions(artifact="a.mlc", **wrong))


def test_a_peer_without_its_model_gets_the_whole_command(tmp_path):
    manifest = {
        "signature": {"inputs": [], "outputs": []},
        "target": {"name": "t", "triple": "x86_64", "features": []},
        "versions": {},
        "model": {"path": "my model.onnx"},
    }
    path = tmp_path / "a.mlc"
    save(Contents(manifest=manifest, library=b"", graph=b"", weights=()), path)
    with pytest.raises(UsageError) as error:
        benching.check_options(BenchOptions(artifact=str(path), against="onnxruntime"))
    assert error.value.hint == (f"mlc bench {path} --against onnxruntime --model 'my model.onnx'")
    with pytest.raises(ArtifactError):
        benching.check_options(BenchOptions(artifact="no.mlc", against="onnxruntime"))
