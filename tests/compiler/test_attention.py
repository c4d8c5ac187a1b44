"""Attention as one kernel: right for odd shapes, masks and any config, found in the graph, tuned."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mlc import target as targets
from mlc.cpu import host_cpu
from mlc.passes.attention import take_attention
from mlc.passes.table import PASSES
from mlc.tune.place import Here
from mlc.tune.trial import shape_of
from tests import models
from tests.compiler.conftest import calls_of

Array = np.ndarray
node = helper.make_node
TEMPLATE = "attention_mlc.x86"

# batch, heads, n, m, d, dv; the mask's shape: tails in every direction, fewer keys than lanes.
CASES = [
    ((1, 3, 197, 197, 8, 16), None),
    ((2, 3, 5, 7, 8, 32), (2, 1, 1, 7)),
    ((1, 2, 19, 33, 9, 16), (1, 2, 19, 33)),
    ((1, 1, 4, 16, 1, 48), (1, 1, 4, 1)),
    ((3, 1, 6, 1, 5, 16), (1, 1, 6, 1)),
    ((1, 2, 4, 1000, 3, 16), (1, 1, 1, 1000)),
]


@pytest.fixture(scope="module", params=["llvm", "x86-64-v3", "x86-64-v2"])
def target(request: pytest.FixtureRequest, tvm: Any) -> Any:
    chosen = targets.resolve(request.param)
    if not targets.runs_on(chosen, host_cpu()):
        pytest.skip(f"this machine cannot run {request.param}")
    return tvm.target.Target(f"{chosen.tvm} -opt-level=0")


def attend(q: Array, k: Array, v: Array, mask: Array | float, scale: float) -> Array:
    """Return attention of [batch, heads, length, width], in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = q @ k.swapaxes(2, 3) * scale + mask
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True) @ v)


def heads_of(x: Array, first: int, heads: int, width: int) -> Array:
    """Return [batch, heads, length, width] out of columns of [batch, length, ...]."""
    cut = x[..., first : first + heads * width]
    return cut.reshape(*x.shape[:2], heads, width).swapaxes(1, 2)


def run(task: Any, config: Any, given: dict[tuple[int, ...], Array]) -> Array:
    """Build a candidate and run it; its arguments are told apart by their shapes."""
    with task.target:
        schedule, tensors = task.instantiate(config)
    module = Here().compile(schedule, tensors, task.target)
    arguments, result = [], None
    for wanted in tensors:
        shape = shape_of(wanted)
        if type(wanted.op).__name__ == "PlaceholderOp":
            arguments.append(Here().tensor(given[shape]))
        else:
            result = Here().tensor(np.full(shape, np.nan, np.float32))
            arguments.append(result)
    module.get_function("candidate")(*arguments)
    assert result is not None
    return np.asarray(result.numpy())


@pytest.mark.parametrize(("sizes", "mask_shape"), CASES)
def test_numbers(target: Any, sizes: tuple[int, ...], mask_shape: tuple[int, ...] | None) -> None:
    from tvm import autotvm
    from tvm.autotvm.task.space import FallbackConfigEntity

    batch, heads, n, m, d, dv = sizes
    q = models.floats(batch, n, heads * d + 3, seed=1)
    k = models.floats(batch, m, heads * d + 1, seed=2)
    v = models.floats(batch, m, heads * dv + 2, seed=3)
    given, mask = {x.shape: x for x in (q, k, v)}, None
    if mask_shape is not None:
        mask = models.floats(*mask_shape, seed=4)
        mask[..., 1::3] = -np.inf
        given[mask.shape] = mask
    assert len(given) == 3 + (mask is not None)
    tensors = [None if x is None else ("TENSOR", x.shape, "float32") for x in (q, k, v, mask)]
    layout = (heads, d, dv, 3, 1, 2)
    task = autotvm.task.create(TEMPLATE, [*tensors, layout, 0.3], target)
    parts = heads_of(q, 3, heads, d), heads_of(k, 1, heads, d), heads_of(v, 2, heads, dv)
    expected = attend(*parts, 0.0 if mask is None else mask, 0.3).swapaxes(1, 2)
    last = task.config_space.get(len(task.config_space) - 1)
    for config in (FallbackConfigEntity(), last):
        ours = run(task, config, given)
        np.testing.assert_allclose(
            ours, expected.reshape(batch, n, heads * dv), rtol=1e-5, atol=2e-6
        )


