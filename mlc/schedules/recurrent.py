"""Recurrent layers as one kernel: all steps of an RNN, GRU or LSTM, for x86 and other CPUs.

Written out step by step, a layer costs some six kernels a step, each started for microseconds of work,
and compile time grows with the sequence. Here the steps are a loop inside the kernel:

    for each step t:
        gates[b, :] = state[b, :] R            panels of vectors in registers, in parallel if that pays
        gates[b, :] = activations(gates[b, :] + x[t, b, :] + bias)
        cell, state, y[t] = the cell's equations, on vectors

The product of the inputs with their weights does not depend on the state: it is one dense layer for
all steps, in front of this operator. Equations and order of gates: onnx/docs/Operators.md (RNN, GRU
with `linear_before_reset`, LSTM) with their default activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import relay, te, tir
from tvm.relay.op import op as relay_op
from tvm.target.x86 import get_simd_32bit_lanes
from tvm.topi.utils import get_const_tuple

from mlc.schedules import elementary, gemm, operator

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "mlc.recurrent"
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}

_PARALLEL_FLOPS = 1 << 19  # of one step's product: below, waking other threads takes longer
_UNROLL = 4  # steps of the product's reduction that are written out

Scalar = Any  # a TIR expression of one float32


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of one direction; `gates` = GATES[kind] * hidden columns for each row of the batch."""

    kind: str
    steps: int
    batch: int
    hidden: int
    reverse: bool
    exact: bool

    @property
    def gates(self) -> int:
        """The columns of all gates together."""
        return GATES[self.kind] * self.hidden

    @property
    def flops(self) -> int:
        """The operations of one step's product, a multiply-add counted as two."""
        return 2 * self.batch * self.gates * self.hidden

    @property
    def parallel(self) -> bool:
        """Whether threads share the columns of a step's product."""
        return self.flops >= _PARALLEL_FLOPS


def recurrent(
    kind: str, operands: tuple[Any, Any, Any, Any, Any], *, reverse: bool = False
) -> tuple[Any, Any]:
    """Return the Relay expressions of all states [steps, batch, hidden] and the last cell.

    Args:
        kind: RNN, GRU or LSTM.
        operands: the inputs' share of the gates [steps, batch, gates], the recurrent weights
            [hidden, gates], their bias [gates], the first state and the first cell [batch, hidden]
            (a cell that RNN and GRU hand through), all float32.
        reverse: whether the last step comes first.
    """
    call = operator.call(NAME, list(operands), kind=kind, reverse=int(reverse), exact=1)
    both = relay.TupleWrapper(call, 2)
    return both[0], both[1]


def fast(call: Any, arguments: list[Any]) -> Any:
    """Return a call of the operator with its activations computed on vectors."""
    attrs = {**{key: call.attrs[key] for key in call.attrs.keys()}, "exact": 0}  # noqa: SIM118
    return operator.call(NAME, arguments, **attrs)


def install() -> None:
    """Register the operator, its type and its strategy."""
    operator.register(
        NAME,
        "all steps of a recurrent layer",
        {
            "x": "the inputs' share of the gates [steps, batch, gates]",
            "weight": "recurrent weights [hidden, gates]",
            "bias": "of the recurrent product [gates]",
            "state": "the first [batch, hidden]",
            "cell": "the first [batch, hidden]",
        },
        ("MlcRecurrent", _type),
        relay_op.OpPattern.OPAQUE,
    )
    operator.register_strategy(NAME, _compute, _schedule, "recurrent_mlc")


def _type(types: Any, _attrs: Any) -> Any:
    steps, state = types[0].shape[0], types[3]
    every = relay.TensorType([steps, *state.shape], state.dtype)
    return relay.TupleType([every, relay.TensorType(state.shape, state.dtype)])


def _schedule(outs: Any) -> Any:
    return te.create_schedule([out.op for out in outs])


