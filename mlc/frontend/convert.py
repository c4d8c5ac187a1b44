"""ONNX nodes to Relay, one node at a time.

TVM's own importer infers types over the whole graph built so far for every node, which takes time
in the square of the node count. Here each node is converted over fresh variables that carry the
types of its inputs, so its converter sees a small expression only; afterwards the variables are
replaced by what was built before. The result is the same, in linear time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mlc import tvm_env
from mlc.errors import MlcError, ModelError
from mlc.frontend.operators import converter
from mlc.frontend.ops.bfloat16 import narrow, widen
from mlc.frontend.ops.operands import BFLOAT16, DTYPES
from mlc.frontend.support import require_supported, where_to_cut
from mlc.model import Model, Signature, Source, TensorSpec
from mlc.passes.fold import fold_local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.frontend.onnx_file import OnnxFile


@dataclass(frozen=True)
class Value:
    """A value of the graph: `expr` in full, `stub` a typed variable (or the same constant)."""

    expr: Any
    stub: Any


def convert(file: OnnxFile) -> Model:
    """Return the model of a file whose shapes are fixed.

    Raises:
        UnsupportedError: operators without a conversion, all of them listed.
        ModelError: a node cannot be converted (named, with the reason).
    """
    tvm_env.tvm()
    require_supported(file.proto)
    return Converter(file).model()


def input_specs(file: OnnxFile) -> list[TensorSpec]:
    """Return the inputs of a file; sizes that stay open (`shapes.keep`) are the dimensions' names.

    Raises:
        ModelError: one has an element type that no kernel can hold.
    """
    return [
        TensorSpec(
            name=info.name,
            shape=tuple(d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim),
            dtype=_dtype(info.type.tensor_type.elem_type),
        )
        for info in file.proto.graph.input
        if info.name not in file.weights
    ]


class Converter:
    """Converts a graph, one node at a time; `OpenConverter` does with sizes that stay open."""

    def __init__(self, file: OnnxFile):
        self.file = file
        self.graph = file.proto.graph
        self.opset = file.opset
        _fold_with_numpy()
        self.values: dict[str, Value] = {}
        self.inputs: list[TensorSpec] = []
        self.variables: list[Any] = []

    def model(self) -> Model:
        """Return the model."""
        from tvm import IRModule, relay

        self._add_inputs()
        self._add_constants()
        self._add_nodes()
        results = [self._output(info) for info in self.graph.output]
        body = results[0] if len(results) == 1 else relay.Tuple(results)
        module = IRModule.from_expr(relay.Function(self._parameters(body), body))
        module = relay.transform.InferType()(module)
        outputs = self._outputs(module["main"].ret_type)
        source = Source(
            path=self.file.path.name,
            sha256=self.file.sha256,
            opset=self.opset,
            size=self.file.size,
            nodes=len(self.graph.node),
        )
        signature = Signature(inputs=tuple(self.inputs), outputs=outputs)
        return Model(module=module, signature=signature, source=source)

    def _parameters(self, _body: Any) -> list[Any]:
        return self.variables

    def _add_nodes(self) -> None:
        for position, node in enumerate(self.graph.node):
            try:
                self._add_node(node)
            except MlcError as error:
                raise self._located(node, position, error.message) from error
            except Exception as error:
                raise self._located(node, position, tvm_env.reason(error)) from error

    def _sizes(self, shape: Sequence[int | str]) -> Any:
        """Return an input's shape for Relay."""
        return shape

    def _add_inputs(self) -> None:
        from tvm import relay

        for spec in input_specs(self.file):
            shape = self._sizes(spec.shape)
            held = "uint16" if spec.dtype == "bfloat16" else spec.dtype
            variable = relay.var(f"input{len(self.inputs)}", shape=shape, dtype=held)
            self.inputs.append(spec)
            self.variables.append(variable)
            self.values[spec.name] = Value(variable, variable)
            if spec.dtype == "bfloat16":
                stub = relay.var("x", shape=shape, dtype="float32")
                self.values[spec.name] = Value(widen(variable), stub)

    def _add_constants(self) -> None:
        for name, array in self.file.weights.items():
            self._add_constant(name, array)
        # The weights now live in TVM's memory; the arrays (and the file's map) can go.
        self.file.weights.clear()
        for tensor in self.graph.initializer:
            self._add_constant(tensor.name, onnx.numpy_helper.to_array(tensor))

    def _add_constant(self, name: str, array: np.ndarray[Any, Any]) -> None:
        from tvm import nd, relay

        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        if array.dtype.name not in DTYPES:
            raise ModelError(f"tensor {name!r} has the element type {array.dtype.name}")
        constant = relay.Constant(nd.array(np.ascontiguousarray(array).reshape(array.shape)))
        self.values[name] = Value(constant, constant)

    def _add_node(self, node: Any) -> None:
        from tvm import relay

        inputs = [self.values[name] if name else None for name in node.input]
        local = fold_local(self._convert(node, [v.stub if v else None for v in inputs]))
        names = [name for name in node.output if name]
        many = isinstance(local, relay.Tuple) or len(names) > 1
        typed = relay.transform.InferType()(_module(local))["main"].body.checked_type
        used = {v.stub: v.expr for v in inputs if v and not isinstance(v.stub, relay.Constant)}
        full = relay.bind(local, used)
        for position, name in enumerate(node.output):
            if not name:
                continue
            part = typed.fields[position] if many else typed
            expr = _empty(part) or (_field(full, position) if many else full)
            if isinstance(expr, relay.Constant):
                self.values[name] = Value(expr, expr)
            else:
                self.values[name] = Value(expr, relay.var("x", part))

    def _convert(self, node: Any, inputs: list[Any]) -> Any:
        """Return one expression, or a relay.Tuple when the converter has several outputs."""
        from tvm.relay.frontend.onnx import GraphProto

        if node.op_type == "Constant":
            return self._constant_node(node)
        attributes = GraphProto({}, {})._parse_attr(node.attribute)
        attributes |= {"outputs": len(node.output), "opset": self.opset}
        function = converter(node.domain, node.op_type, self.opset)
        assert function is not None  # require_supported looked
        return function(inputs, attributes)

    def _constant_node(self, node: Any) -> Any:
        from tvm import nd, relay

        attribute = node.attribute[0]
        if attribute.name == "value":
            array = onnx.numpy_helper.to_array(attribute.t)
        elif attribute.name in ("value_float", "value_floats"):
            array = np.array(onnx.helper.get_attribute_value(attribute), np.float32)
        elif attribute.name in ("value_int", "value_ints"):
            array = np.array(onnx.helper.get_attribute_value(attribute), np.int64)
        else:
            raise ModelError(f"a constant of the form {attribute.name!r} is not supported")
        return relay.Constant(nd.array(array))

    def _output(self, info: Any) -> Any:
        if info.name not in self.values:
            raise ModelError(f"output {info.name!r} is computed by no node")
        value = self.values[info.name].expr
        return narrow(value) if info.type.tensor_type.elem_type == BFLOAT16 else value

    def _outputs(self, kind: Any) -> tuple[TensorSpec, ...]:
        kinds = list(kind.fields) if hasattr(kind, "fields") else [kind]
        specs = []
        for info, tensor in zip(self.graph.output, kinds, strict=True):
            try:
                shape = self._output_shape(tensor)
            except (TypeError, ModelError):
                raise ModelError(
                    f"the shape of output {info.name!r} depends on the input's values",
                    where_to_cut(self.file, [spec.name for spec in self.inputs]),
                ) from None
            halved = info.type.tensor_type.elem_type == BFLOAT16
            dtype = "bfloat16" if halved else str(tensor.dtype)
            specs.append(TensorSpec(name=info.name, shape=shape, dtype=dtype))
        return tuple(specs)

    def _output_shape(self, tensor: Any) -> tuple[Any, ...]:
        return tuple(int(size) for size in tensor.shape)

    def _located(self, node: Any, position: int, why: str) -> ModelError:
        hint = "check the shapes given with --shape; `mlc inspect` shows inputs and operators"
        if "depends on the input's values" in why:
            hint = where_to_cut(self.file, [spec.name for spec in self.inputs])
        return ModelError(f"{self._label(node, position)} cannot be converted: {why}", hint)

    def _label(self, node: Any, position: int) -> str:
        domain = node.domain or "ai.onnx"
        return f"node {node.name or f'#{position}'!r} ({domain}::{node.op_type}-{self.opset})"


