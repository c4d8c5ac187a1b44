"""Our own AutoTVM templates, and the op strategies that offer them to Relay.

`gemm` holds the register tile that they share, `dense` and `batch_matmul` a template each, `tails`
the one TIR pass that their schedules rely on; `recurrent` is a layer of all its steps in one kernel;
`arm` chooses among TVM's schedules for Arm. The modules import TVM: `tvm_env.tvm()` loads them, once, and everything forked later inherits them.
"""

from __future__ import annotations

import functools


@functools.cache
def install() -> None:
    """Register the templates, and put them before TVM's own in the strategies of key `cpu`.

    A strategy falls back to TVM's implementations for what a template does not take (see `TAKES` in
    `gemm`): other dtypes, shapes known at run time only.
    """
    from mlc.schedules import (
        arm,
        attention,
        batch_matmul,
        blocks,
        conv_op,
        dense,
        elementary,
        recurrent,
        rows,
        winograd_op,
    )

    ours = dense, batch_matmul, winograd_op, blocks, conv_op, recurrent, elementary, rows, attention
    for module in (*ours, arm):  # Arm last: it puts back what differs there
        module.install()
