"""Recurrent layers for GPUs: the operator with the loop over its steps is for CPUs, here it is undone.

Each step becomes ordinary operators. The step's number is a constant tensor, an input of kernels and no
part of their code, so all steps share theirs: compile time hardly grows with the sequence, the number
of launches does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.errors import BuildError
from mlc.passes.expr import op_name
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_STEPS = 256  # the kernel that joins all states has a parameter for each, and 4 KB for them


def write_out_recurrent(module: Any) -> Any:
    """Return the module without `mlc.recurrent`, its layers written out step by step.

    Raises:
        BuildError: a layer has more than MAX_STEPS steps.
    """
    return rewrite_main(module, _written_out)


def _written_out(call: Any, arguments: Sequence[Any]) -> Any:
    from tvm import relay

    from mlc.schedules import recurrent

    if op_name(call) != recurrent.NAME:
        return None
    steps = int(call.args[0].checked_type.shape[0])
    kind = str(call.attrs["kind"])
    if steps > MAX_STEPS:
        raise BuildError(
            f"a layer {kind} has {steps} steps, and for a GPU at most {MAX_STEPS} are written out",
            "fix a shorter sequence (`--shape`), or compile for a CPU: `--target llvm`",
        )
    x, weight, bias, state, cell = arguments
    weight = relay.transpose(weight)
    states: list[Any] = [None] * steps
    for step in reversed(range(steps)) if call.attrs["reverse"] else range(steps):
        row = relay.squeeze(relay.take(x, relay.const([step], "int32"), axis=0), [0])
        product = relay.nn.dense(state, weight)
        state, cell = _CELLS[kind](row, product, bias, state, cell)
        states[step] = state
    return relay.Tuple([relay.stack(states, 0), cell])


# One step: the inputs' share of the gates [batch, gates], the state's, the bias [gates], state and cell
# [batch, hidden] -> state and cell. Equations: onnx/docs/Operators.md, as in `schedules/recurrent.py`.


def _rnn(row: Any, product: Any, bias: Any, _state: Any, cell: Any) -> tuple[Any, Any]:
    from tvm import relay

    return relay.tanh(row + product + bias), cell


def _gru(row: Any, product: Any, bias: Any, state: Any, cell: Any) -> tuple[Any, Any]:
    from tvm import relay

    xz, xr, xh = relay.split(row, 3, 1)
    hz, hr, hh = relay.split(product + bias, 3, 1)
    z, r = relay.sigmoid(xz + hz), relay.sigmoid(xr + hr)
    new = relay.tanh(xh + r * hh)
    return new + z * (state - new), cell


def _lstm(row: Any, product: Any, bias: Any, _state: Any, cell: Any) -> tuple[Any, Any]:
    from tvm import relay

    i, o, f, c = relay.split(row + product + bias, 4, 1)
    cell = relay.sigmoid(f) * cell + relay.sigmoid(i) * relay.tanh(c)
    return relay.sigmoid(o) * relay.tanh(cell), cell


_CELLS = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
