"""Recognise attention, softmax(scale Q K^T + mask) V over heads, and make it one operator.

Exporters write it as two batched products with a softmax between, and cut the heads out of what dense
layers computed by slices, reshapes and transposes. The operator reads heads where the layer
left them, side by side in columns, and writes them so: the copies go too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.passes import views
from mlc.passes.expr import op_name, rebuilt, scalar, sizes
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """Attention as the graph has it: heads [batch * heads, length, width], key perhaps transposed."""

    query: Any
    key: Any
    key_turned: bool  # [..., d, m] in the graph
    value: Any
    mask: Any
    scale: float


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Attention as the operator takes it: `sources` hold the heads, from columns `offsets` on."""

    sources: list[Any]
    shapes: list[tuple[int, int, int]]
    offsets: list[int]
    heads: int
    widths: list[int]
    scale: float
    mask_shape: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The result's: batch, n, heads, dv."""
        return self.shapes[0][0], self.shapes[0][1], self.heads, self.widths[1]


@dataclass(frozen=True, kw_only=True)
class _Result:
    """A view of the operator's result, of the given shape, and which of its elements it shows."""

    result: Any
    shape: tuple[int, ...]
    indices: views.Indices
    view: Any = None

    def as_it_is(self) -> Any:
        """Return the view as (a reshape of) the result, None if it shows it in another order."""
        from tvm import relay

        if not np.array_equal(self.indices.reshape(-1), np.arange(self.indices.size)):
            return None
        same = self.indices.shape == self.shape
        return self.result if same else relay.reshape(self.result, self.indices.shape)


def take_attention(module: Any) -> Any:
    """Return the module with attention in float32 as `mlc.attention`, where that is faster."""
    plans: dict[int, _Plan] = {}
    results: dict[int, _Result] = {}  # view: the result that it shows

    def reads(call: Any) -> Sequence[Any] | None:
        found = _match(call)
        plan = _plan(found) if found else None
        if plan is None:
            return None
        plans[call.handle.value] = plan
        return plan.sources

    def on_call(call: Any, args: Sequence[Any]) -> Any:
        plan = plans.get(call.handle.value)
        if plan is not None:
            node, result = _operator(plan, args)
        else:
            before = results.get(args[0].handle.value) if args else None
            found = views.moved(call, before.indices) if before else None
            if before is None or found is None:
                return None
            result = replace(before, indices=found)
            node = result.as_it_is() or rebuilt(call, args)
        results[node.handle.value] = replace(result, view=node)
        return node

    return rewrite_main(module, on_call, reads)


def _operator(plan: _Plan, args: Sequence[Any]) -> tuple[Any, _Result]:
    """Return what stands for the second product, and which view of the operator's result it is."""
    from tvm import relay

    from mlc.schedules import attention

    shapes = [*plan.shapes, plan.mask_shape]
    operands = [
        new if tuple(sizes(old)) == tuple(shape) else relay.reshape(new, shape)
        for old, new, shape in zip(plan.sources, args, shapes, strict=False)
    ]
    layout = [plan.heads, *plan.widths, *plan.offsets]
    result = attention.call(operands, layout=layout, scale=plan.scale)
    batch, n, heads, dv = plan.shape
    split = relay.transpose(relay.reshape(result, plan.shape), [0, 2, 1, 3])
    found = np.arange(math.prod(plan.shape)).reshape(plan.shape).transpose(0, 2, 1, 3)
    shape = (batch * heads, n, dv)
    view = _Result(result=result, shape=(batch, n, heads * dv), indices=found.reshape(shape))
    return view.as_it_is() or relay.reshape(split, shape), view


def _match(call: Any) -> _Attention | None:
    """Return the attention whose second product a call is."""
    from mlc.schedules import gemm

    if op_name(call) != "nn.batch_matmul" or call.attrs.transpose_a or call.attrs.transpose_b:
        return None
    weights, value = call.args
    if not gemm.takes(weights.checked_type, value.checked_type, call.checked_type):
        return None
    softmax = _same_rows(weights)
    if op_name(softmax) != "nn.softmax" or int(softmax.attrs.axis) not in (-1, _rank(softmax) - 1):
        return None
    scores, mask = softmax.args[0], None
    if op_name(scores) == "add":
        for one, other in (tuple(scores.args), tuple(scores.args)[::-1]):
            if _product(one)[0] is not None:
                scores, mask = one, other
                break
    product, scale = _product(scores)
    if product is None or product.checked_type.shape[0] != call.checked_type.shape[0]:
        return None
    query, key = product.args
    turned = not product.attrs.transpose_b
    return _Attention(query=query, key=key, key_turned=turned, value=value, mask=mask, scale=scale)


