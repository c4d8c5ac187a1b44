"""erf and tanh in float32 by rational functions, which vector units compute.

TVM leaves both to the C library, one call per element: erf alone, in GELU, took a third of a small
vision transformer's time. TVM's `fast_erf` and `fast_tanh` are Eigen's approximations, within 1e-6
(see tests/compiler/test_fast_math.py). They clamp their argument, and with it lose NaN; here NaN
stays NaN. Recurrent layers get their sigmoid and tanh the same way, inside their kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

FAST = {"erf": "fast_erf", "tanh": "fast_tanh"}


def take_fast_math(module: Any) -> Any:
    """Return the module with float32 calls of `FAST` replaced."""
    return rewrite_main(module, _fast)


def _fast(call: Any, arguments: Sequence[Any]) -> Any:
    from tvm import relay

    from mlc.schedules import recurrent

    operator = getattr(call.op, "name", "")
    if operator == recurrent.NAME and call.attrs["exact"]:
        return recurrent.fast(call, list(arguments))
    name = FAST.get(operator)
    if name is None or call.checked_type.dtype != "float32":
        return None
    (value,) = arguments
    found = relay.Call(relay.op.get(name), [value])
    return relay.where(relay.isnan(value), value, found)
