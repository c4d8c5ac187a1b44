"""What `mlc compile` does for a list of sizes: each bucket by itself, then one artifact of all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlc.buckets import Part, Weights, merge
from mlc.events import Notice, OnEvent
from mlc.frontend import onnx_file, shapes

if TYPE_CHECKING:
    from mlc.artifact import Contents
    from mlc.cache import Cache
    from mlc.codegen.kernels import Kernel
    from mlc.events import Event
    from mlc.frontend.onnx_file import OnnxFile
    from mlc.options import CompileOptions
    from mlc.target import Target
    from mlc.tune.dispatch import Lookup


def contents(
    options: CompileOptions,
    chosen: Target,
    file: OnnxFile,
    cache: Cache,
    lookup: Lookup,
    on_event: OnEvent,
) -> Contents:
    """Return what the artifact of a file will hold, a bucket for each combination of sizes.

    The buckets are compiled in turn; weights that they share are kept once.

    Raises:
        MlcError: as `driver.build_model`.
    """
    from mlc import build
    from mlc.driver import build_model

    wanted = shapes.combinations(options.shapes)
    if len(wanted) == 1:
        return build_model(options, chosen, file, cache, lookup, on_event).contents
    weights, parts = Weights(), list[Part]()
    kernels: dict[str, Kernel] = {}
    said = _Once(on_event)
    for one in wanted:
        said(Notice(text=f"bucket {', '.join(f'{k}={v}' for k, v in one.dims.items())}"))
        plain = replace(options, shapes=one.options)
        # Converting took the weights over: they are mapped anew.
        source = file if not parts else onnx_file.read(file.path)
        built = build_model(plain, chosen, source, cache, lookup, said, linked=False)
        table = weights.add(built.contents.weights, built.contents.made)
        kept = replace(built.contents, weights=())
        parts.append(Part(dims=one.dims, contents=kept, weights=table))
        # Equal symbols are equal functions: see `codegen.kernels.Namer`.
        kernels = {kernel.symbol: kernel for kernel in built.library.kernels} | kernels
    llvm = build.tvm_target(chosen, options.opt_level)
    return merge(parts, build.code_of(list(kernels.values()), llvm, on_event), weights)


class _Once:
    """Hands events on, but no notice twice: buckets differ in sizes only."""

    def __init__(self, on_event: OnEvent):
        self.on_event = on_event
        self.said: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            if event.text in self.said:
                return
            self.said.add(event.text)
        self.on_event(event)
