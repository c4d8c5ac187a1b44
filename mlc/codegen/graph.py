"""Plan the run: which kernel is called with which buffers, in the graph executor's JSON.

TVM's own graph code generator lowers every kernel itself, one by one, in one process. Planning the
graph apart from the kernels lets these be compiled in parallel and kept in a cache.

Format: `graph_executor.h` of TVM 0.19 (nodes, arg_nodes, node_row_ptr, heads, attrs). Kernels that
only reshape become `__nop` and share their input's buffer. Buffers are reused as soon as their last
reader ran (best fit, in the manner of TVM's GraphPlanMemory).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlc.errors import BuildError

RESHAPES = frozenset(
    {"reshape", "expand_dims", "squeeze", "nn.batch_flatten", "contrib_reverse_reshape",
     "reshape_like"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A constant of the graph: `array` is written to the artifact's weights once per content."""

    name: str
    storage: int
    array: np.ndarray[Any, Any] = field(repr=False)


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
    shape: tuple[int, ...]
    dtype: str


def plan(main: Any, symbol: Any) -> Plan:
    """Return the plan of a fused, typed `main`; `symbol(function)` names a kernel's code.

    Raises:
        BuildError: `main` has what a graph executor cannot run (control flow, unknown shapes).
    """
    return _Planner(symbol).plan(main)


class _Planner:
    def __init__(self, symbol: Any):
        self.symbol = symbol
        self.nodes: list[dict[str, Any]] = []
        self.entries: list[_Tensor] = []  # in node order: what node_row_ptr counts
        self.first_row: list[int] = []  # by node
        self.values: dict[int, list[_Tensor]] = {}
        self.kernels: dict[str, Any] = {}
        self.calls: dict[str, int] = {}
        self.constants: dict[str, tuple[int, np.ndarray[Any, Any]]] = {}

    def plan(self, main: Any) -> Plan:
        from tvm import relay

        inputs = [self._leaf(param, f"input{k}") for k, param in enumerate(main.params)]
        order: list[Any] = []
        relay.analysis.post_order_visit(main.body, order.append)
        kernels_inside = _inside_kernels(order)
        for expr in order:
            if _key(expr) not in kernels_inside and _key(expr) not in self.values:
                self._visit(expr)
        heads = self.values[_key(main.body)]
        storage, sizes = self._assign_storage(heads)
        graph = self._graph(heads, storage)
        weights = tuple(
            Weight(name=self.nodes[node]["name"], storage=storage[self._row(node)], array=array)
            for node, array in self.constants.values()
        )
        fixed = {storage[self._row(t.node)] for t in inputs} | {w.storage for w in weights}
        return Plan(
            graph=graph,
            kernels=self.kernels,
            calls=self.calls,
            weights=weights,
            buffer_bytes=sum(size for k, size in enumerate(sizes) if k not in fixed),
        )

    def _visit(self, expr: Any) -> None:
        from tvm import ir, relay

        if isinstance(expr, relay.Constant):
            self._constant(expr)
        elif isinstance(expr, relay.Tuple):
            self.values[_key(expr)] = [t for f in expr.fields for t in self.values[_key(f)]]
        elif isinstance(expr, relay.TupleGetItem):
            self.values[_key(expr)] = [self.values[_key(expr.tuple_value)][expr.index]]
        elif isinstance(expr, relay.Call) and isinstance(expr.op, relay.Function):
            self._call(expr)
        elif not isinstance(expr, relay.Function | ir.Op):
            raise BuildError(
                f"the model has control flow that a static graph cannot run ({type(expr).__name__})"
            )

    def _leaf(self, expr: Any, name: str) -> _Tensor:
        self.nodes.append({"op": "null", "name": name, "inputs": []})
        tensors = self._results(len(self.nodes) - 1, expr.checked_type)
        self.values[_key(expr)] = tensors
        return tensors[0]

    def _constant(self, expr: Any) -> None:
        array = expr.data.numpy()
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        known = self.constants.get(digest.hexdigest())
        if known is not None:
            first = self.entries[self._row(known[0])]
            self.values[_key(expr)] = [first]
            return
        tensor = self._leaf(expr, f"weight{len(self.constants)}")
        self.constants[digest.hexdigest()] = (tensor.node, array)

    def _call(self, call: Any) -> None:
        arguments = [t for arg in call.args for t in self.values[_key(arg)]]
        outputs = _types(call.checked_type)
        if self._only_reshapes(call.op, arguments):
            name = "__nop"
        else:
            name = self.symbol(call.op)
            self.kernels.setdefault(name, call.op)
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
        tensors = [_Tensor(node, k, *_static(t)) for k, t in enumerate(_types(kind))]
        self.first_row.append(len(self.entries))
        self.entries.extend(tensors)
        return tensors

    def _row(self, node: int, index: int = 0) -> int:
        return self.first_row[node] + index

    def _assign_storage(self, heads: list[_Tensor]) -> tuple[list[int], list[int]]:
        """Return the buffer of every entry and the size of every buffer in bytes."""
        storage = [-1] * len(self.entries)
        sizes: list[int] = []
        free: list[int] = []
        root = self._roots()
        readers = self._readers(root, heads)
        for position, node in enumerate(self.nodes):
            leaf = node["op"] == "null"
            rows = [row for row in self._rows_of(position) if root[row] == row]
            for row in rows:
                # Inputs and weights never give their buffers away, nor take another's.
                need = nbytes(self.entries[row].shape, self.entries[row].dtype)
                storage[row] = allocate(need, sizes, [] if leaf else free)
            for source, index, _ in node["inputs"]:
                owner = root[self._row(source, index)]
                readers[owner] -= 1
                if readers[owner] == 0 and self.nodes[self.entries[owner].node]["op"] != "null":
                    free.append(storage[owner])
            free.extend(storage[row] for row in rows if not leaf and readers[row] == 0)
        shared = [storage[root[row]] for row in range(len(storage))]
        return shared, sizes

    def _readers(self, root: list[int], heads: list[_Tensor]) -> list[int]:
        """Return how often each owned entry is read; results of the model never run out."""
        readers = [0] * len(self.entries)
        for node in self.nodes:
            for source, index, _ in node["inputs"]:
                readers[root[self._row(source, index)]] += 1
        for head in heads:
            readers[root[self._row(head.node, head.index)]] += 1 << 30
        return readers

    def _rows_of(self, node: int) -> range:
        end = self.first_row[node + 1] if node + 1 < len(self.nodes) else len(self.entries)
        return range(self.first_row[node], end)

    def _roots(self) -> list[int]:
        """Return for each entry the entry whose buffer it shares (itself, but for `__nop`)."""
        root = list(range(len(self.entries)))
        for position, node in enumerate(self.nodes):
            if node.get("attrs", {}).get("func_name") == "__nop":
                source, index, _ = node["inputs"][0]
                root[self._row(position)] = root[self._row(source, index)]
        return root

    def _graph(self, heads: list[_Tensor], storage: list[int]) -> dict[str, Any]:
        pointers = [self._row(node) for node in range(len(self.nodes))] + [len(self.entries)]
        return {
            "nodes": self.nodes,
            "arg_nodes": [k for k, node in enumerate(self.nodes) if node["op"] == "null"],
            "heads": [[t.node, t.index, 0] for t in heads],
            "attrs": {
                "dltype": ["list_str", [t.dtype for t in self.entries]],
                "device_index": ["list_int", [1] * len(self.entries)],
                "storage_id": ["list_int", storage],
                "shape": ["list_shape", [list(t.shape) for t in self.entries]],
            },
            "node_row_ptr": pointers,
        }


