"""The Relay operator `mlc.conv2d_winograd`: a convolution whose weights were transformed before.

The pass `winograd` makes it from `nn.conv2d` with activations in NCHW; AlterOpLayout then turns it to
the blocked layout. Attributes: `tile_size` (m), `padding` (top, left, bottom, right), `channels` (of
the output), `data_layout`, `out_layout`. Its weights come from `mlc.winograd_weights`, of the
attribute `shape` (`Plan.weights`).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relay
from tvm.relay.op import op as relay_op
from tvm.relay.transform.infer_layout_utils import InferCorrectLayoutOutput

from mlc import made
from mlc.schedules import operator, winograd

NAME, WEIGHTS = "mlc.conv2d_winograd", "mlc.winograd_weights"
_PLAIN = "NCHW"


def call(data: Any, weight: Any, plan: winograd.Plan) -> Any:
    """Return the Relay call for a plan: `data` in NCHW, `weight` as `weights` gives it."""
    attrs = {
        "tile_size": plan.m,
        "padding": list(plan.layer.padding),
        "channels": plan.layer.filters,
        "data_layout": _PLAIN,
        "out_layout": _PLAIN,
    }
    return operator.call(NAME, [data, weight], **attrs)


def weights(filters: Any, plan: winograd.Plan) -> Any:
    """Return the Relay call that stands for constant filters [k, c, 3, 3], transformed for a plan.

    No kernel computes it: it is a weight that an artifact makes when it is opened (`recipe`).
    """
    return operator.call(WEIGHTS, [filters], shape=list(plan.weights))


def recipe(call: Any) -> dict[str, Any] | None:
    """Return how an opened artifact makes the result of a fused call (`mlc.made`); None: a kernel does."""
    body = call.op.body
    if getattr(getattr(body, "op", None), "name", "") != WEIGHTS:
        return None
    return {"by": made.WINOGRAD, "shape": [int(size) for size in body.attrs["shape"]]}


def algorithm(function: Any) -> str:
    """Return how a kernel convolves: "direct", "winograd F(4x4, 3x3)"; empty if it does not."""
    found = ""

    def visit(node: Any) -> None:
        nonlocal found
        name = getattr(getattr(node, "op", None), "name", "")
        if name == NAME:
            m = int(node.attrs["tile_size"])
            found = f"winograd F({m}x{m}, 3x3)"
        elif name.startswith("nn.") and "conv" in name:
            found = "direct"

    relay.analysis.post_order_visit(function.body, visit)
    return found


def install() -> None:
    """Register the operators, their types, the convolution's layouts and strategy."""
    operator.register(
        WEIGHTS,
        "filters in Winograd's domain, made when an artifact is opened",
        {"filters": "constant filters [k, c, 3, 3]"},
        ("MlcWinogradWeights", _weights_type),
        pattern=relay_op.OpPattern.OPAQUE,
    )
    operator.register(
        NAME,
        "a 3x3 convolution with stride 1, its weights in Winograd's domain",
        {
            "data": "activations",
            "weight": "transformed weights [positions, panels, c, columns]",
        },
        ("MlcConv2dWinograd", _type),
    )
    operator.register_strategy(NAME, _compute, winograd.schedule_conv2d, winograd.TEMPLATE)
    relay_op.register_alter_op_layout(NAME, _alter)
    relay_op.register_infer_correct_layout(NAME, _layouts)


def _layer(data: Any, attrs: Any) -> winograd.Layer:
    out = str(attrs["out_layout"])
    block = 0 if out == _PLAIN else int(out[len(_PLAIN) : -1])
    return winograd.layer_of(data, attrs["padding"], int(attrs["channels"]), block)


def _type(types: Any, attrs: Any) -> Any:
    layer = _layer(types[0], attrs)
    size = [layer.out_height, layer.out_width]
    if len(types[0].shape) == len(_PLAIN):
        shape = [layer.batch, layer.filters, *size]
    else:
        shape = [layer.batch, layer.filters // layer.out_block, *size, layer.out_block]
    return relay.TensorType(shape, types[0].dtype)


def _weights_type(types: Any, attrs: Any) -> Any:
    return relay.TensorType([int(size) for size in attrs["shape"]], types[0].dtype)


def _alter(attrs: Any, inputs: Any, types: Any, _out_type: Any) -> Any:
    layer = _layer(types[0], attrs)
    blocked = {
        "data_layout": f"{_PLAIN}{layer.in_block}c",
        "out_layout": f"{_PLAIN}{layer.out_block}c",
    }
    known = {key: attrs[key] for key in attrs.keys()}  # noqa: SIM118
    return operator.call(NAME, list(inputs), **{**known, **blocked})


def _layouts(attrs: Any, *_layouts_and_types: Any) -> Any:
    plain = tvm.tir.layout("OIHW")  # of the weights: any name will do, they stay as they are
    data, out = (tvm.tir.layout(str(attrs[key])) for key in ("data_layout", "out_layout"))
    return InferCorrectLayoutOutput([data, plain], [out], attrs)


def _compute(attrs: Any, inputs: Any, _out_type: Any) -> list[Any]:
    layer = _layer(inputs[0], attrs)
    return [winograd.conv2d(*inputs, layer.padding, layer.filters, layer.out_block)]
