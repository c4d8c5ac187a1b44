"""Kernels for GPUs: the generated PTX is assembled, and executed by the simulator."""

from __future__ import annotations

import faulthandler
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from mlc import artifact, driver, target
from mlc.emulate.cuda import SimulatedSession, run_program
from mlc.errors import BuildError, MissingToolError, RunError
from mlc.events import Notice
from mlc.gpu import nvptx, ptxas, split
from mlc.gpu import program as gpu_program
from mlc.gpu.device import Launch, Program, UnfitError, read
from mlc.options import VerifyOptions
from mlc.runtime.verify import verify
from mlc.schedules import cuda, gpu_rows
from tests import models

try:
    ptxas.find()
except MissingToolError as error:
    pytest.skip(f"{error.message}; {error.hint}", allow_module_level=True)

node = helper.make_node


def classifier() -> onnx.ModelProto:
    """Convolutions with tiles in shared memory, pooling, dense, softmax; odd sizes."""
    weights = {
        "w1": models.floats(16, 3, 3, 3, seed=1, scale=0.2),
        "b1": models.floats(16, seed=2),
        "w2": models.floats(20, 16, 3, 3, seed=3, scale=0.2),
        "w3": models.floats(10, 20, seed=4),
        "b3": models.floats(10, seed=5),
    }
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", ["p", "w2"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("GlobalAveragePool", ["c"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w3", "b3"], ["o"], transB=1),
        node("Softmax", ["o"], ["y"]),
    ]
    return models.model(nodes, {"x": [1, 3, 14, 15]}, ["y"], weights)


def convolutions() -> onnx.ModelProto:
    """Depthwise, grouped, 1x1, dilated and transposed convolutions."""
    weights = {
        "depth": models.floats(16, 1, 3, 3, seed=2, scale=0.2),
        "groups": models.floats(24, 8, 3, 3, seed=3, scale=0.2),
        "point": models.floats(20, 24, 1, 1, seed=4, scale=0.2),
        "wide": models.floats(20, 20, 3, 3, seed=5, scale=0.1),
        "up": models.floats(20, 6, 2, 2, seed=7, scale=0.2),
    }
    nodes = [
        node("Conv", ["x", "depth"], ["b"], group=16, pads=[1, 1, 1, 1]),
        node("Relu", ["b"], ["r"]),
        node("Conv", ["r", "groups"], ["c"], group=2, pads=[1, 1, 1, 1]),
        node("Conv", ["c", "point"], ["d"]),
        node("Conv", ["d", "wide"], ["e"], pads=[2, 2, 2, 2], dilations=[2, 2]),
        node("ConvTranspose", ["e", "up"], ["y"], strides=[2, 2]),
    ]
    return models.model(nodes, {"x": [1, 16, 9, 7]}, ["y"], weights)


