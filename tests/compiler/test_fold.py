"""Constants folded with numpy are what TVM itself would compute."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mlc.passes import fold
from mlc.passes.fold import EVALUATORS, fold_local, fold_module, relayout
from tests.compiler.conftest import calls_of, typed
from tests.models import floats

Array = np.ndarray
F = floats(3, 1, 5, seed=1)
G = floats(4, 1, seed=2)
POSITIVE = np.abs(floats(3, 5, seed=3)) + 0.1
INT = np.array([[7, -7, 0, 13, -1]] * 3, np.int32)
DIVISOR = np.array([[2], [-2], [3]], np.int32)
IMAGE = floats(2, 16, 3, 5, seed=4)


def relay_op(name: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Return a builder that calls a Relay function on its operands, then on `args`."""

    def build(*operands: Any) -> Any:
        from tvm import relay

        function = functools.reduce(getattr, name.split("."), relay)
        result = function(*operands, *args, **kwargs)
        return result.astuple() if hasattr(result, "astuple") else result

    return build


def rounded(operand: Any) -> Any:
    from mlc.frontend.ops.arith import round_even

    return round_even(operand)


def of_tuple(name: str, *args: Any) -> Callable[..., Any]:
    def build(*operands: Any) -> Any:
        from tvm import relay

        return getattr(relay, name)(relay.Tuple(list(operands)), *args)

    return build


def call(name: str, *operands: Array, **kwargs: Any) -> tuple[str, Any, Sequence[Array]]:
    return name, relay_op(name, **kwargs), operands


