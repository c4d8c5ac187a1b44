"""What a graph has that a static one cannot: values of other types, shapes that depend on values.

Names tell which operators have a converter (`frontend.support`); this tells what their converters
would refuse, from the types and shapes that onnx infers, without TVM.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mlc.frontend.ops.operands import BFLOAT16, DTYPES
from mlc.frontend.support import BY_VALUES, where_to_cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlc.frontend.onnx_file import OnnxFile

_FROM_13 = {"Squeeze": (1,), "Unsqueeze": (1,), "Split": (1,)}
# Operands that decide a shape, by position: the converters need them as constants.
_SHAPING: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,), "CumProd": (1,),
    "CumSum": (1,), "DFT": (1, 2), "Expand": (1,), "MaxUnpool": (2,), "OneHot": (1,), "Pad": (1, 3),
    "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 3),
    "Slice": (1, 2, 3, 4), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Upsample": (1,), **_FROM_13,
}  # fmt: skip
_LISTED = 3


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A reason why a model would not compile: `kind`, what it is and what to do about it.

    `kind` is "shape", "operator", "control flow", "type", "dynamic shape" or "open size".
    """

    kind: str
    message: str
    hint: str | None = None


def not_static(file: OnnxFile) -> list[Problem]:
    """Return what a converter would refuse, each kind of it once; control flow is written out."""
    return [*of_types(file.proto), *_of_shapes(file), *of_inference(file.proto)]


def of_inference(proto: Any) -> Iterator[Problem]:
    """Report the first node whose operands' shapes contradict each other, by onnx's inference."""
    if any(node.domain not in ("", "ai.onnx") for node in proto.graph.node):
        return  # inference ends at what it does not know
    try:
        onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        yield Problem(
            kind="shape",
            message=f"the shapes contradict each other: {lines[-1] if lines else 'no reason given'}",
            hint="check the sizes given with --shape",
        )


def of_types(proto: Any) -> Iterator[Problem]:
    """Report the types that no kernel can hold, each once."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    graph = proto.graph
    for info in [*graph.input, *graph.output, *graph.value_info]:
        what = _bad_type(info.type)
        if what:
            counts[what] += 1
            first.setdefault(what, info.name)
    for what, count in sorted(counts.items()):
        more = f" and {count - 1} more" if count > 1 else ""
        yield Problem(
            kind="type",
            message=f"{what} values are not supported: {first[what]!r}{more}",
            hint="keep that part outside the network, or export it in another type",
        )


def _bad_type(kind: Any) -> str | None:
    """Return the name of a type that no kernel can hold."""
    which = kind.WhichOneof("value")
    if which is None:
        return None
    if which != "tensor_type":
        return str(which.removesuffix("_type"))
    number = kind.tensor_type.elem_type
    if number in (onnx.TensorProto.UNDEFINED, BFLOAT16):
        return None
    try:
        name = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number)).name)
    except (KeyError, ValueError):
        return f"type {number}"
    if name in DTYPES:
        return None
    return "string" if number == onnx.TensorProto.STRING else name


def _of_shapes(file: OnnxFile) -> Iterator[Problem]:
    graph = file.proto.graph
    known = {t.name for t in graph.initializer} | set(file.weights) | {""}
    found: dict[tuple[str, str], list[str]] = {}
    for position, node in enumerate(graph.node):
        if node.op_type == "Constant" or all(name in known for name in node.input):
            known.update(node.output)
            continue
        why = _by_values(node, known)
        if why:
            label = node.name or f"#{position}"
            found.setdefault((node.op_type, why), []).append(label)
    for (operator, why), nodes in found.items():
        yield Problem(
            kind="dynamic shape",
            message=f"{counted(operator, nodes)}: {why}",
            hint=where_to_cut(file, [i.name for i in graph.input if i.name not in file.weights]),
        )


def counted(operator: str, nodes: Sequence[str]) -> str:
    """Return an operator with how often it occurs, and where first."""
    where = ", ".join(map(repr, nodes[:_LISTED])) + ", ..." * (len(nodes) > _LISTED)
    return f"{operator}, {len(nodes)}x ({where})"


def _by_values(node: Any, known: set[str]) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in BY_VALUES:
        return "the shape of its result depends on the input's values"
    open_ = [name for name in shaping(node) if name not in known]
    return f"the operand {open_[0]!r} decides a shape and is no constant" if open_ else None


def shaping(node: Any) -> list[str]:
    """Return the operands of a node of ONNX's own domain that decide a shape."""
    positions = (1,) if node.op_type.startswith("Reduce") else _SHAPING.get(node.op_type, ())
    return [node.input[k] for k in positions if k < len(node.input)]