def bottlenecks() -> onnx.ModelProto:
    """1x1 convolutions and what may stand around them: strides, a residual, 3x3, pooling, many images."""
    weights = {
        "w1": models.floats(12, 10, 1, 1, seed=1, scale=0.3),
        "b1": models.floats(12, seed=2),
        "w2": models.floats(12, 12, 3, 3, seed=3, scale=0.2),
        "w3": models.floats(10, 12, 1, 1, seed=4, scale=0.3),
        "b3": models.floats(10, seed=5),
        "w4": models.floats(6, 10, 1, 1, seed=6, scale=0.3),
        "w5": models.floats(6, 6, 3, 3, seed=7, scale=0.2),
        "scale": models.floats(1, 10, 1, 1, seed=8),
        "w6": models.floats(5, 10, 2, 4, seed=9, scale=0.2),
        "w7": models.floats(10, 10, 1, 1, seed=10, scale=0.2),
        "five": np.array([1, 2, 10, 7, 9]),
    }
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        node("Sigmoid", ["c"], ["d"]),
        node("Conv", ["d", "w3", "b3"], ["e"]),
        node("Add", ["e", "x"], ["f"]),
        node("Mul", ["f", "scale"], ["g"]),
        node("Clip", ["g"], ["h"]),
        node("Conv", ["h", "w4"], ["i"], strides=[2, 3]),
        node("Conv", ["i", "w5"], ["j"], pads=[1] * 4),
        node("Add", ["j", "i"], ["k"]),
        node("MaxPool", ["h"], ["pooled"], kernel_shape=[2, 2]),
        node("Conv", ["pooled", "w6"], ["patches"], strides=[2, 4]),
        node("Concat", ["h", "x"], ["joined"], axis=1),
        node("ReduceMean", ["h"], ["columns"], axes=[3]),  # [n, c, h, 1] does not fit [n, c, h * w]
        node("Conv", ["columns", "w4"], ["narrow"]),
        node("Conv", ["h", "w4"], ["wide"]),
        node("Mul", ["wide", "narrow"], ["spread"]),
        node("GlobalAveragePool", ["h"], ["pixel"]),
        node("Conv", ["pixel", "w4"], ["gate"]),
        node("Mul", ["gate", "spread"], ["gated"]),
        node("Reshape", ["x", "five"], ["x5"]),
        node("Conv", ["pixel", "w7"], ["tens"]),
        node("Add", ["x5", "tens"], ["deep"]),
    ]
    return models.model(
        nodes, {"x": [2, 10, 7, 9]}, ["k", "patches", "joined", "gated", "deep"], weights
    )


def transformer_parts() -> onnx.ModelProto:
    """Products of a batch, softmax over rows, layer norm, erf, tanh, sums that end inside a warp."""
    weights = {
        "w": models.floats(24, 33, seed=1, scale=0.3),
        "scale": models.floats(33, seed=2),
        "bias": models.floats(33, seed=3),
        "first": np.array([3, 0, 5], np.int64),
    }
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("LayerNormalization", ["a", "scale", "bias"], ["n"], axis=-1),
        node("Transpose", ["n"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["n", "t"], ["m"]),
        node("Softmax", ["m"], ["s"], axis=-1),
        node("MatMul", ["s", "n"], ["v"]),
        node("Erf", ["v"], ["e"]),
        node("Tanh", ["e"], ["h"]),
        node("Gather", ["h", "first"], ["y"], axis=1),
        node("ReduceSum", ["h"], ["z"], keepdims=0),
        node("ArgMax", ["s"], ["k"], axis=-1),
    ]
    return models.model(
        nodes, {"x": [2, 7, 24]}, ["y", "z", "k"], weights, opset=17,
        types={"k": onnx.TensorProto.INT64},
    )  # fmt: skip


def row_by_row() -> onnx.ModelProto:
    """Softmax, layer norm: rows of a warp and of more threads, four elements of each and others; another axis."""
    nodes = [node("Softmax", ["x"], ["s"], axis=1), node("Softmax", ["x"], ["t"], axis=-1)]
    nodes += [node("Add", ["t", "s"], ["u"]), node("Relu", ["u"], ["a"])]
    lengths = (5, 33, 128, 197, 1100)
    for length in lengths:
        nodes.append(node("Gather", ["x", f"i{length}"], [f"x{length}"], axis=-1))
        nodes.append(node("Softmax", [f"x{length}"], [f"y{length}"], axis=-1))
        nodes.append(node("LogSoftmax", [f"x{length}"], [f"z{length}"], axis=-1))
        norm = [f"x{length}", f"s{length}", f"b{length}"]
        nodes.append(node("LayerNormalization", norm, [f"n{length}"], axis=-1, epsilon=1e-3))
    outputs = ["a", *(f"{name}{length}" for length in lengths for name in "yzn")]
    chosen = {f"i{length}": np.arange(length) * 7 % 31 for length in lengths}
    chosen |= {f"s{length}": models.floats(length, seed=length) for length in lengths}
    chosen |= {f"b{length}": models.floats(length, seed=length + 1) for length in lengths}
    return models.model(nodes, {"x": [2, 3, 31]}, outputs, chosen, opset=17)


