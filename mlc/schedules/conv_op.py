"""Our templates for `nn.conv2d` in its strategies, and the blocked layouts that AlterOpLayout asks for.

The templates take plain tensors (NCHW, OIHW) and, once layouts are altered, blocks (NCHWc, OIHWio).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tvm
from tvm import autotvm, relay, te
from tvm.relay.op import op as relay_op
from tvm.relay.op.strategy import generic, x86
from tvm.topi import nn
from tvm.topi.utils import get_const_tuple
from tvm.topi.x86 import conv2d_alter_op

from mlc.schedules import depthwise, direct, gemm, narrow_op, pointwise

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class Template:
    """A template: what it takes, its attributes in order, its layer, and the blocked operator."""

    name: str
    takes: Callable[[Any, Any, Any], bool]
    attributes: tuple[str, ...]
    layer_of: Callable[..., Any]
    compute: Callable[..., Any]
    schedule: Callable[..., Any]
    operator: Callable[..., Any]

    def arguments(self, attrs: Any) -> list[Any]:
        """Return the arguments behind data and weights."""
        values = [attrs[name] for name in self.attributes]
        return [int(v) if isinstance(v, int) else tuple(get_const_tuple(v)) for v in values]


_TEMPLATES = (
    Template(
        name=depthwise.TEMPLATE,
        takes=depthwise.takes,
        attributes=("strides", "padding", "dilation"),
        layer_of=depthwise.layer_of,
        compute=depthwise.depthwise,
        schedule=depthwise.schedule_depthwise,
        operator=relay.nn.contrib_depthwise_conv2d_nchwc,
    ),
    Template(
        name=pointwise.TEMPLATE,
        takes=pointwise.takes,
        attributes=("strides",),
        layer_of=pointwise.layer_of,
        compute=pointwise.pointwise,
        schedule=pointwise.schedule_pointwise,
        operator=relay.nn.contrib_conv2d_nchwc,
    ),
    Template(
        name=direct.TEMPLATE,
        takes=direct.takes,
        attributes=("strides", "padding", "dilation", "groups"),
        layer_of=direct.layer_of,
        compute=direct.direct,
        schedule=direct.schedule_direct,
        operator=relay.nn.contrib_conv2d_nchwc,
    ),
)


def install() -> None:
    """Put the templates before TVM's own in the strategies of key `cpu`, and let them choose layouts."""
    for generic_strategy, theirs in (
        (generic.conv2d_strategy, x86.conv2d_strategy_cpu),
        (generic.conv2d_NCHWc_strategy, x86.conv2d_NCHWc_strategy_cpu),
        (generic.depthwise_conv2d_NCHWc_strategy, x86.depthwise_conv2d_NCHWc_strategy_cpu),
    ):
        generic_strategy.register("cpu", offered(theirs), override=True)
    nn.conv2d_alter_layout.register(
        "cpu", alter(conv2d_alter_op._alter_conv2d_layout), override=True
    )


def offered(theirs: Any) -> Any:
    """Return a strategy function of TVM's with our templates before its own."""

    def strategy(attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
        if narrow_op.takes(attrs, inputs):
            return narrow_op.strategy()
        # Theirs fail on groups in blocks, and on an image that is not in blocks.
        only_ours = len(inputs[1].shape) == 6 and direct.takes(attrs, inputs, out_type)
        found = relay_op.OpStrategy() if only_ours else theirs(attrs, inputs, out_type, target)
        for template in _TEMPLATES:
            if template.takes(attrs, inputs, out_type):
                found.add_implementation(
                    _compute(template), generic.wrap_topi_schedule(template.schedule),
                    name=template.name, plevel=gemm.PLEVEL,
                )  # fmt: skip
        return found

    return strategy


def _compute(template: Template) -> Any:
    def compute(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
        return [template.compute(*inputs, *template.arguments(attrs))]

    return compute


def alter(otherwise: Any) -> Any:
    """Return what AlterOpLayout asks for a convolution in blocks, `otherwise` for TVM's templates."""

    def altered(attrs: Any, inputs: Any, types: Any, out_type: Any) -> Any:
        if narrow_op.takes(attrs, types):
            return narrow_op.alter(attrs, inputs, types)
        found = _altered(attrs, inputs, types, out_type)
        return otherwise(attrs, inputs, types, out_type) if found is None else found

    return altered


def _altered(attrs: Any, inputs: Any, types: Any, out_type: Any) -> Any:
    """Return a convolution in blocks; None when it is not for one of our templates."""
    from tvm.relay.backend import te_compiler

    if not any(template.takes(attrs, types, out_type) for template in _TEMPLATES):
        return None
    target = tvm.target.Target.current(allow_none=False)
    _, outs = te_compiler.select_implementation(
        relay.op.get("nn.conv2d"), attrs, types, out_type, target
    )
    workload = autotvm.task.get_workload(outs)
    name = workload[0] if workload else ""
    template = next((one for one in _TEMPLATES if one.name == name), None)
    if template is None:
        return None
    context = autotvm.task.DispatchContext.current
    config = context.query(target, workload)
    rest = template.arguments(attrs)
    layer = template.layer_of(*types, *rest)
    tensors = [te.placeholder(layer.image), te.placeholder(layer.weights)]
    context.update(target, autotvm.task.args_to_workload([*tensors, *rest], name), config)
    inner, outer = layer.weights[-2:]
    layouts = {
        "channels": layer.weights[0] * outer,
        "data_layout": f"NCHW{layer.image[4]}c" if len(layer.image) == 5 else "NCHW",
        "kernel_layout": f"OIHW{inner}i{outer}o",
        "out_layout": f"NCHW{outer}c",
    }
    given = {key: attrs[key] for key in attrs.keys()}  # noqa: SIM118
    return template.operator(*inputs, **{**given, **layouts})