BINARY = ["add", "subtract", "multiply", "divide", "maximum", "minimum", "greater", "less"]
CASES: list[tuple[str, Any, Sequence[Array]]] = [
    *(call(name, F, G) for name in BINARY),
    *(call(name, INT, DIVISOR) for name in BINARY),
    *(call(name, INT.astype(np.int64), DIVISOR.astype(np.int64)) for name in ("divide", "less")),
    *(call(name, F.astype(np.float64), np.float64(2.5)) for name in ("divide", "maximum")),
    *(call(name, np.array([250, 7, 0], np.uint8), np.array([9, 9, 3], np.uint8))
      for name in ("add", "subtract", "multiply", "divide", "maximum", "less")),
    call("add", np.array([2**31 - 1, -(2**31)], np.int32), np.array([1, -1], np.int32)),
    call("divide", F, np.zeros((1,), np.float32)),
    call("divide", np.array([2**40 + 1, -(2**40) - 1]), np.array([2, 2])),
    call("power", POSITIVE, F[0]),
    call("power", F[0], np.float32(2)),
    call("abs", F), call("abs", INT), call("negative", F), call("negative", INT),
    call("exp", F), call("sqrt", POSITIVE), call("rsqrt", POSITIVE), call("copy", F),
    call("sqrt", np.array([-1.0, 0.0, np.inf], np.float32)),
    call("rsqrt", np.array([0.0, 4.0], np.float64)),
    *(("mlc.round_even", rounded, [np.array([-2.5, -0.5, -0.0, 0.5, 1.5, 2.4999998, 3e9], kind)])
      for kind in (np.float32, np.float64)),
    *(call("cast", F * 10, dtype=dtype) for dtype in ("int32", "int64", "int8", "float64", "bool")),
    *(call("cast", INT, dtype=dtype) for dtype in ("float32", "int64", "uint8", "int8", "bool")),
    call("cast", np.array([True, False]), dtype="float32"),
    call("cast", np.array([3.7, -3.7, 1e-3], np.float64), dtype="int64"),
    call("broadcast_to", floats(3, 1), shape=(2, 3, 5)),
    call("broadcast_to", np.float32(3), shape=(2, 1)),
    ("concatenate", of_tuple("concatenate", 1), [floats(2, 3), floats(2, 1), floats(2, 5)]),
    ("concatenate", of_tuple("concatenate", -1), [INT, INT[:, :2]]),
    ("concatenate", of_tuple("concatenate", -2), [floats(1, 3, 2), floats(1, 4, 2)]),
    ("concatenate", of_tuple("concatenate", 0), [np.arange(3)]),
    call("expand_dims", F, axis=-1), call("expand_dims", INT, axis=1, num_newaxis=2),
    call("expand_dims", np.float32(1), axis=0), call("expand_dims", F, axis=-3),
    call("full", np.float32(1.5), shape=(3, 5), dtype="float32"),
    call("full", np.int64(-3), shape=(), dtype="int64"),
    call("zeros", shape=(3, 1), dtype="int64"), call("ones", shape=(2, 5), dtype="float32"),
    call("zeros", shape=(), dtype="float32"), call("ones", shape=(1,), dtype="bool"),
    call("layout_transform", IMAGE, src_layout="NCHW", dst_layout="NCHW8c"),
    call("layout_transform", IMAGE, src_layout="NCHW", dst_layout="NHWC"),
    call("nn.batch_flatten", IMAGE), call("nn.batch_flatten", floats(3, 7)),
    call("repeat", F, repeats=3, axis=1), call("repeat", INT, repeats=2, axis=-1),
    call("reshape", IMAGE, newshape=(0, -1)), call("reshape", IMAGE, newshape=(-1, 3, 2)),
    call("reshape", IMAGE, newshape=(-2,)), call("reshape", IMAGE, newshape=(-3, -3)),
    call("reshape", IMAGE, newshape=(0, -4, 2, -1, 0, 0)), call("reshape", np.int64(3), newshape=(1, 1)),
    call("shape_of", IMAGE), call("shape_of", F, dtype="int32"),
    call("split", floats(4, 6), indices_or_sections=3, axis=-1),
    call("split", floats(7, 2), indices_or_sections=(1, 4), axis=0),
    call("split", INT, indices_or_sections=(2,), axis=-1),
    call("squeeze", F), call("squeeze", F, axis=[-2]), call("squeeze", floats(1, 1, 3), axis=[0, 1]),
    ("stack", of_tuple("stack", 0), [floats(3, 5), floats(3, 5, seed=9)]),
    ("stack", of_tuple("stack", -1), [INT, INT]),
    ("stack", of_tuple("stack", 1), [floats(3), floats(3, seed=9), floats(3, seed=8)]),
    call("strided_slice", IMAGE, begin=[0, 3], end=[2, 9]),
    call("strided_slice", IMAGE, begin=[1, -5], end=[2, -1], strides=[1, 1], axes=[0, 3]),
    call("strided_slice", IMAGE, begin=[2], end=[99], strides=[3], axes=[1]),
    call("strided_slice", IMAGE, begin=[0, 1, 0, 0], end=[2, 16, 3, 5], strides=[1, 2, 1, 2]),
    call("strided_slice", IMAGE, begin=[-99], end=[2], axes=[1]),
    call("take", F, np.array([[4, 0], [2, 3]]), axis=-1),
    call("take", F, np.int64(2), axis=0), call("take", F, np.array([14, 0, 3], np.int32)),
    call("take", INT, np.array([0]), axis=1, mode="wrap"),
    call("take", INT, np.array([2, 2, 1]), axis=0, mode="fast"),
    call("transpose", IMAGE), call("transpose", IMAGE, axes=(0, 2, 3, 1)),
    call("transpose", F, axes=(-1, 0, -2)),
    ("where", relay_op("where"), [F > 0, F, np.float32(-1)]),
    ("where", relay_op("where"), [INT[:1] > 0, INT, DIVISOR]),
]  # fmt: skip


def label(case: tuple[str, Any, Sequence[Array]]) -> str:
    name, _, operands = case
    return f"{name}-{'-'.join(str(np.asarray(o).dtype) for o in operands)}"


