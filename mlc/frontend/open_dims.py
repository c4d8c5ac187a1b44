"""Open dimensions as TIR variables: what a graph's shapes are made of, and what is known of them.

Every open dimension is one `tir.SizeVar`, so that equal names are equal sizes, and a shape is a list of
numbers and expressions. What TVM's analyzer cannot prove is not assumed, but for one thing: where
an axis of a weight bounds a dimension (the rows of a position table), that becomes a bound of the
dimension, said aloud and checked at each run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import arith, ir, tir

from mlc.errors import ModelError
from mlc.sizes import Bounds, Size, text, variable_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Sizes = np.ndarray[Any, Any]  # of objects: numbers and expressions, as an integer tensor holds them

_BINARY = {
    tir.Add: "+",
    tir.Sub: "-",
    tir.Mul: "*",
    tir.FloorDiv: "//",
    tir.FloorMod: "%",
    tir.Min: "min",
    tir.Max: "max",
}


class Dims:
    """The open dimensions of a model by name, with their bounds."""

    def __init__(self, names: Sequence[str], said: Callable[[str], None] = lambda _text: None):
        self.bounds = {name: Bounds() for name in names}
        self.variables = {
            name: tir.SizeVar(f"{variable_name(name)}_{k}", "int32") for k, name in enumerate(names)
        }
        self._names = {variable: name for name, variable in self.variables.items()}
        self._said = said
        self._analyzer = self._informed()

    def shape(self, shape: Sequence[int | str]) -> list[Any]:
        """Return a shape with variables in the place of names."""
        return [self.variables[size] if isinstance(size, str) else size for size in shape]

    def simplify(self, size: Any) -> Any:
        """Return a size in its simplest form, a number where it is one."""
        if isinstance(size, (int, np.integer)):
            return int(size)
        found = self._analyzer.simplify(size)
        return int(found) if isinstance(found, tir.IntImm) else found

    def equal(self, a: Any, b: Any) -> bool:
        """Return whether two sizes are proven to be equal."""
        return self.is_zero(a - b)

    def is_zero(self, size: Any) -> bool:
        """Return whether a size is proven to be 0."""
        found = self.simplify(size)
        return isinstance(found, int) and found == 0

    def at_least(self, a: Any, b: Any) -> bool:
        """Return whether a >= b is proven."""
        difference = self.simplify(a - b)
        if isinstance(difference, int):
            return difference >= 0
        return bool(self._analyzer.can_prove(difference >= 0))

    def require_at_most(self, size: Any, most: int) -> None:
        """Make sure that a size is `most` at most: prove it, or bound its dimension.

        Raises:
            ModelError: neither is possible.
        """
        if self.at_least(most, size):
            return
        name = self._names.get(size)
        if name is None or most < self.bounds[name].least:
            raise ModelError(f"{self.text(size)} may be larger than {most}")
        self.bounds[name] = replace(self.bounds[name], most=min(most, self.bounds[name].most))
        self._said(f"dimension {name!r} can be {most} at most")
        self._analyzer = self._informed()

    def require_positive(self, size: Any) -> None:
        """Make sure that a size is at least 1: prove it, or bound its only dimension from below.

        What TVM divides towards zero must not be negative: of a window of 2 over 1 element it says that
        it fits.

        Raises:
            ModelError: neither is possible.
        """
        for division in _nodes(size, (tir.Div, tir.Mod)):
            self._require_at_least(division.a, 0)
        self._require_at_least(size, 1)

    def _require_at_least(self, size: Any, least: int) -> None:
        while not self.at_least(size, least):
            names = [self._names[v] for v in _nodes(size, tir.Var)]
            if len(names) != 1 or self.bounds[names[0]].least >= _MOST_LEAST:
                raise ModelError(f"a size, {size}, may be less than {least}")
            name = names[0]
            self.bounds[name] = replace(self.bounds[name], least=self.bounds[name].least + 1)
            self._analyzer = self._informed()

    def product(self, sizes: Sequence[Any]) -> Any:
        """Return the product of sizes."""
        total: Any = 1
        for size in sizes:
            total = size * total
        return self.simplify(total)

    def quotient(self, total: Any, divisor: Any) -> Any:
        """Return `total` divided by `divisor`, without a rest.

        Raises:
            ModelError: that there is no rest is not proven.
        """
        count, factors = _factors(self.simplify(total))
        by, others = _factors(self.simplify(divisor))
        if by == 0 or count % by or others - factors:
            raise ModelError(f"{self.text(total)} does not divide by {self.text(divisor)}")
        left: Any = count // by
        for factor in (factors - others).elements():
            left = factor.expr * left
        return self.simplify(left)

    def data(self, size: Any) -> Size:
        """Return a size as plain data (`mlc.sizes`).

        Raises:
            ModelError: it holds an operator that has no such form.
        """
        if isinstance(size, (int, np.integer, tir.IntImm)):
            return int(size)
        if isinstance(size, tir.Cast):
            return self.data(size.value)
        if isinstance(size, tir.Var) and size in self._names:
            return self._names[size]
        if isinstance(size, (tir.Div, tir.Mod)) and self._is_floor(size):
            name = "//" if isinstance(size, tir.Div) else "%"
            return [name, self.data(size.a), self.data(size.b)]
        if type(size) in _BINARY:
            return [_BINARY[type(size)], self.data(size.a), self.data(size.b)]
        raise ModelError(f"a size is no expression of open dimensions: {size}")

    def _is_floor(self, size: Any) -> bool:
        """Return whether a division towards zero is one towards the lower number as well."""
        return self.at_least(size.a, 0) and self.at_least(size.b, 1)

    def as_size(self, size: Any) -> Size:
        """Return a size in its simplest form as plain data."""
        return self.data(self.simplify(size))

    def text(self, size: Any) -> str:
        """Return a size for people."""
        return text(self.as_size(size))

    def _informed(self) -> Any:
        analyzer = arith.Analyzer()
        for name, variable in self.variables.items():
            bounds = self.bounds[name]
            extent = bounds.most - bounds.least + 1
            analyzer.bind(variable, ir.Range.from_min_extent(bounds.least, extent))
        return analyzer


_MOST_LEAST = 64  # a network whose convolutions need more rows of input than that is not seen


class _Factor:
    """A factor that is no product itself; equal expressions are equal factors."""

    def __init__(self, expr: Any):
        self.expr = expr

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Factor) and bool(ir.structural_equal(self.expr, other.expr))

    def __hash__(self) -> int:
        return hash(str(self.expr))


def _factors(size: Any) -> tuple[int, Counter[_Factor]]:
    """Return the number and the other factors that a size is a product of."""
    if isinstance(size, (int, tir.IntImm)):
        return int(size), Counter()
    if isinstance(size, tir.Mul):
        one, other = _factors(size.a), _factors(size.b)
        return one[0] * other[0], one[1] + other[1]
    return 1, Counter([_Factor(size)])


def _nodes(size: Any, kind: Any) -> list[Any]:
    """Return the parts of a size that are of a kind, inner ones first, each once."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, kind) and not any(node.same_as(other) for other in found):
            found.append(node)

    if not isinstance(size, int):
        tir.stmt_functor.post_order_visit(tir.Evaluate(size), visit)
    return found
