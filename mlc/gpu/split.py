"""Split a lowered kernel into functions for the GPU, and the launches of them as data.

TVM's own passes up to where its host code would begin; what is left of the host then is constant:
temporary buffers, loops of known length, launches. It is walked through here once and for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mlc.gpu.device import INT32, INT64, TEMPORARY, TENSOR, Launch, UnfitError

_MAX_LAUNCHES = 4096
_AXES = {
    f"{what}Idx.{dim}": (what, k) for what in ("block", "thread") for k, dim in enumerate("xyz")
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """The GPU functions of a kernel (a TIR module), and what one call of it launches."""

    functions: Any = field(repr=False)
    temporaries: tuple[int, ...]
    launches: tuple[Launch, ...]


def split(lowered: Any, target: Any) -> Split:
    """Return the two halves of a kernel.

    Args:
        lowered: a module of one TIR function, thread axes bound, as `kernels.lower` returns it.
        target: TVM's `nvptx` target with a host.

    Raises:
        UnfitError: the host would have to compute something.
    """
    from tvm import tir
    from tvm.driver import _ffi_api

    (name,) = (str(entry.name_hint) for entry in lowered.functions)
    mixed = lowered
    for step in _steps(tir.transform, target):
        mixed = step(mixed)
    # What MakePackedAPI would do as well: calls between targets become launches.
    mixed.update_func(mixed.get_global_var(name), mixed[name].with_attr("target", target.host))
    mixed = tir.transform.LowerDeviceKernelLaunch()(mixed)
    walk = _Walk(mixed, mixed[name])
    functions = tir.transform.Filter(lambda function: not function.buffer_map)(mixed)
    functions = tir.transform.BF16StorageLegalize()(functions)
    functions = _ffi_api.device_mod_passes(functions, target)(functions)
    return Split(
        functions=functions, temporaries=tuple(walk.temporaries), launches=tuple(walk.launches)
    )


def _steps(transform: Any, target: Any) -> tuple[Any, ...]:
    """Return TVM's passes between a lowered kernel and its two halves, without its host's ABI."""
    return (
        transform.BindTarget(target),
        transform.VerifyMemory(),
        transform.AnnotateEntryFunc(),
        transform.ThreadSync("shared"),
        transform.ThreadSync("shared.dyn"),
        transform.ThreadSync("warp"),
        transform.LowerThreadAllreduce(),
        transform.AnnotateDeviceRegions(),
        transform.SplitHostDevice(),
        transform.MergeSharedMemoryAllocations(),
    )


class _Walk:
    """Walks through the host half of a kernel; its values are known or it is refused."""

    def __init__(self, module: Any, host: Any):
        self.module = module
        self.values: dict[Any, tuple[str, int]] = {}
        self.temporaries: list[int] = []
        self.launches: list[Launch] = []
        for position, param in enumerate(host.params):
            data = host.buffer_map[param].data if param in host.buffer_map else param
            self.values[data] = (TENSOR, position)
        self._statement(host.body)

    def _statement(self, node: Any) -> None:
        from tvm import tir

        if isinstance(node, tir.SeqStmt):
            for part in node.seq:
                self._statement(part)
        elif isinstance(node, tir.AttrStmt | tir.DeclBuffer):
            self._statement(node.body)
        elif isinstance(node, tir.Allocate):
            self._allocate(node)
        elif isinstance(node, tir.LetStmt):
            self.values[node.var] = self._argument(node.value)
            self._statement(node.body)
        elif isinstance(node, tir.For):
            self._loop(node)
        elif isinstance(node, tir.Evaluate):
            self._call(node.value)
        else:
            raise _refused(type(node).__name__)

    def _allocate(self, node: Any) -> None:
        from tvm import DataType

        kind = DataType(node.dtype)
        size = math.prod(int(extent) for extent in node.extents)
        self.values[node.buffer_var] = (TEMPORARY, len(self.temporaries))
        self.temporaries.append(max(1, size) * -(-kind.bits // 8) * kind.lanes)
        self._statement(node.body)

    def _loop(self, node: Any) -> None:
        first = self._number(node.min)
        for value in range(first, first + self._number(node.extent)):
            self.values[node.loop_var] = (INT64 if node.loop_var.dtype == "int64" else INT32, value)
            self._statement(node.body)

    def _call(self, call: Any) -> None:
        from tvm import tir

        if isinstance(call, tir.IntImm):
            return  # nothing is left of what stood here
        if getattr(getattr(call, "op", None), "name", "") != "tir.tvm_call_packed":
            raise _refused(str(call)[:80])
        if len(self.launches) >= _MAX_LAUNCHES:
            raise _refused(f"more than {_MAX_LAUNCHES} launches")
        name, *words = call.args
        function = self.module[name.value]
        tags = [str(tag) for tag in function.attrs["tir.kernel_launch_params"]]
        count = len(words) - len(tags)
        sizes = {"block": [1, 1, 1], "thread": [1, 1, 1]}
        for tag, word in zip(tags, words[count:], strict=True):
            if tag not in _AXES:
                raise _refused(tag)
            what, dim = _AXES[tag]
            sizes[what][dim] = self._number(word)
        grid, block = ((x, y, z) for x, y, z in (sizes["block"], sizes["thread"]))
        arguments = tuple(self._argument(word) for word in words[:count])
        if 0 not in (*grid, *block):  # a loop of no turns
            self.launches.append(
                Launch(function=name.value, grid=grid, block=block, arguments=arguments)
            )

    def _argument(self, word: Any) -> tuple[str, int]:
        from tvm import tir

        if isinstance(word, tir.Var) and word in self.values:
            return self.values[word]
        return (INT64 if word.dtype == "int64" else INT32, self._number(word))

    def _number(self, word: Any) -> int:
        from tvm import arith, tir

        known = {
            var: tir.const(number, var.dtype)
            for var, (kind, number) in self.values.items()
            if kind in (INT32, INT64)
        }
        value = arith.Analyzer().simplify(tir.stmt_functor.substitute(word, known))
        if not isinstance(value, tir.IntImm):
            raise _refused(str(word))
        return int(value)


def _refused(what: str) -> UnfitError:
    return UnfitError(f"its host part would have to compute something that is not known: {what}")
