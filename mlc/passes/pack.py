"""Pack the constant weights of dense layers for our template, when the model is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlc.passes.fold import relayout
from mlc.passes.rewrite import rewrite_main


def pack_dense(module: Any) -> Any:
    """Turn each `nn.dense` with constant weights that our template takes into `mlc.dense_packed`.

    The panels are as wide as the config in the current dispatch context says. Weights that several
    layers share are packed once for each width. Others are left to the templates, which pack at
    run time.
    """
    known: dict[Any, Any] = {}

    def on_call(call: Any, args: Sequence[Any]) -> Any:
        from tvm import ir, relay

        if not isinstance(call.op, ir.Op) or call.op.name != "nn.dense":
            return None
        if not isinstance(args[1], relay.Constant):
            return None
        key = tuple((tuple(map(int, t.checked_type.shape)), t.checked_type.dtype) for t in call.args)
        kinds = (*key, call.checked_type.dtype)
        if kinds not in known:
            known[kinds] = _columns(call)
        return _packed(args, known[kinds], known) if known[kinds] else None

    return rewrite_main(module, on_call)


def _packed(args: Sequence[Any], columns: int, done: dict[Any, Any]) -> Any:
    from tvm import nd, relay

    from mlc.schedules import dense

    data, weight = args
    key = (weight.handle.value, columns)
    if key not in done:
        panels = relayout(weight.data.numpy(), "NK", f"NK{columns}n")
        done[key] = (relay.Constant(nd.array(panels)), weight)  # held: a handle may be used again
    return dense.packed(data, done[key][0], int(weight.data.shape[0]))


def _columns(call: Any) -> int:
    """Return the columns of a panel; 0 when another template was chosen for the layer.

    The config goes on to the workload of the packed layer, as in TVM's own layout pass.
    """
    from tvm import autotvm, relay, te
    from tvm.relay.backend import te_compiler
    from tvm.target import Target

    from mlc.schedules import dense

    target = Target.current()
    data, weight = (te.placeholder(a.checked_type.shape, a.checked_type.dtype) for a in call.args)
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
