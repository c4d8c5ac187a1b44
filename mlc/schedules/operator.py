"""Relay operators of our own: tensors in, attributes in a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import relay, te
from tvm.relay.op import op as relay_op
from tvm.relay.op.strategy import generic
from tvm.relay.transform.infer_layout_utils import InferCorrectLayoutOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def register(
    name: str,
    text: str,
    operands: Mapping[str, str],
    relation: tuple[str, Callable[..., Any]],
    pattern: int = relay_op.OpPattern.OUT_ELEMWISE_FUSABLE,
) -> None:
    """Register an operator, by default one that element-wise ones may follow in its kernel.

    Args:
        name: the operator's.
        text: what it computes.
        operands: what each operand is, by name.
        relation: name and function of its type relation.
        pattern: how it fuses.
    """
    relay_op.register(name, text)
    op = relay.op.get(name)
    op.set_num_inputs(len(operands))
    for operand, what in operands.items():
        op.add_argument(operand, "Tensor", what)
    op.set_attrs_type_key("DictAttrs")
    op.set_support_level(10)
    op.add_type_rel(*relation)
    relay_op.register_pattern(name, pattern)


def register_strategy(
    name: str, compute: Callable[..., list[Any]], schedule: Callable[..., Any], template: str
) -> None:
    """Give an operator its only implementation: `compute(attrs, inputs, out_type)` and a schedule of it.

    `template` is what the implementation is called.
    """

    @tvm.target.override_native_generic_func(f"{name.replace('.', '_')}_strategy")  # type: ignore[untyped-decorator]
    def strategy(_attrs: Any, _inputs: Any, _out_type: Any, _target: Any) -> Any:
        return only(compute, schedule, template)

    relay_op.register_strategy(name, strategy)


def only(
    compute: Callable[..., list[Any]], schedule: Callable[..., Any], template: str
) -> relay_op.OpStrategy:
    """Return a strategy of one implementation, as in `register_strategy`."""
    found = relay_op.OpStrategy()
    found.add_implementation(compute, generic.wrap_topi_schedule(schedule), name=template)
    return found


def register_elementwise(
    name: str, text: str, relation: str, function: Callable[[Any], Any]
) -> None:
    """Register an operator that maps each element: it fuses, and keeps the layout that comes in.

    Without a rule for layouts AlterOpLayout would go back to NCHW for it.
    """

    def compute(_attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
        (data,) = inputs
        short = name.rsplit(".", 1)[-1]
        return [te.compute(data.shape, lambda *at: function(data(*at)), name=short, tag="elemwise")]

    def layouts(attrs: Any, new: Any, old: Any, _types: Any) -> Any:
        found = [(new or old)[0]]
        return InferCorrectLayoutOutput(found, found, attrs)

    same = (relation, lambda types, _attrs: types[0])
    register(name, text, {"data": "floats"}, same, relay_op.OpPattern.ELEMWISE)
    relay_op.register_compute(name, compute)
    relay_op.register_injective_schedule(name)
    relay_op.register_infer_correct_layout(name, layouts)


def call(name: str, operands: list[Any], **attributes: Any) -> Any:
    """Return a Relay call of one of these operators."""
    return relay.Call(relay.op.get(name), operands, tvm.ir.make_node("DictAttrs", **attributes))
