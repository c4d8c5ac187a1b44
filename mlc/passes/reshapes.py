"""See reshapes where they are, and move them behind element-wise operators, which then fuse.

A reshape moves no data and is no kernel. A transpose is one if the axes longer than one keep their
order, a stack if it has one tensor: layers of sequences at batch 1 are full of both. So is the change
between layouts NCHW of an image of one pixel: dense layers of 8 bits are such images (`passes/narrow.py`).

A dense layer takes a matrix [m, n]; what comes of it is reshaped to the model's [batch, length, n], and
nothing behind a reshape joins the layer's kernel. Bias, GELU, residual and layer norm work as well on
the matrix.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from mlc.passes.expr import op_name, rebuilt, sizes
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

# Element by element, or (layer norm) along the last axis, which the reshapes below leave alone.
MOVES = frozenset(
    {"add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "negative", "abs",
     "erf", "tanh", "exp", "sigmoid", "sqrt", "rsqrt", "nn.relu", "nn.leaky_relu", "clip",
     "mlc.layer_norm"}
)  # fmt: skip

Shape = tuple[int, ...]


def see_reshapes(module: Any) -> Any:
    """Return the typed module with what keeps elements in their order as reshapes.

    That is looked for in transposes, stacks and layout transforms.
    """
    return rewrite_main(module, _seen)


def _seen(call: Any, args: Sequence[Any]) -> Any:
    from tvm import relay

    name, shape = op_name(call), _shape(call)
    if shape is None:
        return None
    if name == "stack" and isinstance(args[0], relay.Tuple) and len(args[0].fields) == 1:
        return relay.reshape(args[0].fields[0], shape)
    keeps = {"transpose": _keeps_order, "layout_transform": _is_pixel}.get(name)
    return relay.reshape(args[0], shape) if keeps and keeps(call) else None


def _keeps_order(call: Any) -> bool:
    """Return whether a transpose leaves the axes longer than one in their order."""
    before, axes = _shape(call.args[0]), call.attrs.axes
    if before is None or axes is None:
        return False
    long = [axis for axis in (int(axis) % len(before) for axis in axes) if before[axis] > 1]
    return long == sorted(long)


def _is_pixel(call: Any) -> bool:
    """Return whether a layout transform is of an image of one pixel, between layouts NCHW."""
    layouts = str(call.attrs.src_layout), str(call.attrs.dst_layout)
    pixels = sizes(call)[2:4]
    return pixels == [1, 1] and all(re.fullmatch(r"NCHW(\d+c)?", layout) for layout in layouts)


def sink_reshapes(module: Any) -> Any:
    """Return the module with reshapes of matrices [m, n] to [..., n] behind the operators in `MOVES`.

    Reshapes of reshapes become one, or none.
    """
    sources: dict[
        int, tuple[Any, Any, Shape]
    ] = {}  # reshape -> itself, what it reshapes, from where

    def reshaped(call: Any, source: Any, before: Shape, after: Shape) -> Any:
        from tvm import relay

        if before == after:
            return source
        unchanged = op_name(call) == "reshape" and source.same_as(call.args[0])
        node = call if unchanged else relay.reshape(source, after)
        sources[node.handle.value] = (node, source, before)
        return node

    def on_call(call: Any, args: Sequence[Any]) -> Any:
        name = op_name(call)
        if name == "reshape":
            after, before = _shape(call), _shape(call.args[0])
            if after is None or before is None:
                return None
            _, source, before = sources.get(args[0].handle.value, (None, args[0], before))
            return reshaped(call, source, before, after)
        if name not in MOVES:
            return None
        after, matrix = _shape(call), _matrix(call, args, sources)
        if after is None or matrix is None:
            return None
        pairs = zip(call.args, args, strict=True)
        operands = [_as_matrix(old, new, matrix, sources) for old, new in pairs]
        if any(operand is None for operand in operands):
            return None
        return reshaped(call, rebuilt(call, operands), matrix, after)

    return rewrite_main(module, on_call)


def _matrix(call: Any, args: Sequence[Any], sources: dict[int, Any]) -> Shape | None:
    """Return the shape [m, n] in which a call can be computed, None if no operand has it."""
    after = _shape(call)
    for arg in args:
        _, _, before = sources.get(arg.handle.value, (None, None, ()))
        matrix: Shape = before
        if after is None or len(matrix) != 2 or matrix[1] != after[-1]:
            continue
        if math.prod(matrix) == math.prod(after):
            return matrix
    return None


def _as_matrix(old: Any, new: Any, matrix: Shape, sources: dict[int, Any]) -> Any:
    """Return an operand, new, as a matrix or as something that broadcasts to it; None if it cannot be."""
    from tvm import relay

    shape = _shape(old)
    if shape is None:
        return None
    if math.prod(shape) == math.prod(matrix) and shape[-1] == matrix[1]:
        _, source, before = sources.get(new.handle.value, (None, new, shape))
        return source if before == matrix else relay.reshape(source, matrix)
    if math.prod(shape[:-1]) != 1:
        return None
    return new if len(shape) < 2 else relay.reshape(new, shape[-1:])


def _shape(expr: Any) -> Shape | None:
    """Return a tensor's shape; None if it is not known, or empty (a 0 means something in `reshape`)."""
    from tvm import ir, tir

    kind = expr.checked_type
    if not isinstance(kind, ir.TensorType):
        return None
    if not all(isinstance(size, tir.IntImm) and size.value > 0 for size in kind.shape):
        return None
    return tuple(size.value for size in kind.shape)
