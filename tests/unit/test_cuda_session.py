"""GPU programs as data, and the session that runs them, on a driver that the simulator stands for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlc import artifact, buckets, bundle
from mlc.artifact import Contents
from mlc.emulate.cuda import SimulatedSession
from mlc.emulate.ptx_machine import launch
from mlc.emulate.ptx_memory import Memory
from mlc.emulate.ptx_text import entries
from mlc.errors import ArtifactError, MissingToolError, RunError, UsageError
from mlc.gpu import ptxas
from mlc.gpu.device import Launch, Program, Resources, encode, join, read
from mlc.options import BenchOptions
from mlc.runtime.bench import bench
from mlc.runtime.buckets import over
from mlc.runtime.cuda import CudaSession
from mlc.runtime.driver_api import Driver
from mlc.runtime.reference import CUDA
from mlc.runtime.session import open as open_session
from tests.fake_gpu import FakeDriver

# y[k] = x[k] + w[k], by way of a temporary; the scalar argument is added as well.
ADD = """.version 7.0
.target sm_80
.address_size 64
.visible .entry add(
	.param .u64 .ptr .align 1 add_param_0,
	.param .u64 .ptr .align 1 add_param_1,
	.param .u64 .ptr .align 1 add_param_2,
	.param .u32 add_param_3
)
{
	.reg .b32 %r<6>;
	.reg .b64 %rd<8>;
	ld.param.b64 	%rd1, [add_param_0];
	ld.param.b64 	%rd2, [add_param_1];
	ld.param.b64 	%rd3, [add_param_2];
	ld.param.b32 	%r5, [add_param_3];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd4, %r1, 4;
	add.s64 	%rd1, %rd1, %rd4;
	add.s64 	%rd2, %rd2, %rd4;
	add.s64 	%rd3, %rd3, %rd4;
	ld.global.b32 	%r2, [%rd1];
	ld.global.b32 	%r3, [%rd2];
	add.s32 	%r4, %r2, %r3;
	add.s32 	%r4, %r4, %r5;
	st.global.b32 	[%rd3], %r4;
	ret;
}
"""


def program(**changes: Any) -> Program:
    first = Launch(
        function="add", grid=(1, 1, 1), block=(6, 1, 1),
        arguments=(("tensor", 0), ("tensor", 1), ("temporary", 0), ("int32", 100)),
    )  # fmt: skip
    second = Launch(
        function="add", grid=(1, 1, 1), block=(6, 1, 1),
        arguments=(("temporary", 0), ("tensor", 1), ("tensor", 2), ("int32", -1)),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "ptx": ADD, "cubin": b"\x7fELF code", "temporaries": (24,), "launches": (first, second),
        "resources": {"add": Resources(registers=8, spill_bytes=0, stack_bytes=0, shared_bytes=0)},
    }  # fmt: skip
    return Program(**{**fields, **changes})


WEIGHTS = np.arange(6, dtype=np.int32).reshape(2, 3) * 10


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An artifact: y = x + w + 100 + w - 1, y also as a flat view."""
    call = {"num_outputs": "1", "num_inputs": "2", "func_name": "mlc_add", "flatten_data": "0"}
    nop = {"num_outputs": "1", "num_inputs": "1", "func_name": "__nop", "flatten_data": "0"}
    graph = {
        "nodes": [
            {"op": "null", "name": "input0", "inputs": []},
            {"op": "null", "name": "weight0", "inputs": []},
            {"op": "tvm_op", "name": "a", "attrs": call, "inputs": [[0, 0, 0], [1, 0, 0]]},
            {"op": "tvm_op", "name": "b", "attrs": nop, "inputs": [[2, 0, 0]]},
        ],
        "arg_nodes": [0, 1],
        "heads": [[2, 0, 0], [3, 0, 0]],
        "attrs": {
            "dltype": ["list_str", ["int32"] * 4],
            "storage_id": ["list_int", [0, 1, 2, 2]],
            "shape": ["list_shape", [[2, 3], [2, 3], [2, 3], [6]]],
        },
        "node_row_ptr": [0, 1, 2, 3, 4],
    }
    tensor = {"name": "x", "shape": [2, 3], "dtype": "int32"}
    manifest = {
        "signature": {
            "inputs": [tensor],
            "outputs": [{**tensor, "name": "y"}, {**tensor, "name": "flat", "shape": [6]}],
        },
        "target": {
            "name": "a100", "kind": "cuda", "triple": "nvptx64-nvidia-cuda", "features": [],
            "tvm": "nvptx -mtriple=nvptx64-nvidia-cuda -mcpu=sm_80",
        },
        "versions": {},
    }  # fmt: skip
    path = tmp_path / "gpu.mlc"
    programs = join({"mlc_add": encode(program())})
    graph_bytes = json.dumps(graph).encode()
    artifact.save(
        Contents(manifest=manifest, library=programs, graph=graph_bytes, weights=[(1, WEIGHTS)]),
        path,
    )
    return path


