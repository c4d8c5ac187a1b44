"""Plan the run: which kernel is called with which buffers, in the graph executor's JSON.

TVM's own graph code generator lowers every kernel itself, one by one, in one process. Planning the
graph apart from the kernels lets these be compiled in parallel and kept in a cache.

Format: `graph_executor.h` of TVM 0.19 (nodes, arg_nodes, node_row_ptr, heads, attrs). Kernels that
only reshape become `__nop` and share their input's buffer (see `storage`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.codegen import open_kernel
from mlc.codegen.storage import assign
from mlc.errors import BuildError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.sizes import Size

RESHAPES = frozenset(
    {"reshape", "expand_dims", "squeeze", "nn.batch_flatten", "contrib_reverse_reshape",
     "reshape_like", "mlc.reshape"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A constant of the graph: `array` is written to the artifact's weights once per content.

    With `made` the kernels read what that recipe makes of it (`mlc.made`).
    """

    name: str
    storage: int
    array: np.ndarray[Any, Any] = field(repr=False)
    made: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one run does.

    `graph` is the graph executor's JSON as data; `kernels` maps each symbol that it calls to the
    primitive Relay function behind it; `calls` counts them per run; `buffer_bytes` is what the
    intermediate results need together.
    """

    graph: dict[str, Any] = field(repr=False)
    kernels: dict[str, Any] = field(repr=False)
    calls: dict[str, int]
    weights: tuple[Weight, ...]
    buffer_bytes: int


@dataclass(frozen=True)
class _Tensor:
    """One result in the graph: the node's position and output index; its type."""

    node: int
    index: int
    shape: tuple[Size, ...]
    dtype: str


@dataclass(frozen=True)
class _Constant:
    """A leaf of the graph that holds a weight."""

    node: int
    array: np.ndarray[Any, Any] = field(repr=False)
    made: dict[str, Any] | None


def plan(main: Any, symbol: Any, as_size: Callable[[Any], Size] = int) -> Plan:
    """Return the plan of a fused, typed `main`; `symbol(function)` names a kernel's code.

    Where sizes stay open, `as_size` makes plain data of them (`mlc.sizes`); buffers are planned when the
    sizes are known (`runtime.open_graph`), and a weight's storage is its position here.

    Raises:
        BuildError: `main` has what a graph executor cannot run (control flow, unknown shapes).
    """
    return _Planner(symbol, as_size).plan(main)


