"""Products of 8-bit values in 8 bits, where the CPU multiplies such: 64-bit Arm.

The frontend writes quantised products in 32 bits, x - z times w. Where x is 8-bit data, z a scalar and
w a constant that fits in 8 bits, with s = x or, for unsigned data, s = x - 128 (and z' = z - 128)

    sum (x - z) w = sum s w - z' sum w

where the first sum takes 8-bit operands and the second is known when the model is compiled
(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2.3). Both sides are equal modulo 2^32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence

_GROUP = 4  # channels that one instruction sums up, and sums that it makes
_BIAS = 128  # between the codes of an unsigned byte and of a signed one


class _Data(NamedTuple):
    """8-bit data and its zero point: None for none, else a Relay scalar in 32 bits."""

    value: Any
    zero: Any
    dtype: str


def take_narrow(module: Any) -> Any:
    """Turn convolutions (one group) and dense layers of 8-bit data and weights into 8-bit ones.

    The data are `cast(x)` or `cast(x) - zero` in 32 bits, x of 8 bits; weights are constants in 32
    bits. Output channels must be a multiple of 4; padded convolutions need a constant zero point.
    Other CPUs than 64-bit Arm's: nothing changes.
    """
    return rewrite_main(module, _narrow) if _has_instructions() else module


def _has_instructions() -> bool:
    from tvm.target import Target

    target = Target.current(allow_none=False)
    on_arm = "arm_cpu" in target.keys
    return on_arm and bool(target.features.is_aarch64 and target.features.has_asimd)


def _narrow(call: Any, args: Sequence[Any]) -> Any:
    from tvm import ir, relay

    if not isinstance(call.op, ir.Op) or call.op.name not in ("nn.conv2d", "nn.dense"):
        return None
    data = _data(call.args[0], args[0])
    weight = args[1].data.numpy() if isinstance(args[1], relay.Constant) else None
    if data is None or weight is None or weight.dtype != np.int32 or not _fits(weight):
        return None
    return (_conv2d if call.op.name == "nn.conv2d" else _dense)(call, data, weight)


def _fits(weight: np.ndarray[Any, Any]) -> bool:
    bounds = np.iinfo(np.int8)
    within = weight.size > 0 and weight.min() >= bounds.min and weight.max() <= bounds.max
    return bool(within) and weight.shape[0] % _GROUP == 0


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


def _signed(data: _Data) -> tuple[Any, Any]:
    """Return the data as int8, and their zero point as a Relay scalar of 32 bits, None for 0."""
    from tvm import relay

    if data.dtype == "int8":
        return data.value, data.zero
    value = relay.cast(relay.bitwise_xor(data.value, relay.const(_BIAS, "uint8")), "int8")
    bias = relay.const(_BIAS, "int32")
    zero = relay.const(0, "int32") if data.zero is None else data.zero
    if isinstance(zero, relay.Constant):
        return value, relay.const(int(zero.data.numpy()) - _BIAS, "int32")
    return value, zero - bias


def _conv2d(call: Any, data: _Data, weight: np.ndarray[Any, Any]) -> Any:
    from tvm import relay

    attrs = call.attrs
    layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout)
    if layouts[:2] != ("NCHW", "OIHW") or layouts[2] not in ("", "NCHW") or attrs.groups != 1:
        return None
    padding = [int(size) for size in attrs.padding]
    value, zero = _signed(data)
    known = zero is None or isinstance(zero, relay.Constant)
    if any(padding) and not known:
        return None
    more = -weight.shape[1] % _GROUP
    top, left, bottom, right = padding
    if any(padding) or more:
        code = int(zero.data.numpy()) if zero is not None and known else 0
        widths = ((0, 0), (0, more), (top, bottom), (left, right))
        value = relay.nn.pad(value, widths, relay.const(code, "int8"))
    weight = np.pad(weight, ((0, 0), (0, more), (0, 0), (0, 0)))
    return _product(value, zero, weight, strides=attrs.strides, dilation=attrs.dilation)


def _dense(call: Any, data: _Data, weight: np.ndarray[Any, Any]) -> Any:
    """Return the layer as a convolution of one tap: the image is one row, a position per row of data."""
    from tvm import relay

    value, zero = _signed(data)
    rows = int(call.checked_type.shape[0])
    more = -weight.shape[1] % _GROUP
    if more:
        value = relay.nn.pad(value, ((0, 0), (0, more)), relay.const(0, "int8"))
    image = relay.expand_dims(relay.transpose(value), 0, 1)
    image = relay.expand_dims(image, 2, 1)
    filters = np.pad(weight, ((0, 0), (0, more)))[:, :, None, None]
    total = _product(image, zero, filters, strides=(1, 1), dilation=(1, 1))
    return relay.transpose(relay.reshape(total, [weight.shape[0], rows]))


def _product(
    value: Any, zero: Any, weight: np.ndarray[Any, Any], strides: Any, dilation: Any
) -> Any:
    """Return the 8-bit convolution without padding, corrected for the zero point."""
    from tvm import relay

    filters, _, *taps = weight.shape
    total = relay.nn.conv2d(
        value, relay.const(weight.astype(np.int8)), strides=strides, padding=(0, 0, 0, 0),
        dilation=dilation, channels=filters, kernel_size=taps, out_dtype="int32",
    )  # fmt: skip
    if zero is None:
        return total
    sums = weight.sum(axis=(1, 2, 3), dtype=np.int32).reshape(filters, 1, 1)
    if isinstance(zero, relay.Constant):
        return total - relay.const(sums * np.int32(zero.data.numpy()))
    return total - relay.const(sums) * zero
