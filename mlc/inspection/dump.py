"""The IR on its way as files: Relay around every pass; TIR, LLVM IR and assembly of one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlc.codegen import flops
from mlc.codegen.kernels import Job, Settings, build
from mlc.errors import UsageError, did_you_mean
from mlc.inspection.loops import observe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlc.codegen.graph import Plan
    from mlc.passes.run import PassRun

_LISTED = 8
_INDEX = """\
What this folder holds, in the order in which it came about
============================================================

relay/NN-<pass>-before.txt, relay/NN-<pass>-after.txt
    The graph around graph pass NN, in Relay's text form (`diff` the two). Weights are shown as
    `meta[relay.Constant][k]`, without their data. `fn (..., Primitive=1)` is a fused kernel.

kernels/list.txt
    All kernels of the model: FLOPs per run, calls per run, symbol. `--kernel NAME` (a symbol, or a
    part of one that is unique) chooses the one that is shown; the default is the heaviest.

kernels/<symbol>/
    relay.txt       the kernel's primitive function: the operators that were fused into it
    scheduled.txt   its loops as the schedule left them: every decision is still a mark on a loop
    tir.txt         the same after the TIR passes of lowering; code generation begins here
    llvm.ll         LLVM IR, after LLVM's optimiser
    asm.s           assembly for the target

How to read them
----------------

Tiles (blocks). A loop over `x` that was split is two loops, `x_outer` and `x_inner`, the inner one
    as long as the block. In scheduled.txt look for `_outer` and `_inner` in the loop names, and for
    a reduction loop (`k`, `ic`, `kh`, `kw`) between them: the small buffer written below it
    (`..._global`) is the tile that stays in registers. Equal nests print as `T.grid(a, b, c)`.

Vectors. `for x in T.vectorized(16)` in scheduled.txt is gone in tir.txt: its loads and stores take
    all lanes at once. A slice `a[i:i + 16]` is one vector (it is how a ramp with stride 1 prints;
    other strides print as `i:i + 64:4` or `T.Ramp(i, stride, 16)`), `T.Broadcast(v, 16)` repeats
    one value, and a buffer of `float32x16` holds vectors. In llvm.ll they are `<16 x float>`, in
    x86 assembly the registers xmm (4 floats), ymm (8) and zmm (16); `vfmadd...ps` multiplies and
    adds a whole register. At -O0 marked loops become plain loops.

Unrolling. `for i in T.unroll(8)` in scheduled.txt is written out eight times in tir.txt, with the
    indices as numbers. LLVM may unroll further.

Parallel loops. `for n in T.parallel(56)` stays in tir.txt. In llvm.ll its body is a function of its
    own, `__tvm_parallel_lambda`, that `TVMBackendParallelLaunch` runs on the thread pool.
"""


class PassDump:
    """An observer of `passes.run.optimize` that writes Relay text around every pass.

    Creates `directory`, and deletes what an earlier dump wrote to its `relay` folder.

    Raises:
        UsageError: the folder cannot be written.
    """

    def __init__(self, directory: Path):
        self.folder = directory / "relay"
        self.count = 0
        self.last: tuple[Any, str] | None = None  # printing a large module takes a while
        _write(directory / "index.txt", _INDEX)
        try:
            for old in self.folder.glob("[0-9][0-9]-*.txt"):
                old.unlink()
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def __call__(self, run: PassRun) -> None:
        """Write the module before and after one pass."""
        self.count += 1
        stem = f"{self.count:02d}-{run.row.name}"
        _write(self.folder / f"{stem}-before.txt", self._text(run.before))
        _write(self.folder / f"{stem}-after.txt", self._text(run.after))

    def _text(self, module: Any) -> str:
        if self.last is None or not module.same_as(self.last[0]):
            self.last = module, module.astext(show_meta_data=False) + "\n"
        return self.last[1]


def dump_kernel(plan: Plan, settings: Settings, directory: Path, kernel: str | None) -> str | None:
    """Write one kernel at every stage from Relay to assembly, and return its symbol.

    `kernel` is a symbol of the plan or a part of one that is unique; None takes the kernel with
    the most FLOPs per run. A model without kernels has nothing to write: None is returned.

    Raises:
        UsageError: no kernel, or several, go by that name; or the folder cannot be written.
        BuildError: the kernel cannot be compiled.
    """
    _write(directory / "index.txt", _INDEX)
    work = {
        symbol: flops.count(function) * plan.calls[symbol]
        for symbol, function in plan.kernels.items()
    }
    _write(directory / "kernels" / "list.txt", _listing(plan, work))
    if not work and kernel is None:
        return None
    symbol = find_kernel(kernel, work)
    job = Job(symbol=symbol, key="", function=plan.kernels[symbol])
    tir, record = observe(job, settings)
    folder = directory / "kernels" / symbol
    texts = {
        "relay.txt": job.function.astext(show_meta_data=False) + "\n",
        "scheduled.txt": record.script + "\n",
        "tir.txt": tir.script(show_meta=False) + "\n",
        **_code(job, tir, settings),
    }
    for name, text in texts.items():
        _write(folder / name, text)
    return symbol


def _code(job: Job, tir: Any, settings: Settings) -> dict[str, str]:
    """Return the code of a kernel as text, by file name."""
    if settings.gpu is not None:
        from mlc.gpu.program import compile_kernel

        return {"kernel.ptx": compile_kernel(job, settings).ptx}
    library = build(job, tir, settings)
    return {"llvm.ll": library.get_source("ll"), "asm.s": library.get_source("asm")}


def find_kernel(name: str | None, work: Mapping[str, int]) -> str:
    """Return the symbol that `name` means among those of `work` (FLOPs per run by symbol).

    Raises:
        UsageError: none, or more than one, goes by that name.
    """
    if name is None:
        return max(work, key=lambda symbol: work[symbol])
    matches = [symbol for symbol in work if name in symbol]
    if name in work or len(matches) == 1:
        return name if name in work else matches[0]
    if matches:
        more = len(matches) > _LISTED
        raise UsageError(
            f"{len(matches)} kernels have {name!r} in their name",
            "give more of the symbol: " + ", ".join(matches[:_LISTED]) + ", ..." * more,
        )
    raise UsageError(f"there is no kernel {name!r}", did_you_mean(name, work))


def _listing(plan: Plan, work: dict[str, int]) -> str:
    order = sorted(work, key=lambda symbol: (-work[symbol], symbol))
    lines = [f"{work[s]:>16,} {plan.calls[s]:>6}  {s}" for s in order]
    return "\n".join([f"{'FLOPs per run':>16} {'calls':>6}  kernel", *lines]) + "\n"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write {path}: {error.strerror}", "choose another folder with `--dump-ir`"
    )