class _Planner:
    def __init__(self, symbol: Any, as_size: Callable[[Any], Size]):
        self.symbol = symbol
        self.as_size = as_size
        self.nodes: list[dict[str, Any]] = []
        self.entries: list[_Tensor] = []  # in node order: what node_row_ptr counts
        self.first_row: list[int] = []  # by node
        self.values: dict[int, list[_Tensor]] = {}
        self.kernels: dict[str, Any] = {}
        self.calls: dict[str, int] = {}
        self.inner: dict[str, list[Size]] = {}  # shapes inside kernels with open sizes
        self.witnesses: dict[Any, _Tensor] = {}  # by the name of the open dimension
        self.constants: dict[str, _Constant] = {}

    def plan(self, main: Any) -> Plan:
        from tvm import relay

        inputs = [self._leaf(p, self._input(k, p)) for k, p in enumerate(main.params)]
        order: list[Any] = []
        relay.analysis.post_order_visit(main.body, order.append)
        kernels_inside = _inside_kernels(order)
        for expr in order:
            if _key(expr) not in kernels_inside and _key(expr) not in self.values:
                self._visit(expr)
        graph = self._graph(self._of(main.body))
        constants = self.constants.values()
        if self.as_size is not int:  # buffers are shared when the sizes are known
            graph["inner"] = [self.inner[key] for key in sorted(self.inner)]
            weights = [self._weight(k, found) for k, found in enumerate(constants)]
            return Plan(
                graph=graph, kernels=self.kernels, calls=self.calls, weights=tuple(weights),
                buffer_bytes=0,
            )  # fmt: skip
        sizes = assign(graph)
        storage = graph["attrs"]["storage_id"][1]
        weights = [self._weight(storage[self._row(found.node)], found) for found in constants]
        fixed = {storage[self._row(t.node)] for t in inputs} | {w.storage for w in weights}
        return Plan(
            graph=graph,
            kernels=self.kernels,
            calls=self.calls,
            weights=tuple(weights),
            buffer_bytes=sum(size for k, size in enumerate(sizes) if k not in fixed),
        )

    def _input(self, position: int, param: Any) -> str:
        name = str(param.name_hint)
        return name if self.as_size is not int and name.startswith("size") else f"input{position}"

    def _weight(self, storage: int, found: _Constant) -> Weight:
        name = self.nodes[found.node]["name"]
        return Weight(name=name, storage=storage, array=found.array, made=found.made)

    def _visit(self, expr: Any) -> None:
        from tvm import ir, relay

        from mlc.schedules import winograd_op

        if isinstance(expr, relay.Tuple):
            self.values[_key(expr)] = [t for f in expr.fields for t in self._of(f)]
        elif isinstance(expr, relay.TupleGetItem):
            self.values[_key(expr)] = [self._of(expr.tuple_value)[expr.index]]
        elif isinstance(expr, relay.Call) and isinstance(expr.op, relay.Function):
            recipe = winograd_op.recipe(expr)
            if recipe is None:
                self._call(expr)
            else:
                self._constant(expr, expr.args[0].data.numpy(), recipe)
        elif not isinstance(expr, relay.Function | relay.Constant | ir.Op):
            raise BuildError(
                f"the model has control flow that a static graph cannot run ({type(expr).__name__})"
            )

    def _of(self, expr: Any) -> list[_Tensor]:
        """Return the results of an expression; a constant becomes a weight when it is first read."""
        from tvm import relay

        if _key(expr) not in self.values and isinstance(expr, relay.Constant):
            self._constant(expr, expr.data.numpy())
        return self.values[_key(expr)]

    def _leaf(self, expr: Any, name: str) -> _Tensor:
        self.nodes.append({"op": "null", "name": name, "inputs": []})
        tensors = self._results(len(self.nodes) - 1, expr.checked_type)
        self.values[_key(expr)] = tensors
        return tensors[0]

    def _note_inner(self, function: Any) -> None:
        """Remember the open shapes inside a kernel: their elements are counted as well."""
        from tvm import relay

        def visit(expr: Any) -> None:
            if isinstance(expr, relay.Call):
                shapes = [self._static(kind)[0] for kind in _types(expr.checked_type)]
                self.inner.update({json.dumps(shape): list(shape) for shape in shapes})

        relay.analysis.post_order_visit(function.body, visit)

    def _witness(self, variable: Any) -> _Tensor:
        """Return the vector as long as an open dimension, which nobody reads or writes."""
        size = self.as_size(variable)
        if size not in self.witnesses:
            name = f"witness{len(self.witnesses)}"
            self.nodes.append({"op": "null", "name": name, "inputs": []})
            self.first_row.append(len(self.entries))
            tensor = _Tensor(len(self.nodes) - 1, 0, (size,), open_kernel.WITNESS)
            self.entries.append(tensor)
            self.witnesses[size] = tensor
        return self.witnesses[size]

    def _constant(
        self, expr: Any, array: np.ndarray[Any, Any], made: dict[str, Any] | None = None
    ) -> None:
        digest = hashlib.sha256(f"{array.dtype}{array.shape}{made}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        known = self.constants.get(digest.hexdigest())
        if known is not None:
            first = self.entries[self._row(known.node)]
            self.values[_key(expr)] = [first]
            return
        tensor = self._leaf(expr, f"weight{len(self.constants)}")
        self.constants[digest.hexdigest()] = _Constant(tensor.node, array, made)

    def _call(self, call: Any) -> None:
        arguments = [t for arg in call.args for t in self._of(arg)]
        outputs = _types(call.checked_type)
        if self._only_reshapes(call.op, arguments):
            name = "__nop"
        else:
            function = call.op
            if open_kernel.is_open(function):
                self._note_inner(function)
                function, witnesses = open_kernel.bound(function)
                arguments += [self._witness(variable) for variable in witnesses]
            name = self.symbol(function)
            self.kernels.setdefault(name, function)
            self.calls[name] = self.calls.get(name, 0) + 1
        self.nodes.append(
            {
                "op": "tvm_op",
                "name": f"{len(self.nodes)}_{name}",
                "attrs": {
                    "num_outputs": str(len(outputs)),
                    "num_inputs": str(len(arguments)),
                    "func_name": name,
                    "flatten_data": "0",
                },
                "inputs": [[t.node, t.index, 0] for t in arguments],
            }
        )
        self.values[_key(call)] = self._results(len(self.nodes) - 1, call.checked_type)

    def _only_reshapes(self, function: Any, arguments: list[_Tensor]) -> bool:
        """Whether a kernel moves no data, and its input is an intermediate result.

        A reshaped input or weight keeps its kernel: their buffers may be replaced from outside.
        """
        from tvm import relay

        if len(arguments) != 1 or self.nodes[arguments[0].node]["op"] == "null":
            return False
        body = function.body
        while isinstance(body, relay.Call):
            if getattr(body.op, "name", "") not in RESHAPES:
                return False
            body = body.args[0]
        return isinstance(body, relay.Var)

    def _results(self, node: int, kind: Any) -> list[_Tensor]:
        tensors = [_Tensor(node, k, *self._static(t)) for k, t in enumerate(_types(kind))]
        self.first_row.append(len(self.entries))
        self.entries.extend(tensors)
        return tensors

    def _static(self, kind: Any) -> tuple[tuple[Size, ...], str]:
        try:
            return tuple(self.as_size(size) for size in kind.shape), str(kind.dtype)
        except (TypeError, ModelError) as error:
            raise BuildError(
                "the model has a result whose shape depends on the input's values",
                "fix its dimensions with --shape",
            ) from error

    def _row(self, node: int, index: int = 0) -> int:
        return self.first_row[node] + index

    def _graph(self, heads: list[_Tensor]) -> dict[str, Any]:
        pointers = [self._row(node) for node in range(len(self.nodes))] + [len(self.entries)]
        return {
            "nodes": self.nodes,
            "arg_nodes": [k for k, node in enumerate(self.nodes) if node["op"] == "null"],
            "heads": [[t.node, t.index, 0] for t in heads],
            "attrs": {
                "dltype": ["list_str", [t.dtype for t in self.entries]],
                "device_index": ["list_int", [1] * len(self.entries)],
                "storage_id": ["list_int", [-1] * len(self.entries)],
                "shape": ["list_shape", [list(t.shape) for t in self.entries]],
            },
            "node_row_ptr": pointers,
        }


def to_json(graph: dict[str, Any]) -> bytes:
    """Return the graph in the bytes that the executor reads and the artifact stores."""
    return json.dumps(graph, separators=(",", ":")).encode()


def _key(expr: Any) -> int:
    return int(expr.handle.value)


def _types(kind: Any) -> list[Any]:
    if hasattr(kind, "fields"):
        return [inner for entry in kind.fields for inner in _types(entry)]
    return [kind]


def _inside_kernels(order: list[Any]) -> set[int]:
    """Return the keys of what lies inside primitive functions: not part of the outer graph."""
    from tvm import relay

    inside: set[int] = set()
    for expr in order:
        if isinstance(expr, relay.Function) and _key(expr) not in inside:
            relay.analysis.post_order_visit(expr, lambda e: inside.add(_key(e)))
    return inside
