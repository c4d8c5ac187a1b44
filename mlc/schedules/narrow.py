"""The template `conv2d_narrow_mlc.arm`: convolutions of int8 data and weights, summed up in int32.

Padding is done before. Activations lie in blocks of 8 or 4 channels (NCHWc), weights in
[filter block, channel block, down, across, channel / 4, filter, 4].

    for each group of blocks of filters, each row of outputs, in parallel:
        for each tile of `columns` outputs:
            acc[blocks, columns, block] = 0                  in registers
            for each channel block, tap, group of 4 channels:
                acc[:, :, 4 lanes] += dot(4 data, broadcast; 4 lanes x 4 weights)
            outputs = epilogue(acc)                          what Relay fused behind, stored

The innermost step is one `sdot` where the CPU has it (`+dotprod`), else `smull` and additions by pairs:
TVM's tensor intrinsics. A tile behind the end of a row computes its last column again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import autotvm, relay, te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.topi.arm_cpu import tensor_intrin
from tvm.topi.utils import get_const_tuple

from mlc.schedules import gemm
from mlc.schedules.blocks import output_axes
from mlc.schedules.tails import MARK
from mlc.schedules.window import Window

TEMPLATE = "conv2d_narrow_mlc.arm"
GROUP = 4  # channels that one instruction sums up, and sums that it makes
_TAG = "mlc_narrow"
_REGISTERS = 32  # of 128 bits, on 64-bit Arm
# Of the default: with a tile that leaves fewer registers free LLVM 22 moves sums around in the inner loop.
_DEFAULT_REGISTERS = 20
_COLUMNS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
_BLOCKS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Layer(Window):
    """An 8-bit convolution without padding; blocks of inputs and of filters."""

    filters: int
    in_block: int
    out_block: int

    @property
    def image(self) -> tuple[int, ...]:
        """The shape of the inputs in blocks."""
        blocks = self.channels // self.in_block
        return self.batch, blocks, self.height, self.width, self.in_block

    @property
    def weights(self) -> tuple[int, ...]:
        """The shape of the weights in blocks."""
        blocks = self.filters // self.out_block, self.channels // self.in_block
        return *blocks, *self.taps, self.in_block // GROUP, self.out_block, GROUP

    @property
    def outputs(self) -> tuple[int, ...]:
        """The shape of the outputs in blocks."""
        size = self.out_height, self.out_width
        return self.batch, self.filters // self.out_block, *size, self.out_block

    def registers(self, columns: int, blocks: int) -> int:
        """Return the vectors that a tile takes: its sums, a step's weights, one of data."""
        vectors = blocks * self.out_block // GROUP
        return columns * vectors + vectors + 1


def layer_of(data: Any, weight: Any, strides: Any, dilation: Any) -> Layer:
    """Return the layer of inputs [n, c, h, w] and filters [k, c, kh, kw], or of both in blocks."""
    batch, channels, height, width, *inner = get_const_tuple(data.shape)
    shape = get_const_tuple(weight.shape)
    in_block = inner[0] if inner else _block(channels)
    out_block = shape[5] if inner else _block(shape[0])
    return Layer(
        batch=batch,
        channels=channels * in_block if inner else channels,
        height=height,
        width=width,
        filters=shape[0] * out_block if inner else shape[0],
        in_block=in_block,
        out_block=out_block,
        taps=shape[2:4],
        strides=tuple(get_const_tuple(strides)),
        padding=(0, 0, 0, 0),
        dilation=tuple(get_const_tuple(dilation)),
    )


def _block(channels: int) -> int:
    return 2 * GROUP if channels % (2 * GROUP) == 0 else GROUP


