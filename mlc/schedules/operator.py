"""Relay operators of our own: tensors in, attributes in a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import relay
from tvm.relay.op import op as relay_op

if TYPE_CHECKING:
    from collections.abc import Callable

FUSABLE = relay_op.OpPattern.OUT_ELEMWISE_FUSABLE  # element-wise operators may follow in its kernel
OPAQUE = relay_op.OpPattern.OPAQUE  # a kernel by itself


def register(
    name: str,
    text: str,
    operands: dict[str, str],
    relation: tuple[str, Callable[..., Any]],
    pattern: int = FUSABLE,
) -> None:
    """Register an operator.

    Args:
        name: the operator's.
        text: what it computes.
        operands: what each one is, by name.
        relation: name and function of its type relation.
        pattern: what Relay may fuse with it.
    """
    relay_op.register(name, text)
    op = relay.op.get(name)
    op.set_num_inputs(len(operands))
    for operand, meaning in operands.items():
        op.add_argument(operand, "Tensor", meaning)
    op.set_attrs_type_key("DictAttrs")
    op.set_support_level(10)
    op.add_type_rel(*relation)
    relay_op.register_pattern(name, pattern)
