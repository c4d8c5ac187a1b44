"""Products of 8-bit values by the CPU's instructions for such (`schedules.dot`): 64-bit Arm, x86-64.

The frontend writes quantised products in 32 bits, x - z times w. Where x is 8-bit data, z a scalar and
w a constant that fits in 8 bits,

    sum (x - z) w = sum s w - z' sum w

where the first sum takes narrow operands and the second is known when the model is compiled
(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2.3). An instruction takes data of one dtype: for int8 data
that it wants as uint8, s = x + 128 and z' = z + 128; for uint8 data that it wants as int8, s = x - 128
and z' = z - 128; else s = x and z' = z. Both sides are equal modulo 2^32.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]
_BIAS = 128  # between the codes of an unsigned byte and of a signed one


class _Data(NamedTuple):
    """8-bit data and its zero point: None for none, else a Relay scalar in 32 bits."""

    value: Any
    zero: Any
    dtype: str


def take_narrow(module: Any) -> Any:
    """Turn convolutions (one group) and dense layers of 8-bit data and weights into narrow ones.

    The data are `cast(x)` or `cast(x) - zero` in 32 bits, x of 8 bits; weights are constants in 32
    bits. Output channels must be a multiple of 4; padded convolutions need a constant zero point.
    CPUs without an instruction for it: nothing changes.
    """
    from mlc.schedules import dot

    instruction = dot.of_target()
    if instruction is None:
        return module
    return rewrite_main(module, functools.partial(_narrow, instruction))


def _narrow(dot: Any, call: Any, args: Sequence[Any]) -> Any:
    from tvm import ir, relay

    if not isinstance(call.op, ir.Op) or call.op.name not in ("nn.conv2d", "nn.dense"):
        return None
    data = _data(call.args[0], args[0])
    weight = args[1].data.numpy() if isinstance(args[1], relay.Constant) else None
    if data is None or weight is None or weight.dtype != np.int32 or not _fits(weight, dot):
        return None
    return (_conv2d if call.op.name == "nn.conv2d" else _dense)(dot, call, data, weight)


def _fits(weight: Array, dot: Any) -> bool:
    bounds = np.iinfo(dot.weight)
    within = weight.size > 0 and weight.min() >= bounds.min and weight.max() <= bounds.max
    return bool(within) and weight.shape[0] % dot.blocks[-1] == 0


def _data(old: Any, new: Any) -> _Data | None:
    """Return the 8-bit data of an operand in 32 bits, `old` with types and `new` as rewritten."""
    zero = None
    if _is(old, "subtract") and not old.args[1].checked_type.shape:
        zero, old, new = new.args[1], old.args[0], new.args[0]
    if not _is(old, "cast") or str(old.checked_type.dtype) != "int32":
        return None
    dtype = str(old.args[0].checked_type.dtype)
    return _Data(new.args[0], zero, dtype) if dtype in ("int8", "uint8") else None


def _is(expr: Any, name: str) -> bool:
    from tvm import ir, relay

    return isinstance(expr, relay.Call) and isinstance(expr.op, ir.Op) and expr.op.name == name


def _operand(data: _Data, dtype: str) -> tuple[Any, Any]:
    """Return the data in a dtype, and their zero point in it as a Relay scalar of 32 bits, None for 0."""
    from tvm import relay

    if dtype == "int16":
        return relay.cast(data.value, dtype), data.zero
    if dtype == data.dtype:
        return data.value, data.zero
    code = data.value if data.dtype == "uint8" else relay.cast(data.value, "uint8")
    code = relay.bitwise_xor(code, relay.const(_BIAS, "uint8"))
    value = code if dtype == "uint8" else relay.cast(code, dtype)
    bias = _BIAS if dtype == "uint8" else -_BIAS
    zero = relay.const(0, "int32") if data.zero is None else data.zero
    if isinstance(zero, relay.Constant):
        return value, relay.const(int(zero.data.numpy()) + bias, "int32")
    return value, zero + relay.const(bias, "int32")


def _conv2d(dot: Any, call: Any, data: _Data, weight: Array) -> Any:
    from tvm import relay

    attrs = call.attrs
    layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout)
    if layouts[:2] != ("NCHW", "OIHW") or layouts[2] not in ("", "NCHW") or attrs.groups != 1:
        return None
    padding = [int(size) for size in attrs.padding]
    value, zero = _operand(data, dot.data)
    code = _code(zero, dot.data)
    if any(padding) and code is None:
        return None
    more = -weight.shape[1] % dot.blocks[-1]
    top, left, bottom, right = padding
    if any(padding) or more:
        widths = ((0, 0), (0, more), (top, bottom), (left, right))
        value = relay.nn.pad(value, widths, relay.const(code or 0, dot.data))
    weight = np.pad(weight, ((0, 0), (0, more), (0, 0), (0, 0)))
    return _product(dot, value, zero, weight, strides=attrs.strides, dilation=attrs.dilation)


def _code(zero: Any, dtype: str) -> int | None:
    """Return the value that padding has, None if it is computed or no value of the dtype."""
    from tvm import relay

    if zero is None:
        return 0
    code = int(zero.data.numpy()) if isinstance(zero, relay.Constant) else None
    bounds = np.iinfo(dtype)
    return code if code is not None and bounds.min <= code <= bounds.max else None


def _dense(dot: Any, call: Any, data: _Data, weight: Array) -> Any:
    """Return the layer as a convolution: an image of one pixel for each row of data."""
    from tvm import relay

    value, zero = _operand(data, dot.data)
    rows, inputs = map(int, call.args[0].checked_type.shape)
    more = -inputs % dot.blocks[-1]
    if more:
        value = relay.nn.pad(value, ((0, 0), (0, more)), relay.const(0, dot.data))
    pixels = relay.reshape(value, [rows, inputs + more, 1, 1])
    filters = np.pad(weight, ((0, 0), (0, more)))[:, :, None, None]
    total = _product(dot, pixels, zero, filters, strides=(1, 1), dilation=(1, 1))
    return relay.reshape(total, [rows, weight.shape[0]])


def _product(dot: Any, value: Any, zero: Any, weight: Array, strides: Any, dilation: Any) -> Any:
    """Return the narrow convolution without padding, corrected for the zero point."""
    from tvm import relay

    filters, _, *taps = weight.shape
    total = relay.nn.conv2d(
        value, relay.const(weight.astype(dot.weight)), strides=strides, padding=(0, 0, 0, 0),
        dilation=dilation, channels=filters, kernel_size=taps, out_dtype="int32",
    )  # fmt: skip
    if zero is None:
        return total
    sums = weight.sum(axis=(1, 2, 3), dtype=np.int32).reshape(filters, 1, 1)
    if isinstance(zero, relay.Constant):
        return total - relay.const(sums * np.int32(zero.data.numpy()))
    return total - relay.const(sums) * zero
