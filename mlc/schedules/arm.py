"""On Arm, convolutions in blocks (NCHWc) unless a tuning record says better.

Without records TVM 0.19 gives float convolutions on Arm the template `conv2d_nchw_spatial_pack`,
whose default configuration comes from a log that it would download (TopHub). Without that log it is
not vectorized: ResNet-18 for a Cortex-A72 came out with 16 vector multiply-adds in all, 1016 with
the NCHWc template, which is TVM's x86 one and has a default that knows the vector width. TVM offers
it on Arm, too, with an equal priority; here it gets a higher one. All templates can still be tuned,
and a record of any of them wins.
"""

from __future__ import annotations

import functools
from typing import Any

_PRIORITY = (
    11  # above 10, what TVM gives to its default, and below our templates and its 8-bit ones
)


@functools.cache
def install() -> None:
    """Make TVM choose so, in this process."""
    from tvm.relay.op.strategy import arm_cpu, generic
    from tvm.topi import nn
    from tvm.topi.arm_cpu import conv2d_alter_op as arm_layouts
    from tvm.topi.x86 import conv2d_alter_op as x86_layouts

    from mlc.schedules import conv_op, dense

    offered = arm_cpu.conv2d_strategy_arm_cpu
    for_arm, for_x86 = arm_layouts._alter_conv2d_layout, x86_layouts._alter_conv2d_layout

    def raised(attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
        return _raise_blocked(offered(attrs, inputs, out_type, target), attrs, inputs)

    def tvms(attrs: Any, inputs: Any, tinfos: Any, out_type: Any) -> Any:
        # Work-around: the code for Arm passes the arguments of the depthwise template in a wrong
        # order, so the templates of x86 get x86's own.
        chosen = for_x86 if _is_x86_template(attrs, tinfos, out_type) else for_arm
        return chosen(attrs, inputs, tinfos, out_type)

    generic.conv2d_strategy.register("arm_cpu", conv_op.offered(raised))
    blocked = conv_op.offered(arm_cpu.conv2d_NCHWc_strategy_arm_cpu)
    generic.conv2d_NCHWc_strategy.register("arm_cpu", blocked, override=True)
    depthwise = conv_op.offered(arm_cpu.depthwise_conv2d_NCHWc_strategy_arm_cpu)
    generic.depthwise_conv2d_NCHWc_strategy.register("arm_cpu", depthwise, override=True)
    products = dense.offered(arm_cpu.schedule_dense_arm_cpu)
    generic.dense_strategy.register("arm_cpu", products, override=True)
    nn.conv2d_alter_layout.register("arm_cpu", conv_op.alter(tvms), override=True)


def _raise_blocked(strategy: Any, attrs: Any, inputs: Any) -> Any:
    """Return a strategy for a convolution, the blocked template raised where it fits."""
    from tvm import topi
    from tvm.relay.op.strategy import generic

    data, kernel = inputs
    if (attrs.data_layout, attrs.kernel_layout) != ("NCHW", "OIHW") or "float" not in data.dtype:
        return strategy
    if attrs.groups == 1:
        compute, schedule = topi.x86.conv2d_nchw, topi.x86.schedule_conv2d_nchw
        name = "conv2d_nchw.x86"
    elif _is_plain_depthwise(attrs, data, kernel):
        compute, schedule = topi.x86.depthwise_conv2d_nchw, topi.x86.schedule_depthwise_conv2d_nchw
        name = "depthwise_conv2d_nchw.x86"
    else:
        return strategy
    strategy.add_implementation(
        generic.wrap_compute_conv2d(compute),
        generic.wrap_topi_schedule(schedule),
        name=name,
        plevel=_PRIORITY,
    )
    return strategy


def _is_plain_depthwise(attrs: Any, data: Any, kernel: Any) -> bool:
    """Whether each channel has one filter of its own, without dilation: what the template takes."""
    filters, per_channel = int(kernel.shape[0]), int(kernel.shape[1])
    undilated = [int(step) for step in attrs.dilation] == [1, 1]
    return int(data.shape[1]) == attrs.groups == filters and per_channel == 1 and undilated


def _is_x86_template(attrs: Any, tinfos: Any, out_type: Any) -> bool:
    from tvm import autotvm, relay
    from tvm.relay.backend import te_compiler
    from tvm.target import Target

    _, outs = te_compiler.select_implementation(
        relay.op.get("nn.conv2d"), attrs, tinfos, out_type, Target.current(allow_none=False)
    )
    workload = autotvm.task.get_workload(outs)
    return workload is not None and workload[0].endswith("_NCHWc.x86")
