"""Our own AutoTVM templates, and the op strategies that offer them to Relay.

`gemm` holds the register tile that they share, `dense` and `batch_matmul` a template each, `tails`
the one TIR pass that their schedules rely on; `recurrent` is a layer of all its steps in one kernel;
`arm` chooses among TVM's schedules for Arm, `cuda` has default configs of its templates for GPUs. The modules import TVM: `tvm_env.tvm()` loads them, once, and everything forked later inherits them.
"""

from __future__ import annotations

import functools


@functools.cache
def install() -> None:
    """Register the templates, and put them before TVM's own in the strategies of key `cpu`.

    A strategy falls back to TVM's implementations for what a template does not take (see `TAKES` in
    `gemm`): other dtypes, shapes known at run time only.
    """
    from mlc.schedules import arm, batch_matmul, dense, recurrent, winograd_op

    dense.install()
    batch_matmul.install()
    winograd_op.install()
    recurrent.install()
    arm.install()