def _compute(attrs: Any, inputs: Any, out_type: Any) -> list[Any]:
    every, last = (get_const_tuple(kind.shape) for kind in out_type.fields)
    layer = Layer(
        kind=str(attrs["kind"]), steps=every[0], batch=every[1], hidden=every[2],
        reverse=bool(attrs["reverse"]), exact=bool(attrs["exact"]),
    )  # fmt: skip
    return list(
        te.extern(
            [every, last],
            list(inputs),
            lambda ins, outs: _kernel(layer, ins, outs),
            dtype=[gemm.DTYPE] * 2,
            name="recurrent",
        )
    )


def _kernel(layer: Layer, ins: Any, outs: Any) -> Any:
    """Return the statement of the whole layer; the last cell is kept in its output."""
    ib = tir.ir_builder.create()
    x, weight, bias, first_state, first_cell = (ib.buffer_ptr(buffer) for buffer in ins)
    y, cell = (ib.buffer_ptr(buffer) for buffer in outs)
    gates = ib.allocate(gemm.DTYPE, (layer.batch, layer.gates), name="gates")
    state = ib.allocate(gemm.DTYPE, (layer.batch, layer.hidden), name="state")
    with ib.for_range(0, layer.batch, name="b") as b:
        for j in _vectors(ib, layer.hidden):
            state[b, j] = first_state[b, j]
            cell[b, j] = first_cell[b, j]
    with ib.for_range(0, layer.steps, name="step") as step:
        t = _turned(step, layer.steps, layer.reverse)
        if layer.parallel:
            _product(ib, layer, _Product(state, weight, gates))
        else:
            with ib.if_scope(step % 2 == 0):
                _product(ib, layer, _Product(state, weight, gates))
            with ib.else_scope():
                _product(ib, layer, _Product(state, weight, gates, backwards=True))
        with ib.for_range(0, layer.batch, name="b") as b:
            _cell(ib, layer, _Row(b, t, x, bias, gates, state, cell))
            for j in _vectors(ib, layer.hidden):
                y[t, b, j] = state[b, j]
    return ib.get()


def _turned(position: Any, count: int, backwards: bool) -> Any:
    """Return the position out of `count` that comes then, from the last to the first if backwards."""
    return count - 1 - position if backwards else position


def _vectors(ib: Any, size: int) -> Any:
    """Yield the positions 0 to size on vectors: once within a loop of whole ones, once for the rest."""
    lanes = get_simd_32bit_lanes()
    whole = size // lanes
    if whole:
        with (
            ib.for_range(0, whole, name="v") as v,
            _lanes(ib, lanes) as lane,
        ):
            yield v * lanes + lane
    if size % lanes:
        with _lanes(ib, size % lanes) as lane:
            yield whole * lanes + lane


def _lanes(ib: Any, width: int) -> Any:
    return ib.for_range(0, width, "lane", kind="vectorize" if width > 1 else "serial")