def _fold_with_numpy() -> None:
    """Let TVM's converters fold constants with numpy (see `passes.fold` for why)."""
    from tvm.relay.frontend import common
    from tvm.relay.frontend import onnx as frontend

    common.fold_constant = frontend.fold_constant = _fold


def _fold(expr: Any, mod: Any = None) -> Any:
    del mod
    return fold_local(expr)


def _module(expr: Any) -> Any:
    from tvm import IRModule

    return IRModule.from_expr(expr)


def _empty(kind: Any) -> Any:
    """Return the constant of a type without elements, which no kernel needs to compute; or None."""
    from tvm import nd, relay, tir

    sizes = [size for size in kind.shape if isinstance(size, tir.IntImm)]
    if len(sizes) < len(kind.shape) or all(size.value for size in sizes):
        return None
    return relay.Constant(nd.array(np.empty([int(size) for size in sizes], kind.dtype)))


def _field(expr: Any, position: int) -> Any:
    from tvm import relay

    if isinstance(expr, relay.Tuple):
        return expr.fields[position]
    return relay.TupleGetItem(expr, position)


def _dtype(elem_type: int) -> str:
    try:
        name = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)).name)
    except (KeyError, ValueError):
        name = f"type {elem_type}"
    if name not in DTYPES | {"bfloat16"}:
        raise ModelError(f"an input has the element type {name}, which is not supported")
    return name
