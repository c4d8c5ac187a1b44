"""Our own AutoTVM templates and operators, and the strategies that offer them to Relay.

Templates: `dense`, `batch_matmul` and `pointwise` share the register tile of `gemm`; `winograd` (with
`winograd_op`), `depthwise`, `expand_depthwise`, `direct` (groups, images), `narrow` (8 bits; with
`narrow_op`, and `dot`, the instructions) and `attention`. `conv_op` offers those of convolutions, `blocks`
decides on NCHWc. Kernels without knobs: `rows` (softmax, layer norm), `spatial` (pooling, reductions over
the image), `concat`, `lrn`, `elementary`, `rounding`, `recurrent`. `tails`, `stack`, `serial` and `shuffles` are TIR
passes. `arm` chooses among TVM's schedules for Arm. For GPUs: `gpu_gemm` (products), `gpu_rows` (softmax, layer norm), and
`cuda`, default configs of TVM's templates.
The modules import TVM: `tvm_env.tvm()` loads them, once, and everything forked later inherits them.
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
        concat,
        conv_op,
        dense,
        elementary,
        expand_depthwise,
        gpu_gemm,
        gpu_rows,
        lrn,
        open_ops,
        recurrent,
        rounding,
        rows,
        spatial,
        winograd_op,
    )

    ours = (
        dense,
        batch_matmul,
        winograd_op,
        blocks,
        conv_op,
        recurrent,
        elementary,
        rounding,
        rows,
        spatial,
        concat,
        lrn,
        attention,
        expand_depthwise,
        gpu_gemm,
        gpu_rows,
    )
    for module in (*ours, open_ops, arm):  # Arm last: it puts back what differs there
        module.install()
