"""Shared by the tests that need TVM: compile in this process, and compare with a reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mlc import artifact, build, driver, tvm_env
from mlc.cache import Cache
from mlc.codegen.kernels import Settings
from mlc.events import ignore
from mlc.frontend import load as imports
from mlc.frontend import onnx_file, shapes
from mlc.model import Model, TensorSpec
from mlc.options import CompileOptions
from mlc.passes.run import optimize
from mlc.runtime import inputs
from mlc.runtime import session as sessions
from mlc.target import resolve
from mlc.tune.dispatch import dispatch_context
from tests import models

Array = np.ndarray
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@dataclass(frozen=True)
class Compiled:
    """An artifact that `mlc.driver` made, and what it said about it."""

    path: Path
    manifest: dict[str, Any]

    def run(self, *feeds: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Return the outputs for each feed, all run in one session."""
        with sessions.open(self.path) as session:
            return [session.run(feed) for feed in feeds]

    def feed(self, seed: int = 0) -> dict[str, Array]:
        """Return random inputs that fit."""
        entries = self.manifest["signature"]["inputs"]
        specs = [TensorSpec(**{**entry, "shape": tuple(entry["shape"])}) for entry in entries]
        return inputs.random(specs, seed, self.manifest["index_bounds"])


Compile = Callable[..., Compiled]


@pytest.fixture(scope="session")
def tvm() -> Any:
    return tvm_env.tvm()


@pytest.fixture(scope="session")
def quick_target() -> str:
    """This machine, with LLVM told to hurry: graphs and schedules are the same, code is not."""
    return f"{resolve('llvm').tvm} -opt-level=0"


@pytest.fixture
def compiled(tmp_path: Path, tvm: Any, quick_target: str) -> Compile:
    """Return a function that compiles an ONNX model through the real stages, in this process."""

    def compile_model(proto: onnx.ModelProto, **options: Any) -> Compiled:
        on_event = options.pop("on_event", ignore)
        folder = tmp_path / f"compiled{len(list(tmp_path.iterdir()))}"
        logs = folder / "logs"  # not the ones of this checkout
        logs.mkdir(parents=True)
        model, artifact = folder / "model.onnx", folder / "model.mlc"
        model.write_bytes(proto.SerializeToString())
        defaults = {"target": quick_target, "verify": False, "jobs": 1, "logs": str(logs)}
        asked = CompileOptions(model=str(model), output=str(artifact), **{**defaults, **options})
        report = driver.compile_model(asdict(asked), on_event)
        return Compiled(artifact, report["manifest"])

    return compile_model


def reference(proto: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs by onnx's own reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    names = [output.name for output in proto.graph.output]
    values = ReferenceEvaluator(proto).run(None, dict(feed))
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def assert_same(ours: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Fail unless names, shapes, dtypes and (floats within rounding) values agree."""
    assert list(ours) == list(expected)
    for name, array in ours.items():
        assert (array.shape, array.dtype) == (expected[name].shape, expected[name].dtype), name
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
            continue
        finite = expected[name][np.isfinite(expected[name])]
        scale = max(1.0, float(np.max(np.abs(finite), initial=0.0)))
        np.testing.assert_allclose(
            array, expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name
        )


@pytest.fixture
def check(compiled: Compile) -> Compile:
    """Return a function that compiles a model and compares a run with onnx's reference."""

    def check(
        proto: onnx.ModelProto, *, feed: Any = None, seed: int = 0, **options: Any
    ) -> Compiled:
        made = compiled(proto, **options)
        given = made.feed(seed) if feed is None else feed
        (outputs,) = made.run(given)
        assert_same(outputs, reference(proto, given))
        return made

    return check


@pytest.fixture
def execute(tmp_path: Path, tvm: Any, quick_target: str) -> Callable[..., dict[str, Array]]:
    """Return a function that runs a `Model` through passes, code generation and a session."""

    def run(model: Model, feed: Mapping[str, Array], level: int = 1) -> dict[str, Array]:
        chosen = resolve(quick_target if level else "llvm")
        llvm = build.tvm_target(chosen, level)
        dispatch = dispatch_context(lambda _workload: None)
        settings = Settings(target=llvm, level=level, dispatch=dispatch)
        with dispatch:
            fused = optimize(model, llvm, level)
        library = build.build(fused, settings, Cache(None), 1, ignore)
        path = tmp_path / f"executed{len(list(tmp_path.iterdir()))}.mlc"
        artifact.save(build.contents(fused, library, chosen, llvm, {}), path)
        with sessions.open(path) as session:
            return session.run(feed)

    return run


@pytest.fixture
def converted(tmp_path: Path, tvm: Any) -> Callable[..., Model]:
    """Return a function that converts an ONNX model as it stands: nothing simplified before."""

    def convert_model(proto: onnx.ModelProto) -> Model:
        from mlc.frontend import convert

        path = tmp_path / "converted.onnx"
        path.write_bytes(proto.SerializeToString())
        fixed = shapes.fix(onnx_file.read(path), shapes.parse([]), ignore)
        return convert.convert(fixed)

    return convert_model


@pytest.fixture
def check_conversion(converted: Any, execute: Any) -> Callable[..., None]:
    """Return a function that compares a converted model with onnx's reference evaluator."""

    def check(proto: onnx.ModelProto, feed: Mapping[str, Array], level: int = 1) -> None:
        assert_same(execute(converted(proto), feed, level), reference(proto, feed))

    return check


@pytest.fixture
def load(tmp_path: Path, tvm: Any) -> Callable[[onnx.ModelProto], Model]:
    """Return a function that imports an ONNX model."""

    def load(proto: onnx.ModelProto) -> Model:
        model = imports.load(onnx_file.read(models.save(proto, tmp_path)), (), ignore)
        assert isinstance(model, Model)
        return model

    return load


@pytest.fixture(scope="session")
def interpret(tvm: Any) -> Callable[..., list[Array]]:
    """Return a function that runs a Relay module by TVM's own path, nothing optimised."""
    from tvm import relay
    from tvm.contrib import graph_executor

    def run(module: Any, *arrays: Array) -> list[Array]:
        with tvm.transform.PassContext(opt_level=0):
            library = relay.build(module, "llvm -opt-level=0")
        executor = graph_executor.GraphModule(library["default"](tvm.cpu()))
        for parameter, array in zip(module["main"].params, arrays, strict=True):
            executor.set_input(parameter.name_hint, array)
        executor.run()
        return [executor.get_output(k).numpy() for k in range(executor.get_num_outputs())]

    return run


def text_of(module: Any) -> str:
    """Return a module as Relay text with types, without the places that it was parsed from."""
    text = module.astext(show_meta_data=False).partition("\n/* For debugging")[0]
    return re.sub(r" span=[^ ]+", "", text).strip() + "\n"


def calls_of(module: Any, operator: str = "") -> list[Any]:
    """Return the operator calls in `main`, kernels looked into, in the order they are computed."""
    from tvm import ir, relay

    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, relay.Call) and isinstance(node.op, ir.Op):
            found.append(node)

    relay.analysis.post_order_visit(module["main"], visit)
    return [call for call in found if operator in ("", call.op.name)]


def typed(expr_or_module: Any) -> Any:
    """Return a typed module of an expression (or of a module)."""
    from tvm import IRModule, relay

    is_module = isinstance(expr_or_module, IRModule)
    module = expr_or_module if is_module else IRModule.from_expr(expr_or_module)
    return relay.transform.InferType()(module)


def shape_of(kind: Any) -> Sequence[int]:
    return tuple(int(size) for size in kind.shape)
