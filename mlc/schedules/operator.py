"""Relay operators of our own: data and weights in, one tensor out, attributes in a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import relay
from tvm.relay.op import op as relay_op

if TYPE_CHECKING:
    from collections.abc import Callable


def register(
    name: str, text: str, data: str, weight: str, relation: tuple[str, Callable[..., Any]]
) -> None:
    """Register an operator that element-wise ones may follow in its kernel.

    Args:
        name: the operator's.
        text: what it computes.
        data: what its first operand is.
        weight: what its second operand is.
        relation: name and function of its type relation.
    """
    relay_op.register(name, text)
    op = relay.op.get(name)
    op.set_num_inputs(2)
    op.add_argument("data", "Tensor", data)
    op.add_argument("weight", "Tensor", weight)
    op.set_attrs_type_key("DictAttrs")
    op.set_support_level(10)
    op.add_type_rel(*relation)
    relay_op.register_pattern(name, relay_op.OpPattern.OUT_ELEMWISE_FUSABLE)
