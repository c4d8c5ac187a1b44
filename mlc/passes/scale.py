"""Fold per-channel scales into weights, where both are constant.

Relay's passes also fold scales that are computed from the input (squeeze-and-excitation): the
weights then change with every call, are multiplied and laid out again at run time, and the network
gets slower. Products of two computed values are therefore fenced off while the passes run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.passes.fold import fold_module
from mlc.passes.rewrite import rewrite_main

if TYPE_CHECKING:
    from collections.abc import Sequence


def fold_backward(module: Any) -> Any:
    """Move constant scales into the weights of the layer before them."""
    from tvm import relay

    return _fenced(module, relay.transform.BackwardFoldScaleAxis())


def fold_forward(module: Any) -> Any:
    """Move constant scales into the weights of the layer behind them."""
    from tvm import relay

    return _fenced(module, relay.transform.ForwardFoldScaleAxis())


def _fenced(module: Any, run: Any) -> Any:
    from tvm import ir, relay

    def fence(call: Any, args: Sequence[Any]) -> Any:
        if call.op != ir.Op.get("multiply") or any(isinstance(a, relay.Constant) for a in args):
            return None
        left, right = args
        stop = relay.annotation.stop_fusion
        return stop(relay.multiply(stop(left), stop(right)))

    def unfence(call: Any, args: Sequence[Any]) -> Any:
        return args[0] if call.op == ir.Op.get("annotation.stop_fusion") else None

    fenced = rewrite_main(module, fence)
    folded = fold_module(run(fenced))
    return folded if fenced.same_as(module) else rewrite_main(folded, unfence)
