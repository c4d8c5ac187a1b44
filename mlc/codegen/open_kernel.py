"""Kernels with open sizes: each size is a variable that the kernel can read off one of its tensors.

A kernel is called with its tensors alone. TVM binds a variable where it is a size by itself: of
[4 * n, 8] it cannot tell n, and fails. So an expression of what cannot be read off becomes a variable
of its own, and what is needed beyond that is told by a tensor of its own, a witness. As a side effect
equal kernels of different layers become one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.passes.rewrite import rewrite

if TYPE_CHECKING:
    from collections.abc import Sequence

WITNESS = "uint8"  # the element type of what is only there to tell a size


def is_open(function: Any) -> bool:
    """Return whether a parameter or the result of a typed function has an open size."""
    from tvm import tir

    return any(not isinstance(size, tir.IntImm) for size in _sizes(function))


def bound(function: Any) -> tuple[Any, list[Any]]:
    """Return a typed primitive function with open sizes in a form that can be compiled by itself.

    Behind it are the variables of the witnesses that it takes behind its operands: where a size is
    needed inside that no tensor tells, a vector of that length, which nobody reads, does.
    """
    from tvm import IRModule, relay

    renamed = _Renamed(_sizes(function), _inner(function))
    params = [relay.Var(p.name_hint, renamed.kind(p.checked_type)) for p in function.params]
    body = relay.bind(function.body, dict(zip(function.params, params, strict=True)))
    body = rewrite(body, renamed.call)
    for k, variable in enumerate(renamed.witnesses):
        shape = [renamed.size(variable)]
        params.append(relay.Var(f"witness{k}", relay.TensorType(shape, WITNESS)))
    made = relay.Function(params, body, None, [], function.attrs)
    typed = relay.transform.InferType()(IRModule.from_expr(made))["main"]
    return typed, renamed.witnesses


class _Renamed:
    """What stands for each size: `names` pairs expressions with the variables that are read off."""

    def __init__(self, outer: Sequence[Any], inner: Sequence[Any]):
        from tvm import arith, tir

        self.analyzer = arith.Analyzer()
        self.names: list[tuple[Any, Any]] = []
        simple = [self.analyzer.simplify(size) for size in outer]
        alone = [size for size in simple if isinstance(size, tir.Var)]
        self.witnesses = _missing([v for size in inner for v in _variables(size)], alone)
        self.known = [*alone, *self.witnesses]
        for size in [*self.known, *simple]:
            new = not isinstance(size, tir.IntImm) and self._find(size) is None
            if new and (isinstance(size, tir.Var) or not self._is_known(size)):
                self.names.append((size, tir.SizeVar(f"n{len(self.names)}", "int32")))

    def _is_known(self, size: Any) -> bool:
        return not _missing(_variables(size), self.known)

    def _find(self, size: Any) -> Any:
        from tvm import ir

        return next((v for e, v in self.names if ir.structural_equal(e, size)), None)

    def size(self, size: Any) -> Any:
        """Return what stands for a size."""
        from tvm import tir

        if not isinstance(size, tir.PrimExpr):
            return size
        simple = self.analyzer.simplify(size)
        found = self._find(simple)
        if found is not None:
            return found
        variables = {e: v for e, v in self.names if isinstance(e, tir.Var)}
        return tir.stmt_functor.substitute(simple, variables)

    def kind(self, kind: Any) -> Any:
        """Return what stands for a type."""
        from tvm import ir, relay

        if isinstance(kind, ir.TupleType):
            return ir.TupleType([self.kind(field) for field in kind.fields])
        return relay.TensorType([self.size(size) for size in kind.shape], kind.dtype)

    def call(self, call: Any, args: Sequence[Any]) -> Any:
        """Return a call with its attributes' sizes replaced, and its type open again."""
        from tvm import relay

        from mlc.schedules import open_ops

        name = getattr(call.op, "name", "")
        if name not in open_ops.SIZES:
            return relay.Call(call.op, args, call.attrs, [])
        given = {key: list(call.attrs[key]) for key in call.attrs.keys()}  # noqa: SIM118
        for key in open_ops.SIZES[name]:
            given[key] = [self.size(size) for size in given[key]]
        return open_ops.call(name, list(args), **given)


def _sizes(function: Any) -> list[Any]:
    kinds = [*(p.checked_type for p in function.params), function.body.checked_type]
    return [size for kind in kinds for tensor in _tensors(kind) for size in tensor.shape]


def _tensors(kind: Any) -> list[Any]:
    if hasattr(kind, "fields"):
        return [inner for entry in kind.fields for inner in _tensors(entry)]
    return [kind]


def _inner(function: Any) -> list[Any]:
    """Return the sizes that attributes inside a function hold."""
    from tvm import relay, tir

    from mlc.schedules import open_ops

    found: list[Any] = []

    def visit(node: Any) -> None:
        name = getattr(getattr(node, "op", None), "name", "")
        for key in open_ops.SIZES.get(name, ()) if isinstance(node, relay.Call) else ():
            found.extend(size for size in node.attrs[key] if isinstance(size, tir.PrimExpr))

    relay.analysis.post_order_visit(function.body, visit)
    return found


def _missing(variables: Sequence[Any], known: Sequence[Any]) -> list[Any]:
    """Return the variables, each once, that are not among the known ones."""
    found: list[Any] = []
    for variable in variables:
        if not any(variable.same_as(other) for other in (*known, *found)):
            found.append(variable)
    return found


def _variables(size: Any) -> list[Any]:
    from tvm import tir

    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, tir.Var):
            found.append(node)

    tir.stmt_functor.post_order_visit(tir.Evaluate(size), visit)
    return found
