"""Our own AutoTVM templates, and the op strategies that offer them to Relay.

`gemm` holds the register tile that they share, `dense`, `batch_matmul`, `winograd`, `depthwise` and
`pointwise` a template each, `conv_op` offers the last two, `blocks` decides on NCHWc, `tails`
the one TIR pass that their schedules rely on; `arm` chooses among TVM's schedules for Arm. The
modules import TVM: `tvm_env.tvm()` loads them, once, and everything forked later inherits them.
"""

from __future__ import annotations

import functools


@functools.cache
def install() -> None:
    """Register the templates, and put them before TVM's own in the strategies of key `cpu`.

    A strategy falls back to TVM's implementations for what a template does not take (see `TAKES` in
    `gemm`): other dtypes, shapes known at run time only.
    """
    from mlc.schedules import arm, batch_matmul, blocks, conv_op, dense, winograd_op

    dense.install()
    batch_matmul.install()
    winograd_op.install()
    blocks.install()
    conv_op.install()
    arm.install()
