"""Control flow to straight lines: what is known at compile time is unrolled or chosen.

On the way, small values that constants and shapes decide are evaluated (by onnx's reference): trip
counts, conditions, and the shape arithmetic that is left where ONNX Runtime cannot load a model.

A static graph has no loops and no branches. A Loop or Scan with a known number of steps is written
out step by step; an If with a known condition becomes its branch. A condition that only the run
knows becomes a choice between values (operator `Select` of the domain `mlc`): both branches are
computed, and their results must have equal shapes. The rest is refused, with the reason.

Source: If, Loop, Scan in onnx/docs/Operators.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlc.errors import MlcError, ModelError
from mlc.options import MAX_MODEL_NODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mlc.frontend.onnx_file import OnnxFile

DOMAIN = "mlc"
_SMALL = 64  # elements of a value that is followed at compile time: counters and conditions
_MAX_DEPTH = 16  # of control flow inside control flow
Array = np.ndarray[Any, Any]


def flatten(file: OnnxFile) -> OnnxFile:
    """Return the file without Loop, Scan and If.

    Raises:
        ModelError: how often a loop runs, or the shape of a result, depends on the input's values;
            or the straight line would have more than `MAX_MODEL_NODES` nodes.
    """
    for _ in range(_MAX_DEPTH):
        controlled = any(_rule(node) for node in file.proto.graph.node)
        round_ = _Flattener(file.proto, file.weights)
        proto = round_.flat()
        if not controlled and not round_.folded:
            return file
        file = replace(file, proto=proto)
    if any(_rule(node) for node in file.proto.graph.node):
        raise ModelError(f"control flow is nested more than {_MAX_DEPTH} deep")
    return file


class _Flattener:
    """One round: the control flow of the outermost graph."""

    def __init__(self, proto: Any, weights: dict[str, Array]):
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.shapes = _shapes(proto, weights)
        self.types = _types(self.proto)
        self.folded = 0
        self.known = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.count = 0
        self.opset = next((o for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)

    def flat(self) -> Any:
        graph = self.proto.graph
        before = list(graph.node)
        for position, node in enumerate(before):
            rule = _rule(node)
            if rule is None:
                self.add(node)
                continue
            try:
                rule(self, node)
            except MlcError as error:
                label = node.name or f"#{position}"
                raise ModelError(
                    f"node {label!r} ({node.op_type}) cannot be converted: {error.message}",
                    error.hint,
                ) from error
        del graph.node[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.constants)
        del graph.value_info[:]
        if not any(o.domain == DOMAIN for o in self.proto.opset_import):
            self.proto.opset_import.add(domain=DOMAIN, version=1)
        return _typed(self.proto)

    # --- what the rules build with ---

    def add(self, node: Any) -> None:
        """Append a node, and follow its value where that is known and small."""
        if len(self.nodes) >= MAX_MODEL_NODES:
            raise ModelError(f"written out it has more than {MAX_MODEL_NODES} nodes")
        if node.op_type == "Constant" or all(n in self.known for n in node.input if n):
            self._evaluate(node)
        made = [name for name in node.output if name]
        if node.op_type == "Shape" and node.input[0] in self.shapes:
            ends = {a.name: a.i for a in node.attribute}
            shape = self.shapes[node.input[0]][ends.get("start", 0) : ends.get("end")]
            self.known[made[0]] = np.array(shape, np.int64)
        if not made or any(name not in self.known for name in made):
            self.nodes.append(node)
            return
        self.folded += node.op_type != "Constant"
        self.constants += [numpy_helper.from_array(self.known[name], name) for name in made]

    def node(self, operator: str, inputs: Sequence[str], output: str = "", **more: Any) -> str:
        """Append a node with one output; return that output's name."""
        name = output or self.fresh("value")
        self.add(helper.make_node(operator, inputs, [name], **more))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name, array = self.fresh("constant"), np.asarray(value, dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        self.known[name] = array
        return name

    def fresh(self, name: str) -> str:
        # No name of the model has this form twice: the slash-free prefix is counted.
        self.count += 1
        return f"mlc.{len(self.proto.graph.node)}.{self.count}/{name}"

    def identity(self, source: str, target: str) -> None:
        if target:
            self.node("Identity", [source], target)

    def truth(self, name: str) -> bool | None:
        """Return a condition's value; None where only the run knows it."""
        value = self.known.get(name)
        return None if value is None or value.size != 1 else bool(value.reshape(-1)[0])

    def select(self, condition: str, yes: str, no: str, output: str = "") -> str:
        """Append the choice between two values of equal shape."""
        return self.node("Select", [condition, yes, no], output, domain=DOMAIN)

    def inline(self, graph: Any, arguments: Sequence[str]) -> list[str]:
        """Append a subgraph with its inputs bound; return the names of its outputs."""
        names = {info.name: a for info, a in zip(graph.input, arguments, strict=False)}
        for tensor in graph.initializer:
            names[tensor.name] = self.fresh(tensor.name)
            hoisted = onnx.TensorProto()
            hoisted.CopyFrom(tensor)
            hoisted.name = names[tensor.name]
            self.constants.append(hoisted)
            self.known[hoisted.name] = numpy_helper.to_array(tensor)
        for node in graph.node:
            for output in filter(None, node.output):
                names[output] = self.fresh(output)
        for node in graph.node:
            self.add(_renamed(node, names))
        return [names.get(info.name, info.name) for info in graph.output]

    def _evaluate(self, node: Any) -> None:
        from onnx.reference import ReferenceEvaluator

        names = [n for n in node.input if n]
        if node.op_type == "DequantizeLinear":  # `qdq` wants to see it
            return
        if node.op_type == "Identity":  # loops hand counters and conditions on
            self.known[node.output[0]] = self.known[names[0]]
            return
        if node.domain not in ("", "ai.onnx") or any(self.known[n].size > _SMALL for n in names):
            return
        try:
            graph = helper.make_graph(
                [node], "known",
                [helper.make_tensor_value_info(
                    n, helper.np_dtype_to_tensor_dtype(self.known[n].dtype), self.known[n].shape)
                 for n in dict.fromkeys(names)],
                [helper.make_empty_tensor_value_info(n) for n in node.output if n],
            )  # fmt: skip
            model = helper.make_model(graph, opset_imports=[self.opset])
            values = ReferenceEvaluator(model).run(None, {n: self.known[n] for n in names})
        except Exception:  # noqa: BLE001 - the value then counts as unknown
            return
        for name, value in zip(filter(None, node.output), values, strict=True):
            if isinstance(value, np.ndarray | np.generic) and np.asarray(value).size <= _SMALL:
                # The reference computes some results in a wider type than the operator has.
                self.known[name] = np.asarray(value).astype(self.types.get(name, value.dtype))


# --- the rules ---


def _if(flat: _Flattener, node: Any) -> None:
    branches = {a.name: a.g for a in node.attribute}
    condition = node.input[0]
    truth = flat.truth(condition)
    if truth is not None:
        results = flat.inline(branches["then_branch" if truth else "else_branch"], [])
        for source, target in zip(results, node.output, strict=True):
            flat.identity(source, target)
        return
    yes = flat.inline(branches["then_branch"], [])
    no = flat.inline(branches["else_branch"], [])
    for a, b, target in zip(yes, no, node.output, strict=True):
        if target:
            flat.select(condition, a, b, target)


def _loop(flat: _Flattener, node: Any) -> None:
    body = _attribute(node, "body").g
    steps, condition, *carried = [*node.input, "", ""][: max(2, len(node.input))]
    limit = _step_limit(flat, steps)
    if _least(flat, node) > MAX_MODEL_NODES:
        raise ModelError(f"written out it has more than {MAX_MODEL_NODES} nodes")
    alive = condition or flat.constant(True, bool)
    collected: list[list[str]] = [[] for _ in node.output[len(carried) :]]
    step = 0
    while (limit is None or step < limit) and flat.truth(alive) is not False:
        if limit is None and flat.truth(alive) is None:
            raise ModelError("how often the loop runs depends on the input's values")
        if step >= MAX_MODEL_NODES:
            raise ModelError(f"the loop runs more than {MAX_MODEL_NODES} times")
        number = flat.constant(step)
        alive_next, *results = flat.inline(body, [number, alive, *carried])
        fresh, scanned = results[: len(carried)], results[len(carried) :]
        if flat.truth(alive) is None:
            if collected:
                raise ModelError("the number of collected results depends on the input's values")
            carried = [flat.select(alive, n, o) for n, o in zip(fresh, carried, strict=True)]
            alive = flat.node("And", [alive, alive_next])
        else:
            carried, alive = fresh, alive_next
        for parts, value in zip(collected, scanned, strict=True):
            parts.append(value)
        step += 1
    for source, target in zip(carried, node.output, strict=False):
        flat.identity(source, target)
    infos = body.output[1 + len(carried) :]
    for parts, target, info in zip(collected, node.output[len(carried) :], infos, strict=True):
        _stack(flat, parts, target, 0, info)


def _least(flat: _Flattener, node: Any) -> int:
    """Return how many nodes a node is written out to, as far as that can be told before."""
    if _rule(node) is not _loop:
        return 1
    body, (count, condition) = _attribute(node, "body").g, [*node.input, "", ""][:2]
    steps = flat.known.get(count)
    if steps is None or steps.size != 1 or not _goes_on(body):
        return 1
    if condition and not flat.truth(condition):
        return 1
    return int(steps.reshape(-1)[0]) * sum(_least(flat, inner) for inner in body.node)


def _goes_on(body: Any) -> bool:
    """Return whether a loop's body hands its condition on as it was."""
    value = body.output[0].name
    same = {n.output[0]: n.input[0] for n in body.node if n.op_type in ("Identity", "Cast")}
    while value in same:
        value = same.pop(value)
    return bool(value == body.input[1].name)


def _step_limit(flat: _Flattener, name: str) -> int | None:
    if not name:
        return None
    value = flat.known.get(name)
    if value is None or value.size != 1:
        raise ModelError(
            "how often the loop runs is an input or computed from one",
            "a static graph needs the trip count as a constant; export the model with it fixed",
        )
    return int(value.reshape(-1)[0])


def _scan(flat: _Flattener, node: Any) -> None:
    if flat.opset is not None and flat.opset.version < 9:
        raise ModelError("Scan of opset 8 is not supported", "convert the model to opset 9 or more")
    body = _attribute(node, "body").g
    sources = _integers(node, "num_scan_inputs")[0]
    states, scanned = list(node.input[:-sources]), list(node.input[-sources:])
    targets = node.output[len(states) :]
    axes = _integers(node, "scan_input_axes") or [0] * sources
    backward = _integers(node, "scan_input_directions") or [0] * sources
    out_axes = _integers(node, "scan_output_axes") or [0] * len(targets)
    out_backward = _integers(node, "scan_output_directions") or [0] * len(targets)
    shapes = [flat.shapes.get(name) for name in scanned]
    if shapes[0] is None:
        raise ModelError(f"the shape of the scanned value {scanned[0]!r} is not known")
    length = shapes[0][axes[0]]
    collected: list[list[str]] = [[] for _ in targets]
    for step in range(length):
        slices = [
            flat.node(
                "Gather", [name, flat.constant(length - 1 - step if back else step)], axis=axis
            )
            for name, axis, back in zip(scanned, axes, backward, strict=True)
        ]
        results = flat.inline(body, [*states, *slices])
        states = results[: len(states)]
        for parts, value in zip(collected, results[len(states) :], strict=True):
            parts.append(value)
    for source, target in zip(states, node.output, strict=False):
        flat.identity(source, target)
    infos = body.output[len(states) :]
    for k, (parts, target) in enumerate(zip(collected, targets, strict=True)):
        _stack(flat, parts[::-1] if out_backward[k] else parts, target, out_axes[k], infos[k])


def _stack(flat: _Flattener, parts: list[str], target: str, axis: int, info: Any) -> None:
    """Append what joins the results of the steps along a new axis."""
    if not target:
        return
    if not parts:
        raise ModelError(f"the result {info.name!r} of a loop without steps is empty")
    version = flat.opset.version if flat.opset is not None else 1
    rows = []
    for part in parts:
        if version >= 13:
            rows.append(flat.node("Unsqueeze", [part, flat.constant([axis])]))
        else:
            rows.append(flat.node("Unsqueeze", [part], axes=[axis]))
    flat.node("Concat", rows, target, axis=axis)


_RULES: dict[str, Callable[[_Flattener, Any], None]] = {"If": _if, "Loop": _loop, "Scan": _scan}


def is_control(domain: str, name: str) -> bool:
    """Return whether an operator is control flow, which `flatten` writes out."""
    return domain in ("", "ai.onnx") and name in _RULES


def _rule(node: Any) -> Callable[[_Flattener, Any], None] | None:
    return _RULES[node.op_type] if is_control(node.domain, node.op_type) else None


def _attribute(node: Any, name: str) -> Any:
    return next(a for a in node.attribute if a.name == name)


def _integers(node: Any, name: str) -> list[int]:
    return [v for a in node.attribute if a.name == name for v in (a.ints or [a.i])]


def _renamed(node: Any, names: dict[str, str]) -> Any:
    """Return a copy of a node with its values renamed, in its subgraphs too."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    pending = [copy]
    while pending:
        each = pending.pop()
        each.input[:] = [names.get(name, name) for name in each.input]
        each.output[:] = [names.get(name, name) for name in each.output]
        for attribute in each.attribute:
            for graph in _graphs(attribute):
                for info in graph.output:
                    info.name = names.get(info.name, info.name)
                pending.extend(graph.node)
    return copy


def _graphs(attribute: Any) -> Iterable[Any]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _typed(proto: Any) -> Any:
    try:
        return onnx.shape_inference.infer_shapes(proto)
    except Exception:  # noqa: BLE001 - what it cannot infer stays open; the converter reports it
        return proto


def _types(proto: Any) -> dict[str, Any]:
    """Return the numpy types of the values that onnx's inference knows."""
    infos = [*proto.graph.value_info, *proto.graph.output]
    kinds = {info.name: info.type.tensor_type.elem_type for info in infos}
    return {
        name: helper.tensor_dtype_to_np_dtype(kind)
        for name, kind in kinds.items()
        if kind in onnx.TensorProto.DataType.values() and kind
    }


def _shapes(proto: Any, weights: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the values whose dimensions are all known."""
    found = {name: tuple(array.shape) for name, array in weights.items()}
    for info in [*proto.graph.input, *proto.graph.value_info]:
        kind = info.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            found[info.name] = tuple(d.dim_value for d in kind.shape.dim)
    found.update({t.name: tuple(t.dims) for t in proto.graph.initializer})
    return found
