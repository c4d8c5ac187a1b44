"""RNN, GRU and LSTM; the products with the input are one for all steps.

A common layer (default activations, no peepholes, float32) becomes one operator of ours, whose kernel
has the loop over its steps (`schedules/recurrent.py`); others are written out step by step.

Source: onnx/docs/Operators.md (RNN, GRU, LSTM, versions 1 to 22), whose equations and gate orders
are kept: i o f c in LSTM, z r h in GRU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlc.errors import ModelError
from mlc.frontend.ops.linear import dense
from mlc.frontend.ops.operands import dtype_of, number, optional, shape_of, text

Activation = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One direction: its slices of the operands, and its attributes.

    `hidden` and `cell` are [batch, hidden]; `bias` and `peephole` are split into parts of
    [hidden]; `recurrent` is [gates * hidden, hidden].
    """

    hidden: Any
    cell: Any
    recurrent: Any
    bias: Any
    peephole: Any
    activations: Sequence[Activation]
    size: int
    attributes: dict[str, Any]

    def product(self, state: Any) -> Any:
        """Return state times the recurrent weights, [batch, gates * hidden]."""
        return dense(state, self.recurrent)

    def clip(self, value: Any) -> Any:
        """Return what an activation is given: bounded, if the node says so."""
        from tvm import relay

        bound = self.attributes.get("clip")
        return value if bound is None else relay.clip(value, -bound, bound)


Step = Callable[[_Cell, Any, Any, Any], tuple[Any, Any]]


