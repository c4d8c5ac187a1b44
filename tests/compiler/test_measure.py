"""Measuring: plausible costs, checked outputs, and candidates that misbehave in every known way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc.errors import MissingToolError, TuningError
from mlc.tune.measure import Measurer, Settings
from mlc.tune.record import REASONS, workload_key

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

QUICK = Settings(
    workers=2, threads=2, build_timeout=60, run_timeout=60, memory_bytes=1 << 30,
    repeat=3, min_repeat_ms=2, warm_up_ms=1, retries=0,
)  # fmt: skip
IMPATIENT = Settings(
    workers=2, threads=2, build_timeout=4, run_timeout=4, memory_bytes=1 << 30,
    repeat=1, min_repeat_ms=1, warm_up_ms=1, retries=0,
)  # fmt: skip

# What a scripted candidate does while it is built, then what its kernel does when it is run.
BUILDS = ("well", "abort", "sleep", "eat", "raise", "refuse", "exit")
RUNS = ("well", "abort", "segfault", "sleep", "eat", "raise", "wrong")
SCRIPT = [(build, "well") for build in BUILDS] + [("well", run) for run in RUNS[1:]]


def misbehave(how: str) -> None:
    if how == "abort":
        os.write(2, b"last words\n")
        os.abort()
    elif how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "sleep":
        time.sleep(600)
    elif how == "eat":
        np.ones(10 << 30, np.uint8)
    elif how == "raise":
        raise ValueError("no such luck")
    elif how == "exit":
        os._exit(3)


@pytest.fixture(scope="module")
def tasks(tvm: Any, quick_target: str) -> dict[str, Any]:
    """Small real tasks, by template."""
    from tvm import autotvm

    from mlc.schedules import dot

    def tensor(*shape: int) -> tuple[str, tuple[int, ...], str]:
        return ("TENSOR", shape, "float32")

    def conv(name: str, weight: tuple[int, ...]) -> tuple[str, list[Any]]:
        sizes = [(1, 1), (1, 1, 1, 1), (1, 1)]
        return name, [tensor(1, 8, 9, 9), tensor(*weight), *sizes, "NCHW", "NCHW", "float32"]

    rows = [
        conv("conv2d_NCHWc.x86", (12, 8, 3, 3)),
        conv("depthwise_conv2d_NCHWc.x86", (8, 1, 3, 3)),
        ("depthwise_conv2d_mlc.x86", conv("", (8, 1, 3, 3))[1][:5]),
        ("conv2d_1x1_mlc.x86", [tensor(1, 8, 9, 9), tensor(24, 8, 1, 1), (2, 1)]),
        ("dense_pack.x86", [tensor(5, 33), tensor(14, 33), None, "float32"]),
        ("dense_nopack.x86", [tensor(5, 33), tensor(14, 33), None, "float32"]),
        ("batch_matmul.x86", [tensor(3, 5, 7), tensor(3, 4, 7), (3, 5, 4), "float32", False, True]),
        ("dense_mlc.x86", [tensor(5, 33), tensor(14, 33), 14]),
        ("batch_matmul_mlc.x86", [tensor(3, 5, 7), tensor(3, 7, 4), False, False]),
    ]
    target = tvm.target.Target(quick_target)
    with target:
        instruction = dot.of_target()
    assert instruction is not None
    shapes = {(1, 8, 9, 9): instruction.data, (24, 8, 3, 3): instruction.weight}
    narrow = [("TENSOR", shape, dtype) for shape, dtype in shapes.items()]
    rows.append((instruction.template, [*narrow, (2, 1), (1, 1)]))
    return {name: autotvm.task.create(name, args, target=target) for name, args in rows}


@pytest.fixture(scope="module")
def scripted(tvm: Any, quick_target: str) -> Any:
    """A dense task, by name, whose config says what goes wrong while it is built or run."""
    from tvm import autotvm, te, tir
    from tvm.autotvm.task.space import ConfigEntity

    @tvm.register_func("mlc.test.misbehave", override=True)
    def when_run(source: Any, result: Any, how: str) -> None:
        misbehave(how)
        result.copyfrom(source.numpy() + (how == "wrong"))

    def template(data: Any, weight: Any, _bias: Any, dtype: str) -> tuple[Any, list[Any]]:
        config = autotvm.get_config()
        config.add_flop(2 * 5 * 14 * 33)
        run = "well"
        if not config.is_fallback:
            config.define_knob("script", [f"{build} {run}" for build, run in SCRIPT])
        if isinstance(config, ConfigEntity):
            build, run = config["script"].val.split()
            misbehave(build)
            if build == "refuse":
                config.raise_error("not this one")
        k = te.reduce_axis((0, data.shape[1]), "k")
        shape = (data.shape[0], weight.shape[0])
        dense = te.compute(shape, lambda i, j: te.sum(data[i, k] * weight[j, k], axis=k))
        result = te.extern(
            shape, [dense],
            lambda ins, outs: tir.call_packed("mlc.test.misbehave", ins[0], outs[0], run),
            dtype=dtype,
        )  # fmt: skip
        return te.create_schedule(result.op), [data, weight, result]

    autotvm.task.task.TASK_TABLE.pop("scripted", None)
    autotvm.template("scripted", template)
    shapes = [("TENSOR", (5, 33), "float32"), ("TENSOR", (14, 33), "float32"), None, "float32"]
    task = autotvm.task.create("scripted", shapes, target=tvm.target.Target(quick_target))
    task.name = "dense_nopack.x86"  # its outputs can be compared
    return task


def by_key(*tasks: Any) -> dict[str, Any]:
    return {workload_key(task.workload): task for task in tasks}


def script(build: str = "well", run: str = "well") -> int:
    return SCRIPT.index((build, run))


@pytest.fixture
def measurer(tasks: dict[str, Any]) -> Iterator[Measurer]:
    with Measurer(by_key(*tasks.values()), QUICK) as made:
        yield made


@pytest.fixture
def culprit(scripted: Any) -> Iterator[tuple[Measurer, str]]:
    with Measurer(by_key(scripted), IMPATIENT) as made:
        yield made, workload_key(scripted.workload)


def alive(session: int) -> list[int]:
    """Return the processes (zombies too) of a session."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(int(file.parent.name))
    return found