def _product(ib: Any, layer: Layer, product: _Product) -> None:
    """Write gates = state x weight, panel by panel of as many vectors as the registers hold.

    One thread goes through the weights forwards and backwards in turn: what a step read last, and is
    still in L1, the next one reads first. More threads get narrower panels, for there to be enough.
    """
    lanes = get_simd_32bit_lanes()
    rows = next(rows for rows in (4, 2, 1) if layer.batch % rows == 0)
    vectors = (16 if lanes == 16 else 8) // rows
    columns = (min(8, vectors) if layer.parallel else vectors) * lanes
    kind = "parallel" if layer.parallel else "serial"
    whole = layer.gates // columns

    def panel(first: Any, widths: list[int]) -> None:
        with ib.for_range(0, layer.batch // rows, name="block") as block:
            _tile(ib, layer, product, (block * rows, rows), (first, widths))

    def panels() -> None:
        with ib.for_range(0, whole, name="panel", kind=kind) as p:
            panel(_turned(p, whole, product.backwards) * columns, [lanes] * (columns // lanes))

    def last() -> None:
        rest = layer.gates - whole * columns
        if rest:
            tail = [rest % lanes] if rest % lanes else []
            panel(whole * columns, [lanes] * (rest // lanes) + tail)

    for part in (last, panels) if product.backwards else (panels, last):
        part()


def _tile(ib: Any, layer: Layer, product: _Product, down: Any, across: Any) -> None:
    """Write one register tile: `rows` from `row` on, vectors of these `widths` from column `first`."""
    state, weight, gates = product.state, product.weight, product.gates
    (row, rows), (first, widths) = down, across
    starts = [sum(widths[:k]) for k in range(len(widths))]
    size = sum(widths)
    sums = ib.allocate(gemm.DTYPE, (rows * size,), name="sums", scope="local")

    def each(do: Callable[[int, int, Any], None]) -> None:
        for r in range(rows):
            for start, width in zip(starts, widths, strict=True):
                with _lanes(ib, width) as lane:
                    do(r, r * size + start + lane, start + lane)

    def clear(_r: int, at: Any, _column: Any) -> None:
        sums[at] = tir.const(0, gemm.DTYPE)

    def add(k: Any) -> Callable[[int, Any, Any], None]:
        def one(r: int, at: Any, column: Any) -> None:
            sums[at] = sums[at] + state[row + r, k] * weight[k, first + column]

        return one

    def store(r: int, at: Any, column: Any) -> None:
        gates[row + r, first + column] = sums[at]

    each(clear)
    whole = layer.hidden // _UNROLL
    with ib.for_range(0, whole, name="k") as k:
        for inner in range(_UNROLL):
            each(add(_turned(k * _UNROLL + inner, layer.hidden, product.backwards)))
    for k in range(whole * _UNROLL, layer.hidden):
        each(add(_turned(k, layer.hidden, product.backwards)))
    each(store)


@dataclass(frozen=True)
class _Product:
    """The tensors of gates = state x weight, and which way through the weights."""

    state: Any
    weight: Any
    gates: Any
    backwards: bool = False


@dataclass(frozen=True)
class _Row:
    """A row of the batch at a step, and the tensors that its cell reads and writes."""

    b: Any
    t: Any
    x: Any
    bias: Any
    gates: Any
    state: Any
    cell: Any


def _cell(ib: Any, layer: Layer, row: _Row) -> None:
    """Write the equations of a step, the products given."""
    b, size, gates, state = row.b, layer.hidden, row.gates, row.state
    sigmoid, tanh = (
        (tir.sigmoid, tir.tanh) if layer.exact else (elementary.sigmoid, elementary.tanh)
    )

    def total(gate: int, j: Any) -> Scalar:
        at = gate * size + j
        return gates[b, at] + row.x[row.t, b, at] + row.bias[at]

    def activate(gate: int, j: Any, function: Callable[[Scalar], Scalar]) -> None:
        at = gate * size + j
        gates[b, at] = function(gates[b, at])

    for j in _vectors(ib, size):
        i, o, f, c = (gate * size + j for gate in range(4))
        if layer.kind == "RNN":
            state[b, j] = total(0, j)
            state[b, j] = tanh(state[b, j])
        elif layer.kind == "GRU":  # gates z, r, h
            for gate in range(2):
                gates[b, gate * size + j] = total(gate, j)
                activate(gate, j, sigmoid)
            z, r, h = i, o, f
            gates[b, h] = gates[b, r] * (gates[b, h] + row.bias[h]) + row.x[row.t, b, h]
            activate(2, j, tanh)
            state[b, j] = gates[b, h] + gates[b, z] * (state[b, j] - gates[b, h])
        else:  # gates i, o, f, c
            for gate in range(4):
                gates[b, gate * size + j] = total(gate, j)
                activate(gate, j, sigmoid if gate < 3 else tanh)
            row.cell[b, j] = gates[b, f] * row.cell[b, j] + gates[b, i] * gates[b, c]
            state[b, j] = row.cell[b, j]
            state[b, j] = gates[b, o] * tanh(state[b, j])