@pytest.fixture(autouse=True)
def _cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "cubins", {b"\x7fELF code": ADD})


def check(session: Any) -> None:
    x = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    for _ in range(2):
        outputs = session.run({"x": x})
        expected = x + 2 * WEIGHTS + 99
        np.testing.assert_array_equal(outputs["y"], expected)
        np.testing.assert_array_equal(outputs["flat"], expected.reshape(6))
    with pytest.raises(RunError, match="takes int32"):
        session.run({"x": x.astype(np.float32)})


def test_the_simulator_runs_an_artifact(saved):
    with SimulatedSession(saved) as session:
        check(session)


def test_buckets_run_one_by_one(saved, tmp_path):
    whole = artifact.load(saved, for_gpu=True)
    own = {key: {} for key in buckets.OWN} | {"signature": whole.manifest["signature"]}
    kept = ("target", "versions")
    manifest = {**own, **{key: whole.manifest[key] for key in kept}}
    graph, programs = bytes(whole.members[artifact.GRAPH]), bytes(whole.members[artifact.PROGRAMS])
    contents = Contents(manifest=manifest, library=b"", graph=graph, weights=())
    weights = buckets.Weights()
    parts = [
        buckets.Part(dims={"rows": rows}, contents=contents, weights=weights.add([(1, WEIGHTS)]))
        for rows in (2, 4)
    ]
    path = tmp_path / "two.mlc"
    artifact.save(buckets.merge(parts, programs, weights), path)
    with over(path, lambda bucket: CudaSession(path, FakeDriver, bucket=bucket)) as session:
        check(session)
        check(session.bucket(1))
    assert [driver.closed for driver in FakeDriver.made[-2:]] == [True, True]
    with SimulatedSession(path, bucket=1) as simulated:
        check(simulated)


def test_a_session_drives_a_gpu_and_gives_everything_back(saved):
    with CudaSession(saved, FakeDriver) as session:
        check(session)
    driver = FakeDriver.made[-1]
    assert driver.loaded == [b"\x7fELF code"]
    assert sorted(driver.freed) == [Memory([], "").address(k) for k in range(len(driver.memory))]
    assert (driver.unloaded, driver.closed) == ([1], True)


@pytest.mark.parametrize(
    ("arch", "loads"),
    [((8, 0), "cubin"), ((8, 9), "cubin"), ((8, 7), "ptx"), ((9, 0), "ptx"), ((12, 0), "ptx")],
)  # 8.7 is a Jetson: machine code for desktop cards does not run there
def test_a_newer_gpu_gets_ptx(saved, monkeypatch, arch, loads):
    monkeypatch.setattr(FakeDriver, "arch", arch)
    with CudaSession(saved, FakeDriver) as session:
        check(session)
    (code,) = FakeDriver.made[-1].loaded
    assert code == (b"\x7fELF code" if loads == "cubin" else ADD.encode() + b"\0")


@pytest.mark.parametrize(("arch", "opens"), [((8, 6), "a100"), ((9, 0), "h100")])
def test_of_several_targets_the_gpu_gets_its_newest(saved, tmp_path, monkeypatch, arch, opens):
    newer = tmp_path / "h100.mlc"
    newer.write_bytes(saved.read_bytes())
    target = {**artifact.read_manifest(saved)["target"], "name": "h100", "tvm": "nvptx -mcpu=sm_90"}
    artifact.rewrite_manifest(newer, {"target": target})
    bundle.save([saved, newer], tmp_path / "both.mlc")
    monkeypatch.setattr(FakeDriver, "arch", arch)
    with CudaSession(tmp_path / "both.mlc", FakeDriver) as session:
        assert session.manifest["target"]["name"] == opens
        check(session)
    with SimulatedSession(tmp_path / "both.mlc", "a100") as session:
        check(session)
    with pytest.raises(ArtifactError, match="nothing that this machine can run"):
        open_session(tmp_path / "both.mlc")


def test_a_cpus_artifact_needs_no_driver_to_be_refused(saved, tmp_path):
    cpu = {"name": "old", "triple": "x86_64-linux-gnu", "features": []}
    artifact.save(
        Contents(
            manifest={**artifact.read_manifest(saved), "target": cpu},
            library=b"", graph=b"", weights=[],
        ),
        tmp_path / "cpu.mlc",
    )  # fmt: skip
    made = len(FakeDriver.made)
    with pytest.raises(ArtifactError, match="is for a CPU"):
        CudaSession(tmp_path / "cpu.mlc", FakeDriver)
    assert len(FakeDriver.made) == made


