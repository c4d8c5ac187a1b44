"""Rebuild a Relay expression bottom-up, without recursion (deep graphs must not overflow)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# (original call, its new arguments) -> a replacement, or None to keep the call
OnCall = Callable[[Any, Sequence[Any]], Any]
# original call -> the expressions it depends on that `on_call` wants instead of its arguments, or None
Reads = Callable[[Any], Sequence[Any] | None]


def rewrite(root: Any, on_call: OnCall, reads: Reads | None = None) -> Any:
    """Return `root` with each call offered to `on_call`, operands before users.

    Nodes whose operands did not change are kept as they are, so sharing survives. Where `reads` names
    expressions, `on_call` gets their new versions as arguments, and must replace the call.
    """
    from tvm import relay

    order: list[Any] = []
    relay.analysis.post_order_visit(root, order.append)
    done: dict[int, Any] = {}
    for node in order:
        wanted = reads(node) if reads is not None and isinstance(node, relay.Call) else None
        if wanted is not None:
            done[_key(node)] = on_call(node, [done[_key(expr)] for expr in wanted])
        else:
            done[_key(node)] = _visit(node, done, on_call)
    return done[_key(root)]


def rewrite_main(module: Any, on_call: OnCall, reads: Reads | None = None) -> Any:
    """Return the module with `main` rewritten and typed; the same object if nothing changed."""
    from tvm import IRModule, relay

    main = module["main"]
    body = rewrite(main.body, on_call, reads)
    if body.same_as(main.body):
        return module
    changed = IRModule.from_expr(relay.Function(main.params, body, None, [], main.attrs))
    return relay.transform.InferType()(changed)


def _key(node: Any) -> int:
    return int(node.handle.value)


def _visit(node: Any, done: dict[int, Any], on_call: OnCall) -> Any:
    from tvm import relay

    if isinstance(node, relay.Call):
        args = [done.get(_key(arg), arg) for arg in node.args]
        value = on_call(node, args)
        if value is not None:
            return value
        return (
            node
            if _same(args, node.args)
            else relay.Call(node.op, args, node.attrs, node.type_args)
        )
    if isinstance(node, relay.Tuple):
        fields = [done.get(_key(field), field) for field in node.fields]
        return node if _same(fields, node.fields) else relay.Tuple(fields)
    if isinstance(node, relay.TupleGetItem):
        inner = done.get(_key(node.tuple_value), node.tuple_value)
        if isinstance(inner, relay.Tuple):
            return inner.fields[node.index]
        same = inner.same_as(node.tuple_value)
        return node if same else relay.TupleGetItem(inner, node.index)
    return node


def _same(new: Sequence[Any], old: Sequence[Any]) -> bool:
    return all(a.same_as(b) for a, b in zip(new, old, strict=True))
