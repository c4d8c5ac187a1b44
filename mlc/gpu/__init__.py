"""Kernels for NVIDIA GPUs, made without a GPU, a driver or a CUDA toolkit.

    split    -- one lowered kernel becomes GPU functions, and the launches of them as data
    nvptx    -- GPU functions -> LLVM IR -> PTX, around what TVM 0.19 gets wrong with LLVM 22
    ptxas    -- PTX -> cubin for one architecture; registers, spills and shared memory
    program  -- all of these, and smaller tiles where a kernel does not fit
    device   -- the `Program` that comes of it, as it is stored in the artifact

`mlc.emulate.cuda` runs such programs on the CPU, `mlc.runtime.cuda` on a GPU: both take the launches
from the same data.
"""