def rnn(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """RNN: Y and Y_h."""
    return _run(inputs, attributes, kind="RNN", defaults=("Tanh",), step=_rnn_step)


def gru(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """GRU: Y and Y_h."""
    return _run(inputs, attributes, kind="GRU", defaults=("Sigmoid", "Tanh"), step=_gru_step)


def lstm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """LSTM: Y, Y_h and Y_c."""
    defaults = ("Sigmoid", "Tanh", "Tanh")
    return _run(inputs, attributes, kind="LSTM", defaults=defaults, step=_lstm_step)


def _rnn_step(cell: _Cell, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    (f,) = cell.activations
    return f(cell.clip(x + cell.product(h) + cell.bias)), c


def _gru_step(cell: _Cell, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    from tvm import relay

    f, g = cell.activations
    n = cell.size
    xz, xr, xh = relay.split(x, 3, 1)
    gate_weights = relay.strided_slice(cell.recurrent, [0], [2 * n], axes=[0])
    last_weights = relay.strided_slice(cell.recurrent, [2 * n], [3 * n], axes=[0])
    hz, hr = relay.split(dense(h, gate_weights), 2, 1)
    input_bias, state_bias = relay.split(cell.bias, 2, 0)
    wz, wr, wh = relay.split(input_bias, 3, 0)
    rz, rr, rh = relay.split(state_bias, 3, 0)
    z = f(cell.clip(xz + hz + wz + rz))
    r = f(cell.clip(xr + hr + wr + rr))
    if cell.attributes.get("linear_before_reset", 0):
        inner = r * (dense(h, last_weights) + rh)
    else:
        inner = dense(r * h, last_weights) + rh
    new = g(cell.clip(xh + inner + wh))
    return (number(1, z) - z) * new + z * h, c


def _lstm_step(cell: _Cell, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    from tvm import relay

    f, g, last = cell.activations
    xi, xo, xf, xc = relay.split(x + cell.product(h) + cell.bias, 4, 1)
    if cell.peephole is not None:
        pi, po, pf = relay.split(cell.peephole, 3, 0)
        xi, xf = xi + pi * c, xf + pf * c
    i = f(cell.clip(xi))
    forget = f(cell.clip(xf))
    if cell.attributes.get("input_forget", 0):
        forget = number(1, i) - i
    new_c = forget * c + i * g(cell.clip(xc))
    if cell.peephole is not None:
        xo = xo + po * new_c
    return f(cell.clip(xo)) * last(new_c), new_c


def _run(
    inputs: Sequence[Any],
    attributes: dict[str, Any],
    *,
    kind: str,
    defaults: tuple[str, ...],
    step: Step,
) -> Any:
    from tvm import relay

    from mlc.schedules.recurrent import GATES

    data = inputs[0]
    batch_first = attributes.get("layout", 0)
    if batch_first:
        data = relay.transpose(data, [1, 0, 2])
    steps, batch, width = shape_of(data)
    directions = shape_of(inputs[1])[0]
    size, gates = shape_of(inputs[2])[2], GATES[kind]
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    order = backward.get(text(attributes, "direction", "forward"), [])
    if len(order) != directions:
        raise ModelError(f"its weights have {directions} directions")
    plain = _is_plain(inputs, attributes, kind, defaults)
    outputs, hiddens, cells = [], [], []
    for k, reverse in enumerate(order):
        cell = _cell(inputs, attributes, k, defaults, batch=batch, size=size, gates=gates)
        flat = dense(relay.reshape(data, [-1, width]), _slice(inputs[1], k))
        x = relay.reshape(flat, [steps, batch, gates * size])
        if plain:
            y, h, c = _in_one(cell, kind, x, reverse=reverse)
        else:
            y, h, c = _written_out(cell, step, x, optional(inputs, 4), reverse=reverse)
        outputs.append(y)
        hiddens.append(h)
        cells.append(c)
    y, y_h, y_c = relay.stack(outputs, 1), relay.stack(hiddens, 0), relay.stack(cells, 0)
    if batch_first:
        y = relay.transpose(y, [2, 0, 1, 3])
        y_h, y_c = relay.transpose(y_h, [1, 0, 2]), relay.transpose(y_c, [1, 0, 2])
    return relay.Tuple([y, y_h, y_c])


def _is_plain(
    inputs: Sequence[Any], attributes: dict[str, Any], kind: str, defaults: tuple[str, ...]
) -> bool:
    """Return whether the operator of ours computes the layer."""
    names = tuple(value.decode() for value in attributes.get("activations", []))
    return (
        dtype_of(inputs[0]) == "float32"
        and names in {defaults * count for count in range(3)}
        and not any(attributes.get(name) for name in ("clip", "input_forget"))
        and optional(inputs, 4) is None  # lengths
        and optional(inputs, 7) is None  # peepholes
        and (kind != "GRU" or bool(attributes.get("linear_before_reset")))
    )


def _in_one(cell: _Cell, kind: str, x: Any, *, reverse: bool) -> tuple[Any, Any, Any]:
    """Return all states and the last state and cell, by the operator of ours.

    `x` [steps, batch, gates * hidden] is the product of the inputs with their weights.
    """
    from tvm import relay

    from mlc.schedules.recurrent import recurrent

    bias = cell.bias
    if kind == "GRU":
        input_bias, bias = relay.split(bias, 2, 0)
        x = x + input_bias
    weights = relay.transpose(cell.recurrent)
    y, c = recurrent(kind, (x, weights, bias, cell.hidden, cell.cell), reverse=reverse)
    last = 0 if reverse else shape_of(x)[0] - 1
    return y, _slice(y, last), c


def _written_out(
    cell: _Cell, step: Step, x: Any, lengths: Any, *, reverse: bool
) -> tuple[Any, Any, Any]:
    """Return what `_in_one` returns, step by step; a row of the batch may end early."""
    from tvm import relay

    steps = shape_of(x)[0]
    rows = relay.split(x, steps, 0)
    h, c = cell.hidden, cell.cell
    states: list[Any] = [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        new_h, new_c = step(cell, relay.squeeze(rows[t], [0]), h, c)
        h, c, states[t] = _masked(lengths, t, (new_h, h), (new_c, c))
    return relay.stack(states, 0), h, c


def _masked(
    lengths: Any, step: int, h: tuple[Any, Any], c: tuple[Any, Any]
) -> tuple[Any, Any, Any]:
    """Return the states behind a step and its output: past a sequence's end nothing changes."""
    from tvm import relay

    if lengths is None:
        return h[0], c[0], h[0]
    alive = relay.expand_dims(lengths > number(step, lengths), 1)
    return (
        relay.where(alive, *h),
        relay.where(alive, *c),
        relay.where(alive, h[0], number(0, h[0])),
    )


def _cell(
    inputs: Sequence[Any], attributes: dict[str, Any], k: int, defaults: tuple[str, ...], *,
    batch: int, size: int, gates: int,
) -> _Cell:  # fmt: skip
    from tvm import relay

    dtype = dtype_of(inputs[0])

    def state(position: int) -> Any:
        value = optional(inputs, position)
        if value is None:
            return relay.zeros([batch, size], dtype)
        if attributes.get("layout", 0):
            value = relay.transpose(value, [1, 0, 2])
        return _slice(value, k)

    bias, peephole = optional(inputs, 3), optional(inputs, 7)
    bias = relay.zeros([2 * gates * size], dtype) if bias is None else _slice(bias, k)
    if gates != 3:  # all but GRU add both halves of the bias at one place
        halves = relay.split(bias, 2, 0)
        bias = halves[0] + halves[1]
    count = len(defaults)
    names = [v.decode() for v in attributes.get("activations", [])] or list(defaults) * (k + 1)
    first = 0 if len(names) < (k + 1) * count else k * count
    return _Cell(
        hidden=state(5),
        cell=state(6) if gates == 4 else relay.zeros([batch, size], dtype),
        recurrent=_slice(inputs[2], k),
        bias=bias,
        peephole=None if peephole is None else _slice(peephole, k),
        activations=_activations(names, attributes)[first : first + count],
        size=size,
        attributes=attributes,
    )


def _slice(value: Any, k: int) -> Any:
    from tvm import relay

    return relay.squeeze(relay.strided_slice(value, [k], [k + 1], axes=[0]), [0])


def _activations(names: Sequence[str], attributes: dict[str, Any]) -> list[Activation]:
    """Return the functions; each takes its alpha and beta, in turn, if it has any."""
    alphas = list(attributes.get("activation_alpha", []))
    betas = list(attributes.get("activation_beta", []))
    found: list[Activation] = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise ModelError(f"the activation {name!r} is not supported")
        function, *defaults = _ACTIVATIONS[name]
        given = [
            lists.pop(0) if lists else value
            for lists, value in zip((alphas, betas), defaults, strict=False)
        ]
        found.append(functools.partial(_activated, function, tuple(given)))
    return found


def _activated(function: Callable[..., Any], parameters: Sequence[float], x: Any) -> Any:
    return function(x, *(number(value, x) for value in parameters))


def _relay(name: str) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        from tvm import relay

        owner: Any = relay
        for part in name.split("."):
            owner = getattr(owner, part)
        return owner(x)

    return call


def _above(x: Any, limit: Any, inside: Any, outside: Any) -> Any:
    from tvm import relay

    return relay.where(x > limit, inside, outside)


def _hard_sigmoid(x: Any, a: Any, b: Any) -> Any:
    from tvm import relay

    return relay.clip(x * a + b, 0.0, 1.0)


# Name -> (function, default alpha, default beta); table of the RNN operator's documentation.
_ACTIVATIONS: dict[str, tuple[Any, ...]] = {
    "Affine": (lambda x, a, b: x * a + b, 1.0, 0.0),
    "Elu": (lambda x, a: _above(x, number(0, x), x, a * (_relay("exp")(x) - number(1, x))), 1.0),
    "HardSigmoid": (_hard_sigmoid, 0.2, 0.5),
    "LeakyRelu": (lambda x, a: _above(x, number(0, x), x, a * x), 0.01),
    "Relu": (_relay("nn.relu"),),
    "ScaledTanh": (lambda x, a, b: a * _relay("tanh")(b * x), 1.0, 1.0),
    "Sigmoid": (_relay("sigmoid"),),
    "Softplus": (lambda x: _relay("log")(_relay("exp")(x) + number(1, x)),),
    "Softsign": (lambda x: x / (_relay("abs")(x) + number(1, x)),),
    "Tanh": (_relay("tanh"),),
    "ThresholdedRelu": (lambda x, a: _above(x, a, x, number(0, x)), 1.0),
}
