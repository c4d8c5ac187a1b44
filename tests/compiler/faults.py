"""Candidates compiled by a compiler with a fault: called in the child process of a trial.

`mlc.bisection.trial.FUNCTION` names one of these instead of `trial.run`. Each breaks something in
its own process only, then answers as usual.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mlc.bisection import trial
from mlc.frontend import operators
from mlc.passes import table


def right(fields: dict[str, Any], on_event: Any) -> dict[str, Any]:
    return trial.run(fields, on_event)


def wrong_fast_math(fields: dict[str, Any], on_event: Any) -> dict[str, Any]:
    """At -O3, tanh becomes erf."""
    _break("fast-math", lambda module: _renamed(module, "fast_tanh", "fast_erf"))
    return trial.run(fields, on_event)


def wrong_common_subexpressions(fields: dict[str, Any], on_event: Any) -> dict[str, Any]:
    """From -O2 on, a sigmoid becomes a tanh."""
    _break("eliminate-common-subexpressions", lambda m: _renamed(m, "sigmoid", "tanh"))
    return trial.run(fields, on_event)


def wrong_legalize(fields: dict[str, Any], on_event: Any) -> dict[str, Any]:
    """At every level, a sigmoid becomes a tanh."""
    _break("legalize", lambda module: _renamed(module, "sigmoid", "tanh"))
    return trial.run(fields, on_event)


def crashing_fusion(fields: dict[str, Any], on_event: Any) -> dict[str, Any]:
    """From -O1 on, the process ends where a sigmoid is fused."""
    row = next(row for row in table.PASSES if row.name == "fuse-operators")

    def run(module: Any) -> Any:
        if "sigmoid" in module.astext():
            os.abort()
        assert row.run is not None
        return row.run(module)

    _replace(row.name, run)
    return trial.run(fields, on_event)


def wrong_converter(fields: dict[str, Any], on_event: Any) -> dict[str, Any]:
    """Softplus is converted to its argument's absolute value."""

    def convert(inputs: Any, attributes: Any) -> Any:
        from tvm import relay

        return relay.abs(inputs[0])

    operators.OWN[""]["Softplus"] = convert
    return trial.run(fields, on_event)


def _break(name: str, run: Callable[[Any], Any]) -> None:
    """Let a row do `run` behind what it does."""
    row = next(row for row in table.PASSES if row.name == name)

    def both(module: Any) -> Any:
        from tvm import relay

        assert row.run is not None
        return relay.transform.InferType()(run(row.run(module)))

    _replace(name, both)


def _replace(name: str, run: Callable[[Any], Any]) -> None:
    table.PASSES = tuple(
        replace(row, run=run, needs=()) if row.name == name else row for row in table.PASSES
    )


def _renamed(module: Any, old: str, new: str) -> Any:
    from tvm import relay

    from mlc.passes.rewrite import rewrite_main

    def rewrite(call: Any, arguments: Any) -> Any:
        if getattr(call.op, "name", "") == old:
            return relay.Call(relay.op.get(new), list(arguments))
        return None

    return rewrite_main(module, rewrite)
