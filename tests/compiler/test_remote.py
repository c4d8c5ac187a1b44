"""Candidates on a real RPC server: timed and checked there, and what they do to it."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from mlc import compile as compile_model
from mlc.errors import TuningError
from mlc.events import Notice
from mlc.options import TuneOptions
from mlc.rpc.address import parse
from mlc.rpc.tracker import Tracker
from mlc.target import resolve
from mlc.tune import afar
from mlc.tune.baseline import Versus
from mlc.tune.farm import Farm, find
from mlc.tune.record import workload_key
from mlc.tune.remote import RemoteMeasurer
from mlc.tune.session import There
from tests import models
from tests.compiler.test_measure import IMPATIENT, QUICK, by_key, script, scripted, tasks

__all__ = ["scripted", "tasks"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")

# A device whose kernels can misbehave as the scripted task of `test_measure` asks.
SERVER = """
import sys
from mlc import tvm_env
from mlc.options import RpcServerOptions
from mlc.rpc import serve
tvm = tvm_env.tvm()
from tests.compiler.test_measure import misbehave
@tvm.register_func("mlc.test.misbehave")
def when_run(source, result, how):
    misbehave(how)
    result.copyfrom(source.numpy() + (how == "wrong"))
for how in ("abort", "sleep", "raise"):
    tvm.register_func("mlc.test." + how, lambda *_, how=how: misbehave(how))
options = RpcServerOptions(key="here", tracker=sys.argv[1], port=0)
serve.serve_device(options, lambda address: print(address, flush=True))
"""


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    root = Path(__file__).resolve().parents[2]

    def start(*command: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=root
        )
        assert process.stdout is not None
        return process, process.stdout.readline().split()[-1]

    tracker, at = start("-m", "mlc", "rpc", "tracker", "--port", "0")
    server, _ = start("-c", SERVER, at)
    deadline = time.monotonic() + 60
    with Tracker(parse(at)) as asked:
        while not asked.status().servers:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    found = find(TuneOptions(tracker=at, key="here"), print)
    assert found is not None
    yield found
    for process in (server, tracker):
        process.kill()
        process.communicate(timeout=20)


def refuse(event: Any) -> None:
    assert isinstance(event, Notice)
    raise AssertionError(event.text)


def test_right_kernels_are_timed_and_pass(farm: Farm, tasks: dict[str, Any]) -> None:
    known = {workload_key(task.workload): task for task in tasks.values()}
    with RemoteMeasurer(by_key(*tasks.values()), QUICK, farm, refuse) as measurer:
        outcomes = measurer.measure([(key, 1) for key in known])
        groups = measurer.interleaved([[(key, None), (key, 0)] for key in known], 3)
        checks = measurer.check([(key, len(t.config_space) - 1, None) for key, t in known.items()])
    assert [outcome.reason for outcome in outcomes] == [""] * len(known)
    assert all(outcome.costs[0] > 1e-9 for outcome in outcomes)
    assert [[len(o.costs) for o in group] for group in groups] == [[3, 3]] * len(known)
    assert [check.passed for check in checks] == [True] * len(known), checks


def test_a_slower_kernel_costs_more(tvm: Any, farm: Farm) -> None:
    from tvm import autotvm

    target = tvm.target.Target("llvm")

    def dense(*sizes: int) -> Any:
        m, n, k = sizes
        shapes = [("TENSOR", (m, k), "float32"), ("TENSOR", (n, k), "float32"), None, "float32"]
        return autotvm.task.create("dense_nopack.x86", shapes, target=target)

    known = by_key(dense(256, 256, 256), dense(2, 4, 4))
    with RemoteMeasurer(known, replace(QUICK, threads=1), farm, refuse) as measurer:
        large, tiny = measurer.measure([(key, 0) for key in known])
    assert large.costs[0] > 3 * tiny.costs[0]
    with RemoteMeasurer(known, replace(QUICK, flush=True), farm, refuse) as measurer:
        (cold,) = measurer.measure([(next(iter(known)), 0)])
    assert cold.costs[0] > 1e-9


def test_kernels_for_another_instruction_set_are_linked_for_it(
    tvm: Any, farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linker = tmp_path / "linker"  # what it makes is the kernel's object file
    linker.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        "at, output = (next(w for w in sys.argv if w[:1] == '@'), sys.argv.index('-o') + 1)\n"
        "objects = pathlib.Path(at[1:]).read_text().splitlines()\n"
        "shutil.copyfile(objects[0].strip('\"'), sys.argv[output])\n"
    )
    linker.chmod(0o755)
    monkeypatch.setenv("CXX_aarch64_linux_gnu", str(linker))
    place = There(farm.facts)
    x = tvm.te.placeholder((8,), name="x")
    y = tvm.te.compute((8,), lambda i: x[i] + 1.0, name="y")
    target = tvm.target.Target(resolve("rpi4").tvm)
    code = place.compile(tvm.te.create_schedule(y.op), [x, y], target)
    assert int.from_bytes(code[18:20], "little") == 183  # ELF's EM_AARCH64


def test_what_kernels_do_to_the_device(farm: Farm, scripted: Any) -> None:
    """Each is its own fault, by the device's word; the device is there for the next one."""
    key = workload_key(scripted.workload)
    cases = {
        ("raise", "well"): ("instantiation", "no such luck"),
        ("abort", "well"): ("crash", "SIGABRT while building"),
        ("well", "abort"): ("crash", "SIGABRT"),
        ("well", "segfault"): ("crash", "SIGSEGV"),
        ("well", "raise"): ("runtime", "RPC call"),  # TVM drops the words of Python errors
        ("well", "sleep"): ("run timeout", "the device ended the session"),
        ("well", "well"): ("", ""),
    }
    with RemoteMeasurer(by_key(scripted), replace(IMPATIENT, build_timeout=60), farm, refuse) as m:
        outcomes = m.measure([(key, script(*case)) for case in cases])
        wrong, fine = m.check([(key, script(run="wrong"), None), (key, script(), None)])
    found = {
        case: (o.reason, cases[case][1] if cases[case][1] in o.message else o.message)
        for case, o in zip(cases, outcomes, strict=True)
    }
    assert found == cases
    assert (wrong.passed, fine.passed) == (False, True)
    assert "MISMATCH" in wrong.detail


