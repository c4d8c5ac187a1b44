"""What commands load and write: no heavy import before it is needed, nothing outside their place."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from onnx import helper

from mlc import cpu
from mlc.artifact import MADE, read_manifest
from tests import models

HEAVY = {"numpy", "onnx", "onnxruntime", "rich", "torch", "tvm", "xgboost"}


def imported(environment: dict[str, str], cwd: Path, *command: str) -> set[str]:
    """Return the modules that `python -X importtime COMMAND` imports, with dots."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {row.rpartition("|")[2].strip() for row in rows}


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize(
    "command",
    [
        ("-c", "import mlc; mlc.__version__, mlc.__all__"),
        ("-m", "mlc", "--help"),
        ("-m", "mlc", "--version"),
        ("-m", "mlc", "compile", "--help"),
    ],
    ids=lambda command: command[-1],
)
def test_nothing_heavy_is_imported(environment, tmp_path, command):
    modules = imported(environment, tmp_path, *command)
    assert "mlc" in modules  # the listing works
    assert not packages(modules) & HEAVY


def test_targets_need_no_tvm(environment, tmp_path):
    modules = imported(environment, tmp_path, "-m", "mlc", "targets", "--json")
    assert "mlc.target" in modules
    assert not packages(modules) & HEAVY


def test_running_needs_no_python_package_of_tvm(conv, environment, tmp_path):
    command = ("-m", "mlc", "run", str(conv.artifact), "--random")
    modules = imported(environment, tmp_path, *command)
    assert "mlc.runtime.tvm_runtime" in modules
    assert not packages(modules) & (HEAVY - {"numpy"})


def test_weights_are_made_without_it(compiled, environment, tmp_path):
    weights = {"w": models.floats(32, 32, 3, 3, scale=0.1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])]
    proto = models.model(nodes, {"x": [1, 32, 24, 24]}, ["y"], weights)
    path = compiled("winograd", proto).artifact
    if cpu.host_cpu().arch == "x86_64":
        assert read_manifest(path)["format"] == MADE
    modules = imported(environment, tmp_path, "-m", "mlc", "run", str(path), "--random")
    assert not packages(modules) & (HEAVY - {"numpy"})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_the_runtime_library_is_mapped(conv, environment, tmp_path):
    script = f"""
        import json, sys, mlc
        with mlc.open({str(conv.artifact)!r}):
            maps = open("/proc/self/maps").read()
        names = {{line.rpartition("/")[2] for line in maps.splitlines() if "/" in line}}
        print(json.dumps({{"tvm": "tvm" in sys.modules, "names": sorted(names)}}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["tvm"] is False
    assert "libtvm_runtime.so" in found["names"]
    assert not [name for name in found["names"] if name.startswith(("libtvm.so", "libLLVM"))]


def test_home_and_temporary_folder_stay_empty(conv, environment, tmp_path):
    """ONNX Runtime's telemetry would write to both folders, TVM's import to the home."""
    folders = {name: tmp_path / name for name in ("home", "tmp", "here")}
    for folder in folders.values():
        folder.mkdir()
    # In CI, and where it is switched off, telemetry would not show.
    hiding = ("CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    env = {name: value for name, value in environment.items() if name not in hiding}
    env |= {"HOME": str(folders["home"]), "TMPDIR": str(folders["tmp"])}
    for verb in (
        ("compile", conv.model, "--no-cache", "-o", "a.mlc"),
        ("verify", "a.mlc", conv.model),
    ):
        command = [sys.executable, "-m", "mlc", *map(str, verb)]
        subprocess.run(command, cwd=folders["here"], env=env, check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*folders, "a.mlc"])


def test_an_interrupt_while_the_command_loads_leaves_no_traceback(environment, tmp_path):
    script = """
        import signal, sys
        import mlc.__main__
        early = signal.getsignal(signal.SIGINT)
        sys.argv = ["mlc", "--version"]
        try:
            mlc.__main__.main()
        except SystemExit:
            late = signal.getsignal(signal.SIGINT)
        assert (early, late) == (signal.SIG_DFL, signal.default_int_handler), (early, late)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, cwd=tmp_path, env=environment, timeout=60, check=True)
