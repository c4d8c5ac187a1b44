"""Which block of channels activations lie in (the c of NCHWc), and the default of TVM's template.

All layers take the block from the number of channels and the vector alone, whatever reads or writes
them, so that no layout changes between two layers. TVM's own default takes the largest divisor, and
none for the inputs that is larger than the one of the outputs.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.autotvm.task.space import OtherOptionEntity, SplitEntity
from tvm.target import Target

from mlc.schedules import gemm

_MOST_ROWS = 28  # of a register tile: more are no faster, and the code grows with them


def block(channels: int, lanes: int) -> int:
    """Return the block of channels, a divisor of them that is no longer than a vector.

    It is the one of fewest instructions over all blocks, the largest of equal ones. A block of 12
    takes two instructions (8 and 4 floats), so that 24 channels are better three blocks of 8.
    """
    divisors = [size for size in range(lanes, 0, -1) if channels % size == 0]
    return min(divisors, key=lambda size: channels // size * size.bit_count())


def write_default(cfg: Any, layer: Any) -> None:
    """Write the default of `conv2d_NCHWc.x86` for a layer, in TOPI's terms, into a fallback config.

    The register tile is as many outputs of a row, or of two rows of a 1x1 convolution, as there are
    registers, less one for the weights and one for the input.
    """
    machine = gemm.problem(1, 1, 1)
    rows = min(machine.registers - 2, _MOST_ROWS)
    size = layer.dilation_w * (layer.kernel_w - 1) + 1
    width = (layer.width + layer.padl + layer.padr - size) // layer.stride_w + 1
    size = layer.dilation_h * (layer.kernel_h - 1) + 1
    height = (layer.height + layer.padt + layer.padb - size) // layer.stride_h + 1
    across = next(tile for tile in range(min(rows, width), 0, -1) if width % tile == 0)
    for name, channels in (("tile_ic", layer.in_filter), ("tile_oc", layer.out_filter)):
        inner = block(channels, machine.lanes)
        cfg[name] = SplitEntity([channels // inner, inner])
    cfg["tile_ow"] = SplitEntity([width // across, across])
    if layer.kernel_h == layer.kernel_w == 1:
        cfg["tile_oh"] = OtherOptionEntity(2 if height > 1 and 2 * across <= rows else 1)
    else:
        cfg["unroll_kw"] = OtherOptionEntity(False)


@functools.cache
def install() -> None:
    """Give TVM's template `conv2d_NCHWc.x86` this default, except on Arm, which has it, too."""
    from tvm.topi.x86 import conv2d_avx_1x1, conv2d_avx_common

    for module in (conv2d_avx_1x1, conv2d_avx_common):
        module._fallback_schedule = _except_on_arm(module._fallback_schedule)


def _except_on_arm(theirs: Any) -> Any:
    def fallback(cfg: Any, layer: Any) -> None:
        on_arm = "arm_cpu" in Target.current(allow_none=False).keys
        (theirs if on_arm else write_default)(cfg, layer)

    return fallback


def output_axes(s: Any, conv: Any, out: Any, size: int) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Return the stage that stores a convolution's outputs, and its axes n, block, h, w, channel.

    It is `out`, what Relay fused behind the convolution, with the convolution inlined; unless `out` has
    other axes and cannot be done tile by tile. Channels that lie in no blocks are split into some of `size`.
    """
    if len(out.shape) != len(conv.shape):
        out = conv
    if out.op != conv.op:
        s[conv].compute_inline()
    if len(conv.shape) == 5:
        n, b, h, w, lane = s[out].op.axis
    else:
        n, c, h, w = s[out].op.axis
        b, lane = s[out].split(c, factor=size)
    return out, n, b, h, w, lane