# --- whole models --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Artifacts of two models with equal inputs, the first of which has much more to compute."""
    folder = tmp_path_factory.mktemp("pair")
    found = []
    for count in (8, 1):
        names = ["x", *(f"h{k}" for k in range(1, count)), "y"]
        nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
        weights = {"w": models.floats(256, 256, scale=0.05)}
        model = models.model(nodes, {"x": [64, 256]}, ["y"], weights)
        models.save(model, folder, f"{count}.onnx")
        found.append(folder / f"{count}.mlc")
        compile_model(folder / f"{count}.onnx", output=found[-1])
    return found[0], found[1]


def compared(farm: Farm, pair: tuple[Path, Path]) -> Versus:
    return afar.versus(*pair, farm=farm, threads=1, model_seconds=0.0, on_event=refuse)


def test_whole_models_are_compared_there(farm: Farm, pair: tuple[Path, Path]) -> None:
    found = compared(farm, pair)
    assert found.before > 2 * found.after > 0
    assert found.high >= found.ratio >= found.low > 2


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("abort", "SIGABRT"),
        ("sleep", "the device ended the session"),
        ("raise", "did not compare them"),
    ],
)
def test_a_comparison_that_fails_there(
    farm: Farm, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    monkeypatch.setattr(afar, "FUNCTION", f"mlc.test.{how}")
    monkeypatch.setattr(afar, "_TIMING_S", 0.0)
    monkeypatch.setattr(afar, "TRANSFER_S", 3.0)
    with pytest.raises(TuningError, match=why):
        compared(farm, pair)
    assert farm.devices()


def test_an_artifact_that_the_device_cannot_open(
    farm: Farm, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mlc"
    data = bytearray(pair[0].read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    with pytest.raises(TuningError, match=r"the device says: .*after\.mlc"):
        compared(farm, (pair[0], broken))
