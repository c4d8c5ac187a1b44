"""Nodes in an order in which each comes after what it reads.

ONNX asks for that order; tools that edit graphs append nodes, and ONNX Runtime takes such files.
"""

from __future__ import annotations

import graphlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def sort(graph: Any) -> None:
    """Bring a graph's nodes into order, in place; a graph with a circle is left as it is."""
    makers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    needs = {
        k: [makers[name] for name in _reads(node) if name in makers]
        for k, node in enumerate(graph.node)
    }
    if all(source < k for k, sources in needs.items() for source in sources):
        return
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError:
        return  # the checker says so
    nodes = [graph.node[k] for k in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _reads(node: Any) -> Iterator[str]:
    """Yield the names that a node reads, in its subgraphs too."""
    pending = [node]
    while pending:
        each = pending.pop()
        yield from each.input
        for attribute in each.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from (info.name for info in graph.output)
                pending.extend(graph.node)
