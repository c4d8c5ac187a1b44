"""ONNX nodes to Relay where some dimensions stay open: shapes are computed with, not run.

Exporters write shapes as arithmetic on integer tensors: Shape, Gather, Concat, Reshape. Those values are
kept here as arrays of numbers and expressions (`open_dims`), by the same few operators in numpy;
what takes a shape from them becomes an operator with that shape as attribute. Where such a value
is data after all, it is computed at run time from the sizes, which are inputs of the graph then.
All other nodes are converted as in a graph of fixed shapes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import tvm_env
from mlc.errors import MlcError, ModelError
from mlc.events import Notice, OnEvent, ignore
from mlc.frontend import open_nodes, open_values, shapes
from mlc.frontend.convert import Converter, Value
from mlc.frontend.open_dims import Dims, Sizes
from mlc.frontend.ops.operands import is_open, shape_of
from mlc.frontend.support import require_supported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.frontend.onnx_file import OnnxFile
    from mlc.model import Model

_SHOWN = 8


def convert(file: OnnxFile, on_event: OnEvent = ignore) -> Model:
    """Return the model of a file in which dimensions of inputs are open; `dims` says what bounds them.

    Its `main` takes, behind the inputs, a scalar `size<k>` (int64) for each dimension whose size the
    graph computes with, k being its position in `dims`.

    Raises:
        UnsupportedError: operators without a conversion, all of them listed.
        ModelError: nodes cannot be converted with open sizes (listed, each with the reason).
    """
    tvm_env.tvm()
    require_supported(file.proto)
    dims = Dims(shapes.open_names(file), lambda text: on_event(Notice(text=text)))
    return replace(OpenConverter(file, dims).model(), dims=dims)


class OpenConverter(Converter):
    """Converts a graph; `integers` holds what is known of integer tensors, by name."""

    def __init__(self, file: OnnxFile, dims: Dims):
        super().__init__(file)
        self.dims = dims
        self.integers: dict[str, Sizes] = {}
        self.sizes: dict[str, Any] = {}  # dimension: the variable with its size
        self.below: dict[
            str, Any
        ] = {}  # counted tensors: all elements are from 0 to below this size
        self.failed: set[str] = set()  # values that could not be computed

    def shape(self, name: str) -> list[Any]:
        """Return the shape of a value."""
        return shape_of(self.values[name].stub)

    def known(self, name: str) -> Sizes | None:
        """Return an integer tensor as sizes; None where it is not known, or too large to be a shape."""
        from tvm import relay

        if name in self.integers:
            return self.integers[name]
        found = self.values[name].expr
        if not isinstance(found, relay.Constant):
            return None
        array = found.data.numpy()
        if array.dtype.kind not in "iub" or array.size > open_values.MOST:
            return None
        return np.asarray(array.astype(object))

    def _sizes(self, shape: Sequence[int | str]) -> Any:
        return self.dims.shape(shape)

    def _parameters(self, body: Any) -> list[Any]:
        from tvm import relay

        used = list(relay.analysis.free_vars(body))
        names = [name for name in self.dims.bounds if name in self.sizes]
        sizes = [self.sizes[name] for name in names]
        return [*self.variables, *(v for v in sizes if any(v.same_as(u) for u in used))]

    def _add_nodes(self) -> None:
        problems = []
        for position, node in enumerate(self.graph.node):
            if not self.failed.isdisjoint(node.input):
                self.failed.update(node.output)
                continue
            try:
                self._add_node(node)
                self._require_sizes(node)
            except Exception as error:  # noqa: BLE001 - TVM raises types of its own
                problems.append(f"{self._label(node, position)}: {_reason(error)}")
                self.failed.update(node.output)
        if problems:
            self._refuse(problems)

    def _refuse(self, problems: list[str]) -> None:
        names = list(self.dims.bounds)
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listing = "\n".join(f"  {problem}" for problem in problems[:_SHOWN]) + more
        fixing = " ".join(shapes.option(f"{name}=16") for name in names)
        raise ModelError(
            f"{len(problems)} node(s) cannot be converted with open sizes "
            f"({', '.join(map(repr, names))}):\n{listing}",
            f"fix the sizes instead, for example {fixing}, and keep with `--dynamic NAME` what "
            "these nodes do not need",
        )

    def _require_sizes(self, node: Any) -> None:
        for name in node.output:
            if not name:
                continue
            for size in self.shape(name):
                if not isinstance(size, int):
                    self.dims.require_positive(size)

    def _add_node(self, node: Any) -> None:
        found = open_values.evaluate(self, node)
        if found is not None:
            self._set(node.output[0], *found)
            return
        super()._add_node(node)
        limit = open_values.limit(self, node)
        if limit is not None:
            self.below[node.output[0]] = limit

    def _set(self, name: str, sizes: Sizes, dtype: str) -> None:
        """Make a value of sizes: a constant, or computed at run time if anything needs it as data."""
        from tvm import nd, relay

        sizes = np.vectorize(self.dims.simplify, otypes=[object])(sizes)
        if all(isinstance(size, int) for size in sizes.reshape(-1)):
            constant = relay.Constant(nd.array(sizes.astype(dtype)))
            self.values[name] = Value(constant, constant)
            return
        self.integers[name] = sizes
        scalars = [relay.reshape(self._scalar(size), [1]) for size in sizes.reshape(-1)]
        flat = scalars[0] if len(scalars) == 1 else relay.concatenate(scalars, 0)
        data = relay.cast(relay.reshape(flat, sizes.shape), dtype)
        self.values[name] = Value(data, relay.var("x", shape=sizes.shape, dtype=dtype))

    def runtime_size(self, size: Any, dtype: str) -> Any:
        """Return a size as a scalar of the graph."""
        from tvm import relay

        return relay.cast(self._scalar(self.dims.simplify(size)), dtype)

    def _scalar(self, size: Any) -> Any:
        """Return a size as Relay arithmetic in int64."""
        from tvm import relay, tir

        if isinstance(size, (int, tir.IntImm)):
            return relay.const(int(size), "int64")
        if isinstance(size, tir.Cast):
            return self._scalar(size.value)
        if isinstance(size, tir.Var):
            name = str(self.dims.data(size))
            position = list(self.dims.bounds).index(name)
            if name not in self.sizes:
                self.sizes[name] = relay.var(f"size{position}", shape=(), dtype="int64")
            return self.sizes[name]
        names = {tir.Add: "add", tir.Sub: "subtract", tir.Mul: "multiply", tir.Min: "minimum",
                 tir.Max: "maximum", tir.FloorDiv: "floor_divide", tir.FloorMod: "floor_mod"}  # fmt: skip
        if type(size) not in names:
            raise ModelError(f"a size is no expression of open dimensions: {size}")
        return getattr(relay, names[type(size)])(self._scalar(size.a), self._scalar(size.b))

    def _convert(self, node: Any, inputs: list[Any]) -> Any:
        own = open_nodes.NODES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        any_open = any(is_open(self.shape(name)) for name in node.input if name)
        unknown = any(name in self.integers for name in node.input)
        if own is not None and (any_open or unknown):
            return own(self, node, inputs)
        return self.as_usual(node, inputs)

    def as_usual(self, node: Any, inputs: list[Any]) -> Any:
        """Convert a node as in a graph of fixed shapes."""
        return super()._convert(node, inputs)

    def _output_shape(self, tensor: Any) -> tuple[Any, ...]:
        return tuple(self.dims.as_size(size) for size in tensor.shape)


def _reason(error: Exception) -> str:
    if isinstance(error, MlcError):
        return error.message
    taken = isinstance(error, (TypeError, ValueError)) or "Expected IntImm" in str(error)
    if taken:  # a size, for a number
        return "what it computes needs sizes that are known"
    return tvm_env.reason(error)