def constants(operands: Sequence[Array]) -> list[Any]:
    from tvm import relay

    # With the type said: `relay.const` makes 32 bits of 64 otherwise.
    return [relay.const(array, str(array.dtype)) for array in map(np.asarray, operands)]


def values_of(expr: Any) -> list[Array] | None:
    """Return the arrays of a constant or a tuple of constants; None for anything else."""
    from tvm import relay

    fields = expr.fields if isinstance(expr, relay.Tuple) else [expr]
    if not all(isinstance(field, relay.Constant) for field in fields):
        return None
    return [field.data.numpy() for field in fields]


def folded(expr: Any) -> list[Array] | None:
    return values_of(fold_module(typed(expr))["main"].body)


@pytest.fixture(scope="module")
def by_tvm(interpret: Any) -> list[list[Array]]:
    """What TVM computes for every case: one function of variables, so that nothing is constant."""
    from tvm import IRModule, relay
    from tvm.ir import TupleType

    parameters, arrays, results, counts = [], [], [], []
    for name, build, operands in CASES:
        variables = []
        for operand in map(np.asarray, operands):
            variables.append(
                relay.var(f"p{len(arrays)}_{name}", shape=operand.shape, dtype=str(operand.dtype))
            )
            arrays.append(operand)
            parameters.append(variables[-1])
        expr = build(*variables)
        kind = typed(relay.Function(variables, expr))["main"].ret_type
        many = len(kind.fields) if isinstance(kind, TupleType) else 0
        results += [relay.TupleGetItem(expr, k) for k in range(many)] or [expr]
        counts.append(many or 1)
    outputs = interpret(
        typed(IRModule.from_expr(relay.Function(parameters, relay.Tuple(results)))), *arrays
    )
    ends = np.cumsum([0, *counts])
    return [outputs[a:b] for a, b in itertools.pairwise(ends)]


def test_every_row_has_a_case() -> None:
    from tvm import relay  # noqa: F401 - the cases are named as Relay's functions are

    assert {name for name, _, _ in CASES} == set(EVALUATORS)


@pytest.mark.parametrize("position", range(len(CASES)), ids=lambda k: f"{k}-{label(CASES[k])}")
def test_a_folded_value_is_what_tvm_computes(position: int, by_tvm: Any) -> None:
    _, build, operands = CASES[position]
    ours = folded(build(*constants(operands)))
    assert ours is not None, "it was not folded"
    for array, expected in zip(ours, by_tvm[position], strict=True):
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(array, expected, rtol=1e-6)


def test_a_shape_is_known_without_its_tensor() -> None:
    from tvm import relay

    x = relay.var("x", shape=(3, 7), dtype="float32")
    (shape,) = folded(relay.shape_of(x, "int64")) or [None]
    np.testing.assert_array_equal(shape, [3, 7])
    y = relay.var("y", shape=(relay.Any(), 7), dtype="float32")
    assert folded(relay.shape_of(y, "int64")) is None


# --- what must stay in the graph -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "operands", "kwargs"),
    [
        ("divide", [INT, np.array([0], np.int32)], {}),
        ("divide", [np.array([2**60]), np.array([3])], {}),
        ("power", [np.array([2, 3], np.int32), np.array([-1, 2], np.int32)], {}),
        ("take", [INT, np.array([3])], {"axis": 0}),
        ("take", [INT, np.array([-1])], {"axis": 0}),
        ("take", [INT, np.array([0, 0, 0])], {"axis": 1, "batch_dims": 1}),
        ("strided_slice", [IMAGE], {"begin": [3], "end": [0], "strides": [-1], "axes": [1]}),
        ("strided_slice", [IMAGE], {"begin": [0, 1], "end": [1, 2], "slice_mode": "size"}),
        ("layout_transform", [IMAGE], {"src_layout": "NCHW", "dst_layout": "NCHW12c"}),
        ("sigmoid", [F], {}),
    ],
)
def test_what_numpy_would_compute_differently_stays(
    name: str, operands: Sequence[Array], kwargs: dict[str, Any]
) -> None:
    module = typed(relay_op(name, **kwargs)(*constants(operands)))
    assert fold_module(module).same_as(module)


