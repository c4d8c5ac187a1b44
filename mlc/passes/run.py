"""Run a pipeline over a model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlc import tvm_env
from mlc.errors import BuildError, MlcError
from mlc.passes.table import Pass, pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.model import Model


@dataclass(frozen=True, kw_only=True)
class PassRun:
    """One pass that ran: the module on both sides of it, and its wall time in seconds."""

    row: Pass
    before: Any
    after: Any
    seconds: float


Observe = Callable[[PassRun], None]


def optimize(
    model: Model,
    target: Any,
    level: int,
    observe: Observe | None = None,
    *,
    exact: bool = False,
    without: Sequence[str] = (),
    is_open: bool = False,
) -> Model:
    """Return the model after the passes of `-O<level>`: its operators fused into kernels.

    `target` is a `tvm.target.Target`. AutoTVM configs come from the dispatch context that is
    current when this is called (layouts follow them). `exact` leaves out passes that round otherwise,
    `without` those that it names, `is_open` those that need all sizes (see `pipeline`).

    Raises:
        BuildError: a pass failed; the message names it and those that ran before.
    """
    from tvm import relay
    from tvm.ir.transform import PassContext

    module = relay.transform.InferType()(model.module)
    rest = replace(model, module=None)
    del model  # passes make new weights; the old ones can go as soon as nobody needs them
    ran: list[str] = []
    with target:
        operators = count_operators(module)
        gpu = "gpu" in target.keys
        for row in pipeline(level, exact=exact, without=without, gpu=gpu, is_open=is_open):
            if not row.applies(operators):
                continue
            started = time.perf_counter()
            try:
                assert row.run is not None
                with PassContext(opt_level=3):  # one each: a context holds its first module
                    after = row.run(module)
            except MlcError:
                raise
            except Exception as error:
                raise BuildError(
                    f"the pass {row.name!r} failed: {tvm_env.reason(error)} "
                    f"(passes before it: {', '.join(ran) or 'none'})",
                    "a lower level may leave the pass out: try `-O1`",
                ) from error
            ran.append(row.name)
            if not after.same_as(module):
                operators = count_operators(after)
            seconds = time.perf_counter() - started
            if observe is not None:
                observe(PassRun(row=row, before=module, after=after, seconds=seconds))
            module = after
    return replace(rest, module=module)


def count_operators(module: Any) -> Counter[str]:
    """Return how often each operator is called in `main`, fused kernels looked into."""
    from tvm import ir, relay

    found: Counter[str] = Counter()

    def visit(node: Any) -> None:
        if isinstance(node, relay.Call) and isinstance(node.op, ir.Op):
            found[node.op.name] += 1

    relay.analysis.post_order_visit(module["main"], visit)
    return found


def count_kernels(module: Any) -> int:
    """Return the number of calls of fused kernels in `main`."""
    from tvm import relay

    from mlc.schedules.winograd_op import recipe

    calls: list[Any] = []

    def visit(node: Any) -> None:
        is_fused = isinstance(node, relay.Call) and isinstance(node.op, relay.Function)
        if is_fused and recipe(node) is None:
            calls.append(node)

    relay.analysis.post_order_visit(module["main"], visit)
    return len(calls)
