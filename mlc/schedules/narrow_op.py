"""Convolutions of 8-bit values in their strategies, and the blocked layouts that AlterOpLayout asks for."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import autotvm, relay, te
from tvm.topi.utils import get_const_tuple

from mlc.schedules import dot, narrow, operator


def takes(attrs: Any, inputs: Any) -> bool:
    """Return whether the template takes a `nn.conv2d`: one group, no padding, whole blocks.

    Data and weights are those of the instruction of the current target.
    """
    data, weight = inputs
    instruction = dot.of_target()
    if instruction is None or (data.dtype, weight.dtype) != (instruction.data, instruction.weight):
        return False
    shape, least = get_const_tuple(weight.shape), instruction.blocks[-1]
    plain = (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW")
    blocked = len(data.shape) == 5 and len(shape) == 7
    return (
        (blocked or (plain and shape[0] % least == shape[1] % least == 0))
        and attrs.groups == 1
        and not any(get_const_tuple(attrs.padding))
    )


def strategy() -> Any:
    """Return the strategy of a convolution that the template takes.

    TVM's own templates are not behind it: Arm's fails where channels are no multiple of 8, those of x86
    abort in LLVM 22.
    """
    name = _template()
    return operator.only(_compute, narrow.SCHEDULE[name], name)


def _template() -> str:
    instruction = dot.of_target()
    assert instruction is not None, "the target has no instruction for it"
    return instruction.template


def _compute(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    return [narrow.COMPUTE[_template()](*inputs, *_arguments(attrs))]


def _arguments(attrs: Any) -> list[tuple[int, ...]]:
    return [tuple(get_const_tuple(attrs.strides)), tuple(get_const_tuple(attrs.dilation))]


def alter(attrs: Any, inputs: Any, types: Any) -> Any:
    """Return a convolution that the template takes in blocks, for AlterOpLayout; its config goes along."""
    target, name = tvm.target.Target.current(allow_none=False), _template()
    context = autotvm.task.DispatchContext.current
    rest = _arguments(attrs)
    plain = [te.placeholder(get_const_tuple(t.shape), t.dtype) for t in types]
    layer = narrow.layer_of(*plain, *rest)
    config = context.query(target, autotvm.task.args_to_workload([*plain, *rest], name))
    shapes = (layer.image, layer.weights)
    packed = [te.placeholder(shape, t.dtype) for shape, t in zip(shapes, types, strict=True)]
    context.update(target, autotvm.task.args_to_workload([*packed, *rest], name), config)
    *_, inner, outer, group = layer.weights
    layouts = {
        "channels": layer.filters,
        "data_layout": f"NCHW{layer.in_block}c",
        "kernel_layout": f"OIHW{inner}i{outer}o{group}i",
        "out_layout": f"NCHW{outer}c",
    }
    given = {key: attrs[key] for key in attrs.keys()}  # noqa: SIM118
    return relay.nn.contrib_conv2d_nchwc(*inputs, **{**given, **layouts})
