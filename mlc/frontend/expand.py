"""Replace functions by their bodies, so that fewer operators need a converter.

A model may define functions of its own, and many newer operators of ONNX are defined by a function
body of older ones (onnx/docs/Operators.md, "Function Body"); onnx's inliner writes them out. Only
operators that `support` has no converter for are expanded: a converter sees more than a body tells.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx
import onnx.inliner

from mlc.errors import ModelError
from mlc.frontend.onnx_file import nodes_of
from mlc.frontend.operators import supported
from mlc.options import MAX_MODEL_NODES

if TYPE_CHECKING:
    from mlc.frontend.onnx_file import OnnxFile

_BODIES = "mlc.bodies"
_KEPT = frozenset({"Bernoulli"})  # its body only names another operator that draws numbers
_MAX_DEPTH = 8  # of bodies that use functions in turn; ONNX's own need 3


def expand(file: OnnxFile) -> OnnxFile:
    """Return the file without calls of functions that a body exists for and no converter.

    Raises:
        ModelError: the model's functions call each other in a circle, or would become more than
            `MAX_MODEL_NODES` nodes.
    """
    proto = file.proto
    if proto.functions:
        _bound(proto)
        proto = onnx.inliner.inline_local_functions(proto)
    for _ in range(_MAX_DEPTH):
        wanted = _expandable(proto)
        if not wanted:
            break
        proto = _with_defaults(proto, wanted)
        try:
            expanded = onnx.inliner.inline_selected_functions(proto, wanted, False, True)
        except RuntimeError:  # its context has no type for an operand that is left out
            expanded = onnx.inliner.inline_local_functions(_with_bodies(proto, wanted))
        if len(expanded.graph.node) > MAX_MODEL_NODES:
            raise ModelError(f"the model expands to more than {MAX_MODEL_NODES} nodes")
        proto = expanded
    return file if proto is file.proto else replace(file, proto=proto)


def _with_defaults(proto: Any, wanted: list[tuple[str, str]]) -> Any:
    """Return a copy in which these nodes name all their attributes: bodies know no defaults."""
    full = onnx.ModelProto()
    full.CopyFrom(proto)
    versions = opsets(proto)
    for node in nodes_of(full.graph):
        if (node.domain, node.op_type) not in wanted:
            continue
        domain = "" if node.domain == "ai.onnx" else node.domain
        schema = onnx.defs.get_schema(node.op_type, versions[domain], domain)
        given = {attribute.name for attribute in node.attribute}
        for name, attribute in schema.attributes.items():
            if name not in given and attribute.default_value.name:
                node.attribute.append(attribute.default_value)
    return full


def _with_bodies(proto: Any, wanted: list[tuple[str, str]]) -> Any:
    """Return a copy in which each of these nodes calls a function of the model: its own body."""
    typed = onnx.shape_inference.infer_shapes(proto)
    graph = typed.graph
    types = {i.name: i.type for i in [*graph.input, *graph.output, *graph.value_info]}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    versions = opsets(proto)
    for position, node in enumerate(n for n in graph.node if (n.domain, n.op_type) in wanted):
        domain = "" if node.domain == "ai.onnx" else node.domain
        schema = onnx.defs.get_schema(node.op_type, versions[domain], domain)
        operands = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        if schema.has_context_dependent_function:
            data = schema.get_context_dependent_function(node.SerializeToString(), operands)
        else:
            data = schema.function_body.SerializeToString()
        body = onnx.FunctionProto.FromString(data)
        body.domain, body.name = _BODIES, f"{node.op_type}{position}"
        node.domain, node.op_type = body.domain, body.name
        typed.functions.append(body)
    typed.opset_import.add(domain=_BODIES, version=1)
    return typed


def _expandable(proto: Any) -> list[tuple[str, str]]:
    """Return (domain, name) of the operators to write out, sorted."""
    versions = opsets(proto)
    found = set()
    for node in nodes_of(proto.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in versions:
            continue
        if supported(domain, node.op_type, versions[domain]):
            continue
        if has_body(domain, node.op_type, versions[domain]):
            found.add((node.domain, node.op_type))
    return sorted(found)


def has_body(domain: str, name: str, version: int) -> bool:
    """Return whether ONNX defines an operator by a function body that is written out."""
    if name in _KEPT:
        return False
    try:
        schema = onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def opsets(proto: Any) -> dict[str, int]:
    """Return the version of each operator set that a model uses, the default one as ""."""
    return {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}


def _bound(proto: Any) -> None:
    """Raise ModelError unless inlining the model's functions ends, with a bearable size."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], float] = {}

    def calls(nodes: Any) -> Counter[tuple[str, str]]:
        return Counter((n.domain, n.op_type) for n in nodes)

    # Callees first, each round at least one; what is left calls itself.
    while len(sizes) < len(bodies):
        ready = [
            key
            for key, body in bodies.items()
            if key not in sizes
            and all(c in sizes or c not in bodies for c in calls(nodes_of(body)))
        ]
        if not ready:
            names = ", ".join(sorted(repr(key[1]) for key in bodies if key not in sizes)[:5])
            raise ModelError(f"the model's functions call each other in a circle: {names}")
        for key in ready:
            counts = calls(nodes_of(bodies[key]))
            sizes[key] = math.fsum(sizes.get(name, 1) * count for name, count in counts.items())
    total = math.fsum(sizes.get(k, 1) * count for k, count in calls(nodes_of(proto.graph)).items())
    if total > MAX_MODEL_NODES:
        raise ModelError(f"the model's functions expand to more than {MAX_MODEL_NODES} nodes")