def compiled_for_gpu(
    compiled: Any, proto: onnx.ModelProto, sm: str = "sm_80", **options: Any
) -> tuple[Path, dict[str, Any], dict[str, Program]]:
    made = compiled(proto, target=f"cuda:{sm}", **options)
    opened = artifact.load(made.path, for_gpu=True)
    return made.path, made.manifest, read(bytes(opened.members[artifact.PROGRAMS]))


@pytest.mark.parametrize(
    ("make", "sm"),
    [
        (classifier, "sm_70"),
        (classifier, "sm_120"),
        (convolutions, "sm_86"),
        (transformer_parts, "sm_90"),
        (row_by_row, "sm_90"),
        (bottlenecks, "sm_80"),
    ],
)
def test_networks_agree_with_onnx_runtime(compiled, tmp_path, make, sm):
    path, manifest, programs = compiled_for_gpu(compiled, make(), sm)
    models.save(make(), tmp_path)
    asked = VerifyOptions(
        artifact=str(path), model=str(tmp_path / "model.onnx"), emulate=True, rounds=2
    )
    result = verify(asked)
    assert result.passed, "\n".join(map(str, result.outputs))
    assert manifest["target"]["kind"] == "cuda"
    assert manifest["verification"] is None
    for program in programs.values():
        assert program.cubin.startswith(b"\x7fELF")
        assert f".target {sm}" in program.ptx
        assert {launch.function for launch in program.launches} <= set(program.resources)
        assert set(re.findall(r"\.visible \.entry (\w+)", program.ptx)) == set(program.resources)
        assert all(found.registers > 0 for found in program.resources.values())


def test_a_warp_has_a_row_of_softmax(compiled):
    proto = models.model([node("Softmax", ["x"], ["y"])], {"x": [2, 3, 5, 33]}, ["y"], {})
    _, _, programs = compiled_for_gpu(compiled, proto)
    (program,) = programs.values()
    (launch,) = program.launches
    assert (launch.grid, launch.block) == ((30, 1, 1), (32, 1, 1))


def test_more_blocks_than_a_launch_has_are_refused():
    launch = Launch(function="f", grid=(1, 70000, 1), block=(32, 1, 1), arguments=())
    with pytest.raises(UnfitError, match="70000 blocks in y, and a launch has 65535"):
        gpu_program._blocks((launch,), 1024)


def test_layer_norm_is_one_launch(compiled):
    weights = {"s": models.floats(65, seed=1), "b": models.floats(65, seed=2)}
    nodes = [node("LayerNormalization", ["x", "s", "b"], ["y"], axis=-1)]
    proto = models.model(nodes, {"x": [1, 6, 65]}, ["y"], weights, opset=17)
    _, _, programs = compiled_for_gpu(compiled, proto)
    launches = [launch for program in programs.values() for launch in program.launches]
    assert [(launch.grid, launch.block) for launch in launches] == [((6, 1, 1), (32, 1, 1))]


def test_tvms_softmax_of_a_matrix_is_wrong(compiled, monkeypatch, tmp_path):
    """Four elements of a thread are a vector, whose shuffles TVM 0.19 and LLVM 22 get wrong."""
    monkeypatch.setattr(gpu_rows, "takes", lambda *_: False)
    proto = models.model([node("Softmax", ["x"], ["y"])], {"x": [4, 128]}, ["y"], {})
    path, _, _ = compiled_for_gpu(compiled, proto)
    model = models.save(proto, tmp_path)
    with pytest.raises(RunError, match="does not know the instruction"):
        verify(VerifyOptions(artifact=str(path), model=str(model), emulate=True))