def test_what_depends_on_an_input_stays(tvm: Any) -> None:
    from tvm import relay

    x = relay.var("x", shape=(3, 5))
    weight = relay.exp(relay.const(POSITIVE))
    module = typed(relay.Function([x], relay.add(relay.sqrt(x), weight)))
    after = fold_module(module)
    assert [call.op.name for call in calls_of(after)] == ["sqrt", "add"]
    np.testing.assert_allclose(after["main"].body.args[1].data.numpy(), np.exp(POSITIVE), rtol=1e-6)


def test_a_local_expression_is_folded_whole_or_not_at_all(tvm: Any) -> None:
    from tvm import relay

    inner = relay.add(relay.const(F), relay.const(G))
    constant = fold_local(inner)
    assert isinstance(constant, relay.Constant)
    assert fold_local(constant).same_as(constant)
    partly = relay.add(inner, relay.var("x", shape=(1,)))
    assert fold_local(partly).same_as(partly)


def test_a_part_of_a_constant_split_is_a_constant(tvm: Any) -> None:
    from tvm import relay

    array = floats(3, 7)
    parts = relay.split(relay.const(array), [2, 3], axis=1)
    (middle,) = folded(relay.TupleGetItem(parts.astuple(), 1)) or [None]
    np.testing.assert_array_equal(middle, array[:, 2:3])


def test_folding_changes_no_type(tvm: Any) -> None:
    from tvm import relay

    for _, build, operands in CASES:
        module = typed(build(*constants(operands)))
        after = fold_module(module)
        assert after["main"].ret_type == module["main"].ret_type
        assert typed(after)["main"].ret_type == module["main"].ret_type
    assert isinstance(after["main"].body, relay.Constant)


# --- size and depth ------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [0, 1])
def test_a_value_that_grows_much_stays_in_the_graph(over: int, monkeypatch: Any, tvm: Any) -> None:
    """A broadcast of a scalar to gigabytes is better computed than stored."""
    from tvm import relay

    monkeypatch.setattr(fold, "_MAX_GROWTH_BYTES", 4 * 3 * 41)
    one = relay.const(np.float32(1))  # 4 bytes itself: 3 * 41 + 1 elements are the most
    result = folded(relay.broadcast_to(one, (3 * 41 + 1 + over,)))
    assert (result is None) == bool(over)
    large = relay.const(floats(3 * 41 + 2))
    assert folded(relay.negative(large)) is not None  # as large as its operand


