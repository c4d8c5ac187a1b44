"""The verbs from Python: `import mlc`, then what README and docstrings promise."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
import textwrap

import numpy as np
import onnxruntime
import pytest

import mlc
from mlc import events
from mlc.errors import ArtifactError, MismatchError, ModelError, RunError, TargetError, UsageError
from tests import models

X = models.floats(1, 3, 9, 9, seed=30)
IDS = np.array([[0, 49, 7, 7]])
MASK = np.array([1, 0, 1, 2], np.float32).reshape(1, 4, 1)


@pytest.fixture(scope="module")
def expected(conv) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(conv.model), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def close(array: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)


def looked_up() -> np.ndarray:
    return models.floats(50, 8)[IDS] * MASK


def test_compile_twice(conv, tmp_path):
    seen: list[events.Event] = []
    first = mlc.compile(conv.model, tmp_path / "a.mlc", on_event=seen.append, seed=11)
    second = mlc.compile(str(conv.model), str(tmp_path / "b.mlc"), seed=11)
    assert not first.from_cache
    assert second.from_cache
    assert first.path == tmp_path / "a.mlc"
    assert first.bytes == first.path.stat().st_size
    assert first.seconds > second.seconds > 0
    assert first.verification is not None
    assert first.verification["passed"]
    assert first.manifest == second.manifest
    assert {event.name for event in seen if isinstance(event, events.Stage)} > {"read", "verify"}
    assert first.path.read_bytes() == second.path.read_bytes()


def test_default_output_is_here(conv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = mlc.compile(conv.model)
    assert report.path.resolve() == tmp_path / "conv.mlc"
    assert report.path.is_file()


def test_verbs_stay_functions(conv):
    """A submodule of that name would replace the function once it is imported."""
    assert not set(mlc.__all__) & {module.name for module in pkgutil.iter_modules(mlc.__path__)}
    for _ in range(2):
        assert mlc.verify(conv.artifact, conv.model).passed
        assert "x86-64-v3" in [target.name for target in mlc.targets()]
        assert mlc.inspect(conv.artifact)["kind"] == "artifact"
        timing = mlc.bench(conv.artifact, warmup=0.0, duration=0.01)
        assert timing.mlc.median > 0
    assert all(callable(getattr(mlc, verb)) for verb in mlc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'complie'"):
        _ = mlc.complie


def test_inputs_by_name_and_in_order(conv, two_inputs, expected):
    with mlc.open(conv.artifact) as session:
        assert [str(spec) for spec in session.inputs] == ["x float32[1, 3, 9, 9]"]
        assert [str(spec) for spec in session.outputs] == ["y float32[1, 5]"]
        for inputs in ({"x": X}, [X], (X,), {"x": np.asfortranarray(X)}):
            outputs = session.run(inputs)
            assert list(outputs) == ["y"]
            close(outputs["y"], expected)
    with mlc.open(str(two_inputs.artifact)) as session:
        by_name = session.run({"mask": MASK, "ids": IDS})["y"]
        np.testing.assert_array_equal(by_name, looked_up())
        np.testing.assert_array_equal(session.run([IDS, MASK])["y"], by_name)


def test_outputs_are_fresh(conv, expected):
    with mlc.open(conv.artifact) as session:
        first = session.run([X])["y"]
        kept = first.copy()
        session.run([X + 1])
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
        close(session.run([X])["y"], expected)


@pytest.mark.parametrize(
    ("inputs", "message", "hint"),
    [
        (
            {"x": X[..., :8]},
            r"'x' is float32\[1, 3, 9, 8\], but .* float32\[1, 3, 9, 9\]",
            "--shape",
        ),
        ({"x": X.astype(np.float64)}, r"'x' is float64", "astype"),
        ({"x": X, "z": X}, "no input 'z'", "choices: x"),
        ({}, "'x' is missing", r"x float32\[1, 3, 9, 9\]"),
        ([X, X], "has 1 inputs, 2 were given", "x float32"),
        ([], "has 1 inputs, 0 were given", "x float32"),
        ({"x": "text"}, "'x' is str", "astype"),
    ],
)
def test_wrong_inputs(conv, expected, inputs, message, hint):
    with mlc.open(conv.artifact) as session:
        with pytest.raises(RunError, match=message) as caught:
            session.run(inputs)
        assert re.search(hint, caught.value.hint or "")
        close(session.run([X])["y"], expected)  # a refused input harms nothing


def test_two_artifacts_at_once(conv, two_inputs, expected):
    one, other, same = map(mlc.open, (conv.artifact, two_inputs.artifact, conv.artifact))
    for _ in range(2):
        close(one.run([X])["y"], expected)
        np.testing.assert_array_equal(other.run([IDS, MASK])["y"], looked_up())
        assert not np.allclose(same.run([X + 1])["y"], expected)
        close(one.output_views[0], expected)  # its own buffer, not that of `same`
    one.close()
    np.testing.assert_array_equal(other.run([IDS, MASK])["y"], looked_up())
    close(same.run([X])["y"], expected)
    other.close()
    close(same.run([X])["y"], expected)
    same.close()
    with mlc.open(conv.artifact) as again:
        close(again.run([X])["y"], expected)


def test_an_artifact_may_go_while_it_is_open(conv, expected, tmp_path):
    copy = tmp_path / "copy.mlc"
    copy.write_bytes(conv.artifact.read_bytes())
    with mlc.open(copy) as session:
        copy.unlink()
        close(session.run([X])["y"], expected)


def test_a_closed_session_refuses(conv):
    session = mlc.open(conv.artifact)
    session.close()
    session.close()
    for use in (lambda: session.run([X]), session.run_in_place):
        with pytest.raises(RunError, match="closed"):
            use()


def test_threads(conv, environment, tmp_path):
    """In an interpreter of its own: the thread pool belongs to the process."""
    script = f"""
        import numpy as np, mlc
        from mlc.runtime.session import threads_in_use
        x = np.ones((1, 3, 9, 9), np.float32)
        outputs = []
        for threads in (2, 1):
            with mlc.open({str(conv.artifact)!r}, threads=threads) as session:
                assert threads_in_use() == threads, (threads_in_use(), threads)
                outputs.append(session.run([x])["y"])
        assert all(np.allclose(outputs[0], y, rtol=1e-5) for y in outputs)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=60)