@pytest.fixture
def convolution(compiled) -> Program:
    """Return the program of a convolution that shares tiles of data and weights."""
    weights = {"w": models.floats(20, 16, 3, 3, scale=0.2)}
    proto = models.model(
        [node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], {"x": [1, 16, 9, 14]}, ["y"], weights
    )
    (program,) = compiled_for_gpu(compiled, proto)[2].values()
    return program


def run_convolution(program: Program) -> np.ndarray:
    data, weights = models.floats(1, 16, 9, 14), models.floats(20, 16, 3, 3, scale=0.2)
    output = np.full((1, 20, 9, 14), np.nan, np.float32)
    run_program(program, [data, weights, output])
    return output


def test_every_removed_barrier_is_caught(convolution):
    assert np.isfinite(run_convolution(convolution)).all()
    barriers = [match.span() for match in re.finditer(r"\n\tbar\.sync \t0;", convolution.ptx)]
    assert len(barriers) >= 2
    (launch,) = convolution.launches
    assert np.prod(launch.block) > 32
    for start, end in barriers:
        without = replace(convolution, ptx=convolution.ptx[:start] + convolution.ptx[end:])
        with pytest.raises(RunError, match="a race in shared memory"):
            run_convolution(without)


def test_an_index_that_is_off_by_one_is_caught(convolution):
    beyond = re.sub(
        r"(st\.global\.b32 \t\[%rd\d+)\+?(\d*)\]",
        lambda found: f"{found[1]}+{int(found[2] or 0) + 4}]",
        convolution.ptx,
    )
    assert beyond != convolution.ptx
    with pytest.raises(RunError, match="of tensor 2, which has"):
        run_convolution(replace(convolution, ptx=beyond))
    (launch,) = convolution.launches
    grid = tuple(size + (size > 1) for size in launch.grid)  # one block too many
    assert grid != launch.grid
    with pytest.raises(RunError, match="of tensor"):
        run_convolution(replace(convolution, launches=(replace(launch, grid=grid),)))


def test_an_index_off_by_one_in_shared_memory_is_caught(convolution):
    stores = re.findall(r"st\.shared\.b32 \t\[%rd\d+\+?\d*\]", convolution.ptx)
    place, _, offset = stores[-1].rstrip("]").partition("+")
    moved = convolution.ptx.replace(stores[-1], f"{place}+{int(offset or 0) + 4}]")
    with pytest.raises(RunError, match="shared"):
        run_convolution(replace(convolution, ptx=moved))


def test_an_operator_without_a_schedule_for_gpus_is_named(compiled):
    weights = {"w": models.floats(1, 32, 4), "r": models.floats(1, 32, 8)}
    nodes = [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)]
    proto = models.model(nodes, {"x": [3, 1, 4]}, ["y"], weights)
    with pytest.raises(BuildError, match=r"\(mlc\.recurrent.*\) has no schedule for GPUs"):
        compiled_for_gpu(compiled, proto, without=("write-out-recurrent",))


# Types that a card has no arithmetic of its own for: sm_70 has no bfloat16, and no tanh or exp of float16