def wait_until_gone(session: int) -> None:
    deadline = time.monotonic() + 20
    while alive(session):
        assert time.monotonic() < deadline, alive(session)
        time.sleep(0.02)


def test_costs_are_plausible_and_in_order(tasks: dict[str, Any]) -> None:
    batch = [(workload_key(task.workload), 1) for task in tasks.values()]
    batch = [batch[0], *batch, batch[0]]
    seen: dict[int, Any] = {}
    calm = replace(QUICK, repeat=5, min_repeat_ms=10, warm_up_ms=10, retries=5)
    with Measurer(by_key(*tasks.values()), calm) as made:
        outcomes = made.measure(batch, seen.__setitem__)
    assert [outcome.reason for outcome in outcomes] == [""] * len(batch)
    assert [len(outcome.costs) for outcome in outcomes] == [3] * len(batch)
    costs = [outcome.costs[0] for outcome in outcomes]
    assert all(cost > 1e-9 for cost in costs)
    # The same config three times: alike within a factor that a busy machine does not reach.
    same = (costs[0], costs[1], costs[-1])
    assert max(same) < 20 * min(same)
    assert [seen[k] for k in range(len(batch))] == outcomes
    assert all(o.build_seconds > 0 and o.run_seconds > 0 for o in outcomes)


def test_a_slower_config_costs_more(tvm: Any, quick_target: str) -> None:
    from tvm import autotvm

    shapes = [("TENSOR", (64, 256), "float32"), ("TENSOR", (256, 256), "float32"), None, "float32"]
    target = tvm.target.Target(quick_target)
    task = autotvm.task.create("dense_nopack.x86", shapes, target=target)
    small = autotvm.task.create("dense_nopack.x86", [
        ("TENSOR", (2, 4), "float32"), ("TENSOR", (4, 4), "float32"), None, "float32"
    ], target=target)  # fmt: skip
    tasks = by_key(task, small)
    with Measurer(tasks, QUICK) as made:
        large, tiny = made.measure([(key, 0) for key in tasks])
    assert large.costs[0] > 3 * tiny.costs[0]


def test_flushing_the_caches_works_too(tasks: dict[str, Any]) -> None:
    task = tasks["conv2d_NCHWc.x86"]
    with Measurer(by_key(task), replace(QUICK, flush=True, cooldown=0.01)) as made:
        (outcome,) = made.measure([(workload_key(task.workload), 1)])
    assert not outcome.reason
    assert outcome.costs[0] > 1e-9


