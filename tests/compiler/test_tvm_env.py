"""The door to TVM, and whether each work-around behind it is still needed.

A test that says "still needed" runs TVM bare: when it fails, TVM (or onnx) has changed and the
work-around that its docstring names can go. Those of single passes stand in `test_passes.py`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mlc import tvm_env
from mlc.errors import MissingToolError, MlcError
from mlc.frontend.operators import OWN, stock_table
from mlc.passes.fold import fold_module
from tests import models
from tests.compiler.conftest import calls_of, typed

node = helper.make_node
ROOT = str(Path(__file__).resolve().parents[2])


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which nothing of TVM was set up."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("TVM_", "TOPHUB_", "TEST_DATA"))
    }
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT,
        timeout=60, env={**clean, **environment},
    )  # fmt: skip


# --- the two ways in -----------------------------------------------------------------------------


def test_the_runtime_is_small_and_silent() -> None:
    code = (
        "import sys; from mlc import tvm_env; module = tvm_env.runtime(); "
        "print(hasattr(module, 'relay'), 'onnx' in sys.modules, tvm_env.runtime() is module)"
    )
    done = python(code)
    assert (done.stdout.split(), done.stderr, done.returncode) == (
        ["False", "False", "True"],
        "",
        0,
    )


def test_a_process_with_the_runtime_cannot_compile_and_says_so() -> None:
    code = (
        "from mlc import errors, tvm_env\ntvm_env.runtime()\n"
        "try:\n    tvm_env.tvm()\nexcept errors.MissingToolError as error:\n    print(error.message)"
    )
    assert "holds TVM's runtime only" in python(code).stdout


def test_a_process_with_the_compiler_runs_with_it(tvm: Any) -> None:
    assert tvm_env.runtime() is tvm
    assert hasattr(tvm, "relay")
    assert "TVM_USE_RUNTIME_LIB" not in os.environ


@pytest.mark.parametrize("found", ["0.20.0", None])
def test_another_tvm_is_refused_with_the_command_to_run(
    found: str | None, monkeypatch: Any
) -> None:
    def version(name: str) -> str:
        assert name == tvm_env.DISTRIBUTION
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(MissingToolError, match=found or "it is not installed") as caught:
        tvm_env.check_version.__wrapped__()
    assert f"pip install {tvm_env.DISTRIBUTION}=={tvm_env.VERSION}" in (caught.value.hint or "")


def test_the_installed_tvm_is_the_one_that_pyproject_names() -> None:
    tvm_env.check_version.__wrapped__()
    text = (Path(ROOT) / "pyproject.toml").read_text()
    assert f'"{tvm_env.DISTRIBUTION}=={tvm_env.VERSION}"' in text
    assert set(tvm_env.versions()) == {"tvm", "llvm"}


def test_loggers_are_quiet(tvm: Any) -> None:
    assert not logging.getLogger("te_compiler").isEnabledFor(logging.WARNING)
    assert not logging.getLogger("autotvm").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Traceback\n  1: f()\nInternalError: Check failed: (a) is false: why", "Check failed: (a) is false: why"),
        ("Check failed: (a) is false: first\n  at frame\n", "Check failed: (a) is false: first"),
        ("error: bad type\nnote", "bad type"),
        ("plain", "plain"),
        ("", "ValueError"),
        ("DiagnosticError: one or more error diagnostics were emitted", "do not fit together"),
        ("x" * 900, "x" * 500),
    ],
)  # fmt: skip
def test_the_telling_line_of_an_exception_is_found(text: str, reason: str) -> None:
    assert tvm_env.reason(ValueError(text)).endswith(reason)
    assert len(tvm_env.reason(ValueError(text))) <= 500


# --- still needed: tvm_env -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """TVM imported with nothing set up, and a type looked up; the home of that process."""
    home = tmp_path_factory.mktemp("home")
    return home, python("import tvm.relay.frontend.onnx as f; f.get_type(1)", HOME=str(home))


def test_onnx_mapping_is_still_gone_and_still_asked_for(bare: Any, tvm: Any) -> None:
    """`tvm_env.stand_in_onnx_mapping`."""
    from tvm.relay.frontend import onnx as frontend

    assert bare[1].returncode == 1
    assert "No module named 'onnx.mapping'" in bare[1].stderr
    assert frontend.get_type(1) == "float32"


def test_the_stand_in_knows_every_type(tvm: Any) -> None:
    mapping = sys.modules["onnx.mapping"]
    table = mapping.TENSOR_TYPE_TO_NP_TYPE
    assert table[onnx.TensorProto.FLOAT] == np.float32
    assert table[onnx.TensorProto.BOOL] == np.bool_
    assert onnx.TensorProto.UNDEFINED not in table
    assert mapping.NP_TYPE_TO_TENSOR_TYPE[np.dtype("int64")] == onnx.TensorProto.INT64


def test_a_real_onnx_mapping_would_be_left_alone(monkeypatch: Any) -> None:
    real = object()
    monkeypatch.setitem(sys.modules, "onnx.mapping", real)
    tvm_env.stand_in_onnx_mapping()
    assert sys.modules["onnx.mapping"] is real


def test_tvm_still_announces_its_runtime_on_stderr() -> None:
    """`tvm_env._import_tvm` swallows that line."""
    assert "Loading runtime library" in python("import tvm", TVM_USE_RUNTIME_LIB="1").stderr


def test_tvm_still_makes_a_folder_in_the_home(bare: Any) -> None:
    """`tvm_env._import_tvm` points it elsewhere."""
    assert [path.name for path in bare[0].iterdir()] == [".tvm_test_data"]
    nowhere = python("from mlc import tvm_env; tvm_env.tvm()", HOME="/proc/nowhere")
    assert (nowhere.returncode, nowhere.stderr) == (0, "")


def test_tophub_would_still_be_downloaded(tvm: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """`tvm_env.tvm` sets TOPHUB_LOCATION: nothing may use the network unasked."""
    from tvm.autotvm import tophub

    assert os.environ["TOPHUB_LOCATION"] == "NONE"
    asked: list[Any] = []

    def download(*names: Any) -> None:
        asked.append(names)
        raise ConnectionError("a test asked the network")

    target = tvm.target.Target("llvm")
    monkeypatch.setattr(tophub, "AUTOTVM_TOPHUB_ROOT_PATH", tmp_path)
    monkeypatch.setattr(tophub, "download_package", download)
    with tophub.context(target):
        assert asked == []
    monkeypatch.delenv("TOPHUB_LOCATION")
    with pytest.raises((OSError, tvm.TVMError)), tophub.context(target):
        pass
    assert asked


# --- still needed: the converters ----------------------------------------------------------------


def test_tvms_importer_still_looks_at_the_whole_graph_for_every_node(
    monkeypatch: Any, tvm: Any
) -> None:
    """`frontend.convert` converts node by node; its own test is in `test_convert.py`."""
    from tvm import relay

    sizes: list[int] = []
    original = relay.transform.InferType

    def counted() -> Any:
        def run(module: Any) -> Any:
            sizes.append(len(calls_of(module)))
            return original()(module)

        return run

    nodes = [node("Softmax", [f"x{k}"], [f"x{k + 1}"]) for k in range(12)]
    proto = models.model(nodes, {"x0": [2, 3]}, ["x12"])
    proto.graph.output[0].type.tensor_type.shape.SetInParent()
    monkeypatch.setattr(relay.transform, "InferType", counted)
    relay.frontend.from_onnx(proto)
    assert {7, 8, 9, 10, 11} <= set(sizes)


def test_tvm_still_compiles_every_constant_expression(monkeypatch: Any, tvm: Any) -> None:
    """`passes.fold`, and the `fold_constant` that `frontend.convert` gives TVM's converters."""
    from tvm import relay
    from tvm.relay.backend import te_compiler

    compiled: list[str] = []
    original = te_compiler.select_implementation

    def counted(op: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(op.name)
        return original(op, *args, **kwargs)

    monkeypatch.setattr(te_compiler, "select_implementation", counted)
    array = models.floats(3)
    equal = [relay.add(relay.const(array), relay.const(array)) for _ in range(3)]
    module = typed(relay.Tuple(equal))
    bare = relay.transform.FoldConstant()(module)
    assert compiled == ["add"] * 3
    compiled.clear()
    ours = fold_module(module)
    assert compiled == []
    for field in (*bare["main"].body.fields, *ours["main"].body.fields):
        np.testing.assert_allclose(field.data.numpy(), array * 2, rtol=1e-6)


def test_tvms_converters_fold_with_numpy(tvm: Any, converted: Any) -> None:
    from tvm.relay.frontend import common
    from tvm.relay.frontend import onnx as frontend

    from mlc.frontend import convert

    converted(models.model([node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"]))
    assert common.fold_constant is frontend.fold_constant is convert._fold


STOCK_FAILS = {
    "Cast": (node("Cast", ["x"], ["y"], to=1, saturate=1), {}, 19),
    "Dropout": (node("Dropout", ["x", "r"], ["y"]), {"r": np.array(0.4, np.float32)}, 13),
    "Split": (node("Split", ["x"], ["y", "z"], axis=1, num_outputs=2), {}, 18),
    **{
        name: (node(name, ["x", "a"], ["y"]), {"a": np.array([1])}, 18)
        for name in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare")
    },
}


@pytest.mark.parametrize("operator", STOCK_FAILS)
def test_the_stock_converter_still_fails(operator: str, converted: Any, monkeypatch: Any) -> None:
    """Rows of `frontend.operators.OWN` that TVM cannot do at all (others differ in speed or form)."""
    written, weights, opset = STOCK_FAILS[operator]
    proto = models.model([written], {"x": [3, 5]}, list(written.output), weights, opset=opset)
    converted(proto)
    with monkeypatch.context() as patch:
        patch.delitem(OWN[""], operator)
        with pytest.raises(MlcError, match=f"::{operator}-{opset}"):
            converted(proto)


def test_tvm_still_takes_names_of_microsoft_for_onnxs(tvm: Any) -> None:
    """`frontend.operators._EXCLUDED`: TVM's table knows no domains."""
    ours = set(OWN["com.microsoft"]) & set(stock_table(23))
    assert {"QAttention", "QGemm", "QLinearAdd"} < ours
    assert {"Attention", "Gelu"} < {name for name in ours if onnx.defs.has(name)}
