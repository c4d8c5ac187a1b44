"""The Relay operator `mlc.round_even`: floats rounded to integers, halves to the even one.

It is one instruction where the CPU has one (SSE 4.1, AVX, 64-bit Arm); TVM's `round` rounds halves away
from zero, and no other Relay operator is lowered to it.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tir
from tvm.relay.op import op as relay_op
from tvm.relay.transform.infer_layout_utils import InferCorrectLayoutOutput

from mlc.schedules import operator

NAME = "mlc.round_even"


def install() -> None:
    """Register the operator, its layouts and how it is computed."""
    operator.register(
        NAME,
        "each element rounded to an integer, halves to the even one; zeros keep their sign",
        {"data": "floats"},
        ("MlcRoundEven", lambda types, _attrs: types[0]),
        relay_op.OpPattern.ELEMWISE,
    )
    relay_op.register_compute(NAME, _compute)
    relay_op.register_injective_schedule(NAME)
    relay_op.register_infer_correct_layout(NAME, _layouts)


def _layouts(attrs: Any, new: Any, old: Any, _types: Any) -> Any:
    """Keep the layout in which the input comes."""
    layout = (new or old)[0]
    return InferCorrectLayoutOutput([layout], [layout], attrs)


def _compute(_attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    (data,) = inputs
    found = te.compute(
        data.shape, lambda *at: tir.nearbyint(data(*at)), name="round_even", tag="elemwise"
    )
    return [found]
