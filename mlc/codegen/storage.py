"""Give every result of a graph a buffer, in the graph executor's JSON.

Buffers are reused as soon as their last reader ran (best fit, in the manner of TVM's GraphPlanMemory).
What calls `__nop` shares its input's buffer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def assign(graph: dict[str, Any]) -> list[int]:
    """Set the graph's `storage_id`, for shapes in numbers; return the size of every buffer in bytes."""
    found = _Storage(graph)
    graph["attrs"]["storage_id"][1] = found.assign()
    return found.sizes


class _Storage:
    def __init__(self, graph: dict[str, Any]):
        self.nodes, self.first_row = graph["nodes"], graph["node_row_ptr"]
        self.heads = [(node, index) for node, index, _ in graph["heads"]]
        kinds = zip(graph["attrs"]["shape"][1], graph["attrs"]["dltype"][1], strict=True)
        self.bytes = [nbytes(shape, dtype) for shape, dtype in kinds]
        self.owner = [k for k, _ in enumerate(self.nodes) for _ in self._rows_of(k)]
        self.sizes: list[int] = []

    def assign(self) -> list[int]:
        """Return the buffer of every entry."""
        storage = [-1] * len(self.bytes)
        free: list[int] = []
        root = self._roots()
        readers = self._readers(root)
        for position, node in enumerate(self.nodes):
            leaf = node["op"] == "null"
            rows = [row for row in self._rows_of(position) if root[row] == row]
            for row in rows:
                # Inputs and weights never give their buffers away, nor take another's.
                storage[row] = allocate(self.bytes[row], self.sizes, [] if leaf else free)
            for source, index, _ in node["inputs"]:
                owner = root[self._row(source, index)]
                readers[owner] -= 1
                if readers[owner] == 0 and self.nodes[self.owner[owner]]["op"] != "null":
                    free.append(storage[owner])
            free.extend(storage[row] for row in rows if not leaf and readers[row] == 0)
        return [storage[root[row]] for row in range(len(storage))]

    def _readers(self, root: list[int]) -> list[int]:
        """Return how often each owned entry is read; results of the model never run out."""
        readers = [0] * len(self.bytes)
        for node in self.nodes:
            for source, index, _ in node["inputs"]:
                readers[root[self._row(source, index)]] += 1
        for node, index in self.heads:
            readers[root[self._row(node, index)]] += 1 << 30
        return readers

    def _row(self, node: int, index: int = 0) -> int:
        return int(self.first_row[node]) + index

    def _rows_of(self, node: int) -> range:
        return range(self.first_row[node], self.first_row[node + 1])

    def _roots(self) -> list[int]:
        """Return for each entry the entry whose buffer it shares (itself, but for `__nop`)."""
        root = list(range(len(self.bytes)))
        for position, node in enumerate(self.nodes):
            if node.get("attrs", {}).get("func_name") == "__nop":
                source, index, _ = node["inputs"][0]
                root[self._row(position)] = root[self._row(source, index)]
        return root


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