def define(cfg: Any, layer: Layer) -> None:
    """Define the knob `tile`, columns and blocks of filters, on a config space; write its default."""
    _, blocks, _, width, _ = layer.outputs
    tiles = [
        [columns, together]
        for columns in sorted({min(size, width) for size in _COLUMNS})
        for together in _BLOCKS
        if blocks % together == 0 and layer.registers(columns, together) <= _REGISTERS
    ]
    cfg.define_knob("tile", tiles)
    if cfg.is_fallback:
        cfg["tile"] = OtherOptionEntity(default(layer))
    cfg.add_flop(2 * math.prod(layer.outputs) * layer.channels * layer.taps[0] * layer.taps[1])


def default(layer: Layer) -> list[int]:
    """Return the tile without a measurement: a row in few equal steps, then as many blocks as fit."""
    _, blocks, _, width, _ = layer.outputs
    limit = _DEFAULT_REGISTERS
    most = max(size for size in range(1, limit) if layer.registers(size, 1) <= limit)
    columns = -(-width // -(-width // most))
    fits = [k for k in _BLOCKS if blocks % k == 0 and layer.registers(columns, k) <= limit]
    return [columns, max(fits)]


@autotvm.register_topi_compute(TEMPLATE)  # type: ignore[untyped-decorator]
def narrow(cfg: Any, data: Any, weight: Any, strides: Any, dilation: Any) -> Any:
    """Return the convolution in int32, [n, k, oh, ow] or in blocks as `data` is.

    Args:
        cfg: the config.
        data: int8 [n, c, h, w], or [n, c / block, h, w, block]; for tuning blocks are made up.
        weight: int8 [k, c, kh, kw], or in blocks as the module says.
        strides: down and across.
        dilation: down and across.
    """
    layer = layer_of(data, weight, strides, dilation)
    define(cfg, layer)
    plain, inner, size = len(data.shape) == 4, layer.in_block, layer.out_block
    if plain and autotvm.GLOBAL_SCOPE.in_tuning:
        data = te.placeholder(layer.image, data.dtype, name="data")
        weight = te.placeholder(layer.weights, weight.dtype, name="weight")
    elif plain:
        image, filters = data, weight
        data = te.compute(
            layer.image, lambda n, b, h, w, c: image[n, b * inner + c, h, w], name="blocks"
        )
        weight = te.compute(
            layer.weights,
            lambda b, a, i, j, f, o, q: filters[b * size + o, a * inner + f * GROUP + q, i, j],
            name="packed",
        )
    acc = _sums(layer, data, weight, cfg["tile"].val[0])
    if not plain:
        return te.compute(layer.outputs, lambda *at: acc[at], name="conv2d", tag=_TAG)
    batch, _, high, wide, _ = layer.outputs
    return te.compute(
        (batch, layer.filters, high, wide),
        lambda n, k, h, w: acc[n, k // size, h, w, k % size],
        name="conv2d",
        tag=_TAG,
    )


def _sums(layer: Layer, data: Any, weight: Any, columns: int) -> Any:
    """Return the sums over channels and taps, as wide as whole tiles."""
    sizes = layer.weights[1], *layer.taps, layer.weights[4], GROUP
    outer, i, j, group, q = (
        te.reduce_axis((0, size), name) for size, name in zip(sizes, "aijfq", strict=True)
    )
    (down, across), (far, wide) = layer.strides, layer.dilation
    batch, blocks, height, width, size = layer.outputs
    whole = -(-width // columns) * columns

    def product(n: Any, b: Any, h: Any, w: Any, o: Any) -> Any:
        x = (tir.min(w, width - 1) if whole > width else w) * across + j * wide
        pixel = data[n, outer, h * down + i * far, x, group * GROUP + q]
        tap = weight[b, outer, i, j, group, o, q]
        return te.sum(pixel.astype("int32") * tap.astype("int32"), [outer, i, j, group, q])

    return te.compute((batch, blocks, height, whole, size), product, name="acc")


@autotvm.register_topi_schedule(TEMPLATE)  # type: ignore[untyped-decorator]
def schedule_narrow(cfg: Any, outs: Any) -> Any:
    """Return the schedule of an 8-bit convolution with what Relay fused behind it."""
    return gemm.schedule_tagged(_TAG, _schedule, cfg, outs)


def _schedule(s: Any, cfg: Any, conv: Any, out: Any) -> None:
    (acc,) = conv.op.input_tensors
    columns, blocks = cfg["tile"].val
    out, n, b, h, w, lane = output_axes(s, conv, out, int(acc.shape[-1]))
    together, b = s[out].split(b, factor=blocks)
    tile, column = s[out].split(w, factor=columns)
    s[out].reorder(n, together, h, tile, b, column, lane)
    row = s[out].fuse(n, together, h)
    s[out].parallel(row)
    s[out].vectorize(lane)
    s[out].pragma(b, MARK, True)

    s[acc].compute_at(s[out], tile)
    n, b, h, column, o = s[acc].op.axis
    outer, i, j, group, q = s[acc].op.reduce_axis
    vector, lane = s[acc].split(o, factor=GROUP)
    s[acc].reorder(n, h, outer, i, j, group, b, column, vector, lane, q)
    for axis in (b, column, vector):
        s[acc].unroll(axis)
    s[acc].tensorize(lane, _dot())


def _dot() -> Any:
    features = tvm.target.Target.current(allow_none=False).features
    if features.has_dotprod:
        return tensor_intrin.dot_int8_int8_int32_neon_82(int32_lanes=GROUP, dtype="int")
    return tensor_intrin.dot_int8_int8_int32_neon()


def takes(attrs: Any, inputs: Any) -> bool:
    """Return whether the template takes a `nn.conv2d`: int8, one group, no padding, whole groups of 4."""
    data, weight = inputs
    shape = get_const_tuple(weight.shape)
    plain = (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW")
    blocked = len(data.shape) == 5 and len(shape) == 7
    features = tvm.target.Target.current(allow_none=False).features
    return (
        (data.dtype, weight.dtype) == ("int8", "int8")
        and (blocked or (plain and shape[0] % GROUP == shape[1] % GROUP == 0))
        and attrs.groups == 1
        and not any(get_const_tuple(attrs.padding))
        and bool(features.is_aarch64 and features.has_asimd)
    )


def strategy() -> Any:
    """Return the strategy of a convolution that the template takes.

    TVM's own template is not behind it: it fails where channels are no multiple of 8.
    """
    from tvm.relay.op import op as relay_op
    from tvm.relay.op.strategy import generic

    found = relay_op.OpStrategy()
    found.add_implementation(_compute, generic.wrap_topi_schedule(schedule_narrow), name=TEMPLATE)
    return found


def _compute(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    return [narrow(*inputs, *_arguments(attrs))]


def _arguments(attrs: Any) -> list[tuple[int, ...]]:
    return [tuple(get_const_tuple(attrs.strides)), tuple(get_const_tuple(attrs.dilation))]


def alter(attrs: Any, inputs: Any, types: Any) -> Any:
    """Return a convolution that the template takes in blocks, for AlterOpLayout; its config goes along."""
    target = tvm.target.Target.current(allow_none=False)
    context = autotvm.task.DispatchContext.current
    rest = _arguments(attrs)
    plain = [te.placeholder(get_const_tuple(t.shape), t.dtype) for t in types]
    layer = layer_of(*plain, *rest)
    config = context.query(target, autotvm.task.args_to_workload([*plain, *rest], TEMPLATE))
    packed = [te.placeholder(shape, "int8") for shape in (layer.image, layer.weights)]
    context.update(target, autotvm.task.args_to_workload([*packed, *rest], TEMPLATE), config)
    layouts = {
        "channels": layer.filters,
        "data_layout": f"NCHW{layer.in_block}c",
        "kernel_layout": f"OIHW{layer.in_block // GROUP}i{layer.out_block}o{GROUP}i",
        "out_layout": f"NCHW{layer.out_block}c",
    }
    given = {key: attrs[key] for key in attrs.keys()}  # noqa: SIM118
    return relay.nn.contrib_conv2d_nchwc(*inputs, **{**given, **layouts})
