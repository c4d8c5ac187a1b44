"""Candidates for a GPU: assembled, refused where they do not fit, timed and checked over RPC."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc import target
from mlc.build import tvm_target
from mlc.emulate.cuda import run_program
from mlc.errors import MissingToolError, TargetError
from mlc.gpu import ptxas
from mlc.gpu.device import Program
from mlc.options import TuneOptions
from mlc.rpc.address import parse
from mlc.rpc.tracker import Tracker
from mlc.tune import session
from mlc.tune.dispatch import dispatch_context
from mlc.tune.farm import Farm, find, measuring_device
from mlc.tune.on_gpu import OnGpu
from mlc.tune.place import random_values
from mlc.tune.record import FALLBACK, Record, workload_key
from mlc.tune.remote import RemoteMeasurer
from mlc.tune.trial import Trial, shape_of
from tests.compiler.test_measure import QUICK
from tests.compiler.test_remote import refuse
from tests.fake_gpu import CRASHES, FAILS, HANGS, WRONG, scripted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

try:
    ptxas.find()
except MissingToolError as error:
    pytest.skip(f"{error.message}; {error.hint}", allow_module_level=True)

CARD = target.resolve("cuda:sm_80")
SETTINGS = replace(QUICK, gpu=CARD.gpu, run_timeout=3)
THREADS = [1, 4, 32, 2048, CRASHES, HANGS, FAILS, WRONG]


@pytest.fixture(scope="module")
def task(tvm: Any) -> Any:
    """A task whose config says how many threads a block has; the default has one."""
    from tvm import autotvm, te

    @autotvm.template("mlc.test.threads")
    def template(size: int) -> Any:
        data = te.placeholder((size,), name="data")
        result = te.compute((size,), lambda i: data[i] * 2 + 1, name="result")
        schedule = te.create_schedule(result.op)
        config = autotvm.get_config()
        config.define_knob("threads", THREADS)
        outer, inner = schedule[result].split(result.op.axis[0], factor=config["threads"].val)
        schedule[result].bind(outer, te.thread_axis("blockIdx.x"))
        schedule[result].bind(inner, te.thread_axis("threadIdx.x"))
        return schedule, [data, result]

    return autotvm.task.create("mlc.test.threads", (70,), target=tvm_target(CARD, 3))


@pytest.fixture(scope="module")
def convolution(tvm: Any) -> Any:
    from tvm import autotvm

    sizes = [("TENSOR", (1, 16, 9, 14), "float32"), ("TENSOR", (20, 16, 3, 3), "float32")]
    rest = [(1, 1), (1, 1, 1, 1), (1, 1), "float32"]
    return autotvm.task.create("conv2d_nchw.cuda", [*sizes, *rest], target=tvm_target(CARD, 3))


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    root = Path(__file__).resolve().parents[2]

    def start(*command: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, cwd=root
        )
        assert process.stdout is not None
        return process, process.stdout.readline().split()[-1]

    tracker, at = start("mlc", "rpc", "tracker", "--port", "0")
    server, _ = start("tests.fake_gpu", at)
    deadline = time.monotonic() + 60
    with Tracker(parse(at)) as asked:
        while not asked.status().servers:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    found = find(TuneOptions(tracker=at, key="gpu"), print)
    assert found is not None
    yield found
    for process in (server, tracker):
        process.kill()
        process.communicate(timeout=20)


def test_what_becomes_of_candidates(farm: Farm, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are the GPU's; what crashes or hangs there is its own fault, and the next one is timed."""
    cases = {
        32: ("", ""),
        2048: ("compile", "it takes 2048 threads, and a block has 1024"),
        CRASHES: ("crash", "SIGSEGV"),
        HANGS: ("run timeout", "the device ended the session"),
        FAILS: ("runtime", "cuLaunchKernel failed: as scripted"),
        4: ("", ""),
    }
    monkeypatch.setattr(session, "TRANSFER_S", 2.0)
    key = workload_key(task.workload)
    with RemoteMeasurer({key: task}, SETTINGS, farm, refuse) as measurer:
        outcomes = measurer.measure([(key, THREADS.index(threads)) for threads in cases])
        (group,) = measurer.interleaved([[(key, 0), (key, 1), (key, 2)]], 3)
        wrong, fine = measurer.check([(key, THREADS.index(t), 0) for t in (WRONG, 32)])
    found = {
        case: (o.reason, cases[case][1] if cases[case][1] in o.message else o.message)
        for case, o in zip(cases, outcomes, strict=True)
    }
    assert found == cases
    by_threads = dict(zip(cases, outcomes, strict=True))
    for threads in (32, 4):
        assert by_threads[threads].costs == (pytest.approx(scripted(threads)),)
    assert [o.costs for o in group] == [pytest.approx((scripted(t),) * 3) for t in (1, 4, 32)]
    assert (wrong.passed, fine.passed) == (False, True)
    assert "MISMATCH" in wrong.detail


def built(task: Any, index: int | None, **limits: int) -> Trial:
    assert CARD.gpu is not None
    place = OnGpu(None, replace(CARD.gpu, **limits))  # type: ignore[arg-type] - asked at no device
    trial = Trial(task=task, index=index, settings=SETTINGS, place=place)
    trial.guard("compile", trial.build)
    return trial


