"""The cases of onnx's backend suite, and what of each is bound at compile time.

Source: `onnx.backend.test` of the installed package (`loader`, `runner`): node tests are made in
memory, the others lie on disk; "real" means the light models with their stored outputs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

FAMILIES = ("node", "simple", "real", "pytorch-converted", "pytorch-operator")

# Operands that only shape the computation: which axes, how many, where from. A compiler with fixed
# shapes must know them, so where a test hands them in at run time they are bound as constants.
# Nothing else is. Operator -> input positions.
BOUND: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (2,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}

# What the share of passed tests does not count: TVM has none of these. First match wins.
_TYPE = onnx.TensorProto
_UNCOUNTED: tuple[tuple[str, frozenset[int]], ...] = (
    ("string", frozenset({_TYPE.STRING})),
    ("8-bit float", frozenset(v for k, v in _TYPE.DataType.items() if k.startswith("FLOAT8"))),
    ("sub-byte", frozenset(v for k, v in _TYPE.DataType.items()
                           if k in {"INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1"})),
)  # fmt: skip
_EXPANDED = re.compile(r"_expanded(_ver\d+)?$")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test: a model, and sets of (inputs in the graph's order, expected outputs)."""

    name: str
    family: str
    operator: str
    opset: int
    uncounted: str
    bound: frozenset[str]
    rtol: float
    atol: float
    source: Any = field(repr=False)

    def model(self) -> Any:
        """Return the model proto."""
        return (
            onnx.load(_model_path(self.source)) if self.source.model is None else self.source.model
        )

    def data_sets(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """Yield the inputs and the expected outputs of each run."""
        if self.source.data_sets is not None:
            for inputs, outputs in self.source.data_sets:
                yield [_array(v) for v in inputs], [_array(v) for v in outputs]
        elif self.family == "real":
            yield _light_data(self.model(), _model_path(self.source))
        else:
            model = self.model()
            for folder in sorted(Path(self.source.model_dir).glob("test_data_set_*")):
                yield (
                    _stored(folder, "input", model.graph.input),
                    _stored(folder, "output", model.graph.output),
                )


def load(families: Sequence[str] = FAMILIES) -> list[Case]:
    """Return the cases of the installed onnx package, by family and name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite overflows and divides by zero on purpose
        sources = [s for family in families for s in load_model_tests(kind=family)]
    operators: dict[str, str] = {}
    bound: dict[str, frozenset[str]] = {}
    cases = []
    for source in sorted(sources, key=lambda s: (families.index(s.kind), len(s.name), s.name)):
        model = onnx.load(_model_path(source)) if source.model is None else source.model
        base = _EXPANDED.sub("", source.name)
        operators.setdefault(source.name, operators.get(base) or _operator(model, source.kind))
        # The expanded form of a test has the same inputs: those that its function's operands bind.
        bound[source.name] = _shaping(model) | bound.get(base, frozenset())
        cases.append(
            Case(
                bound=bound[source.name],
                name=source.name,
                family=source.kind,
                operator=operators[source.name],
                opset=next((o.version for o in model.opset_import if o.domain == ""), 0),
                uncounted=_uncounted(model),
                rtol=source.rtol,
                atol=source.atol,
                source=source,
            )
        )
    return sorted(cases, key=lambda c: (families.index(c.family), c.name))


def bind(case: Case, inputs: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """Return (the model with the operands of `BOUND` as initializers, the inputs that remain)."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(case.model())
    constants = {t.name for t in fixed.graph.initializer}
    names = [i.name for i in fixed.graph.input if i.name not in constants]
    values = dict(zip(names, inputs, strict=True))
    kept = [i for i in fixed.graph.input if i.name not in case.bound]
    del fixed.graph.input[:]
    fixed.graph.input.extend(kept)
    for name in sorted(case.bound & set(values)):
        fixed.graph.initializer.append(numpy_helper.from_array(values[name], name))
    return fixed, {name: value for name, value in values.items() if name not in case.bound}


def _shaping(model: Any) -> frozenset[str]:
    """Return the graph inputs that `BOUND` names operands for."""
    inputs = {i.name for i in model.graph.input} - {t.name for t in model.graph.initializer}
    return frozenset(
        node.input[k]
        for node in _nodes(model.graph)
        for k in BOUND.get(node.op_type, ())
        if k < len(node.input) and node.input[k] in inputs
    )


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


def _operator(model: Any, family: str) -> str:
    """Return the operator that a case is about; its family when it is a whole graph."""
    names = {n.op_type for n in model.graph.node if n.op_type != "Constant"}
    return names.pop() if len(names) == 1 else f"({family})"


def _uncounted(model: Any) -> str:
    for info in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        kind = info.type.WhichOneof("value")
        if kind in ("sequence_type", "optional_type"):
            return kind.removesuffix("_type")
    nodes = list(_nodes(model.graph))
    if any("training" in n.domain for n in nodes) or _drops(model):
        return "training"
    if any("Sequence" in n.op_type or "Optional" in n.op_type for n in nodes):
        return "sequence"
    types = set(_types(model.graph, nodes))
    return next((what for what, kinds in _UNCOUNTED if types & kinds), "")


def _drops(model: Any) -> bool:
    """Whether a model draws random numbers for training: a dropout that drops."""
    return any(n.op_type == "Dropout" and len(n.input) > 2 and n.input[2] for n in model.graph.node)


def _types(graph: Any, nodes: Iterable[Any]) -> Iterator[int]:
    for info in [*graph.input, *graph.output, *graph.value_info]:
        yield info.type.tensor_type.elem_type
    for tensor in graph.initializer:
        yield tensor.data_type
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t.data_type
            if attribute.name in ("to", "output_dtype", "dtype", "precision"):
                yield attribute.i


def _array(value: Any) -> Any:
    return (
        numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    )


def _model_path(source: Any) -> Path:
    if source.model_dir is not None:
        return Path(source.model_dir) / "model.onnx"
    return Path(onnx.__file__).parent.parent / source.url


def _light_data(model: Any, path: Path) -> tuple[list[Any], list[Any]]:
    """Return the ramp that onnx's runner feeds, and the outputs stored beside the model."""
    constants = {t.name for t in model.graph.initializer}
    inputs = []
    for info in (i for i in model.graph.input if i.name not in constants):
        shape = [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
        count = int(np.prod(shape))
        inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    files = [path.with_name(f"{path.stem}_output_{k}.pb") for k in range(len(model.graph.output))]
    return inputs, [_read_tensor(file) for file in files]


def _stored(folder: Path, what: str, infos: Sequence[Any]) -> list[Any]:
    count = len(list(folder.glob(f"{what}_*.pb")))
    readable = [infos[k].type.HasField("tensor_type") for k in range(count)]
    return [_read_tensor(folder / f"{what}_{k}.pb") if readable[k] else None for k in range(count)]


def _read_tensor(path: Path) -> Any:
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(tensor)