def _product(scores: Any) -> tuple[Any, float]:
    """Return the batched product that scores are, and the number it is multiplied by; (None, 1) if none."""
    scale = 1.0
    while True:
        scores = _same_rows(scores)
        name = op_name(scores)
        if name == "nn.batch_matmul":
            return (None if scores.attrs.transpose_a else scores), scale
        if name not in ("multiply", "divide"):
            return None, 1.0
        number = scalar(scores.args[1])
        if number is None or (name == "divide" and number == 0):
            return None, 1.0
        scale = scale * number if name == "multiply" else scale / number
        scores = scores.args[0]


def _same_rows(expr: Any) -> Any:
    """Return what an expression is a reshape of, as long as its last two axes stay."""
    while op_name(expr) == "reshape":
        ends = [[int(k) for k in e.checked_type.shape[-2:]] for e in (expr, expr.args[0])]
        if ends[0] != ends[1]:
            break
        expr = expr.args[0]
    return expr


def _plan(found: _Attention) -> _Plan | None:
    """Return how the operator takes attention; None where it does not, or would not be faster."""
    from mlc.schedules import attention

    every, n, d = sizes(found.query)
    m, dv = sizes(found.value)[1:]
    operands = (found.query, found.key, found.value)
    if {sizes(operand)[0] for operand in operands} != {every} or not attention.takes(n, dv):
        return None
    for heads in range(every, 0, -1):
        if every % heads:
            continue
        mask_shape = _mask_shape(found.mask, every // heads, heads, n, m)
        columns = [_columns(found.query, heads, False),
                   _columns(found.key, heads, found.key_turned),
                   _columns(found.value, heads, False)]  # fmt: skip
        known = [column for column in columns if column is not None]
        if len(known) == len(columns) and mask_shape is not None:
            return _Plan(
                sources=[source for source, _, _ in known] + ([found.mask] if mask_shape else []),
                shapes=[shape for _, shape, _ in known],
                offsets=[offset for _, _, offset in known],
                heads=heads, widths=[d, dv], scale=found.scale, mask_shape=mask_shape,
            )  # fmt: skip
    return None


def _columns(expr: Any, heads: int, turned: bool) -> tuple[Any, tuple[int, int, int], int] | None:
    """Return what heads [batch * heads, length, width] are columns of, its shape in 3 axes, and the first.

    Of several views it is the one that is computed first. None if they are side by side in none.
    """
    best = None
    for source in views.chain(expr):
        found = views.indices(expr, source)
        found = found.transpose(0, 2, 1) if turned else found
        every, length, width = found.shape
        batch = every // heads
        columns, rest = divmod(math.prod(sizes(source)), batch * length)
        first = int(found[0, 0, 0])
        if rest or first + heads * width > columns:
            continue
        shape = (batch, length, columns)
        every_column = np.arange(math.prod(shape)).reshape(shape)
        expected = every_column[..., first : first + heads * width].reshape(
            batch, length, heads, width
        )
        if np.array_equal(found, expected.transpose(0, 2, 1, 3).reshape(found.shape)):
            best = source, shape, first
    return best


def _mask_shape(mask: Any, batch: int, heads: int, n: int, m: int) -> list[int] | None:
    """Return a mask's shape in the axes batch, heads, n, m; [] without a mask, None if it has none."""
    if mask is None:
        return []
    shape = sizes(mask)
    if len(shape) == 3 and shape[0] == batch * heads:
        shape = [batch, heads, *shape[1:]]
    elif len(shape) == 3 and shape[0] != 1:
        return None
    shape = [1] * (4 - len(shape)) + shape
    fits = len(shape) == 4 and mask.checked_type.dtype == "float32"
    whole = (batch, heads, n, m)
    return shape if fits and all(a in (1, b) for a, b in zip(shape, whole, strict=True)) else None


def _rank(expr: Any) -> int:
    return len(expr.checked_type.shape)
