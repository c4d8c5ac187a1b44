"""`mlc bench` on a tiny model: what comes back, never how fast it was."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from mlc import isolate
from mlc.artifact import read_manifest
from mlc.cli.bench import bench as command
from mlc.errors import ArtifactError, ModelError, RunError, UsageError
from mlc.events import Notice, Stage
from mlc.options import BenchOptions, CompileOptions
from mlc.runtime import bench as benching
from mlc.runtime.profile import profile
from mlc.runtime.session import open as open_session

BATCH, SIZE, ROWS = 2, 8, 5
SHORT = {"duration": 0.05, "warmup": 0.0}


def save_model(path, output="y"):
    """Three convolutions, two of them the same kernel, and a row looked up by an index."""
    rng = np.random.default_rng(0)
    weights = {"table": rng.standard_normal((ROWS, SIZE)).astype(np.float32)}
    nodes = []
    for k, source in enumerate(("x", "r0", "r1")):
        weights[f"w{k}"] = rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"w{k}"], [f"c{k}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"]))
    nodes.append(helper.make_node("Gather", ["table", "row"], ["picked"]))
    nodes.append(helper.make_node("Add", ["r2", "picked"], [output]))
    shape = [BATCH, 4, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("row", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    model = save_model(folder / "tiny.onnx")
    output = folder / "tiny.mlc"
    options = CompileOptions(model=str(model), output=str(output), cache=False, jobs=1)
    isolate.call("mlc.driver:compile_model", options)
    return output, model


def options_for(tiny, **asked):
    return BenchOptions(artifact=str(tiny[0]), **{**SHORT, **asked})


def test_alone(tiny):
    events = []
    result = benching.bench(options_for(tiny, threads=1), events.append)
    assert (result.threads, result.batch, result.seed) == (1, BATCH, 0)
    assert result.mlc.runs >= benching.MIN_RUNS
    assert 0 < result.mlc.min <= result.mlc.median <= result.mlc.p90 <= result.mlc.max
    assert (result.peer, result.comparison, result.profile) == (None, None, None)
    assert [e.name for e in events if isinstance(e, Stage)] == ["warm-up", "measure"]


def test_at_least_five_runs(tiny):
    result = benching.bench(options_for(tiny, duration=1e-9))
    assert result.mlc.runs >= benching.MIN_RUNS


def test_against_onnxruntime(tiny):
    result = benching.bench(options_for(tiny, against="onnxruntime", model=str(tiny[1])))
    assert result.peer.name.startswith("onnxruntime ")
    assert result.comparison.peer == result.peer.name
    assert 0 < result.comparison.low <= result.comparison.ratio <= result.comparison.high
    assert result.comparison.pairs >= 2 * benching.MIN_RUNS - 1
    assert result.peer.name in result.comparison.verdict
    json.dumps(result.to_json())


def test_profile_accounts_for_every_call(tiny):
    kernels = benching.bench(options_for(tiny, profile=True)).profile
    manifest = read_manifest(tiny[0])["kernels"]
    assert {k.symbol: k.calls for k in kernels} == {s: f["calls"] for s, f in manifest.items()}
    assert {k.symbol: list(k.operators) for k in kernels} == {
        symbol: facts["operators"] for symbol, facts in manifest.items()
    }
    assert max(k.calls for k in kernels) == 3  # the convolutions are equal
    assert sum(k.share for k in kernels) == pytest.approx(1)
    assert [k.seconds for k in kernels] == sorted((k.seconds for k in kernels), reverse=True)
    for kernel in kernels:  # the smallest may take less than what a call costs
        unknown = manifest[kernel.symbol]["flops"] == 0 or kernel.seconds == 0
        assert (kernel.gflops is None) == unknown


def test_profile_leaves_the_session_as_it_is(tiny):
    with open_session(tiny[0]) as session:
        before = [view.copy() for view in session.output_views]
        profile(session, 0.0)
        for view, old in zip(session.output_views, before, strict=True):
            np.testing.assert_array_equal(view, old)
    with pytest.raises(RunError, match="closed"):
        profile(session, 0.0)


def test_profile_runs_what_the_session_runs(tiny):
    # The kernels' own results: the debug executor must see the session's inputs and weights.
    from mlc.runtime import profile as profiling
    from mlc.runtime.session import executor, numpy_view

    with open_session(tiny[0]) as session:
        x = np.random.default_rng(1).standard_normal(session.inputs[0].shape, np.float32)
        expected = session.run({"x": x, "row": np.array([ROWS - 1])})["y"]
        debugger = executor(session._artifact, "tvm.graph_executor_debug.create")
        profiling._copy_inputs(session, debugger)
        debugger["run"]()
        result = numpy_view(debugger["get_output"](0), session.outputs[0])
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("asked", [{}, {"against": "onnxruntime"}])
def test_json(tiny, asked):
    arguments = [str(tiny[0]), "--duration", "0.05", "--warmup", "0", "--profile", "--json"]
    if asked:
        arguments += ["--against", "onnxruntime", "--model", str(tiny[1])]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    data = json.loads(result.stdout.splitlines()[-1])
    assert data["mlc"]["runs"] >= benching.MIN_RUNS
    assert (data["comparison"] is not None) == bool(asked)
    assert sum(kernel["share"] for kernel in data["profile"]) == pytest.approx(1)
    assert data["peak_gflops"] > 0


def test_tables(tiny):
    arguments = [str(tiny[0]), "--duration", "0.05", "--warmup", "0", "--profile"]
    arguments += ["--against", "onnxruntime", "--model", str(tiny[1])]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for word in ("median", "samples/s", "onnxruntime", "times as fast", "GFLOP/s", "share"):
        assert word in result.stdout


def test_another_model_is_noticed(tiny, tmp_path):
    model = onnx.load(tiny[1])
    model.doc_string = "the same graph in another file"
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    events = []
    benching.bench(options_for(tiny, against="onnxruntime", model=str(other)), events.append)
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert any("is not the file that the artifact was compiled from" in text for text in notices)


def test_another_models_outputs_do_not_fit(tiny, tmp_path):
    other = save_model(tmp_path / "other.onnx", output="z")
    with pytest.raises(RunError, match="has no output y"):
        benching.bench(options_for(tiny, against="onnxruntime", model=str(other)))


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ({"against": "onnxrunetime", "model": "m"}, UsageError, "did you mean 'onnxruntime'"),
        ({"against": "onnxruntime"}, UsageError, "--model tiny.onnx"),
        ({"against": "onnxruntime", "model": "no.onnx"}, ModelError, ".onnx"),
        ({"artifact": "no.mlc"}, ArtifactError, "mlc compile"),
    ],
)
def test_errors_say_what_to_do(tiny, asked, error, text):
    with pytest.raises(error) as caught:
        benching.bench(BenchOptions(**{"artifact": str(tiny[0]), **SHORT, **asked}))
    assert text in caught.value.hint
