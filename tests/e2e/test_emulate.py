"""`mlc compile --target rpi4`, then `mlc verify --emulate`: real code for Arm, run in qemu."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from mlc.cache import open_cache
from mlc.emulate import runner, runtime
from mlc.errors import MissingToolError
from mlc.events import ignore
from tests import models

try:
    TOOLS = runner.find_tools()
except MissingToolError as error:
    pytest.skip(f"{error.message}; {error.hint}", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def fetched(environment) -> None:
    """Fetch the runtime library once; skip where there is no index to fetch it from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLC_CACHE_DIR", environment["MLC_CACHE_DIR"])
        try:
            runtime.library(open_cache(), ignore)
        except MissingToolError as error:
            pytest.skip(f"{error.message}: {error.hint}")


def odd_convs() -> onnx.ModelProto:
    """Each kind of convolution that has a schedule of its own, in odd sizes."""
    weights = {
        "w1": models.floats(16, 3, 3, 3, seed=1, scale=0.2),
        "depth": models.floats(16, 1, 3, 3, seed=2, scale=0.2),
        "groups": models.floats(24, 8, 3, 3, seed=3, scale=0.2),
        "point": models.floats(20, 24, 1, 1, seed=4, scale=0.2),
        "wide": models.floats(20, 20, 3, 3, seed=5, scale=0.1),
        "up": models.floats(20, 6, 2, 2, seed=7, scale=0.2),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["a", "depth"], ["b"], "b", group=16, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["r"], "r"),
        helper.make_node("Conv", ["r", "groups"], ["c"], "c", group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "point"], ["d"], "d"),
        helper.make_node("Conv", ["d", "wide"], ["e"], "e", pads=[2, 2, 2, 2], dilations=[2, 2]),
        helper.make_node("ConvTranspose", ["e", "up"], ["f"], "f", strides=[2, 2]),
    ]
    return models.model(nodes, {"x": [1, 3, 15, 13]}, ["f"], weights)


def odd_products() -> onnx.ModelProto:
    """Matrix products and a softmax, in odd sizes: packed weights, a batch, a layer of one row."""
    weights = {"w": models.floats(21, 18, seed=1), "v": models.floats(18, 5, seed=2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "a"),
        helper.make_node("Transpose", ["a"], ["t"], "t", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "t"], ["s"], "s"),
        helper.make_node("Softmax", ["s"], ["p"], "p", axis=-1),
        helper.make_node("MatMul", ["p", "a"], ["o"], "o"),
        helper.make_node("ReduceMean", ["o"], ["m"], "m", axes=[0, 1], keepdims=0),
        helper.make_node("Unsqueeze", ["m", "zero"], ["u"], "u"),
        helper.make_node("MatMul", ["u", "v"], ["y"], "y"),
    ]
    weights["zero"] = np.array([0])
    return models.model(nodes, {"x": [2, 7, 21]}, ["y"], weights)


def checked(mlc, folder: Path, proto: onnx.ModelProto, target: str) -> dict:
    models.save(proto, folder, "net.onnx")
    said = mlc("compile", "net.onnx", "--target", target, cwd=folder)
    assert "mlc verify" in said.stderr
    assert "no (this machine cannot run it)" in said.stdout
    done = mlc("verify", "net.mlc", "net.onnx", "--emulate", "--json", "--rounds", 2, cwd=folder)
    result = json.loads(done.stdout)
    assert result["passed"]
    assert result["rounds"] == 2
    assert all(check["cosine"] > 0.999999 for check in result["outputs"])
    return result


@pytest.mark.parametrize("target", ["rpi4", "graviton3"])
def test_small_networks_agree_with_onnx_runtime(mlc, tmp_path, target):
    checked(mlc, tmp_path, models.conv_net(channels=16, size=17), target)
    checked(mlc, tmp_path, odd_convs(), target)
    checked(mlc, tmp_path, odd_products(), target)


def test_a_wrong_result_is_a_mismatch(mlc, tmp_path):
    models.save(models.conv_net(), tmp_path, "net.onnx")
    other = models.conv_net()
    changed = onnx.numpy_helper.from_array(models.floats(5, seed=99), "b3")
    next(t for t in other.graph.initializer if t.name == "b3").CopyFrom(changed)
    models.save(other, tmp_path, "other.onnx")
    mlc("compile", "net.onnx", "--target", "rpi4", cwd=tmp_path)
    done = mlc("verify", "net.mlc", "other.onnx", "--emulate", cwd=tmp_path, check_code=9)
    assert "MISMATCH" in done.stdout


def test_what_cannot_be_emulated_is_refused(mlc, tmp_path, conv):
    done = mlc("verify", conv.artifact, conv.model, "--emulate", cwd=tmp_path, check_code=2)
    assert "64-bit Arm Linux and NVIDIA GPUs" in done.stderr


def test_without_emulate_it_says_how(mlc, tmp_path):
    models.save(models.conv_net(), tmp_path, "net.onnx")
    mlc("compile", "net.onnx", "--target", "rpi4", cwd=tmp_path)
    done = mlc("verify", "net.mlc", "net.onnx", cwd=tmp_path, check_code=7)
    assert "rpi4 (aarch64 linux), and this machine cannot run it" in done.stderr


