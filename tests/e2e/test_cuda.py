"""`mlc compile --target cuda --arch sm_80` and what follows, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlc.errors import MissingToolError
from mlc.gpu import ptxas
from tests import models


@pytest.fixture(scope="module")
def compiled(mlc, tmp_path_factory):
    """A folder with a model, `net.onnx`, and its artifact for an A100."""
    try:
        ptxas.find()
    except MissingToolError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    folder = tmp_path_factory.mktemp("cuda")
    models.save(models.conv_net(), folder, "net.onnx")
    done = mlc("compile", "net.onnx", "--target", "cuda", "--arch", "sm_80", cwd=folder)
    assert "--emulate" in done.stderr
    assert "no (this machine cannot run it)" in done.stdout
    return folder


def test_it_agrees_with_onnx_runtime_in_the_simulator(mlc, compiled):
    done = mlc("verify", "net.mlc", "net.onnx", "--emulate", "--json", cwd=compiled)
    assert json.loads(done.stdout)["passed"]


def test_another_model_is_a_mismatch(mlc, compiled):
    models.save(models.conv_net(channels=8, size=9, batch=1), compiled, "same.onnx")
    other = models.conv_net()
    next(t for t in other.graph.initializer if t.name == "b3").raw_data = models.floats(
        5, seed=99
    ).tobytes()
    models.save(other, compiled, "other.onnx")
    mlc("verify", "net.mlc", "other.onnx", "--emulate", cwd=compiled, check_code=9)


def test_inspect_shows_what_kernels_take(mlc, compiled):
    found = json.loads(mlc("inspect", "net.mlc", "--json", cwd=compiled).stdout)
    assert found["verification"] is None
    for kernel in found["kernels"]:
        for taken in kernel["resources"].values():
            assert taken["registers"] > 0
            assert taken["spill_bytes"] == 0
    shown = mlc("inspect", "net.mlc", cwd=compiled).stdout
    assert "registers a thread, bytes spilled, shared memory a block" in shown


def test_equal_inputs_give_equal_bytes(mlc, compiled):
    mlc("compile", "net.onnx", "-t", "cuda:sm_80", "--no-cache", "-o", "b.mlc", cwd=compiled)
    assert (compiled / "b.mlc").read_bytes() == (compiled / "net.mlc").read_bytes()


def test_the_passes_for_cpus_do_not_run(mlc, compiled):
    done = mlc("inspect", "net.onnx", "-t", "a100", "--passes", "--json", cwd=compiled)
    rows = {row["name"]: row for row in json.loads(done.stdout)["passes"]}
    for name in ("winograd", "alter-layout", "pack-dense-weights", "fast-math"):
        assert (rows[name]["ran"], rows[name]["what"]) == (False, "for CPUs only")
    assert rows["fuse-operators"]["ran"]


def test_a_kernel_is_shown_as_ptx(mlc, compiled):
    mlc("inspect", "net.onnx", "-t", "a100", "--dump-ir", "ir", cwd=compiled)
    (code,) = (compiled / "ir" / "kernels").glob("*/kernel.ptx")
    assert ".visible .entry mlc_conv2d" in code.read_text()


def test_running_it_needs_a_driver(mlc, compiled):
    done = mlc("run", "net.mlc", "--random", cwd=compiled, check_code=7)
    assert "--device cuda" in done.stderr
    if not Path("/dev/nvidia0").exists():
        done = mlc("run", "net.mlc", "--random", "--device", "cuda", cwd=compiled, check_code=8)
        assert "running on a GPU needs one" in done.stderr
        done = mlc("bench", "net.mlc", "--device", "cuda", cwd=compiled, check_code=8)
        assert "running on a GPU needs one" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--target", "cuda"], 4, "the target cuda needs --arch"),
        (["--target", "cuda", "--arch", "sm_81"], 4, "did you mean 'sm_8"),
        (["--arch", "sm_80"], 2, "--arch goes with --target cuda"),
    ],
)
def test_wrong_architectures_are_refused(mlc, tmp_path, words, code, said):
    models.save(models.conv_net(), tmp_path, "net.onnx")
    assert said in mlc("compile", "net.onnx", *words, cwd=tmp_path, check_code=code).stderr


def test_tuning_without_a_device_is_refused(mlc, tmp_path):
    models.save(models.conv_net(), tmp_path, "net.onnx")
    done = mlc("tune", "net.onnx", "--target", "a100", cwd=tmp_path, check_code=4)
    assert "times are not invented" in done.stderr
    assert "mlc rpc server --device cuda" in done.stderr
    assert "mlc tune net.onnx --target cuda --arch sm_80 --tracker" in done.stderr
    assert "--records FILE" in done.stderr
