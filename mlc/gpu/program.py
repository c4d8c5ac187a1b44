"""From a kernel to its program for a GPU: lower, split, emit PTX, assemble.

A kernel that does not fit is compiled again with smaller tiles, and says so. The last resort has one
thread in a block: slow, but TVM's template for transposed convolutions with strides, for one, has
shared buffers whose size depends on the block in most of its other configs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mlc.codegen import kernels
from mlc.errors import BuildError, MissingToolError
from mlc.gpu import nvptx, ptxas
from mlc.gpu.device import MAX_BLOCK, MAX_GRID, Program, UnfitError
from mlc.gpu.split import split
from mlc.tune.dispatch import dispatch_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlc.codegen.kernels import Job, Settings
    from mlc.gpu.device import Launch, Resources
    from mlc.target_file import Gpu

_REGISTER_UNIT = 8  # registers are given out by so many a thread


def compile_kernel(job: Job, settings: Settings) -> Program:
    """Return the program of a kernel for `settings.target`.

    Raises:
        BuildError: it has no schedule for GPUs, or takes too much with the smallest tiles as well.
        MissingToolError: NVIDIA's assembler is not installed.
    """
    from mlc.schedules.cuda import SMALLER

    try:
        return _program(job, settings)
    except UnfitError as error:
        first = last = error.message
    for what, make in SMALLER.items():
        with dispatch_context(lambda _workload: None, make):
            try:
                return _program(job, settings, f"{first}: compiled with {what} instead")
            except UnfitError as error:
                last = error.message
    raise BuildError(
        f"kernel {job.symbol} does not fit the GPU: {last}", "a GPU with more may take it"
    )


def _program(job: Job, settings: Settings, note: str = "") -> Program:
    assert settings.gpu is not None
    lowered = kernels.lower(job, settings)
    try:
        with kernels.pass_context(settings.level):
            return assemble(lowered, settings.target, settings.gpu, note)
    except (UnfitError, MissingToolError):
        raise
    except BuildError as error:
        raise BuildError(f"kernel {job.symbol}: {error.message}", error.hint) from error
    except Exception as error:
        if "Memory verification failed" in str(error):  # a loop that runs on no thread
            names = ", ".join(dict.fromkeys(kernels.operators(job.function)))
            raise BuildError(
                f"kernel {job.symbol} ({names}) has no schedule for GPUs",
                "compile this model for a CPU: `--target llvm`",
            ) from error
        raise kernels.failed(job, error) from error


def assemble(lowered: Any, target: Any, limits: Gpu, note: str = "") -> Program:
    """Return the program of one lowered kernel (a module of TIR) for TVM's target of a GPU.

    Raises:
        UnfitError: a block takes more than it may have.
        BuildError: it cannot be split or compiled. TVM's own exceptions come as they are.
        MissingToolError: NVIDIA's assembler is not installed.
    """
    sm = str(target.attrs["mcpu"])
    with target:
        halves = split(lowered, target)
        blocks = _blocks(halves.launches, limits.max_threads)
        ptx = nvptx.emit(halves.functions, blocks, sm)
    cubin, resources = ptxas.assemble(ptx, sm)
    _check(blocks, resources, limits)
    return Program(
        ptx=ptx, cubin=cubin, temporaries=halves.temporaries, launches=halves.launches,
        resources=resources, note=note,
    )  # fmt: skip


def _blocks(launches: tuple[Launch, ...], most: int) -> dict[str, tuple[int, int, int]]:
    """Return the threads of a block by function, the most of any of its launches.

    Raises:
        UnfitError: there are more than a block may have, or more blocks than a launch.
    """
    ascending = sorted(launches, key=lambda launch: math.prod(launch.block))
    blocks = {launch.function: launch.block for launch in ascending}
    for block in blocks.values():
        if math.prod(block) > most:
            raise UnfitError(f"it takes {math.prod(block)} threads, and a block has {most}")
    for launch in launches:
        for sizes, limits, what, whole in (
            (launch.block, MAX_BLOCK, "threads", "a block"),
            (launch.grid, MAX_GRID, "blocks", "a launch"),
        ):
            for axis, taken, limit in zip("xyz", sizes, limits, strict=True):
                if taken > limit:
                    raise UnfitError(f"it takes {taken} {what} in {axis}, and {whole} has {limit}")
    return blocks


def _check(
    blocks: Mapping[str, tuple[int, int, int]], resources: Mapping[str, Resources], limits: Gpu
) -> None:
    """Raise UnfitError where a block would take more than there is.

    `ptxas` knows the threads of a block and refuses or spills; it is checked all the same, because
    the launch would fail on the GPU only.
    """
    for name, block in blocks.items():
        each = -(-resources[name].registers // _REGISTER_UNIT) * _REGISTER_UNIT
        for taken, most, what in (
            (each * math.prod(block), limits.registers, "registers"),
            (resources[name].shared_bytes, limits.shared_bytes, "bytes of shared memory"),
        ):
            if taken > most:
                raise UnfitError(f"it takes {taken} {what}, and a block has {most}")
