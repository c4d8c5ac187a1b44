"""Report every operator that cannot be converted, at once, with what to do about each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc.errors import UnsupportedError
from mlc.frontend.control import is_control
from mlc.frontend.expand import has_body, opsets
from mlc.frontend.onnx_file import nodes_of
from mlc.frontend.operators import OWN, supported
from mlc.frontend.sequences import is_sequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.frontend.onnx_file import OnnxFile

_ADVICE = {
    "com.microsoft": "written by ONNX Runtime's optimizer: export without it, or save with "
    "ORT_ENABLE_BASIC at most",
    "com.microsoft.nchwc": "a layout of one CPU, written by ONNX Runtime's optimizer: use the "
    "model from before that step",
    "ai.onnx.ml": "classical machine learning (trees, encoders): keep it outside the network, or "
    "convert it to tensor operators before export",
    "ai.onnx.training": "training operators: export the model in evaluation mode",
}
_DEFAULT_ADVICE = "export with a lower opset (`mlc export --opset 17`), or replace the layer"
_CUSTOM_ADVICE = "a custom domain: replace it with standard operators before export"


BY_VALUES = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})


@dataclass(frozen=True, kw_only=True)
class Unsupported:
    """An operator without a conversion: how often it occurs, and the first nodes that use it."""

    domain: str
    operator: str
    opset: int
    count: int
    nodes: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        where = ", ".join(repr(name) for name in self.nodes[:3]) + (", ..." * (self.count > 3))
        return (
            f"{self.domain or 'ai.onnx'}::{self.operator} (opset {self.opset}), "
            f"{self.count}x: {where} - {self.advice}"
        )


@dataclass(frozen=True, kw_only=True)
class Support:
    """An operator that a model uses `count` times, and what converts it.

    `by` is "mlc" (our converter), "TVM" (its importer's), "body" (a function of the model or of
    ONNX is written out in its place), "unrolled" (control flow, sequences) or "" (nothing).
    """

    domain: str
    operator: str
    opset: int
    count: int
    by: str


def support(proto: Any) -> list[Support]:
    """Return what converts each operator of a graph (subgraphs included), sorted by name."""
    versions = opsets(proto)
    functions = {(_standard(f.domain), f.name) for f in proto.functions}
    counts = Counter((_standard(n.domain), n.op_type) for n in nodes_of(proto.graph))
    return [
        Support(
            domain=domain,
            operator=name,
            opset=versions.get(domain, 0),
            count=count,
            by="body" if (domain, name) in functions else _by(domain, name, versions),
        )
        for (domain, name), count in sorted(counts.items())
    ]


def _by(domain: str, name: str, versions: dict[str, int]) -> str:
    version = versions.get(domain, 1)
    if is_control(domain, name) or is_sequence(domain, name):
        return "unrolled"
    if name in OWN.get(domain, {}) or (domain, name) == ("", "Constant"):
        return "mlc"
    if supported(domain, name, version):
        return "TVM"
    return "body" if domain in versions and has_body(domain, name, version) else ""


def _standard(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def unsupported(proto: Any) -> list[Unsupported]:
    """Return the operators of a graph (subgraphs included) that cannot be converted, sorted."""
    versions = opsets(proto)
    found: dict[tuple[str, str], list[str]] = {}
    for position, node in enumerate(nodes_of(proto.graph)):
        domain = _standard(node.domain)
        if not supported(domain, node.op_type, versions.get(domain, 1)):
            name = node.name or f"#{position}"
            found.setdefault((domain, node.op_type), []).append(name)
    return [
        Unsupported(
            domain=domain,
            operator=operator,
            opset=versions.get(domain, 0),
            count=len(names),
            nodes=tuple(names[:3]),
            advice=_ADVICE.get(domain, _CUSTOM_ADVICE) if domain else _DEFAULT_ADVICE,
        )
        for (domain, operator), names in sorted(found.items())
    ]


def where_to_cut(file: OnnxFile, inputs: Sequence[str]) -> str:
    """Return the advice for a graph that a shape which depends on values keeps from being static."""
    graph = file.proto.graph
    nodes = [n for n in graph.node if n.domain in ("", "ai.onnx") and n.op_type in BY_VALUES]
    if not nodes:
        return "a compiled graph is static: export the model with that size fixed"
    constants = {t.name for t in graph.initializer} | set(file.weights)
    read = dict.fromkeys(name for n in nodes for name in n.input if name and name not in constants)
    call = (
        f"onnx.utils.extract_model({file.path.name!r}, 'body.onnx', {list(inputs)}, {list(read)})"
    )
    return f"compile what comes before {nodes[0].op_type}, and run the rest on its outputs: {call}"


def require_supported(proto: Any) -> None:
    """Raise UnsupportedError, listing all of them, when an operator cannot be converted."""
    missing = unsupported(proto)
    if missing:
        listing = "\n".join(f"  {entry}" for entry in missing)
        total = sum(entry.count for entry in missing)
        raise UnsupportedError(
            f"{len(missing)} operator(s) in {total} node(s) cannot be converted:\n{listing}",
            "see the advice behind each; the rest of the model is supported",
        )
