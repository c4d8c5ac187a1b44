"""Report every operator that cannot be converted, at once, with what to do about each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc.errors import UnsupportedError
from mlc.frontend.onnx_file import nodes_of
from mlc.frontend.operators import supported

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


def unsupported(proto: Any) -> list[Unsupported]:
    """Return the operators of a graph (subgraphs included) that cannot be converted, sorted."""
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    found: dict[tuple[str, str], list[str]] = {}
    for position, node in enumerate(nodes_of(proto.graph)):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not supported(domain, node.op_type, opsets.get(domain, 1)):
            name = node.name or f"#{position}"
            found.setdefault((domain, node.op_type), []).append(name)
    return [
        Unsupported(
            domain=domain,
            operator=operator,
            opset=opsets.get(domain, 0),
            count=len(names),
            nodes=tuple(names[:3]),
            advice=_ADVICE.get(domain, _CUSTOM_ADVICE) if domain else _DEFAULT_ADVICE,
        )
        for (domain, operator), names in sorted(found.items())
    ]


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
