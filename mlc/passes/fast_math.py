"""Functions in float32 as arithmetic on vectors: erf, tanh, exp, sigmoid, softmax, powers in LRN.

TVM leaves them to the C library, one call per element: erf alone, in GELU, took a third of a small
vision transformer's time, softmax an eighth. `mlc.schedules.elementary` has them as operators, within 1e-6
(see tests/compiler/test_fast_math.py); softmax and recurrent layers take them inside their kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.passes.expr import op_name
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

FAST = ("erf", "tanh", "exp", "sigmoid", "nn.softmax", "nn.lrn")


def take_fast_math(module: Any) -> Any:
    """Return the module with float32 calls of `FAST` replaced (softmax over the last axis only)."""
    return rewrite_main(module, _fast)


def _fast(call: Any, arguments: Sequence[Any]) -> Any:
    from tvm import relay

    from mlc.schedules import elementary, operator, recurrent

    name = op_name(call)
    if name == recurrent.NAME and call.attrs["exact"]:
        return recurrent.fast(call, list(arguments))
    if name not in FAST or call.checked_type.dtype != "float32":
        return None
    (value,) = arguments
    if name in ("exp", "tanh", "erf"):
        return operator.call(f"mlc.{name}", [value])
    if name == "sigmoid":
        one = relay.const(1.0, "float32")
        return one / (one + operator.call(elementary.EXP, [relay.negative(value)]))
    return _normalized(call, value)


def _normalized(call: Any, value: Any) -> Any:
    from mlc.schedules import lrn, operator, rows

    if call.op.name == "nn.lrn":
        return lrn.normalized(value, call.attrs) if lrn.takes(call) else None
    last = int(call.attrs.axis) in (-1, len(call.checked_type.shape) - 1)
    fits = last and rows.takes(call.checked_type, open_width=True)
    return operator.call(rows.SOFTMAX, [value]) if fits else None
