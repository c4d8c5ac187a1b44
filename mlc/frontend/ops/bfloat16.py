"""bfloat16: the upper half of a float32. Stored as 16 bits, computed in 32.

TVM's kernels for it are few. So inputs are widened, all between is float32 (more exact than the type
asks for), and outputs are rounded: to the nearest, halves to even, as onnx's Cast does. In Relay
the 16 bits are a uint16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlc.frontend.ops.operands import fixed


def widen(bits: Any) -> Any:
    """Return the float32 values of 16-bit patterns (uint16)."""
    from tvm import relay

    high = relay.left_shift(relay.cast(bits, "uint32"), _word(16))
    return relay.reinterpret(high, "float32")


def narrow(value: Any) -> Any:
    """Return the bit patterns (uint16) of float32 values, rounded."""
    from tvm import relay

    bits = relay.reinterpret(relay.cast(value, "float32"), "uint32")
    odd = relay.bitwise_and(relay.right_shift(bits, _word(16)), _word(1))
    rounded = relay.right_shift(bits + _word(0x7FFF) + odd, _word(16))
    # Rounding could carry a NaN's mantissa away; compared as bits, fast math or not.
    magnitude = relay.bitwise_and(bits, _word(0x7FFFFFFF))
    quiet = relay.bitwise_or(relay.right_shift(bits, _word(16)), _word(0x40))
    return relay.cast(
        relay.where(relay.greater(magnitude, _word(0x7F800000)), quiet, rounded), "uint16"
    )


def _word(value: int) -> Any:
    return fixed(np.array(value, np.uint32))
