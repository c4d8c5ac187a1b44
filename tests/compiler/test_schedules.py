"""Our own templates: right for odd shapes and any config, packed when compiled, offered to TVM."""

from __future__ import annotations

import itertools
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mlc import target as targets
from mlc.codegen.kernels import pass_context
from mlc.cpu import host_cpu
from mlc.events import ignore
from mlc.frontend import onnx_file
from mlc.frontend.load import load
from mlc.passes.fold import relayout
from mlc.passes.run import optimize
from mlc.tune.dispatch import dispatch_context
from mlc.tune.features import FeatureTable
from mlc.tune.place import Here
from mlc.tune.template import template_hash
from mlc.tune.trial import shape_of
from tests import models
from tests.compiler.conftest import calls_of

DENSE, BATCH_MATMUL = "dense_mlc.x86", "batch_matmul_mlc.x86"
node = helper.make_node

# (m, n, k): whole tiles, tails in every direction, one row, one column, less than a vector.
SHAPES = [
    (16, 96, 32), (22, 48, 20), (7, 33, 129), (1, 1, 5), (3, 100, 17), (31, 257, 9), (1, 130, 7),
    (13, 1, 3), (9, 16, 1), (1, 530, 33),
]  # fmt: skip
BATCHES = [(5, 7, 13, 11), (2, 9, 64, 8), (3, 1, 17, 4), (2, 1, 384, 5), (2, 1, 130, 5)]


@pytest.fixture(scope="module", params=["llvm", "x86-64-v3", "x86-64-v2"])
def target(request: pytest.FixtureRequest, tvm: Any) -> Any:
    """This machine, 256-bit and 128-bit vectors; LLVM told to hurry."""
    chosen = targets.resolve(request.param)
    if not targets.runs_on(chosen, host_cpu()):
        pytest.skip(f"this machine cannot run {request.param}")
    return tvm.target.Target(f"{chosen.tvm} -opt-level=0")


@pytest.fixture
def tuning(tvm: Any) -> Iterator[None]:
    """The state in which candidates are built: weights come packed."""
    from tvm import autotvm

    before, autotvm.GLOBAL_SCOPE.in_tuning = autotvm.GLOBAL_SCOPE.in_tuning, True
    yield
    autotvm.GLOBAL_SCOPE.in_tuning = before


def tensor(*shape: int, dtype: str = "float32") -> tuple[str, tuple[int, ...], str]:
    return ("TENSOR", shape, dtype)


def task_of(template: str, args: list[Any], target: Any) -> Any:
    from tvm import autotvm

    return autotvm.task.create(template, args, target)


def configs(task: Any, count: int = 3) -> list[Any]:
    """Return the default, and configs spread over the space."""
    from tvm.autotvm.task.space import FallbackConfigEntity

    size = len(task.config_space)
    spread = sorted({k * (size - 1) // max(1, count - 1) for k in range(count)})
    return [FallbackConfigEntity(), *(task.config_space.get(k) for k in spread)]


def run(task: Any, config: Any, *inputs: np.ndarray) -> np.ndarray:
    """Build a candidate and run it; weights are packed as it wants them."""
    with task.target:
        schedule, tensors = task.instantiate(config)
    module = Here().compile(schedule, tensors, task.target)
    given, arguments, result = list(inputs), [], None
    for wanted in tensors:
        shape = shape_of(wanted)
        if type(wanted.op).__name__ != "PlaceholderOp":
            result = Here().tensor(np.full(shape, np.nan, np.float32))
            arguments.append(result)
            continue
        array = given.pop(0)
        if array.shape != shape:
            array = relayout(array, "NK", f"NK{shape[-1]}n", pad=True)
        arguments.append(Here().tensor(array))
    module.get_function("candidate")(*arguments)
    return result.numpy()


def close(ours: np.ndarray, expected: np.ndarray, k: int) -> None:
    """Fail unless float32 sums of k products agree: each rounds by 2^-24 of its size."""
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=4e-7 * k)


# -- numbers --


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_dense(target: Any, tuning: None, m: int, n: int, k: int) -> None:
    task = task_of(DENSE, [tensor(m, k), tensor(n, k), n], target)
    x, w = models.floats(m, k, seed=1), models.floats(n, k, seed=2)
    for config in configs(task):
        close(run(task, config, x, w), x @ w.T, k)


@pytest.mark.parametrize(("m", "n", "k"), [(5, 33, 9), (16, 96, 7), (1, 130, 9)])
def test_dense_packs_at_run_time(target: Any, m: int, n: int, k: int) -> None:
    task = task_of(DENSE, [tensor(m, k), tensor(n, k), n], target)
    x, w = models.floats(m, k, seed=1), models.floats(n, k, seed=2)
    for config in configs(task):
        close(run(task, config, x, w), x @ w.T, k)


def test_a_single_row_reads_two_panels_at_once(tvm: Any) -> None:
    from mlc.schedules import gemm

    with tvm.target.Target("llvm -mcpu=x86-64-v3"):
        known = [gemm.problem(m, 100, 64) for m in (1, 2, tvm.te.var("m"))]
    assert [one.panels([1, 8]) for one in known] == [(4, 64, 32), (2, 64, 64), (2, 64, 64)]
    assert known[0].panels([1, 3]) == (5, 64, 24)  # an odd number of vectors is not halved


@pytest.mark.parametrize("sizes", BATCHES)
@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)])
def test_batch_matmul(
    target: Any, tuning: None, sizes: tuple[int, int, int, int], turned: tuple[bool, bool]
) -> None:
    b, m, n, k = sizes
    x, y = models.floats(b, m, k, seed=1), models.floats(b, k, n, seed=2)
    one, other = (
        np.ascontiguousarray(array.transpose(0, 2, 1)) if turn else array
        for array, turn in zip((x, y), turned, strict=True)
    )
    task = task_of(BATCH_MATMUL, [tensor(*one.shape), tensor(*other.shape), *turned], target)
    for config in configs(task, 1):
        close(run(task, config, one, other), x @ y, k)


