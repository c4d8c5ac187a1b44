"""What passes ask of a Relay expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def op_name(expr: Any) -> str:
    """Return the name of the operator that an expression calls; "" if it calls none."""
    return str(getattr(getattr(expr, "op", None), "name", ""))


def rebuilt(call: Any, args: Sequence[Any]) -> Any:
    """Return a call with other arguments."""
    from tvm import relay

    return relay.Call(call.op, args, call.attrs, call.type_args)


def sizes(expr: Any) -> list[int]:
    """Return the shape of a typed tensor whose sizes are all known."""
    return [int(size) for size in expr.checked_type.shape]


def scalar(expr: Any) -> float | None:
    """Return the value of a constant of one element; None for other expressions."""
    from tvm import relay

    if not isinstance(expr, relay.Constant) or expr.data.numpy().size != 1:
        return None
    return float(expr.data.numpy().item())
