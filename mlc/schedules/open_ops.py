"""Operators of our own for shapes that only the run knows: Relay's take numbers as attributes.

Their attributes are lists of sizes: numbers, or TIR expressions of the variables that stand for open
dimensions. All of them are injective, and fuse like Relay's.

    mlc.reshape(x; shape)        the same elements, in their order
    mlc.broadcast_to(x; shape)   by numpy's rule; an axis of 1 is repeated
    mlc.slice(x; begin, steps, shape)    x[begin + i * step], i below the shape
    mlc.iota(; shape)            0, 1, 2, ... as int64, one axis
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import arith, relay, te, tir
from tvm.relay.op import op as relay_op

from mlc.schedules import operator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESHAPE, BROADCAST, SLICE, IOTA = (
    f"mlc.{name}" for name in ("reshape", "broadcast_to", "slice", "iota")
)
SIZES = {RESHAPE: ("shape",), BROADCAST: ("shape",), SLICE: ("begin", "shape"), IOTA: ("shape",)}
"""The attributes that hold sizes."""


def call(name: str, operands: list[Any], **attributes: Any) -> Any:
    """Return the Relay call of one of the operators."""
    return operator.call(name, operands, **{key: list(sizes) for key, sizes in attributes.items()})


def reshape(data: Any, shape: Sequence[Any]) -> Any:
    """Return the elements of a tensor in another shape.

    Axes are taken together only where they must be, so that indices stay what they are elsewhere: a
    general quotient by an unknown size is slow, and nothing simplifies it.
    """
    groups = _groups(list(data.shape), list(shape))

    def element(*at: Any) -> Any:
        where: list[Any] = []
        for before, after in groups:
            inner = [at[k] for k in after]
            if len(before) == len(after) == 1:
                where += inner
                continue
            flat: Any = tir.const(0, "int32")
            for axis, index in zip(after, inner, strict=True):
                flat = flat * shape[axis] + index
            places = []
            for axis in reversed(before[1:]):
                places.append(flat % data.shape[axis])
                flat = flat // data.shape[axis]
            where += [flat, *reversed(places)] if before else []
        return data(*where)

    return te.compute(list(shape), element, name="reshape", tag="injective")


def _groups(before: list[Any], after: list[Any]) -> list[tuple[list[int], list[int]]]:
    """Return the axes of both shapes in groups of equal products, as fine as can be proven."""
    analyzer = arith.Analyzer()
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        axes, others = [i] if i < len(before) else [], [j] if j < len(after) else []
        while not analyzer.can_prove_equal(_product(before, axes), _product(after, others)):
            ends = (axes[-1] if axes else i - 1, others[-1] if others else j - 1)
            shorter = len(axes) <= len(others)
            if ends[0] + 1 < len(before) and (shorter or ends[1] + 1 == len(after)):
                # Take in what cannot be proven unequal later: at worst, all axes are one group.
                axes.append(ends[0] + 1)
            elif ends[1] + 1 < len(after):
                others.append(ends[1] + 1)
            else:
                break
        groups.append((axes, others))
        i, j = i + len(axes), j + len(others)
    return groups


def _product(sizes: list[Any], axes: list[int]) -> Any:
    total: Any = tir.const(1, "int32")
    for axis in axes:
        total = total * sizes[axis]
    return total


def broadcast_to(data: Any, shape: Sequence[Any]) -> Any:
    """Return a tensor repeated along its axes of 1, and along new ones in front."""
    skip = len(shape) - len(data.shape)

    def element(*at: Any) -> Any:
        own = zip(at[skip:], data.shape, strict=True)
        return data(*(0 if isinstance(n, tir.IntImm) and int(n) == 1 else k for k, n in own))

    return te.compute(list(shape), element, name="broadcast", tag="broadcast")


def slice_of(data: Any, begin: Sequence[Any], steps: Sequence[int], shape: Sequence[Any]) -> Any:
    """Return data[begin[0] + i * steps[0], ...] for i below shape[0], and so on."""

    def element(*at: Any) -> Any:
        return data(*(b + k * int(s) for b, k, s in zip(begin, at, steps, strict=True)))

    return te.compute(list(shape), element, name="slice", tag="injective")


def iota(shape: Sequence[Any]) -> Any:
    """Return 0, 1, 2, ... in int64."""
    return te.compute(list(shape), lambda i: i.astype("int64"), name="iota", tag="injective")


def install() -> None:
    """Register the operators."""
    pattern = relay_op.OpPattern
    _register(RESHAPE, "the same elements in another shape", pattern.INJECTIVE,
              lambda attrs, inputs: reshape(inputs[0], attrs["shape"]))  # fmt: skip
    _register(BROADCAST, "repeated to a shape", pattern.BROADCAST,
              lambda attrs, inputs: broadcast_to(inputs[0], attrs["shape"]))  # fmt: skip
    _register(SLICE, "a part with steps", pattern.INJECTIVE,
              lambda attrs, inputs: slice_of(inputs[0], attrs["begin"], attrs["steps"],
                                             attrs["shape"]))  # fmt: skip
    _register(IOTA, "0, 1, 2, ...", pattern.INJECTIVE, lambda attrs, _inputs: iota(attrs["shape"]))


def _register(
    name: str, text: str, pattern: int, compute: Callable[[Any, Sequence[Any]], Any]
) -> None:
    operands = {} if name == IOTA else {"data": "a tensor"}

    def kind(types: Any, attrs: Any) -> Any:
        return relay.TensorType(list(attrs["shape"]), types[0].dtype if operands else "int64")

    operator.register(name, text, operands, (name.replace(".", "_"), kind), pattern)
    relay_op.register_compute(name, lambda attrs, inputs, _out: [compute(attrs, inputs)])
    relay_op.register_injective_schedule(name)