def test_verify_finds_a_difference(conv, tmp_path):
    proto = models.conv_net()
    bias = next(t for t in proto.graph.initializer if t.name == "b3")
    values = np.frombuffer(bias.raw_data, np.float32) + np.float32([0, 0, 0.1, 0, 0])
    bias.raw_data = values.tobytes()
    other = models.save(proto, tmp_path)
    seen: list[events.Event] = []
    result = mlc.verify(conv.artifact, other, on_event=seen.append, rounds=2)
    assert not result.passed
    assert result.outputs[0].max_abs == pytest.approx(0.1, rel=1e-3)
    assert "is not the file" in str(seen)


def test_verify_refuses_a_model_with_other_names(conv, two_inputs):
    with pytest.raises(MismatchError, match=r"x, y.*ids, mask, y"):
        mlc.verify(conv.artifact, two_inputs.model)


def test_errors_have_message_hint_and_code(conv, tmp_path):
    cases = [
        (lambda: mlc.compile(tmp_path / "none.onnx", tmp_path / "a.mlc"), ModelError, 3),
        (lambda: mlc.compile(conv.model, tmp_path / "a.mlc", target="z80"), TargetError, 4),
        (lambda: mlc.compile(conv.model, tmp_path / "a.mlc", opt_level=9), UsageError, 2),
        (lambda: mlc.compile(conv.model, tmp_path / "a.mlc", shapes=("x",)), UsageError, 2),
        (lambda: mlc.open(tmp_path / "none.mlc"), ArtifactError, 7),
        (lambda: mlc.open(conv.model), ArtifactError, 7),
        (lambda: mlc.bench(conv.artifact, against="torch"), UsageError, 2),
    ]
    for use, kind, code in cases:
        with pytest.raises(kind) as caught:
            use()
        assert caught.value.message
        assert caught.value.hint
        assert caught.value.exit_code == code
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="optlevel"):
        mlc.compile(conv.model, tmp_path / "a.mlc", optlevel=1)
