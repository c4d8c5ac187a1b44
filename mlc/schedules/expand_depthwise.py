"""The operator `mlc.expand_depthwise` and its template: a 1x1 convolution and the depthwise one behind it.

The first half of an inverted bottleneck (Sandler et al., "MobileNetV2", arXiv:1801.04381): a few
channels are expanded to many, and each of these is filtered alone. What lies between is the largest
tensor of the network, and by itself each half waits for memory. Here it is never stored:

    for each chunk of `rows` rows of outputs, each block of filters, in parallel:
        padded = act(1x1 convolution + bias) of the rows under it         in the L2 cache
            for each row, each `tile` columns: acc in registers, as in `pointwise`
        outputs = epilogue(depthwise(padded))                             as in `depthwise`

Activations lie in blocks of channels (NCHWc), weights in OIHWio. Rows that two chunks need are computed
by both.
"""

from __future__ import annotations

import math
import operator as builtins
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tvm
from tvm import autotvm, te, tir
from tvm.autotvm.task.space import OtherOptionEntity
from tvm.topi.utils import get_const_tuple

from mlc.schedules import depthwise, elementary, gemm, operator
from mlc.schedules.tails import MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "mlc.expand_depthwise"
TEMPLATE = "expand_depthwise_mlc.x86"
_TAG = "mlc_expand_depthwise"
_TILES = (4, 6, 7, 8, 10, 12, 14, 16, 20, 28)
_MOST_COLUMNS = 14  # of the default tile
_CACHE_BYTES = 1 << 19  # what the rows between may take: half of a common L2 cache
_CHUNKS = 16  # enough for the threads to share

#: the functions of an activation: how many operands each has, and what it is of expressions
FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, builtins.add),
    "subtract": (2, builtins.sub),
    "multiply": (2, builtins.mul),
    "divide": (2, builtins.truediv),
    "maximum": (2, tir.max),
    "minimum": (2, tir.min),
    "negative": (1, builtins.neg),
    "nn.relu": (1, lambda x: tir.max(x, elementary.f32(0.0))),
    "clip": (3, lambda x, low, high: tir.max(tir.min(x, high), low)),
    "mlc.exp": (1, elementary.exp),
    "mlc.tanh": (1, elementary.tanh),
    "mlc.erf": (1, elementary.erf),
}
_OPERANDS = {
    "data": "activations [n, c / block, h, w, block]",
    "expand": "filters [k / lanes, c / block, 1, 1, block, lanes]",
    "bias": "of the filters, [k / lanes, lanes]",
    "filters": "of the depthwise convolution, [k / lanes, 1, kh, kw, 1, lanes]",
}


@dataclass(frozen=True, kw_only=True)
class Layer(depthwise.Layer):
    """The depthwise convolution, and of how many channels its inputs are made."""

    inputs: int

    @property
    def flops(self) -> int:
        """The operations of both, a multiply-add counted as two, what is computed twice as once."""
        made = 2 * self.batch * self.channels * self.height * self.width * self.inputs
        return made + super().flops


def layer_of(data: Any, filters: Any, strides: Any, padding: Any) -> Layer:
    """Return the layer of operands in blocks."""
    batch, outer, height, width, inner = get_const_tuple(data.shape)
    blocks, _, *taps, _, size = get_const_tuple(filters.shape)
    return Layer(
        batch=batch,
        inputs=outer * inner,
        channels=blocks * size,
        height=height,
        width=width,
        block=size,
        taps=(taps[0], taps[1]),
        strides=tuple(get_const_tuple(strides)),
        padding=tuple(get_const_tuple(padding)),
        dilation=(1, 1),
    )


def define(cfg: Any, layer: Layer) -> None:
    """Define the knobs on a config space; write the default into a fallback config.

    `tile`: columns of a register tile of the 1x1 convolution; `columns` and `rows` as in `depthwise`.
    """
    depthwise.define(cfg, layer)
    most = gemm.registers() - 2
    cfg.define_knob("tile", sorted({min(size, layer.width) for size in _TILES if size <= most}))
    if cfg.is_fallback:
        for name, value in default(layer).items():
            cfg[name] = OtherOptionEntity(value)


