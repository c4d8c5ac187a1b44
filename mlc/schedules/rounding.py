"""The Relay operator `mlc.round_even`: floats rounded to integers, halves to the even one.

It is one instruction where the CPU has one (SSE 4.1, AVX, 64-bit Arm); TVM's `round` rounds halves away
from zero, and no other Relay operator is lowered to it.
"""

from __future__ import annotations

from tvm import tir

from mlc.schedules import operator

NAME = "mlc.round_even"


def install() -> None:
    """Register the operator."""
    operator.register_elementwise(
        NAME,
        "each element rounded to an integer, halves to the even one; zeros keep their sign",
        "MlcRoundEven",
        tir.nearbyint,
    )