def to_json(graph: dict[str, Any]) -> bytes:
    """Return the graph in the bytes that the executor reads and the artifact stores."""
    return json.dumps(graph, separators=(",", ":")).encode()


def allocate(size: int, sizes: list[int], free: list[int]) -> int:
    """Return the buffer for so many bytes: the best fit of the free ones, else grown, else new.

    `sizes` holds the bytes of every buffer; it and `free` are updated.
    """
    fits = [k for k in free if sizes[k] >= size]
    near = [k for k in free if sizes[k] * 4 >= size]
    if fits:
        chosen = min(fits, key=lambda k: sizes[k])
    elif near:
        chosen = max(near, key=lambda k: sizes[k])
        sizes[chosen] = size
    else:
        sizes.append(size)
        return len(sizes) - 1
    free.remove(chosen)
    return chosen


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes that a tensor takes in memory."""
    return max(1, math.prod(shape)) * np.dtype(dtype).itemsize


def _key(expr: Any) -> int:
    return int(expr.handle.value)


def _types(kind: Any) -> list[Any]:
    if hasattr(kind, "fields"):
        return [inner for entry in kind.fields for inner in _types(entry)]
    return [kind]


def _static(kind: Any) -> tuple[tuple[int, ...], str]:
    try:
        return tuple(int(size) for size in kind.shape), str(kind.dtype)
    except TypeError:
        raise BuildError(
            "the model has a result whose shape depends on the input's values",
            "fix its dimensions with --shape; dynamic shapes are not supported yet",
        ) from None


def _inside_kernels(order: list[Any]) -> set[int]:
    """Return the keys of what lies inside primitive functions: not part of the outer graph."""
    from tvm import relay

    inside: set[int] = set()
    for expr in order:
        if isinstance(expr, relay.Function) and _key(expr) not in inside:
            relay.analysis.post_order_visit(expr, lambda e: inside.add(_key(e)))
    return inside
