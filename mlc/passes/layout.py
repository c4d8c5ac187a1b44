"""Blocked layouts: convolutions to NCHWc, dense weights packed by the vector width."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def alter_layout(module: Any) -> Any:
    """Run Relay's AlterOpLayout, asking once for the implementation of equal layers."""
    from tvm import relay

    with _remembered_choices():
        return relay.transform.AlterOpLayout()(module)


@contextlib.contextmanager
def _remembered_choices() -> Iterator[None]:
    """Remember which implementation was selected for an operator, attributes and shapes.

    Work-around: the pass builds the tensor expressions of every strategy anew for each layer, 13 ms
    for each convolution, also where a hundred layers are equal. The choice depends on nothing else
    while the pass runs: target and tuning records stay the same.
    """
    from tvm.relay.backend import te_compiler

    original = te_compiler.select_implementation
    known: dict[tuple[Any, ...], Any] = {}

    def select(
        op: Any, attrs: Any, inputs: Any, out_type: Any, target: Any, use_autotvm: bool = True
    ) -> Any:
        shapes = tuple((tuple(map(int, t.shape)), str(t.dtype)) for t in inputs)
        named = tuple((name, str(attrs[name])) for name in attrs.keys())  # noqa: SIM118
        key = (op.name, named, shapes, str(out_type), str(target), use_autotvm)
        if key not in known:
            known[key] = original(op, attrs, inputs, out_type, target, use_autotvm)
        return known[key]

    te_compiler.select_implementation = select
    try:
        yield
    finally:
        te_compiler.select_implementation = original