def test_doctor_knows_what_it_takes(mlc, tmp_path):
    done = mlc("doctor", "--target", "rpi4", "--json", cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert rows["emulator"]["status"] == "ok"
    assert TOOLS.emulator in rows["emulator"]["value"]
    assert rows["linker"]["value"].endswith("aarch64-linux-gnu-g++")


def quantised(folder: Path, activation: str) -> onnx.ModelProto:
    """A small network in 8 bits: odd sizes, three input channels, strides, depthwise, dense."""
    from onnxruntime.quantization import QuantFormat, QuantType

    weights = {
        "first": models.floats(16, 3, 3, 3, seed=1, scale=0.2),
        "depth": models.floats(16, 1, 3, 3, seed=2, scale=0.2),
        "wide": models.floats(20, 16, 3, 3, seed=4, scale=0.1),
        "dense": models.floats(12, 20, seed=5, scale=0.2),
        "last": models.floats(5, 12, seed=6, scale=0.2),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], "a", pads=[1, 1, 1, 1], strides=[2, 1]),
        helper.make_node("Conv", ["a", "depth"], ["b"], "b", group=16, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "wide"], ["d"], "d", pads=[2, 2, 2, 2], dilations=[2, 2]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "e"),
        helper.make_node("Flatten", ["e"], ["f"], "f"),
        helper.make_node("Gemm", ["f", "dense"], ["g"], "g", transB=1),
        helper.make_node("Gemm", ["g", "last"], ["y"], "y", transB=1),
    ]
    return models.quantised(
        models.model(nodes, {"x": [2, 3, 7, 9]}, ["y"], weights), folder,
        quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType[activation], weight_type=QuantType.QInt8,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "activation"),
    [
        ("rpi4", "QUInt8"),
        ("rpi5", "QInt8"),
        pytest.param("arm64", "QInt8", marks=pytest.mark.slow),
        pytest.param("graviton3", "QUInt8", marks=pytest.mark.slow),
    ],
)
def test_a_quantised_network_agrees_with_onnx_runtime(mlc, tmp_path, target, activation):
    result = checked(mlc, tmp_path, quantised(tmp_path, activation), target)
    assert all(check["max_abs"] == 0.0 for check in result["outputs"])  # the integers are the same
    shown = json.loads(mlc("inspect", "net.mlc", "--json", cwd=tmp_path).stdout)
    assert "narrow-products" in json.dumps(shown)


def emulator(folder: Path, script: str) -> dict[str, str]:
    """Return an environment in which this script stands for the emulator ("": there is none)."""
    programs = folder / "programs"
    programs.mkdir()
    compiler = programs / "aarch64-linux-gnu-g++"
    compiler.symlink_to(TOOLS.compiler)
    if script:
        path = programs / "qemu-aarch64-static"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return {"PATH": str(programs)}


def test_a_feature_that_the_emulated_cpu_lacks_is_one_clear_error(mlc, tmp_path):
    models.save(quantised(tmp_path, "QInt8"), tmp_path, "net.onnx")
    mlc("compile", "net.onnx", "--target", "rpi5", cwd=tmp_path)  # its kernels use sdot
    older = emulator(tmp_path, f'shift 2; exec {TOOLS.emulator} -cpu cortex-a72 "$@"')
    done = mlc("verify", "net.mlc", "net.onnx", "--emulate", cwd=tmp_path, env=older, check_code=7)
    assert "does not claim to have dotprod" in done.stderr
    assert "the emulated run failed (exit status -4)" in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("kill -SEGV $$", 7, "the emulated run failed (exit status -11)"),
        ("", 8, "emulating needs qemu-aarch64"),
    ],
)
def test_an_emulator_that_crashes_or_is_not_there(mlc, tmp_path, script, code, message):
    models.save(models.conv_net(), tmp_path, "net.onnx")
    mlc("compile", "net.onnx", "--target", "rpi4", cwd=tmp_path)
    environment = emulator(tmp_path, script)
    done = mlc(
        "verify", "net.mlc", "net.onnx", "--emulate", cwd=tmp_path, env=environment, check_code=code
    )
    assert message in done.stderr
    assert done.stderr.count("error:") == 1


def test_a_missing_cross_linker_names_the_package(mlc, tmp_path):
    models.save(models.conv_net(size=8), tmp_path, "net.onnx")  # not in the cache yet
    nothing = {"PATH": str(tmp_path)}
    done = mlc("compile", "net.onnx", "--target", "rpi4", cwd=tmp_path, env=nothing, check_code=8)
    assert "no linker for aarch64-linux-gnu is installed" in done.stderr
    assert "apt-get install g++-aarch64-linux-gnu" in done.stderr


def test_an_artifact_for_arm_does_not_run_here(mlc, tmp_path):
    models.save(models.conv_net(), tmp_path, "net.onnx")
    mlc("compile", "net.onnx", "--target", "rpi4", cwd=tmp_path)
    done = mlc("run", "net.mlc", "--random", cwd=tmp_path, check_code=7)
    assert "aarch64" in done.stderr