def test_code_for_a_jetson_is_compiled_again_for_other_gpus(saved, monkeypatch):
    chosen = artifact.read_manifest(saved)["target"]
    for arch, code in (((8, 7), b"\x7fELF code"), ((8, 9), ADD.encode() + b"\0")):
        artifact.rewrite_manifest(saved, {"target": {**chosen, "tvm": "nvptx -mcpu=sm_87 -x=1"}})
        monkeypatch.setattr(FakeDriver, "arch", arch)
        with CudaSession(saved, FakeDriver) as session:
            check(session)
        assert FakeDriver.made[-1].loaded == [code]


def test_an_artifact_that_names_no_architecture_is_refused(saved):
    chosen = artifact.read_manifest(saved)["target"]
    artifact.rewrite_manifest(saved, {"target": {**chosen, "tvm": "nvptx -mcpu=gfx90a"}})
    with pytest.raises(ArtifactError, match="does not say which GPUs"):
        CudaSession(saved, FakeDriver)
    assert not FakeDriver.made[-1].loaded


def test_an_older_gpu_is_refused_before_any_code_is_loaded(saved, monkeypatch):
    monkeypatch.setattr(FakeDriver, "arch", (7, 5))
    with pytest.raises(ArtifactError, match=r"for sm_80 and newer, and this GPU is sm_75") as found:
        CudaSession(saved, FakeDriver)
    assert "--arch sm_75" in str(found.value.hint)
    assert not FakeDriver.made[-1].loaded


# Timing


@pytest.fixture
def timed(saved, monkeypatch) -> Path:
    """The artifact, where the stand-in is this machine's GPU; a mark is 3 ms after the one before."""
    monkeypatch.setattr("mlc.runtime.cuda.Driver", FakeDriver)
    ticks = itertools.count()
    monkeypatch.setattr(FakeDriver, "clock", lambda _self: next(ticks) * 3e-3)
    facts = {"mlc_add": {"operators": ["add"], "flops": 12_000}}
    artifact.rewrite_manifest(saved, {"kernels": facts})
    return saved


def test_bench_waits_for_the_gpu_and_names_it(timed):
    options = BenchOptions(artifact=str(timed), device="cuda", warmup=0.0, duration=0.02)
    result = bench(options)
    assert (result.device, result.threads) == ("Numpy RTX 4 (sm_86)", 0)
    driver = FakeDriver.made[-1]
    assert driver.synchronized == result.mlc.runs + 1  # once to warm up
    assert result.mlc.median > 0
    assert driver.closed
    assert json.loads(json.dumps(result.to_json()))["device"] == result.device


def test_the_profile_is_by_the_gpus_clock(timed):
    options = BenchOptions(
        artifact=str(timed), device="cuda", warmup=0.0, duration=0.02, profile=True
    )
    result = bench(options)
    assert result.profile is not None
    (kernel,) = result.profile
    assert (kernel.symbol, kernel.operators, kernel.calls) == ("mlc_add", ("add",), 1)
    assert kernel.seconds == pytest.approx(3e-3)
    assert kernel.gflops == pytest.approx(12_000 / 3e-3 / 1e9)
    assert result.peak_gflops is None


def test_bench_runs_on_the_inputs_that_were_filled_in(timed):
    x = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    with CudaSession(timed) as session:
        session.fill({"x": x})
        for _ in range(2):
            session.run_in_place()
        assert session.symbols == ["mlc_add"]
        assert session.timed_run() == [pytest.approx(3e-3)]
        np.testing.assert_array_equal(session.run({"x": x})["y"], x + 2 * WEIGHTS + 99)


def test_bench_on_a_gpu_refuses_what_it_cannot_do(timed, monkeypatch):
    with pytest.raises(UsageError, match="--threads is for CPUs"):
        bench(BenchOptions(artifact=str(timed), device="cuda", threads=2))

    def none() -> Driver:
        return Driver("libcuda-of-nobody.so.1")

    monkeypatch.setattr("mlc.runtime.cuda.Driver", none)
    with pytest.raises(MissingToolError, match="running on a GPU needs one") as found:
        bench(BenchOptions(artifact=str(timed), device="cuda"))
    assert found.value.exit_code == 8