def test_a_candidate_over_a_limit_fails_and_says_why(convolution: Any) -> None:
    index = next(k for k in range(5000, 10**6, 977) if 32 <= threads_of(convolution, k) <= 256)
    fits = built(convolution, index)
    assert isinstance(fits.module, Program), fits.error
    ((name, taken),) = fits.module.resources.items()
    threads = threads_of(convolution, index)
    assert fits.module.launches[0].function == name
    for limits, said in (
        ({"shared_bytes": taken.shared_bytes - 1}, f"{taken.shared_bytes} bytes of shared memory"),
        ({"registers": taken.registers * threads - 1}, "registers, and a block has"),
        ({"max_threads": threads - 1}, f"it takes {threads} threads, and a block has"),
    ):
        trial = built(convolution, index, **limits)
        assert trial.error is not None
        assert trial.error.reason == "compile"
        assert said in str(trial.error)


def threads_of(task: Any, index: int) -> int:
    """Return the threads of a block of a convolution."""
    space = task.config_space
    if not space.is_index_valid(index):
        return 0
    sizes = [space.get(index)[name].size[2] for name in ("tile_f", "tile_y", "tile_x")]
    return int(np.prod(sizes))


def test_the_default_is_what_compiling_takes(convolution: Any) -> None:
    """Without a config: the default's tiles, and smaller ones where a block has not enough."""
    whole, small = built(convolution, None), built(convolution, None, shared_bytes=4096)
    assert isinstance(whole.module, Program)
    assert isinstance(small.module, Program)
    (large,), (little,) = (t.module.resources.values() for t in (whole, small))
    assert large.shared_bytes > 4096 >= little.shared_bytes > 0


def test_devices_that_cannot_measure_for_the_target(farm: Farm) -> None:
    at = {"tracker": str(farm.tracker), "key": "gpu"}
    device = measuring_device(TuneOptions(target="cuda:sm_80", **at), farm)
    assert device.id == f"{CARD.id}.sm_80.numpy-rtx-4"
    with pytest.raises(TargetError, match="are Numpy RTX 4 \\(sm_80\\), and cuda-sm_90") as found:
        measuring_device(TuneOptions(target="cuda:sm_90", **at), farm)
    assert "--arch sm_80" in str(found.value.hint)
    cpu = replace(farm, facts=replace(farm.facts, gpu=None))
    with pytest.raises(TargetError, match="offer no GPU") as found:
        measuring_device(TuneOptions(target="cuda:sm_80", **at), cpu)
    assert "mlc rpc server --device cuda --key gpu" in str(found.value.hint)


def test_a_record_that_prefers_the_default_gets_the_one_for_gpus(tvm: Any) -> None:
    """AutoTVM's own fallback would have one thread in a block."""
    from mlc.schedules.cuda import Default

    found = Record(
        workload='["t"]', config={"index": FALLBACK, "code_hash": None, "entity": []},
        target=CARD.tvm, device="x", template_hash="", costs=(1.0,), chosen=True,
    )  # fmt: skip
    dispatch = dispatch_context(lambda _key: found, Default)
    config = dispatch._query_inside(None, ("t",))
    assert isinstance(config, Default)
    assert config is dispatch._query_inside(None, ("t",))
    assert dispatch.used == {'["t"]': found}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "shapes", "rest"),
    [
        ("conv2d_nchw.cuda", [(1, 8, 9, 14), (12, 8, 3, 3)], [(1, 1), (1,) * 4, (1, 1), "float32"]),
        ("depthwise_conv2d_nchw.cuda", [(1, 16, 9, 14), (16, 1, 3, 3)],
         [(2, 2), (1,) * 4, (1, 1), "float32"]),
        ("dense_small_batch.gpu", [(1, 96), (20, 96)], [None, "float32"]),
        ("batch_matmul.cuda", [(2, 16, 24), (2, 8, 24)], [(2, 16, 8), "float32", False, True]),
    ],
)  # fmt: skip
def test_random_configs_compute_what_the_default_does(
    tvm: Any, template: str, shapes: list[tuple[int, ...]], rest: list[Any]
) -> None:
    from tvm import autotvm

    tensors = [("TENSOR", shape, "float32") for shape in shapes]
    task = autotvm.task.create(template, [*tensors, *rest], target=tvm_target(CARD, 3))
    expected = simulated(built(task, None))
    draws = np.random.default_rng(0).integers(len(task.config_space), size=4)
    for index in map(int, draws):
        if task.config_space.is_index_valid(index):
            np.testing.assert_allclose(
                simulated(built(task, index)), expected, rtol=1e-4, atol=1e-5
            )


def simulated(trial: Trial) -> np.ndarray[Any, Any]:
    """Return the output of a candidate that was built, on seeded inputs."""
    assert isinstance(trial.module, Program), trial.error
    arrays, written = [], []
    for position, tensor in enumerate(trial.tensors):
        if type(tensor.op).__name__ == "PlaceholderOp":
            arrays.append(random_values(shape_of(tensor), tensor.dtype, position))
        else:
            arrays.append(np.full(shape_of(tensor), np.nan, np.float32))
            written.append(arrays[-1])
    run_program(trial.module, arrays)
    (found,) = written
    return found