def test_float16_on_an_old_card(compiled, tmp_path):
    weights = {
        "w": models.floats(12, 6, 3, 3, scale=0.2).astype(np.float16),
        "d": models.floats(12, 9, seed=1).astype(np.float16),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Tanh", ["c"], ["t"]),
        node("GlobalAveragePool", ["t"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("MatMul", ["f", "d"], ["m"]),
        node("Softmax", ["m"], ["y"]),
    ]
    half = onnx.TensorProto.FLOAT16
    types = dict.fromkeys(("x", "c", "y"), half)
    proto = models.model(nodes, {"x": [2, 6, 7, 5]}, ["c", "y"], weights, types=types)
    path, _, programs = compiled_for_gpu(compiled, proto, "sm_70")
    assert all(".target sm_70" in program.ptx for program in programs.values())
    model = models.save(proto, tmp_path)
    result = verify(VerifyOptions(artifact=str(path), model=str(model), emulate=True))
    assert result.passed, "\n".join(map(str, result.outputs))


def test_bfloat16_on_a_card_without_it(compiled):
    bf16 = onnx.TensorProto.BFLOAT16
    x = models.floats(3, 21).astype(ml_dtypes.bfloat16)
    weight = models.floats(21, seed=1).astype(ml_dtypes.bfloat16)
    proto = models.model(
        [node("Mul", ["x", "w"], ["m"]), node("Add", ["m", "x"], ["y"])],
        {"x": [3, 21]}, ["y"], {"w": weight}, types={"x": bf16, "y": bf16},
    )  # fmt: skip
    path, _, _ = compiled_for_gpu(compiled, proto, "sm_70")
    with SimulatedSession(path) as session:
        (found,) = session.run({"x": x}).values()
    wide = x.astype(np.float32) * weight.astype(np.float32) + x.astype(np.float32)
    wanted = wide.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found.view(np.uint16), wanted.view(np.uint16))


# Limits


def limited(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    card = target.resolve("cuda:sm_80")
    assert card.gpu is not None
    small = replace(card, gpu=replace(card.gpu, **limits))
    monkeypatch.setattr(driver.target, "resolve", lambda _text: small)


def big_convolution() -> onnx.ModelProto:
    weights = {"w": models.floats(32, 16, 3, 3)}
    nodes = [node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    return models.model(nodes, {"x": [1, 16, 8, 16]}, ["y"], weights)


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"shared_bytes": 4096}, "bytes of shared memory, and a block has 4096"),
     ({"registers": 2048}, "registers, and a block has 2048"),
     ({"max_threads": 64}, "threads, and a block has 64")],
)  # fmt: skip
def test_a_kernel_over_a_limit_is_named_and_the_fallback_runs(
    compiled, monkeypatch, tmp_path, limits, said
):
    limited(monkeypatch, **limits)
    events: list[Any] = []
    path, manifest, _ = compiled_for_gpu(compiled, big_convolution(), on_event=events.append)
    ((symbol, kernel),) = manifest["kernels"].items()
    assert f"{said}: compiled with" in kernel["note"]
    warned = [e.text for e in events if isinstance(e, Notice) and e.level == "warning"]
    assert f"kernel {symbol}: {kernel['note']}" in warned
    model = models.save(big_convolution(), tmp_path)
    assert verify(VerifyOptions(artifact=str(path), model=str(model), emulate=True)).passed


