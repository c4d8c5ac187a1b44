"""Whole commands, run as a user would; two artifacts that most tests look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import onnx
import pytest
from onnx import helper

from mlc import tvm_env
from tests import models

TIMEOUT_S = 300
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import it without mlc

Done = subprocess.CompletedProcess[str]


class Command(Protocol):
    def __call__(
        self,
        *args: object,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        check_code: int = 0,
    ) -> Done: ...


class Compiled(NamedTuple):
    """An artifact, the model it is from, and what `mlc compile --json` said."""

    model: Path
    artifact: Path
    report: dict[str, Any]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of every command: the cache folder that `own_cache` uses, no colours."""
    cache = tmp_path_factory.getbasetemp() / "mlc-cache"
    return {**os.environ, "MLC_CACHE_DIR": str(cache), "NO_COLOR": "1", "COLUMNS": "120"}


@pytest.fixture(scope="session")
def mlc(environment: dict[str, str]) -> Command:
    """Run `mlc ARGS`; check its exit code, and that no user would meet a traceback."""

    def run(
        *args: object, cwd: Path, env: Mapping[str, str] | None = None, check_code: int = 0
    ) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "mlc", *map(str, args)],
            cwd=cwd,
            env={**environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        said = f"mlc {' '.join(map(str, args))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == check_code, said
        assert "Traceback" not in done.stderr, said
        return done

    return run


@pytest.fixture(scope="session", autouse=True)
def whole_tvm() -> None:
    """Tests of other folders may follow in this process, and the runtime alone cannot grow."""
    tvm_env.tvm()


def lookup_net() -> onnx.ModelProto:
    """Two inputs: rows of a table of 50 by int64 `ids`, times a float32 `mask`."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "look-up"),
        helper.make_node("Mul", ["rows", "mask"], ["y"], "hide"),
    ]
    return models.model(
        nodes,
        {"ids": [1, 4], "mask": [1, 4, 1]},
        ["y"],
        {"table": models.floats(50, 8)},
        types={"ids": onnx.TensorProto.INT64},
    )


@pytest.fixture(scope="session")
def compiled(
    mlc: Command, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, onnx.ModelProto], Compiled]:
    """Compile a model in a folder of its own, without the cache."""

    def run(name: str, proto: onnx.ModelProto) -> Compiled:
        folder = tmp_path_factory.mktemp(name)
        model = models.save(proto, folder, f"{name}.onnx")
        done = mlc("compile", model.name, "--no-cache", "--json", cwd=folder)
        return Compiled(model, folder / f"{name}.mlc", json.loads(done.stdout))

    return run


@pytest.fixture(scope="session")
def conv(compiled: Callable[[str, onnx.ModelProto], Compiled]) -> Compiled:
    """`models.conv_net`: float32 x [1, 3, 9, 9] to y [1, 5]."""
    return compiled("conv", models.conv_net())


@pytest.fixture(scope="session")
def two_inputs(compiled: Callable[[str, onnx.ModelProto], Compiled]) -> Compiled:
    """`lookup_net`: int64 ids [1, 4] and float32 mask [1, 4, 1] to y [1, 4, 8]."""
    return compiled("two", lookup_net())