# -- in a graph --


def graph(
    batch: int = 2, length: int = 5, heads: int = 3, width: int = 16, *,
    mask: tuple[int, ...] | None = None, axis: int = -1, joined: bool = True, scaled: str = "Div",
) -> onnx.ModelProto:  # fmt: skip
    """One matrix holds query, key and value; `joined` heads are side by side in the output."""
    dim = heads * width
    weights: dict[str, Any] = {
        "split": np.array([batch, length, heads, width]), "join": np.array([0, 0, dim]),
        "sizes": np.array([dim, dim, dim]), "number": np.array(0.7, np.float32),
    }  # fmt: skip
    nodes = [node("Split", ["x", "sizes"], ["q0", "k0", "v0"], axis=2)]
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(node("Reshape", [f"{name}0", "split"], [f"{name}1"]))
        nodes.append(node("Transpose", [f"{name}1"], [name], perm=order))
    nodes += [node("MatMul", ["q", "k"], ["s0"]), node(scaled, ["s0", "number"], ["s1"])]
    nodes += [node("Add", ["m", "s1"], ["s2"])] if mask else []
    nodes += [
        node("Softmax", ["s2" if mask else "s1"], ["p"], axis=axis),
        node("MatMul", ["p", "v"], ["o" if joined else "y"]),
    ]
    if joined:
        nodes.append(node("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3]))
        nodes.append(node("Reshape", ["t", "join"], ["y"]))
    inputs: dict[str, Any] = {"x": [batch, length, 3 * dim], **({"m": mask} if mask else {})}
    return models.model(nodes, inputs, ["y"], weights)


VARIANTS = [
    {}, {"batch": 1, "length": 197, "heads": 2}, {"joined": False}, {"mask": (5, 5), "joined": False},
    {"mask": (2, 1, 1, 5)}, {"mask": (2, 3, 5, 5)}, {"heads": 1}, {"scaled": "Mul"},
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_attention_is_found(load: Any, check: Any, variant: dict[str, Any]) -> None:
    proto = graph(**variant)
    made = check(proto)
    ours = [kernel for kernel in made.manifest["kernels"] if "attention" in kernel]
    assert len(ours) == 1
    if variant.get("joined", True):  # the heads are read and written where they lie
        assert list(made.manifest["kernels"]) == ours


@pytest.mark.parametrize(
    "variant", [{"axis": 2}, {"scaled": "Max"}, {"length": 3}, {"width": 3}], ids=str
)
def test_other_graphs_are_left_alone(load: Any, check: Any, variant: dict[str, Any]) -> None:
    made = check(graph(**variant))
    assert not [kernel for kernel in made.manifest["kernels"] if "attention" in kernel]


def test_heads_that_do_not_lie_in_columns(check: Any) -> None:
    """Heads that come as [batch, heads, length, width] are taken as batches of one head."""
    nodes = [
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), node("MatMul", ["q", "kt"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1), node("MatMul", ["p", "v"], ["y"]),
    ]  # fmt: skip
    shape = [2, 3, 7, 16]
    made = check(models.model(nodes, {"q": shape, "k": [2, 3, 9, 16], "v": [2, 3, 9, 16]}, ["y"]))
    kernels = {name.rpartition("_")[0] for name in made.manifest["kernels"]}
    assert kernels == {"mlc_attention", "mlc_reshape"}


def test_exact_refuses_it(compiled: Any) -> None:
    proto = graph()
    assert "attention" in compiled(proto).manifest["passes"]
    assert "attention" not in compiled(proto, exact=True).manifest["passes"]
    (row,) = (row for row in PASSES if row.name == "attention")
    assert row.run is take_attention
    assert not row.exact


def test_flops(load: Any, tvm: Any) -> None:
    from mlc.codegen import flops
    from mlc.passes.run import optimize

    target = tvm.target.Target("llvm -mcpu=x86-64-v3")
    model = optimize(load(graph(batch=2, length=5, heads=3, width=16)), target, 3)
    (call,) = calls_of(model.module, "mlc.attention")
    function = tvm.relay.Function(tvm.relay.analysis.free_vars(call), call)
    assert flops.count(function) == 2 * 2 * 3 * 5 * 5 * (16 + 16)