@pytest.mark.parametrize("template", ["conv2d_NCHWc.x86", "depthwise_conv2d_NCHWc.x86",
                                      "dense_pack.x86", "dense_nopack.x86", "batch_matmul.x86",
                                      "dense_mlc.x86", "batch_matmul_mlc.x86",
                                      "depthwise_conv2d_mlc.x86", "conv2d_1x1_mlc.x86",
                                      "conv2d_narrow_mlc.x86"])  # fmt: skip
def test_right_kernels_pass_the_check(
    measurer: Measurer, tasks: dict[str, Any], template: str
) -> None:
    task = tasks[template]
    key, last = workload_key(task.workload), len(task.config_space) - 1
    verdicts = measurer.check([(key, 0, None), (key, last // 2, None), (key, last, 0)])
    assert [verdict.passed for verdict in verdicts] == [True] * 3, verdicts


def test_a_wrong_kernel_does_not_pass(culprit: tuple[Measurer, str]) -> None:
    measurer, key = culprit
    fine, wrong, crash, raised, absent = measurer.check(
        [
            (key, script(), None),
            (key, script(run="wrong"), None),
            (key, script(run="abort"), None),
            (key, script("raise"), None),
            (key, script(), script(run="raise")),
        ]
    )
    assert fine.passed is True
    assert wrong.passed is False
    assert "MISMATCH" in wrong.detail
    assert crash.passed is False
    assert "SIGABRT while running" in crash.detail
    assert raised.passed is False
    assert "instantiation" in raised.detail
    assert absent.passed is None
    assert "no such luck" in absent.detail


def test_an_unknown_template_is_not_checked(scripted: Any) -> None:
    scripted_name, scripted.name = scripted.name, "somebody_elses.x86"
    try:
        with Measurer(by_key(scripted), IMPATIENT) as made:
            (verdict,) = made.check([(workload_key(scripted.workload), 0, None)])
    finally:
        scripted.name = scripted_name
    assert verdict.passed is None
    assert verdict.detail.startswith("not checked: the layouts of somebody_elses.x86")


@pytest.mark.parametrize(
    ("build", "run", "reason", "message"),
    [
        ("abort", "well", "crash", "SIGABRT while building: last words"),
        ("sleep", "well", "build timeout", "not finished after 4 s"),
        ("eat", "well", "instantiation", "out of memory"),
        ("raise", "well", "instantiation", "no such luck"),
        ("refuse", "well", "instantiation", "not this one"),
        ("exit", "well", "crash", "exit status 3 while building"),
        ("well", "abort", "crash", "SIGABRT while running: last words"),
        ("well", "segfault", "crash", "SIGSEGV while running"),
        ("well", "sleep", "run timeout", "not finished after 4 s"),
        ("well", "eat", "runtime", "out of memory"),
        ("well", "raise", "runtime", "no such luck"),
    ],
)
def test_one_bad_candidate_hurts_nobody_else(
    culprit: tuple[Measurer, str], build: str, run: str, reason: str, message: str
) -> None:
    measurer, key = culprit
    good = (key, script())
    outcomes = measurer.measure([good, (key, script(build, run)), good])
    assert [outcome.reason for outcome in outcomes] == ["", reason, ""]
    assert reason in REASONS
    assert message in outcomes[1].message
    assert not outcomes[1].costs
    assert all(outcome.costs[0] > 0 for outcome in outcomes[::2])


def test_an_index_outside_the_space_is_a_failure(measurer: Measurer, tasks: dict[str, Any]) -> None:
    key = workload_key(tasks["dense_pack.x86"].workload)
    (outcome,) = measurer.measure([(key, 1 << 40)])
    assert outcome.reason == "instantiation"


def test_a_batch_of_nothing_but_crashes_ends(culprit: tuple[Measurer, str]) -> None:
    measurer, key = culprit
    outcomes = measurer.measure([(key, script(run="abort"))] * 9)
    assert [outcome.reason for outcome in outcomes] == ["crash"] * 9
    assert measurer.measure([]) == []


def test_a_target_of_another_machine_fails_each_candidate(tvm: Any) -> None:
    from tvm import autotvm

    shapes = [("TENSOR", (2, 4), "float32"), ("TENSOR", (4, 4), "float32"), None, "float32"]
    other = tvm.target.Target("llvm -mtriple=aarch64-linux-gnu -mcpu=generic")
    task = autotvm.task.create("dense_nopack.x86", shapes, target=other)
    with Measurer(by_key(task), IMPATIENT) as made:
        (outcome,) = made.measure([(workload_key(task.workload), 0)])
    assert outcome.reason == "compile"
    assert outcome.message


def test_interleaved_gives_a_cost_per_round(culprit: tuple[Measurer, str]) -> None:
    measurer, key = culprit
    (group, broken, dead) = measurer.interleaved(
        [
            [(key, script()), (key, None), (key, script(run="wrong"))],
            [(key, None), (key, script("raise"))],
            [(key, None), (key, script(run="abort"))],
        ],
        rounds=5,
    )
    assert [len(outcome.costs) for outcome in group] == [5, 5, 5]
    assert [(len(o.costs), o.reason) for o in broken] == [(5, ""), (0, "instantiation")]
    assert [outcome.reason for outcome in dead] == ["crash", "crash"]


def test_interleaved_takes_the_fallback_of_real_templates(
    measurer: Measurer, tasks: dict[str, Any]
) -> None:
    keys = [workload_key(task.workload) for task in tasks.values()]
    groups = measurer.interleaved([[(key, None), (key, 0)] for key in keys], rounds=2)
    assert [[o.reason for o in group] for group in groups] == [["", ""]] * len(keys)


def test_a_pool_that_the_parent_has_started_does_not_matter(tasks: dict[str, Any]) -> None:
    from mlc.runtime.session import set_threads, threads_in_use

    set_threads(2)
    assert threads_in_use() == 2
    task = tasks["conv2d_NCHWc.x86"]
    with Measurer(by_key(task), IMPATIENT) as made:
        (outcome,) = made.measure([(workload_key(task.workload), 1)])
    assert not outcome.reason, outcome


def test_no_process_is_left_after_closing(culprit: tuple[Measurer, str]) -> None:
    measurer, key = culprit
    foreman = measurer._pid
    measurer.measure([(key, script()), (key, script("abort"))])
    assert alive(foreman) == [foreman]
    measurer.close()
    assert alive(foreman) == []
    measurer.close()
    with pytest.raises(TuningError, match="not open"):
        measurer.measure([(key, script())])


@pytest.mark.parametrize("candidate", [("sleep", "well"), ("well", "sleep")])
def test_ctrl_c_ends_everything(scripted: Any, candidate: tuple[str, str]) -> None:
    key = workload_key(scripted.workload)
    with Measurer(by_key(scripted), QUICK) as made:
        foreman = made._pid
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            made.measure([(key, script()), (key, script(*candidate))])
        timer.join()
        wait_until_gone(foreman)


def test_a_foreman_that_is_killed_is_an_error(culprit: tuple[Measurer, str]) -> None:
    measurer, key = culprit
    foreman = measurer._pid
    os.kill(foreman, signal.SIGKILL)
    with pytest.raises(TuningError, match="was killed"):
        measurer.measure([(key, script())])
    assert alive(foreman) == []


def test_an_unknown_key_is_refused(culprit: tuple[Measurer, str]) -> None:
    measurer, key = culprit
    with pytest.raises(KeyError):
        measurer.measure([(key, 0), ("nothing", 0)])
    assert not measurer.measure([(key, script())])[0].reason


def test_everything_dies_with_the_parent() -> None:
    code = f"""
import sys, time
from mlc import tvm_env
tvm = tvm_env.tvm()
from tvm import autotvm
from mlc.tune.measure import Measurer, Settings
from mlc.tune.record import workload_key
shapes = [("TENSOR", (2, 4), "float32"), ("TENSOR", (4, 4), "float32"), None, "float32"]
task = autotvm.task.create("dense_nopack.x86", shapes, target=tvm.target.Target("llvm"))
task.func = lambda *args: time.sleep(600)
key = workload_key(task.workload)
with Measurer({{key: task}}, Settings(**{asdict(QUICK)})) as made:
    print(made._pid, flush=True)
    made.measure([(key, 0), (key, 1)])
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    foreman = int(parent.stdout.readline())
    deadline = time.monotonic() + 30
    while len(alive(foreman)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    # Whoever adopts them may be slow to reap: dead is enough here.
    while any("State:\tZ" not in status(pid) for pid in alive(foreman)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def test_locks_of_the_parent_are_not_kept(scripted: Any, tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with Measurer(by_key(scripted), IMPATIENT) as made:
            made.measure([(workload_key(scripted.workload), script())])
            first.close()
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_platform_without_fork_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(MissingToolError, match="forked processes"), Measurer({}, QUICK):
        pass