def test_the_real_bound_is_64_mib(tvm: Any) -> None:
    from tvm import relay

    scalar = relay.const(np.float32(1))
    assert folded(relay.broadcast_to(scalar, ((64 << 20) // 4 + 2,))) is None
    assert folded(relay.full(scalar, (1 << 40,), "float32")) is None


def test_a_deep_graph_folds(tvm: Any) -> None:
    from tvm import relay

    step = relay.const(np.float32(1))
    expr: Any = relay.const(np.zeros((3,), np.float32))
    for _ in range(3000):
        expr = relay.add(expr, step)
    (value,) = folded(expr) or [None]
    np.testing.assert_array_equal(value, [3000, 3000, 3000])


def test_a_deep_graph_of_an_input_is_walked_too(tvm: Any) -> None:
    from tvm import relay

    x = relay.var("x", shape=(3,))
    step = relay.exp(relay.const(np.float32(0)))
    expr: Any = x
    for _ in range(3000):
        expr = relay.add(expr, step)
    after = fold_module(typed(relay.Function([x], expr)))
    assert [call.op.name for call in calls_of(after)] == ["add"] * 3000


def test_shared_values_are_computed_once(monkeypatch: Any, tvm: Any) -> None:
    """Each level reads the one before twice: 2 ** 40 evaluations, were sharing lost."""
    from tvm import relay

    evaluated = []

    def add(operands: Sequence[Array], _attrs: Any, _kind: Any) -> Array:
        evaluated.append(1)
        return np.add(*operands)

    monkeypatch.setitem(EVALUATORS, "add", add)
    expr: Any = relay.const(np.array([1]), "int64")
    for _ in range(40):
        expr = relay.add(expr, expr)
    (value,) = folded(expr) or [None]
    assert value == [2**40]
    assert len(evaluated) == 40


# --- relayout ------------------------------------------------------------------------------------

LAYOUTS = [
    ("OIHW", "OIHW4i8o", (16, 8, 3, 1)),
    ("OIHW", "OIHW8i16o", (32, 24, 3, 5)),
    ("OIHW", "OIHW1i3o", (9, 5, 1, 1)),
    ("OIHW4i8o", "OIHW", (2, 3, 3, 1, 4, 8)),
    ("NCHW", "NCHW8c", (2, 24, 5, 7)),
    ("NCHW8c", "NCHW", (2, 3, 5, 7, 8)),
    ("NCHW8c", "NCHW4c", (1, 3, 2, 2, 8)),
    ("NCHW4c", "NHWC", (1, 3, 2, 5, 4)),
    ("NCHW", "NHWC", (2, 3, 5, 7)),
    ("NHWC", "NCHW3c", (2, 5, 7, 9)),
    ("OIHW", "HWIO", (4, 3, 5, 7)),
    ("NC", "NC8c", (3, 40)),
    ("NC", "CN16n", (32, 5)),
    ("NC", "NC", (3, 5)),
]  # fmt: skip


@pytest.fixture(scope="module")
def moved_by_tvm(interpret: Any) -> list[Array]:
    from tvm import IRModule, relay

    variables = [relay.var(f"x{k}", shape=shape) for k, (_, _, shape) in enumerate(LAYOUTS)]
    moved = [
        relay.layout_transform(x, source, target)
        for x, (source, target, _) in zip(variables, LAYOUTS, strict=True)
    ]
    module = typed(IRModule.from_expr(relay.Function(variables, relay.Tuple(moved))))
    return list(interpret(module, *(floats(*shape) for _, _, shape in LAYOUTS)))


@pytest.mark.parametrize(
    "position", range(len(LAYOUTS)), ids=lambda k: f"{LAYOUTS[k][0]}-{LAYOUTS[k][1]}"
)
def test_a_layout_is_changed_as_tvm_does(position: int, moved_by_tvm: Any) -> None:
    source, target, shape = LAYOUTS[position]
    array = floats(*shape)
    moved = relayout(array, source, target)
    assert moved is not None
    np.testing.assert_array_equal(moved, moved_by_tvm[position])
    back = relayout(moved, target, source)
    assert back is not None
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    ("source", "target", "shape"),
    [("OIHW", "OIHW4i8o", (16, 6, 3, 3)), ("OIHW", "OIHW4i8o", (12, 8, 3, 3)),
     ("NCHW", "NCHW8c", (1, 7, 3, 3)), ("NCHW", "NCHW8c", (1, 12, 3, 3)), ("NCHW", "NCDHW", (1, 2, 3, 4))],
)  # fmt: skip
def test_what_does_not_divide_is_left_to_tvm(
    source: str, target: str, shape: tuple[int, ...]
) -> None:
    assert relayout(floats(*shape), source, target) is None


def test_an_axis_may_be_split_twice() -> None:
    """The form of 8-bit kernels, OIHW2i8o4i: the first block is the outer one."""
    array = floats(16, 8, 1, 3)
    moved = relayout(array, "OIHW", "OIHW2i8o4i")
    split = array.reshape(2, 8, 1, 2, 4, 1, 3)  # O o I i(2) i(4) H W
    np.testing.assert_array_equal(moved, split.transpose(0, 2, 5, 6, 3, 1, 4))
