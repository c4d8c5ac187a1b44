"""Concatenation of channels, each thread the rows of the image that are near to it.

    for each image, row, in parallel:
        for each tensor, block of channels:
            outputs[its place, row] = inputs[block, row]

Convolutions and pooling give a thread a part of the rows, of all channels, wherever they can: what it
reads is then what it wrote a layer before, and lies in its own caches. TVM's concatenation gives it a part
of the channels of each tensor, and starts the threads for every one. It stays for other axes.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tir
from tvm.relay.op.strategy import generic, x86
from tvm.topi.utils import get_const_tuple
from tvm.topi.x86 import schedule_concatenate_cpu

from mlc.schedules import operator

NAME = "concatenate_mlc.x86"
_LEAST_ROW = 800  # elements, copied at a time: smaller images gain less than their code takes


def install() -> None:
    """Put this before TVM's own in the strategy of key `cpu`."""
    generic.concatenate_strategy.register(
        "cpu", offered(x86.concatenate_strategy_cpu), override=True
    )


def offered(theirs: Any) -> Any:
    """Return a strategy function that takes what it can, and leaves the rest to TVM's."""

    def strategy(attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
        if not takes(attrs, inputs):
            return theirs(attrs, inputs, out_type, target)
        return operator.only(_compute, schedule_concatenate_cpu, NAME)

    return strategy


def _compute(_attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    return [concatenate(inputs)]


def takes(attrs: Any, inputs: Any) -> bool:
    """Return whether tensors of known sizes [n, c, h, w, ...] are concatenated along c."""
    shapes = [get_const_tuple(tensor.shape) for tensor in inputs]
    known = all(isinstance(size, int) for shape in shapes for size in shape)
    if not known or len(shapes[0]) < 4 or int(attrs.axis) not in (1, 1 - len(shapes[0])):
        return False
    return bool(shapes[0][2] > 1 and math.prod(shapes[0][3:]) >= _LEAST_ROW)


def concatenate(inputs: Any) -> Any:
    """Return tensors [n, c, h, w, ...] concatenated along c."""
    shapes = [get_const_tuple(tensor.shape) for tensor in inputs]
    images, _, rows, *rest = shapes[0]
    row, blocks = math.prod(rest), sum(shape[1] for shape in shapes)

    def copies(sources: Any, target: Any) -> Any:
        ib = tir.ir_builder.create()
        out = ib.buffer_ptr(target)
        with ib.for_range(0, images * rows, name="place", kind="parallel") as place:
            image, line, first = place // rows, place % rows, 0
            for source, shape in zip(sources, shapes, strict=True):
                data = ib.buffer_ptr(source)
                with ib.for_range(0, shape[1], name="block") as block:
                    to = ((image * blocks + first + block) * rows + line) * row
                    start = ((image * shape[1] + block) * rows + line) * row
                    with ib.for_range(0, row, name="at") as at:
                        out[to + at] = data[start + at]
                first += shape[1]
        return ib.get()

    return te.extern(
        [(images, blocks, rows, *rest)], list(inputs), lambda ins, outs: copies(ins, outs[0]),
        dtype=inputs[0].dtype, name="concatenate_ext",
    )  # fmt: skip
