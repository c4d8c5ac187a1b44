"""Layers: activations, normalisations, dropout.

Source: onnx/docs/Operators.md, by version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.frontend.ops.operands import dtype_of, number, optional, shape_of, text

if TYPE_CHECKING:
    from collections.abc import Sequence


def gelu(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Gelu-20: 0.5 x (1 + erf(x / sqrt(2))), or its tanh approximation."""
    from tvm import relay

    data = inputs[0]
    if text(attributes, "approximate", "none") == "tanh":
        return fast_gelu(data)
    inner = relay.erf(data * number(float(np.sqrt(0.5)), data))
    return data * number(0.5, data) * (inner + number(1.0, data))


def fast_gelu(data: Any) -> Any:
    """Return 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    from tvm import relay

    cubed = data * data * data * number(0.044715, data)
    inner = relay.tanh((data + cubed) * number(float(np.sqrt(2 / np.pi)), data))
    return data * number(0.5, data) * (inner + number(1.0, data))


def layer_norm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """LayerNormalization-17 over the axes from `axis` on; Y, and Mean and InvStdDev behind it."""
    from tvm import relay

    data, scale, bias = inputs[0], inputs[1], optional(inputs, 2)
    rank = len(shape_of(data))
    axes = list(range(attributes.get("axis", -1) % rank, rank))
    mean = relay.mean(data, axes, True)
    centred = data - mean
    variance = relay.mean(centred * centred, axes, True)
    inverse = relay.rsqrt(variance + number(attributes.get("epsilon", 1e-5), data))
    out = centred * inverse * scale
    return relay.Tuple([out if bias is None else out + bias, mean, inverse])


def dropout(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Dropout-1 to -22 at inference: the input, and a mask that keeps all of it."""
    from tvm import relay

    if attributes["outputs"] == 1:
        return inputs[0]
    return relay.Tuple([inputs[0], relay.ones(shape_of(inputs[0]), "bool")])


def prelu(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """PRelu-1 to -16: slopes that broadcast towards the data; before 7, one per channel."""
    from tvm import relay

    data, slope = inputs
    rank = len(shape_of(data))
    if attributes["opset"] < 7 and rank > 1 and len(shape_of(slope)) == 1:
        slope = relay.reshape(slope, [-1, *[1] * (rank - 2)])
    return relay.where(data < number(0, data), data * slope, data)


def swish(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Swish-24: x sigmoid(alpha x)."""
    from tvm import relay

    data = inputs[0]
    return data * relay.sigmoid(data * number(attributes.get("alpha", 1.0), data))


def swiglu(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """SwiGLU-28: Swish of the gate, times the other input."""
    return swish(inputs[:1], attributes) * inputs[1]


def batch_norm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """BatchNormalization-1 to -15; with `training_mode` of the batch's own mean and variance."""
    from tvm import relay

    data, scale, bias, mean, variance = inputs
    epsilon = attributes.get("epsilon", 1e-5)
    if not attributes.get("training_mode", 0):
        dtype = dtype_of(data)
        parameters = [relay.cast(v, dtype) for v in (scale, bias, mean, variance)]
        if len(shape_of(data)) == 1:
            scale, bias, mean, variance = parameters
            return (data - mean) * relay.rsqrt(variance + number(epsilon, data)) * scale + bias
        return relay.nn.batch_norm(data, *parameters, axis=1, epsilon=epsilon)[0]
    rank = len(shape_of(data))
    axes = [k for k in range(rank) if k != 1]
    side = [-1 if k == 1 else 1 for k in range(rank)]
    own_mean = relay.mean(data, axes)
    centred = data - relay.reshape(own_mean, side)
    own_variance = relay.mean(centred * centred, axes)
    inverse = relay.rsqrt(own_variance + number(epsilon, data))
    out = centred * relay.reshape(inverse * scale, side) + relay.reshape(bias, side)
    momentum = attributes.get("momentum", 0.9)

    def running(old: Any, new: Any) -> Any:
        return old * number(momentum, old) + relay.cast(new, dtype_of(old)) * number(
            1 - momentum, old
        )

    return relay.Tuple([out, running(mean, own_mean), running(variance, own_variance)])
