"""The recurrent operator of ours, against ONNX Runtime: odd sizes, tails of vectors, directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlc.emulate.cuda import SimulatedSession
from mlc.errors import BuildError, MissingToolError
from mlc.gpu import ptxas
from mlc.passes.recurrent import MAX_STEPS
from mlc.schedules.recurrent import GATES, NAME
from tests import models
from tests.compiler.conftest import assert_same, calls_of
from tests.compiler.test_microsoft import expected

f = models.floats

# steps, batch, width, hidden: less than a vector, with a tail, whole ones, rows by 4 and 2, threads;
# one and more panels of as many vectors as registers hold, with a rest, there and back.
SIZES = [(3, 1, 2, 1), (4, 2, 3, 5), (3, 4, 8, 16), (5, 3, 7, 37), (2, 6, 9, 24), (2, 1, 4, 300),
         (5, 1, 4, 70), (4, 1, 2, 131)]  # fmt: skip
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def layer(operator: str, size: tuple[int, ...], **attributes: Any) -> Any:
    """Return a model of a layer that starts from given states, and its inputs."""
    steps, batch, width, hidden = size
    count, gates = DIRECTIONS[attributes.get("direction", "forward")], GATES[operator]
    scale = np.float32(1 / np.sqrt(hidden))
    feed = {
        "x": f(steps, batch, width), "w": f(count, gates * hidden, width, seed=1),
        "r": f(count, gates * hidden, hidden, seed=2) * scale,
        "b": f(count, 2 * gates * hidden, seed=3), "h": f(count, batch, hidden, seed=4),
        "c": f(count, batch, hidden, seed=5),
    }  # fmt: skip
    if operator != "LSTM":
        del feed["c"]
    if operator == "GRU":
        attributes.setdefault("linear_before_reset", 1)
    names = list(feed)
    names.insert(4, "")  # lengths
    outputs = ["y", "yh", "yc"][: 3 if operator == "LSTM" else 2]
    node = helper.make_node(operator, names, outputs, hidden_size=hidden, **attributes)
    return models.model([node], {n: a.shape for n, a in feed.items()}, outputs), feed


CASES = [*(("LSTM", size) for size in SIZES), ("RNN", SIZES[0]), ("GRU", SIZES[3])]


@pytest.mark.parametrize(("operator", "size"), CASES)
def test_sizes(operator: str, size: tuple[int, ...], converted: Any, execute: Any) -> None:
    proto, feed = layer(operator, size)
    model = converted(proto)
    assert NAME in {call.op.name for call in calls_of(model.module)}
    assert_same(execute(model, feed, 3), expected(proto, feed))


@pytest.mark.parametrize(("operator", "direction"), [("GRU", "reverse"), ("RNN", "bidirectional")])
def test_directions(operator: str, direction: str, converted: Any, execute: Any) -> None:
    proto, feed = layer(operator, (4, 2, 3, 5), direction=direction)
    assert_same(execute(converted(proto), feed, 3), expected(proto, feed))


@pytest.mark.parametrize("operator", ["GRU", "LSTM"])
def test_exact_keeps_the_operators_own_activations(operator: str, compiled: Any) -> None:
    proto, feed = layer(operator, (3, 2, 4, 21))
    artifact = compiled(proto, exact=True)
    assert "fast-math" not in artifact.manifest["passes"]
    assert_same(artifact.run(feed)[0], expected(proto, feed))


def test_large_and_undefined_gates(converted: Any, execute: Any) -> None:
    """Activations end at 0 and 1 where the library's do; NaN stays (ONNX Runtime's LSTM loses it)."""
    proto, feed = layer("LSTM", (3, 2, 3, 20))
    feed["x"] = feed["x"] * np.float32(1e4)
    model = converted(proto)
    assert_same(execute(model, feed, 3), expected(proto, feed))
    feed["x"][1, 0, 0] = np.nan
    undefined = np.isnan(execute(model, feed, 3)["y"])  # [steps, 1, batch, hidden]
    assert undefined[1:, :, 0].all()
    assert not undefined[0].any()
    assert not undefined[:, :, 1].any()


@pytest.mark.parametrize("more", [{"linear_before_reset": 0}, {"activations": ["Relu", "Tanh"]}])
def test_other_layers_are_written_out(more: Any, converted: Any, execute: Any) -> None:
    proto, feed = layer("GRU", (3, 2, 4, 6), **more)
    model = converted(proto)
    assert NAME not in {call.op.name for call in calls_of(model.module)}
    assert_same(execute(model, feed, 3), expected(proto, feed))


# On GPUs: written out, and run by the simulator


@pytest.fixture
def on_gpu(compiled: Any) -> Any:
    """Return a function that compiles a model for a GPU: its manifest, and its outputs."""
    try:
        ptxas.find()
    except MissingToolError as error:
        pytest.skip(f"{error.message}; {error.hint}")

    def run(proto: Any, feed: Any) -> tuple[dict[str, Any], Any]:
        made = compiled(proto, target="cuda:sm_80")
        with SimulatedSession(made.path) as session:
            return made.manifest, session.run(feed)

    return run


GPU_CASES = [("LSTM", (3, 2, 3, 5), "forward"), ("GRU", (4, 3, 2, 17), "reverse"),
             ("RNN", (1, 1, 2, 3), "forward")]  # fmt: skip


@pytest.mark.parametrize(("operator", "size", "direction"), GPU_CASES)
def test_gpus(operator: str, size: tuple[int, ...], direction: str, on_gpu: Any) -> None:
    proto, feed = layer(operator, size, direction=direction)
    manifest, outputs = on_gpu(proto, feed)
    assert "write-out-recurrent" in manifest["passes"]
    assert_same(outputs, expected(proto, feed))


def test_steps_on_gpus_share_their_kernels(on_gpu: Any) -> None:
    few, many = (on_gpu(*layer("LSTM", (steps, 1, 3, 4)))[0] for steps in (3, 6))
    assert len(few["kernels"]) == len(many["kernels"])


def test_layers_with_options_run_on_gpus(on_gpu: Any) -> None:
    proto, feed = layer("GRU", (3, 2, 4, 6), linear_before_reset=0)
    assert_same(on_gpu(proto, feed)[1], expected(proto, feed))


def test_too_many_steps_for_a_gpu(on_gpu: Any) -> None:
    with pytest.raises(BuildError, match="LSTM has 257 steps, and for a GPU at most 256") as found:
        on_gpu(*layer("LSTM", (MAX_STEPS + 1, 1, 2, 3)))
    assert "--target llvm" in str(found.value.hint)
