"""Recognise a 1x1 convolution whose only reader is a depthwise one, and make them one operator.

    depthwise(act(conv1x1(x) + bias))        act: element-wise operators and numbers, or nothing

Both are in blocks of channels already: the pass comes behind the one that chooses layouts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.passes.expr import op_name, sizes
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

_DEPTHWISE, _CONV = "nn.contrib_depthwise_conv2d_NCHWc", "nn.contrib_conv2d_NCHWc"
_MOST_TOKENS = 40  # of an activation: those of GELU are 14


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """What the operator takes: data, constants, and its attribute `activation`."""

    data: Any
    expand: Any
    bias: np.ndarray[Any, Any]  # [k / block, block]
    activation: str


def take_expand_depthwise(module: Any) -> Any:
    """Return the module with such pairs, in float32 with constant weights, as `mlc.expand_depthwise`."""
    readers = _readers(module)
    found: dict[int, _Pair] = {}

    def reads(call: Any) -> Sequence[Any] | None:
        pair = _match(call, readers)
        if pair is None:
            return None
        found[call.handle.value] = pair
        return [pair.data]

    def on_call(call: Any, args: Sequence[Any]) -> Any:
        from tvm import relay

        from mlc.schedules import expand_depthwise

        pair = found.get(call.handle.value)
        if pair is None:
            return None
        operands = [*args, pair.expand, relay.const(pair.bias), call.args[1]]
        strides, padding = (list(map(int, at)) for at in (call.attrs.strides, call.attrs.padding))
        attributes = {"strides": strides, "padding": padding, "activation": pair.activation}
        return expand_depthwise.call(operands, **attributes)

    return rewrite_main(module, on_call, reads)


def _readers(module: Any) -> Counter[int]:
    """Return how often each expression is an operand, or the result; by handle."""
    from tvm import relay

    count: Counter[int] = Counter()

    def visit(node: Any) -> None:
        operands = node.args if isinstance(node, relay.Call) else ()
        operands = node.fields if isinstance(node, relay.Tuple) else operands
        count.update(operand.handle.value for operand in operands)

    relay.analysis.post_order_visit(module["main"].body, visit)
    count[module["main"].body.handle.value] += 1
    return count


def _match(call: Any, readers: Counter[int]) -> _Pair | None:
    from tvm import relay

    if op_name(call) != _DEPTHWISE or not isinstance(call.args[1], relay.Constant):
        return None
    filters = sizes(call.args[1])
    if not _fits(call, filters):
        return None
    activation = _Activation(filters)
    text = activation.text(call.args[0])
    conv, bias = activation.conv, activation.bias
    if conv is None or not 0 < len(text) <= _MOST_TOKENS:
        return None
    activation.reads[call.args[0].handle.value] += 1
    if any(readers[handle] != count for handle, count in activation.reads.items()):
        return None  # somebody else wants what lies between
    if bias is None:
        bias = np.zeros((filters[0], filters[5]), np.float32)
    return _Pair(data=conv.args[0], expand=conv.args[1], bias=bias, activation=" ".join(text))


class _Activation:
    """What lies between: its text, the 1x1 convolution and bias at its bottom, and who reads what."""

    def __init__(self, filters: Sequence[int]):
        self.filters = filters
        self.conv: Any = None
        self.bias: np.ndarray[Any, Any] | None = None
        self.reads: Counter[int] = Counter()  # by handle
        self._known: dict[int, list[str]] = {}

    def text(self, expr: Any, depth: int = _MOST_TOKENS) -> list[str]:
        """Return an expression's operators before their operands; [] for what is no activation.

        One of more than `depth` operators in a row is none.
        """
        handle = expr.handle.value
        if handle not in self._known:
            self._known[handle] = self._text(expr, depth) if depth else []
        return self._known[handle]

    def _text(self, expr: Any, depth: int) -> list[str]:
        from tvm import relay

        from mlc.schedules.expand_depthwise import FUNCTIONS

        if isinstance(expr, relay.Constant):
            value = expr.data.numpy()
            return [repr(float(value.item()))] if value.size == 1 else []
        if self._is_bottom(expr):
            return ["x"]
        name = op_name(expr)
        if name not in FUNCTIONS:
            return []
        parts = []
        for arg in expr.args:
            if not isinstance(arg, relay.Constant):
                self.reads[arg.handle.value] += 1
            parts.append(self.text(arg, depth - 1))
        if not all(parts) or sum(map(len, parts)) > _MOST_TOKENS:
            return []
        limits = [repr(float(expr.attrs[k])) for k in ("a_min", "a_max")] if name == "clip" else []
        return [name, *(token for part in parts for token in part), *limits]

    def _is_bottom(self, expr: Any) -> bool:
        bias = _bias(expr, self.filters)
        conv = expr if bias is None else expr.args[0]
        if self.conv is not None or not _expands(conv, self.filters):
            return False
        self.conv, self.bias = conv, bias
        if bias is not None:
            self.reads[conv.handle.value] += 1
        return True


def _fits(call: Any, filters: Sequence[int]) -> bool:
    """Return whether a depthwise convolution is one that the operator does."""
    from mlc.schedules import depthwise

    operands = [arg.checked_type for arg in call.args]
    return (
        len(filters) == 6
        and len(call.checked_type.shape) == 5
        and depthwise.takes(call.attrs, operands, call.checked_type)
        and [int(step) for step in call.attrs.dilation] == [1, 1]
        and sizes(call.args[0])[1::3] == [filters[0], filters[5]]
    )


def _expands(conv: Any, filters: Sequence[int]) -> bool:
    """Return whether an expression is a 1x1 convolution, step 1, into blocks of these filters."""
    from tvm import relay

    if op_name(conv) != _CONV or not isinstance(conv.args[1], relay.Constant):
        return False
    attrs, weight = conv.attrs, sizes(conv.args[1])
    return (
        len(weight) == 6
        and len(conv.args[0].checked_type.shape) == 5
        and str(conv.args[0].checked_type.dtype) == str(conv.checked_type.dtype) == "float32"
        and weight[2:4] == [1, 1]
        and (weight[0], weight[5]) == (filters[0], filters[5])
        and [int(step) for step in attrs.strides] == [1, 1]
        and not any(int(size) for size in attrs.padding)
        and int(attrs.groups) == 1
    )


def _bias(expr: Any, filters: Sequence[int]) -> np.ndarray[Any, Any] | None:
    """Return the constant, one number for each filter, that an expression adds; None if it adds none."""
    from tvm import relay

    if op_name(expr) != "add" or not isinstance(expr.args[1], relay.Constant):
        return None
    blocks, size = filters[0], filters[5]
    shape = sizes(expr.args[1])
    shape = [1] * (5 - len(shape)) + shape
    if shape not in ([1, blocks, 1, 1, size], [1, 1, 1, 1, 1]):
        return None
    value = expr.args[1].data.numpy().reshape(shape)
    return np.ascontiguousarray(
        np.broadcast_to(value, (1, blocks, 1, 1, size)).reshape(blocks, size)
    )
