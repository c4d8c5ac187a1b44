"""The template `dense_mlc.x86`: C[m, n] = sum over k of A[m, k] W[n, k], in float32.

Constant weights are packed when the model is compiled: the pass `pack-dense-weights` turns `nn.dense`
into `mlc.dense_packed`, whose weights lie in panels [N / columns, K, columns] (zeros behind N).
TVM's own `nn.contrib_dense_pack` will not do: its N is a multiple of the columns. Weights that are
computed at run time are packed inside the kernel, panel by panel.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import autotvm, relay, te
from tvm.relay.op import op as relay_op
from tvm.relay.op.strategy import generic, x86
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm, open_gemm, operator

TEMPLATE = "dense_mlc.x86"
PACKED = "mlc.dense_packed"


@autotvm.register_topi_compute(TEMPLATE)  # type: ignore[untyped-decorator]
def dense(cfg: Any, data: Any, weight: Any, units: int) -> Any:
    """Return the product [m, units] of `data` [m, k] and `weight`, [units, k] or packed."""
    m, k = get_const_tuple(data.shape)
    known = gemm.problem(m, int(units), k)
    gemm.define(cfg, known)
    tile, width = list(cfg["tile"].val), 0
    if len(weight.shape) == 2 and autotvm.GLOBAL_SCOPE.in_tuning:
        weight = te.placeholder(known.panels(tile), weight.dtype, name="packed_weight")
    if len(weight.shape) == 3:
        assert get_const_tuple(weight.shape) == known.panels(tile), "packed for another config"
        width = known.width(tile)

        def panel(_batch: Any, *position: Any) -> Any:
            return weight(*position)
    else:
        panel = gemm.pack(known, tile, lambda _batch, n, step: weight[n, step])

    def row(_batch: Any, i: Any, step: Any) -> Any:
        return data[i, step]

    return gemm.product(known, tile, row, panel, batched=False, width=width)


@autotvm.register_topi_schedule(TEMPLATE)  # type: ignore[untyped-decorator]
def schedule_dense(cfg: Any, outs: Any) -> Any:
    """Return the schedule of a dense layer with what Relay fused behind it."""
    return gemm.schedule(cfg, outs)


def panels(cfg: Any, data: Any, weight: Any) -> tuple[int, int, int]:
    """Return the shape in which a config wants the weights [units, k] of a layer."""
    known = gemm.problem(int(data.shape[0]), int(weight.shape[0]), int(weight.shape[1]))
    return known.panels(list(cfg["tile"].val))


def packed(data: Any, weight: Any, units: int) -> Any:
    """Return the Relay call of a dense layer with packed weights."""
    return operator.call(PACKED, [data, weight], units=units)


def install() -> None:
    """Register the operator with packed weights, and the strategies of both."""
    operator.register(
        PACKED,
        "a dense layer, its weights in panels [N / columns, K, columns]",
        {"data": "activations [m, k]", "weight": "weights [panels, k, columns], zeros behind n"},
        ("MlcDensePacked", _packed_type),
    )
    relay_op.register_strategy(PACKED, _packed_strategy)
    generic.dense_strategy.register("cpu", offered(x86.dense_strategy_cpu), override=True)


def _packed_type(types: Any, attrs: Any) -> Any:
    data = types[0]
    return relay.TensorType([data.shape[0], int(attrs["units"])], data.dtype)


def offered(theirs: Any) -> Any:
    """Return a strategy function of TVM's with our template before its own."""

    def strategy(attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
        found = theirs(attrs, inputs, out_type, target)
        if gemm.takes(*inputs, out_type):
            _offer(found)
        elif open_gemm.takes(*inputs, out_type):
            open_gemm.offer(found, _open)
        return found

    return strategy


@tvm.target.override_native_generic_func("mlc_dense_packed_strategy")  # type: ignore[untyped-decorator]
def _packed_strategy(_attrs: Any, inputs: Any, out_type: Any, _target: Any) -> Any:
    strategy = relay_op.OpStrategy()
    if open_gemm.takes(*inputs, out_type):
        open_gemm.offer(strategy, _open)
    else:
        _offer(strategy)
    return strategy


def _offer(strategy: Any) -> None:
    strategy.add_implementation(
        _compute, generic.wrap_topi_schedule(schedule_dense), name=TEMPLATE, plevel=gemm.PLEVEL
    )


def _compute(_attrs: Any, inputs: Any, out_type: Any) -> list[Any]:
    return [dense(inputs[0], inputs[1], int(out_type.shape[1]))]


def _open(_attrs: Any, inputs: Any, out_type: Any) -> list[Any]:
    return [open_gemm.dense(inputs[0], inputs[1], int(out_type.shape[1]))]