@pytest.mark.parametrize("batches", [(1, 3), (3, 1)])
def test_a_batch_of_one_serves_all(target: Any, tuning: None, batches: tuple[int, int]) -> None:
    x, y = models.floats(batches[0], 5, 6, seed=1), models.floats(batches[1], 6, 19, seed=2)
    task = task_of(BATCH_MATMUL, [tensor(*x.shape), tensor(*y.shape), False, False], target)
    close(run(task, configs(task)[0], x, y), x @ y, 6)


def dense_gelu(m: int, n: int, k: int) -> onnx.ModelProto:
    """Dense with bias, GELU, a residual, ReLU; then a dense layer that reads both of its forms."""
    weights = {
        "w": models.floats(k, n, seed=1, scale=0.4), "b": models.floats(n, seed=2),
        "v": models.floats(n, k, seed=3, scale=0.4),
        "root2": np.array(np.sqrt(2), np.float32), "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }  # fmt: skip
    nodes = [
        node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["a"]),
        node("Div", ["a", "root2"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["e", "one"], ["f"]),
        node("Mul", ["a", "f"], ["g"]), node("Mul", ["g", "half"], ["h"]), node("Add", ["h", "r"], ["i"]),
        node("Relu", ["i"], ["j"]), node("MatMul", ["j", "v"], ["o"]), node("Add", ["o", "x"], ["y"]),
    ]  # fmt: skip
    return models.model(nodes, {"x": [m, k], "r": [m, n]}, ["y"], weights)


def product(left: list[int], right: list[int], dtype: Any = np.float32) -> onnx.ModelProto:
    """The scaled product of two inputs."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [node("MatMul", ["p", "q"], ["m"]), node("Mul", ["m", "s"], ["y"])]
    graph = helper.make_graph(
        nodes, "product",
        [helper.make_tensor_value_info("p", kind, left), helper.make_tensor_value_info("q", kind, right)],
        [helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(np.array(0.125, dtype), "s")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("m", "n", "k"), [(5, 33, 7), (1, 20, 9), (17, 64, 16)])
@pytest.mark.parametrize("level", [0, 1, 3])
def test_what_is_fused_behind_a_layer(check: Any, level: int, m: int, n: int, k: int) -> None:
    check(dense_gelu(m, n, k), opt_level=level)


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize(("left", "right"), [([2, 3, 5, 7], [2, 3, 7, 33]), ([6, 9], [9, 18])])
def test_products_of_inputs(check: Any, level: int, left: list[int], right: list[int]) -> None:
    made = check(product(left, right), opt_level=level)
    assert made.manifest["kernels"]


# -- what the artifact holds --


def optimized(proto: onnx.ModelProto, folder: Path, llvm: Any) -> Any:
    file = onnx_file.read(models.save(proto, folder))
    model = load(file, (), ignore)
    with dispatch_context(lambda _key: None):
        return optimize(model, llvm, 3).module


def test_constant_weights_are_packed_when_compiled(
    tvm: Any, tmp_path: Path, quick_target: str
) -> None:
    from tvm import relay

    module = optimized(dense_gelu(5, 33, 7), tmp_path, tvm.target.Target(quick_target))
    names = {call.op.name for call in calls_of(module)}
    assert "mlc.dense_packed" in names
    assert not names & {"nn.dense", "nn.contrib_dense_pack", "layout_transform", "transpose"}
    given = [arg for call in kernel_calls(module) for arg in call.args]
    constants = [tuple(arg.data.shape) for arg in given if isinstance(arg, relay.Constant)]
    panels = [shape for shape in constants if len(shape) == 3]
    assert [
        shape[0] * shape[2] >= n and shape[1] for n, shape in zip((33, 7), panels, strict=True)
    ] == [7, 33]


def kernel_calls(module: Any) -> list[Any]:
    from tvm import relay

    found: list[Any] = []

    def visit(expr: Any) -> None:
        if isinstance(expr, relay.Call) and isinstance(expr.op, relay.Function):
            found.append(expr)

    relay.analysis.post_order_visit(module["main"].body, visit)
    return found


def test_the_artifact_holds_the_panels(compiled: Any) -> None:
    made = compiled(dense_gelu(5, 33, 7))
    with zipfile.ZipFile(made.path) as file:
        graph = json.loads(file.read("graph.json"))
    arguments = [graph["attrs"]["shape"][1][k] for k in graph["arg_nodes"]]
    assert sorted(shape[1] for shape in arguments if len(shape) == 3) == [7, 33]
    assert not [shape for shape in arguments if sorted(shape) == [7, 33]]


def test_shared_weights_are_packed_once(tvm: Any, quick_target: str) -> None:
    from tvm import relay

    from mlc.passes.pack import pack_dense

    weight = relay.const(models.floats(17, 17, seed=1))
    x = relay.var("x", shape=(3, 17))
    module = tvm.IRModule.from_expr(relay.nn.dense(relay.nn.dense(x, weight), weight))
    with tvm.target.Target(quick_target), dispatch_context(lambda _key: None):
        packed = pack_dense(relay.transform.InferType()(module))
    first, second = calls_of(packed, "mlc.dense_packed")
    assert first.args[1].same_as(second.args[1])


# -- who is asked --


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_types_stay_right(compiled: Any, dtype: str) -> None:
    for left, right in (([2, 3, 5], [2, 5, 4]), ([6, 9], [9, 18])):
        made = compiled(product(left, right, np.dtype(dtype)))
        feed = {
            name: models.floats(*shape, seed=seed).astype(dtype)
            for seed, (name, shape) in enumerate((("p", left), ("q", right)))
        }
        (outputs,) = made.run(feed)
        np.testing.assert_allclose(outputs["y"], feed["p"] @ feed["q"] / 8, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "ours"), [("float32", True), ("float64", False), ("int32", False)]
)
@pytest.mark.parametrize("operator", ["nn.dense", "nn.batch_matmul"])
def test_the_strategies(tvm: Any, quick_target: str, operator: str, dtype: str, ours: bool) -> None:
    from tvm import relay, te
    from tvm.relay.backend import te_compiler

    x, w = (
        relay.var("x", shape=(2, 3, 5), dtype=dtype),
        relay.var("w", shape=(2, 4, 5), dtype=dtype),
    )
    if operator == "nn.dense":
        x, w = relay.var("x", shape=(3, 5), dtype=dtype), relay.var("w", shape=(4, 5), dtype=dtype)
        expr = relay.nn.dense(x, w)
    else:
        expr = relay.nn.batch_matmul(x, w)
    call = relay.transform.InferType()(tvm.IRModule.from_expr(expr))["main"].body
    inputs = [te.placeholder(arg.checked_type.shape, arg.checked_type.dtype) for arg in call.args]
    with tvm.target.Target(quick_target) as target, dispatch_context(lambda _key: None):
        chosen, _ = te_compiler.select_implementation(
            relay.op.get(operator), call.attrs, inputs, call.checked_type, target
        )
    assert (chosen.name in {DENSE, BATCH_MATMUL}) == ours


def test_the_hash_is_of_our_source(tvm: Any) -> None:
    assert len({template_hash(name) for name in (DENSE, BATCH_MATMUL, "dense_pack.x86")}) == 3


# -- configs --


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize(("lanes", "registers"), [(4, 16), (8, 16), (16, 32)])
def test_tiles_fit_the_registers(
    tvm: Any, m: int, n: int, k: int, lanes: int, registers: int
) -> None:
    from mlc.schedules.gemm import Problem, default_tile

    known = Problem(m=m, n=n, k=k, lanes=lanes, registers=registers)
    tiles = list(known.candidates())
    assert 1 <= len(tiles) <= 60
    assert all(rows * vectors + vectors < registers for rows, vectors in tiles)
    assert len({known.tiles(*tile) for tile in tiles}) == len(tiles)
    assert default_tile(known) in tiles


def test_the_default_uses_what_the_target_has(tvm: Any) -> None:
    """Many accumulators where there are many rows; few padded columns; no pack where none is needed."""
    from mlc.schedules.gemm import Problem, default_tile

    for lanes, registers in ((8, 16), (16, 32)):
        large = Problem(m=128, n=768, k=768, lanes=lanes, registers=registers)
        assert math.prod(default_tile(large)) >= 0.7 * registers
        narrow = Problem(m=100, n=lanes, k=64, lanes=lanes, registers=registers)
        assert default_tile(narrow)[1] == 1
        heads = Problem(batch=8, m=128, n=64, k=128, lanes=lanes, registers=registers)
        assert 64 % (default_tile(heads, in_place=True)[1] * lanes) == 0


def test_the_cost_model_sees_the_tile(tvm: Any, quick_target: str) -> None:
    task = task_of(DENSE, [tensor(32, 16), tensor(96, 16), 96], tvm.target.Target(quick_target))
    table = FeatureTable(task)
    indices = list(range(len(task.config_space)))
    names, rows = table.rows(indices)
    columns = [names.index(f"tile.{part}") for part in range(3)]
    for index, row in zip(indices, rows, strict=True):
        tile = task.config_space.get(index)["tile"].val
        expected = [math.log2(size) for size in (*tile, math.prod(tile))]
        assert row[columns].tolist() == pytest.approx(expected)


# -- tails --


def stores(statement: Any) -> list[int]:
    """Return the lanes of each store to the output, as lowered."""
    from tvm import tir

    found: list[int] = []

    def visit(each: Any) -> None:
        if isinstance(each, tir.BufferStore) and "product" in each.buffer.name:
            found.append(int(each.value.dtype.partition("x")[2] or 1))

    tir.stmt_functor.post_order_visit(statement, visit)
    return found


@pytest.mark.parametrize("n", [64, 33, 40])
def test_whole_vectors_are_stored_whole(tvm: Any, tuning: None, n: int) -> None:
    """On 16 lanes: a tail of one column, or half a vector, costs only its own vector."""
    wide = tvm.target.Target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v4")
    task = task_of(DENSE, [tensor(8, 9), tensor(n, 9), n], wide)
    config = configs(task)[0]
    with wide:
        schedule, tensors = task.instantiate(config)
        with pass_context(3):
            ours = tvm.lower(schedule, tensors, name="ours")["ours"].body
        plain = tvm.lower(schedule, tensors, name="plain")["plain"].body
    rows, vectors = config["tile"].val
    assert stores(ours).count(16) >= rows * min(vectors, n // 16)
    if n % 16:
        assert stores(plain).count(16) < stores(ours).count(16)
        assert 1 in stores(ours)
    else:
        assert set(stores(ours)) == {16}


def test_loops_are_versioned_only_where_marked(tvm: Any) -> None:
    from tvm import te

    from mlc.schedules.tails import MARK

    def lowered(mark: bool) -> str:
        x = te.placeholder((10,), name="x")
        y = te.compute((10,), lambda i: x[i] * 2.0, name="y")
        s = te.create_schedule(y.op)
        _, inner = s[y].split(y.op.axis[0], factor=4)
        s[y].vectorize(inner)
        if mark:
            s[y].pragma(inner, MARK, True)
        with pass_context(3):
            return str(tvm.lower(s, [x, y]))

    assert "else:" not in lowered(mark=False)
    assert "else:" in lowered(mark=True)
    assert MARK not in lowered(mark=True)


def test_every_template_can_be_compared(tvm: Any) -> None:
    from mlc.tune.compare import LAYOUTS

    assert {DENSE, BATCH_MATMUL} <= set(LAYOUTS)
    assert list(itertools.chain(LAYOUTS[DENSE])) == ["MK", "NK", "MN"]


@pytest.mark.parametrize(
    ("m", "n", "k", "order"),
    [
        (128, 3072, 768, "columns"),
        (128, 512, 512, "columns"),
        (1, 1000, 512, "columns"),
        (197, 768, 192, "rows"),
        (1024, 2048, 512, "rows"),
        (8192, 4096, 2048, "columns"),  # W is larger than caches are
    ],
)
def test_threads_share_weights_where_they_weigh_more(m: int, n: int, k: int, order: str) -> None:
    from mlc.schedules import gemm

    assert gemm.default_order(gemm.Problem(m=m, n=n, k=k, lanes=8, registers=16)) == order
