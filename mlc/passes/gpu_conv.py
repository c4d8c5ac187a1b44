"""Convolutions on GPUs as products: filters [k, c] times pixels [c, h * w], image by image.

That is what those of one tap are, and those whose windows neither overlap nor leave gaps: a window's taps
are channels then. TVM's template for convolutions tiles rows of an image, and finds no good tile of 7x7 or
14x14, or of windows of 16x16. What is element by element behind such a convolution works on [n, k, h * w]
as well and stays in its kernel; a reshape behind it is none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mlc.passes.expr import op_name, rebuilt, sizes
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOVES = frozenset(
    {"add", "subtract", "multiply", "divide", "maximum", "minimum", "negative", "erf", "tanh", "exp",
     "sigmoid", "nn.relu", "nn.leaky_relu", "clip"}
)  # fmt: skip
_DTYPE = "float32"
_RANK = 4


def take_products(module: Any) -> Any:
    """Return the typed module with float32 convolutions of one group as products, where they are such."""
    rewriter = _Rewriter()
    return rewrite_main(module, rewriter.on_call)


class _Rewriter:
    """`flat` maps a reshape to [n, k, h, w] to itself and what it reshapes, [n, k, h * w]."""

    def __init__(self) -> None:
        self.flat: dict[int, tuple[Any, Any]] = {}

    def on_call(self, call: Any, args: Sequence[Any]) -> Any:
        if _is_product(call):
            return self._shaped(call, self._product(call, args))
        moves = op_name(call) in _MOVES and any(self._flat(arg) for arg in args)
        if not moves or len(sizes(call)) != _RANK:
            return None
        operands = [self._operand(call, old, new) for old, new in zip(call.args, args, strict=True)]
        if any(operand is None for operand in operands):
            return None
        return self._shaped(call, rebuilt(call, operands))

    def _product(self, call: Any, args: Sequence[Any]) -> Any:
        from tvm import relay

        data, weight = args
        n, c, _, _ = shape = sizes(call.args[0])
        k, height, width = sizes(call)[1:]
        taps, strides = sizes(call.args[1])[2:], [int(size) for size in call.attrs.strides]
        pixels = self._flat(data) if strides == [1, 1] else None
        if taps != [1, 1]:
            windows = relay.reshape(data, (n, c, height, taps[0], width, taps[1]))
            data = relay.transpose(windows, (0, 1, 3, 5, 2, 4))
        elif strides != [1, 1]:
            data = relay.strided_slice(data, [0] * 4, shape, [1, 1, *strides])
        if pixels is None:
            pixels = relay.reshape(data, (n, c * math.prod(taps), height * width))
        filters = relay.reshape(weight, (1, k, c * math.prod(taps)))
        return relay.nn.batch_matmul(filters, pixels, transpose_b=False)

    def _shaped(self, call: Any, flat: Any) -> Any:
        from tvm import relay

        node = relay.reshape(flat, sizes(call))
        self.flat[int(node.handle.value)] = node, flat
        return node

    def _flat(self, expr: Any) -> Any:
        return self.flat.get(int(expr.handle.value), (None, None))[1]

    def _operand(self, call: Any, old: Any, new: Any) -> Any:
        """Return an operand for [n, k, h * w]; None if it cannot be one, or is better left alone."""
        from tvm import relay

        found = self._flat(new)
        n, k, height, width = sizes(call)
        shape = sizes(old)
        if found is not None:
            return found if shape[2:] in ([height, width], [1, 1]) else None
        if shape == [n, k, height, width] and not _is_of_convolution(old):
            return relay.reshape(new, (n, k, height * width))
        if shape in ([k, 1, 1], [1, k, 1, 1]):
            return relay.reshape(new, (k, 1))
        return new if shape in ([], [1]) else None


def _is_product(call: Any) -> bool:
    if op_name(call) != "nn.conv2d":
        return False
    attrs, taps = call.attrs, sizes(call.args[1])[2:]
    sides = zip(sizes(call.args[0])[2:], taps, attrs.strides, attrs.dilation, strict=True)
    return (
        (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW")
        and (taps == [1, 1] or all(_tiles(*map(int, side)) for side in sides))
        and int(attrs.groups) == 1
        and not any(int(size) for size in attrs.padding)
        and all(str(expr.checked_type.dtype) == _DTYPE for expr in (call, *call.args))
    )


def _tiles(size: int, taps: int, stride: int, dilation: int) -> bool:
    return taps == stride and size % taps == 0 and dilation == 1


def _is_of_convolution(expr: Any) -> bool:
    """Return whether a kernel of another convolution could compute an expression, and what reads it."""
    from tvm import relay

    while isinstance(expr, relay.Call) and op_name(expr) in _MOVES:
        expr = expr.args[0]
    return op_name(expr) == "nn.conv2d" and not _is_product(expr)
