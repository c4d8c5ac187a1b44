"""Take Winograd's algorithm for the convolutions where it is faster, its weights transformed before.

The choice is one between two AutoTVM tasks with the same result, TVM's `conv2d_NCHWc.x86` and our
`conv2d_winograd_mlc.x86`: rivals. They are not one task with a knob `algorithm`, because no other knob
means anything for both: the space would be their product, a thousand times as large and full of
duplicates, and records of the direct template, which are many, would not apply. With
records of both, taken on one device, the lower cost wins; otherwise `winograd.pays` decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIRECT = "conv2d_NCHWc.x86"


def take_winograd(module: Any) -> Any:
    """Turn each `nn.conv2d` that Winograd's algorithm does faster into `mlc.conv2d_winograd`.

    Only 3x3 with stride 1, float32, constant weights, where TVM's own choice is its direct template.
    Weights that several layers share are transformed once for each plan.
    """
    plans: dict[Any, Any] = {}
    weights: dict[Any, Any] = {}

    def on_call(call: Any, args: Sequence[Any]) -> Any:
        from tvm import ir, relay

        if not isinstance(call.op, ir.Op) or call.op.name != "nn.conv2d":
            return None
        if not isinstance(args[1], relay.Constant) or not _fits(call):
            return None
        kinds = [(tuple(map(int, t.checked_type.shape)), t.checked_type.dtype) for t in call.args]
        key = (*kinds, tuple(map(int, call.attrs.padding)))
        if key not in plans:
            plans[key] = _plan(call)
        return _replaced(args, plans[key], weights) if plans[key] else None

    return rewrite_main(module, on_call)


def _fits(call: Any) -> bool:
    from mlc.schedules import gemm

    attrs = call.attrs
    return (
        (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW")
        and str(attrs.out_layout) in ("", "NCHW")
        and gemm.takes(*(arg.checked_type for arg in call.args), call.checked_type)
        and tuple(map(int, call.args[1].checked_type.shape[2:])) == (3, 3)
        and tuple(map(int, (*attrs.strides, *attrs.dilation, attrs.groups))) == (1, 1, 1, 1, 1)
    )


def _plan(call: Any) -> Any:
    """Return the plan of a layer; None when direct convolution is taken."""
    from tvm import autotvm, relay, te
    from tvm.relay.backend import te_compiler
    from tvm.target import Target

    from mlc.schedules import winograd

    target, context = Target.current(), autotvm.task.DispatchContext.current
    data, weight = (te.placeholder(a.checked_type.shape, a.checked_type.dtype) for a in call.args)
    _, outs = te_compiler.select_implementation(
        relay.op.get("nn.conv2d"), call.attrs, [data, weight], call.checked_type, target
    )
    direct = autotvm.task.get_workload(outs)
    if not direct or direct[0] != _DIRECT:
        return None
    layer = winograd.layer_of(data, call.attrs.padding, int(weight.shape[0]))
    rest = [layer.padding, layer.filters, layer.out_block]
    ours = autotvm.task.args_to_workload([data, weight, *rest], winograd.TEMPLATE)
    if not winograd.suits(layer) or not _wins(context, ours, direct, layer):
        return None
    config = context.query(target, ours)
    plan = winograd.define(config, layer)
    blocked = te.placeholder(
        (layer.batch, layer.channels // layer.in_block, layer.height, layer.width, layer.in_block)
    )
    altered = [blocked, te.placeholder(plan.weights), *rest]
    context.update(target, autotvm.task.args_to_workload(altered, winograd.TEMPLATE), config)
    return plan


def _wins(context: Any, ours: Any, direct: Any, layer: Any) -> bool:
    """Return whether records, or else the model, say that Winograd's algorithm is faster."""
    from mlc.schedules import winograd

    if hasattr(context, "compete"):  # not in TVM's own contexts
        one, other = context.compete(ours, direct)
        if one and other and one.device == other.device:
            return bool(one.cost < other.cost)
    return winograd.pays(layer)


def _replaced(args: Sequence[Any], plan: Any, done: dict[Any, Any]) -> Any:
    from mlc.schedules import winograd_op

    data, filters = args
    key = (filters.handle.value, plan.weights)
    if key not in done:
        done[key] = winograd_op.weights(
            filters, plan
        )  # holds `filters`: a handle may be used again
    return winograd_op.call(data, done[key], plan)