def one_pixel(filters: int = 288) -> onnx.ModelProto:
    """A convolution of one pixel: templates have channels in z, and here nothing but channels."""
    weights = {"w": models.floats(filters, 8, 3, 3, scale=0.2)}
    nodes = [node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    return models.model(nodes, {"x": [1, 8, 1, 1]}, ["y"], weights)


def test_the_default_has_few_threads_in_z(compiled):
    _, manifest, programs = compiled_for_gpu(compiled, one_pixel())
    (program,), (kernel,) = programs.values(), manifest["kernels"].values()
    assert {launch.block for launch in program.launches} == {(1, 1, 36)}
    assert "note" not in kernel


def test_more_threads_in_z_than_a_gpu_takes(compiled, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "_DEEP", 1024)
    proto = one_pixel(576)
    path, manifest, _ = compiled_for_gpu(compiled, proto)
    (kernel,) = manifest["kernels"].values()
    assert kernel["note"].startswith("it takes 144 threads in z, and a block has 64: compiled with")
    model = models.save(proto, tmp_path)
    assert verify(VerifyOptions(artifact=str(path), model=str(model), emulate=True)).passed


def test_smaller_tiles_take_less(compiled, monkeypatch):
    limited(monkeypatch, shared_bytes=4096)
    said: list[Any] = []
    _, manifest, programs = compiled_for_gpu(compiled, big_convolution(), on_event=said.append)
    ((symbol, kernel),) = manifest["kernels"].items()
    assert "bytes of shared memory, and a block has 4096: compiled with smaller" in kernel["note"]
    assert all(found["shared_bytes"] <= 4096 for found in kernel["resources"].values())
    warnings_said = [event.text for event in said if isinstance(event, Notice)]
    assert any(symbol in text and kernel["note"] in text for text in warnings_said)
    assert programs[symbol].note == kernel["note"]


@pytest.mark.parametrize("limits", [{"shared_bytes": 4}, {"registers": 8}])
def test_a_kernel_that_never_fits_is_named(compiled, monkeypatch, limits):
    limited(monkeypatch, **limits)
    with pytest.raises(BuildError, match=r"kernel mlc_conv2d_\w+ does not fit the GPU: it takes"):
        compiled_for_gpu(compiled, big_convolution())


def test_the_assembler_says_what_is_too_much():
    ptx = """.version 7.0
.target sm_80
.address_size 64
.visible .entry k()
{
	.shared .align 4 .b8 a[50000];
	.reg .b32 %r<2>;
	mov.b32 %r1, a;
	st.shared.b32 [%r1], %r1;
	ret;
}
"""
    with pytest.raises(UnfitError, match="50000 bytes of shared data, and sm_80 has 49152"):
        ptxas.assemble(ptx, "sm_80")
    _, found = ptxas.assemble(ptx.replace("50000", "40000"), "sm_80")
    assert found["k"].shared_bytes == 40000
    with pytest.raises(BuildError, match="ptxas does not accept"):
        ptxas.assemble(ptx.replace("st.shared", "st.nowhere"), "sm_80")


# Each work-around is still needed: these fail when it is not.


def crashes(work: Callable[[], Any]) -> bool:
    """Return whether work ends its process, tried in a child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        faulthandler.disable()  # the crash is wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.fixture
def reduction(tvm) -> tuple[Any, Launch]:
    """Return the GPU function of a softmax of 10, as TIR, and its launch."""
    from tvm import IRModule, ir, relay
    from tvm.relay.backend import te_compiler

    gpu = tvm.target.Target(target.resolve("cuda:sm_80").tvm, host="llvm")
    x = relay.var("x", shape=(1, 10))
    module = relay.transform.InferType()(IRModule.from_expr(relay.nn.softmax(x)))
    with gpu, tvm.transform.PassContext(opt_level=3):
        fused = relay.transform.InferType()(relay.transform.FuseOps(2)(module))
        te_compiler.get().clear()
        (found,) = te_compiler.get().lower(fused["main"].body.op, gpu).funcs.functions.values()
        lowered = IRModule({ir.GlobalVar("k"): found.with_attr("global_symbol", "k")})
        halves = split.split(lowered, gpu)
    (step,) = halves.launches
    return halves.functions, step


def simulated(halves: tuple[Any, Launch]) -> np.ndarray:
    from mlc.emulate.ptx_machine import launch
    from mlc.emulate.ptx_memory import Memory
    from mlc.emulate.ptx_text import entries

    functions, step = halves
    kernel = entries(nvptx.emit(functions, {step.function: step.block}, "sm_80"))[step.function]
    data, out = models.floats(10), np.zeros(10, np.float32)
    memory = Memory([data, out], "tensor")
    launch(kernel, step.grid, step.block, [memory.address(k) for _, k in step.arguments], memory)
    np.testing.assert_allclose(out, np.exp(data) / np.exp(data).sum(), rtol=1e-5)
    return out


def test_llvm_wants_an_argument_that_tvm_does_not_pass(reduction, monkeypatch):
    simulated(reduction)
    monkeypatch.setattr(nvptx, "barriers", lambda body: body)
    assert crashes(lambda: nvptx.llvm_ir(reduction[0], "sm_80"))


def test_the_lanes_of_a_warp_do_not_all_come_to_its_barrier(reduction, monkeypatch):
    monkeypatch.setattr(nvptx, "join_warps", lambda body: body)
    with pytest.raises(RunError, match="wait at a barrier"):
        simulated(reduction)
    real = nvptx.barriers
    monkeypatch.setattr(nvptx, "barriers", lambda body: real(without_warp_barriers(body)))
    with pytest.raises(RunError, match="a race in shared memory"):
        simulated(reduction)


def without_warp_barriers(body: Any) -> Any:
    """Return the statement as TVM's own code generator takes it: it emits none of these."""
    from tvm import tir

    def drop(found: Any) -> Any:
        return tir.Evaluate(0) if nvptx._is_warp_sync(found) else None

    return tir.stmt_functor.ir_transform(body, None, drop, ["tir.Evaluate"])


def test_kernels_are_marked_the_old_way(reduction):
    text = nvptx.llvm_ir(reduction[0], "sm_80")
    assert "nvvm.annotations" in text
    assert "ptx_kernel" not in text


def test_tvm_cannot_make_a_module_for_gpus_itself(tvm):
    assert not tvm.runtime.enabled("cuda")


def test_an_odd_shared_buffer_has_no_alignment(tvm, monkeypatch):
    from tvm import IRModule, te

    data = te.placeholder((3,), "int8", name="x")
    shared = te.compute((3,), lambda k: data[k], name="s")
    output = te.compute((3,), lambda k: shared[2 - k], name="y")
    schedule = te.create_schedule(output.op)
    schedule[shared].set_scope("shared")
    outer, inner = schedule[output].split(output.op.axis[0], factor=3)
    schedule[output].bind(outer, te.thread_axis("blockIdx.x"))
    schedule[output].bind(inner, te.thread_axis("threadIdx.x"))
    schedule[shared].compute_at(schedule[output], outer)
    schedule[shared].bind(shared.op.axis[0], te.thread_axis("threadIdx.x"))
    with tvm.transform.PassContext(opt_level=3):
        lowered = tvm.lower(schedule, [data, output], name="k")
        gpu = tvm.target.Target(target.resolve("cuda:sm_80").tvm, host="llvm")
        functions = split.split(IRModule(lowered.functions), gpu).functions
    assert nvptx.llvm_ir(functions, "sm_80")
    monkeypatch.setattr(nvptx, "aligned", lambda body: body)
    assert crashes(lambda: nvptx.llvm_ir(functions, "sm_80"))


def test_records_of_the_same_architecture_apply(compiled, tvm, tmp_path):
    from tvm import autotvm
    from tvm.autotvm.measure import MeasureInput, MeasureResult

    args = (("TENSOR", (1, 16, 8, 16), "float32"), ("TENSOR", (32, 16, 3, 3), "float32"))
    rest = ((1, 1), (1, 1, 1, 1), (1, 1), "float32")
    gpu = tvm.target.Target(target.resolve("cuda:sm_80").tvm)
    task = autotvm.task.create("conv2d_nchw.cuda", args=(*args, *rest), target=gpu)
    config = next(
        c for k in range(500, 5000) if (c := task.config_space.get(k))["tile_f"].size[2] == 2
    )
    result = MeasureResult((1e-3,), 0, 1.0, 0.0)
    log = tmp_path / "records.log"
    log.write_text(autotvm.record.encode(MeasureInput(gpu, task, config), result) + "\n")
    proto = big_convolution()
    _, tuned, programs = compiled_for_gpu(compiled, proto, records=str(log))
    assert tuned["tuning"]["share_of_flops"]["tuned"] == 1
    (program,) = programs.values()
    assert program.launches[0].block[2] == 2
    _, other, _ = compiled_for_gpu(compiled, proto, "sm_86", records=str(log))
    assert other["tuning"]["share_of_flops"]["tuned"] == 0