class FakeOrt:
    """As much of ONNX Runtime as a comparison on a GPU takes; `usable` is what starts."""

    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99, ORT_DISABLE_ALL=0)
    SessionOptions = SimpleNamespace
    __version__ = "1.99"

    def __init__(self, built: list[str], usable: list[str]):
        self.built, self.usable, self.bound, self.runs = built, usable, [], 0
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=lambda array, device: (array, device))

    def get_available_providers(self) -> list[str]:
        return self.built

    def InferenceSession(  # noqa: N802 - ONNX Runtime's name
        self, _path: str, _options: Any, providers: list[str]
    ) -> Any:
        bind = lambda name, value: self.bound.append((name, value[1]))  # noqa: E731
        return SimpleNamespace(
            get_providers=lambda: [p for p in providers if p in self.usable] + ["CPU"],
            get_inputs=lambda: [SimpleNamespace(name="x")],
            get_outputs=lambda: [SimpleNamespace(name="y"), SimpleNamespace(name="flat")],
            run=lambda names, feed: [np.zeros((2, 3), np.int32), np.zeros(6, np.int32)],
            io_binding=lambda: SimpleNamespace(bind_ortvalue_input=bind, bind_ortvalue_output=bind),
            run_with_iobinding=self._run,
        )

    def _run(self, _binding: Any) -> None:
        self.runs += 1


def test_onnx_runtime_is_compared_on_the_gpu_or_not_at_all(timed, monkeypatch):
    def against(ort: FakeOrt) -> Any:
        monkeypatch.setattr("mlc.ort_env.onnxruntime", lambda: ort)
        monkeypatch.setattr("mlc.runtime.bench.warn_if_other_model", lambda *_: None)
        return bench(
            BenchOptions(
                artifact=str(timed), model="model.onnx", against="onnxruntime", device="cuda",
                warmup=0.0, duration=0.02,
            )
        )  # fmt: skip

    with pytest.raises(MissingToolError, match="built without its CUDA provider") as found:
        against(FakeOrt(["CPUExecutionProvider"], []))
    assert found.value.exit_code == 8
    assert "onnxruntime-gpu" in str(found.value.hint)
    with pytest.raises(MissingToolError, match="cannot start its CUDA provider"):
        against(FakeOrt([CUDA], []))
    ort = FakeOrt([CUDA], [CUDA])
    result = against(ort)
    assert result.comparison is not None
    assert ort.bound == [("x", "cuda"), ("y", "cuda"), ("flat", "cuda")]
    assert ort.runs > result.peer.runs


def test_without_a_driver_the_error_says_what_can_be_done():
    with pytest.raises(MissingToolError, match="is not installed, and running on a GPU") as found:
        Driver("libcuda-of-nobody.so.1")
    assert found.value.exit_code == 8
    assert "--emulate" in str(found.value.hint)


def test_another_library_is_no_driver():
    with pytest.raises(MissingToolError, match="is not installed"):
        Driver("libc.so.6")


def test_a_gpu_artifact_is_refused_on_a_cpu(saved):
    with pytest.raises(ArtifactError, match="for NVIDIA GPUs") as found:
        open_session(saved)
    assert "--device cuda" in str(found.value.hint)


# Programs as data


def test_programs_come_back_as_they_were():
    assert read(join({"b": encode(program()), "a": encode(program(note="x"))})) == {
        "a": program(note="x"),
        "b": program(),
    }
    assert encode(program()) == encode(program())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("launches", 0, "grid"), [0, 1, 1]),
        (("launches", 0, "grid"), [1, 70000, 1]),
        (("launches", 0, "grid"), [1, 1]),
        (("launches", 0, "grid"), [1.5, 1, 1]),
        (("launches", 0, "block"), [1025, 1, 1]),
        (("launches", 0, "block"), [1, 1, 65]),
        (("launches", 0, "arguments"), [["pointer", 0]]),
        (("launches", 0, "arguments"), [["temporary", 1]]),
        (("launches", 0, "arguments"), [["tensor", "0"]]),
        (("temporaries",), [-1]),
        (("temporaries",), [2**50]),
        (("cubin",), "%%%"),
        (("resources",), {"add": {"registers": 8}}),
        (("resources",), []),
    ],
)
def test_programs_of_another_form_are_refused(path, value):
    data = json.loads(join({"a": encode(program())}))
    place = data["a"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match="another form"):
        read(json.dumps(data).encode())


def test_a_launch_with_too_few_arguments_is_refused():
    step = program().launches[0]
    with pytest.raises(RunError, match="takes 4 arguments, not 3"):
        launch(entries(ADD)["add"], step.grid, step.block, [0, 0, 0], Memory([], ""))


# The assembler


SAID = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 2560 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 368 bytes cmem[0]
"""


def test_statistics_are_read_per_function():
    assert ptxas.statistics(SAID) == {
        "one": Resources(registers=40, spill_bytes=8, stack_bytes=16, shared_bytes=2560),
        "two": Resources(registers=8, spill_bytes=0, stack_bytes=0, shared_bytes=0),
    }


def test_a_missing_assembler_comes_with_the_command(monkeypatch, tmp_path):
    ptxas.find.cache_clear()
    monkeypatch.setattr(ptxas, "_package", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(MissingToolError) as found:
            ptxas.find()
    finally:
        ptxas.find.cache_clear()
    assert found.value.exit_code == 8
    assert found.value.hint == "pip install 'mlc-compiler[cuda]'"
