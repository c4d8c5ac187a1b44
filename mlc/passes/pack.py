"""Pack the constant weights of dense layers for our template, when the model is compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.passes.fold import relayout
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence


def pack_dense(module: Any) -> Any:
    """Turn each `nn.dense` with constant weights that our template takes into `mlc.dense_packed`.

    The panels are as wide as the config in the current dispatch context says. Equal layers are asked
    about once, and weights that several layers share are packed once for each width. Other layers
    are left as they are: their templates pack at run time.
    """
    widths: dict[str, int] = {}
    packed: dict[tuple[int, int], Any] = {}

    def on_call(call: Any, args: Sequence[Any]) -> Any:
        from tvm import ir, relay

        from mlc.schedules import dense

        if not isinstance(call.op, ir.Op) or call.op.name != "nn.dense":
            return None
        data, weight = args
        if not isinstance(weight, relay.Constant):
            return None
        kinds = str([node.checked_type for node in (*call.args, call)])
        if kinds not in widths:
            widths[kinds] = _columns(call)
        columns = widths[kinds]
        if columns == 0:
            return None
        key = (weight.handle.value, columns)
        if key not in packed:
            packed[key] = _in_panels(weight, columns)
        return dense.packed(data, packed[key], int(weight.data.shape[0]))

    return rewrite_main(module, on_call)


def _in_panels(weight: Any, columns: int) -> Any:
    """Return constant weights [n, k] as a constant [n / columns, k, columns], zeros behind n."""
    from tvm import nd, relay

    return relay.Constant(nd.array(relayout(weight.data.numpy(), "NK", f"NK{columns}n", pad=True)))


def _columns(call: Any) -> int:
    """Return the columns of a panel; 0 when another template was chosen for the layer.

    The config goes on to the workload of the packed layer, as in TVM's own layout pass.
    """
    from tvm import autotvm, relay, te
    from tvm.relay.backend import te_compiler
    from tvm.target import Target

    from mlc.schedules import dense, open_gemm

    target = Target.current()
    data, weight = (te.placeholder(a.checked_type.shape, a.checked_type.dtype) for a in call.args)
    if open_gemm.takes(data, weight, call.checked_type):
        return open_gemm.columns(data, weight)
    _, outs = te_compiler.select_implementation(
        relay.op.get("nn.dense"), call.attrs, [data, weight], call.checked_type, target
    )
    workload = autotvm.task.get_workload(outs)
    if not workload or workload[0] != dense.TEMPLATE:
        return 0
    context = autotvm.task.DispatchContext.current
    config = context.query(target, workload)
    panels = dense.panels(config, data, weight)
    packed = te.placeholder(panels, weight.dtype)
    altered = autotvm.task.args_to_workload([data, packed, int(weight.shape[0])], dense.TEMPLATE)
    context.update(target, altered, config)
    return panels[2]