def default(layer: Layer) -> dict[str, int]:
    """Return the knobs of the config that is used without a measurement.

    The chunk is the largest whose rows between fit half of the L2 cache and that leaves the threads
    enough chunks; rows are cut into few equal register tiles of half the registers: with 16 of them, 14
    columns took 1.1 to 1.4 times as long as 7 (the activation needs some, and sums were spilled).
    """
    most = min(gemm.registers() // 2, _MOST_COLUMNS)
    per_row = 4 * layer.block * (layer.width + layer.padding[1] + layer.padding[3])
    rows = layer.chunk(per_row, layer.batch * layer.blocks, cache=_CACHE_BYTES, chunks=_CHUNKS)
    return {
        **depthwise.default(layer),
        "tile": -(-layer.width // -(-layer.width // most)),
        "rows": rows if rows < layer.out_height else 0,
    }


@autotvm.register_topi_compute(TEMPLATE)  # type: ignore[untyped-decorator]
def expand_depthwise(
    cfg: Any,
    data: Any,
    expand: Any,
    bias: Any,
    filters: Any,
    window: Any,
    activation: str,
) -> Any:
    """Return the depthwise convolution of act(1x1 convolution + bias), in blocks as `data` is.

    Args:
        cfg: the config.
        data: [n, c / block, h, w, block].
        expand: [k / lanes, c / block, 1, 1, block, lanes].
        bias: [k / lanes, lanes].
        filters: [k / lanes, 1, kh, kw, 1, lanes].
        window: strides (down, across) and padding (top, left, bottom, right) of the depthwise one.
        activation: act, operators (see `FUNCTIONS`) before their operands: "clip x 0.0 6.0"; "x": none.
    """
    layer = layer_of(data, filters, *window)
    define(cfg, layer)
    sums = _expanded(layer, data, expand, int(cfg["tile"].val))
    between = _between(sums, bias, layer, activation)
    padded = depthwise.padded(layer, between, int(cfg["columns"].val))
    acc = depthwise.sums(layer, padded, filters)
    shape = (*acc.shape[:3], layer.out_width, layer.block)
    return te.compute(shape, acc, name="expand_depthwise", tag=_TAG)


def _expanded(layer: Layer, data: Any, expand: Any, tile: int) -> Any:
    """Return the sums of the 1x1 convolution, as wide as whole tiles."""
    outer = te.reduce_axis((0, data.shape[1]), "o")
    inner = te.reduce_axis((0, data.shape[4]), "i")
    whole = -(-layer.width // tile) * tile

    def product(n: Any, b: Any, y: Any, x: Any, c: Any) -> Any:
        row = tir.max(tir.min(y, layer.height - 1), 0)
        column = tir.min(x, layer.width - 1) if whole > layer.width else x
        pixel = data[n, outer, row, column, inner]
        return te.sum(pixel * expand[b, outer, 0, 0, inner, c], [outer, inner])

    shape = (layer.batch, layer.blocks, layer.height, whole, layer.block)
    return te.compute(shape, product, name="expanded")


def _between(expanded: Any, bias: Any, layer: Layer, activation: str) -> Any:
    def value(n: Any, b: Any, y: Any, x: Any, c: Any) -> Any:
        return _evaluate(iter(activation.split()), expanded[n, b, y, x, c] + bias[b, c])

    return te.compute((*expanded.shape[:3], layer.width, layer.block), value, name="between")


def _evaluate(words: Iterator[str], x: Any) -> Any:
    word = next(words)
    if word == "x":
        return x
    if word not in FUNCTIONS:
        return elementary.f32(float(word))
    arity, function = FUNCTIONS[word]
    return function(*(_evaluate(words, x) for _ in range(arity)))


@autotvm.register_topi_schedule(TEMPLATE)  # type: ignore[untyped-decorator]
def schedule_expand_depthwise(cfg: Any, outs: Any) -> Any:
    """Return the schedule of both convolutions with what Relay fused behind them."""
    return gemm.schedule_tagged(_TAG, _schedule, cfg, outs)


def _schedule(s: Any, cfg: Any, conv: Any, out: Any) -> None:
    (acc,) = conv.op.input_tensors
    padded = acc.op.input_tensors[0]
    between = padded.op.input_tensors[0] if padded.op.name == "padded" else padded
    sums = between.op.input_tensors[0]
    out, chunk = depthwise.schedule(s, cfg, conv, out)
    s[between].compute_at(s[out], chunk)
    *_, column, lane = s[between].op.axis
    tile, column = s[between].split(column, factor=int(cfg["tile"].val))
    s[between].unroll(column)
    s[between].vectorize(lane)
    s[between].pragma(column, MARK, True)

    s[sums].compute_at(s[between], tile)
    *_, column, lane = s[sums].op.axis
    outer, inner = s[sums].op.reduce_axis
    inner, unrolled = s[sums].split(inner, factor=math.gcd(int(inner.dom.extent), 4))
    s[sums].reorder(outer, inner, unrolled, column, lane)
    s[sums].unroll(unrolled)
    s[sums].unroll(column)
    s[sums].vectorize(lane)


def call(operands: list[Any], **attributes: Any) -> Any:
    """Return the Relay call: data, expand, bias, filters; `strides`, `padding`, `activation` as above."""
    return operator.call(NAME, operands, **attributes)


def install() -> None:
    """Register the operator and its strategy."""
    operator.register(
        NAME, "a 1x1 convolution, a bias, an activation, and a depthwise convolution", _OPERANDS,
        ("MlcExpandDepthwise", _type),
    )  # fmt: skip
    operator.register_strategy(NAME, _compute, schedule_expand_depthwise, TEMPLATE)


def _type(types: Any, attrs: Any) -> Any:
    data, _, _, filters = types
    layer = layer_of(data, filters, attrs["strides"], attrs["padding"])
    size = [layer.out_height, layer.out_width]
    return tvm.relay.TensorType([layer.batch, layer.blocks, *size, layer.block], data.dtype)


def _compute(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    window = tuple(tuple(map(int, attrs[name])) for name in ("strides", "padding"))
    return [expand_depthwise(*inputs, window, str(attrs["activation"]))]
