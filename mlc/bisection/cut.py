"""Write the graph as it is imported, and parts of it, as ONNX files; in forks.

Parts are cut from the graph as it is handed to the converters (shapes fixed, functions and control
flow written out, constants folded), so that no shape arithmetic stands between two operators. What
flows into a part are the reference's own values, saved beside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlc.bisection.graph import Step
from mlc.errors import ModelError
from mlc.frontend import onnx_file, shapes
from mlc.frontend.bounds import index_bounds
from mlc.frontend.control import DOMAIN
from mlc.frontend.convert import input_specs
from mlc.frontend.onnx_file import KEEP_BYTES, OnnxFile
from mlc.runtime import inputs
from mlc.runtime.reference import Reference
from mlc.runtime.run import save_npz
from mlc.runtime.verify import compare
from mlc.sizes import Bounds, samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlc.events import OnEvent

GRAPH, FEED = "graph.onnx", "graph.npz"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A part of the graph: positions of its steps, values that enter it, its results."""

    positions: tuple[int, ...]
    entering: tuple[str, ...]
    outputs: tuple[str, ...]


def whole(
    model: Path,
    asked: tuple[str, ...],
    dynamic: tuple[str, ...],
    seed: int,
    folder: Path,
    on_event: OnEvent,
) -> dict[str, Any]:
    """Write the imported graph of a model (`GRAPH`) and inputs drawn by `seed` (`FEED`).

    Returns the graph by names as JSON data: `steps`, `inputs`, `outputs` (see `graph.Graph`), `different`: outputs that the reference
    computes otherwise for the imported graph than for the model, a line each, and `sizes` of the
    dimensions that `dynamic` keeps open: the graph and its parts have fixed ones.

    Raises:
        ModelError: the model cannot be imported, or not be run by the reference.
    """
    from mlc.frontend.load import imported

    file, kept = shapes.opened(onnx_file.read(model), shapes.parse(asked), dynamic)
    sizes = samples({name: Bounds() for name in kept})[1] if kept else {}
    chosen = [f"{name}={size}" for name, size in sizes.items()]
    flat = imported(file, [*asked, *chosen], on_event).file
    feed = inputs.random(input_specs(flat), seed, index_bounds(flat))
    proto = _with_weights(flat)
    onnx.save_model(
        proto, str(folder / GRAPH), save_as_external_data=True, location="graph.bin",
        size_threshold=KEEP_BYTES,
    )  # fmt: skip
    save_npz(folder / FEED, feed)
    expected, found = (Reference(path).run(feed) for path in (model, folder / GRAPH))
    checks = [compare(name, found[name], expected[name]) for name in expected]
    return {
        "steps": [asdict(_step(node, k)) for k, node in enumerate(_steps(proto)[0])],
        "inputs": list(feed),
        "outputs": [info.name for info in proto.graph.output],
        "sizes": sizes,
        "different": [str(check) for check in checks if not check.passed],
    }


def part(folder: Path, wanted: Wanted, model: Path, stored: Path, on_event: OnEvent) -> None:
    """Write a part of the graph in `folder` to `model`, and what enters it to `stored`.

    Raises:
        ModelError: the reference cannot run the graph.
    """
    del on_event
    proto = onnx.load(str(folder / GRAPH))
    steps, constants = _steps(proto)
    values = _values(folder, [*wanted.entering, *wanted.outputs])
    chosen = _with_constants([steps[k] for k in wanted.positions], constants)
    read = {name for node in chosen for name in node.input}
    graph = helper.make_graph(
        chosen,
        "part",
        [_info(name, values[name]) for name in wanted.entering],
        [_info(name, values[name]) for name in wanted.outputs],
        [tensor for tensor in proto.graph.initializer if tensor.name in read],
    )
    made = helper.make_model(
        graph, opset_imports=proto.opset_import, ir_version=proto.ir_version, producer_name="mlc"
    )
    try:
        model.write_bytes(made.SerializeToString())
    except ValueError:  # protobuf ends at 2 GB
        raise ModelError("the part that shows the fault has more than 2 GB of weights") from None
    save_npz(stored, {name: values[name] for name in wanted.entering})


def _with_weights(file: OnnxFile) -> Any:
    """Return the whole model: large weights as initializers again, our operators in ONNX's."""
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    graph = proto.graph
    kept = [info for info in graph.input if info.name not in file.weights]
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in file.weights.items())
    for node in graph.node:
        if (node.domain, node.op_type) == (DOMAIN, "Select"):
            node.domain, node.op_type = "", "Where"
    used = {node.domain for node in graph.node} | {""}
    imports = [o for o in proto.opset_import if o.domain in used or o.domain == "ai.onnx"]
    del proto.opset_import[:]
    proto.opset_import.extend(imports)
    return proto


def _steps(proto: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the nodes that depend on inputs, in order, and the others by what they make."""
    known = {tensor.name for tensor in proto.graph.initializer} | {""}
    steps: list[Any] = []
    constants: dict[str, Any] = {}
    for node in proto.graph.node:
        if all(name in known for name in node.input):
            known.update(node.output)
            constants.update(dict.fromkeys(node.output, node))
        else:
            steps.append(node)
    return steps, constants


def _step(node: Any, position: int) -> Step:
    return Step(
        label=node.name or f"#{position}",
        operator=f"{node.domain}::{node.op_type}" if node.domain else node.op_type,
        inputs=tuple(name for name in node.input if name),
        outputs=tuple(name for name in node.output if name),
    )


def _with_constants(nodes: list[Any], constants: dict[str, Any]) -> list[Any]:
    """Return the nodes behind those that make the constants they read."""
    found: dict[int, Any] = {}
    pending = [constants[name] for node in nodes for name in node.input if name in constants]
    while pending:
        node = pending.pop()
        found.pop(id(node), None)  # what another constant needs moves to the front
        found[id(node)] = node
        pending += [constants[name] for name in node.input if name in constants]
    return [*reversed(found.values()), *nodes]


def _values(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return these values of the graph as the reference computes them."""
    with np.load(folder / FEED) as stored:
        feed = {name: stored[name] for name in stored.files}
    proto = onnx.load(str(folder / GRAPH), load_external_data=False)
    del proto.graph.output[:]
    computed = [name for name in dict.fromkeys(names) if name not in feed]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    path = folder / "values.onnx"
    path.write_bytes(proto.SerializeToString())
    return {**feed, **Reference(path).run(feed)}


def _info(name: str, value: Any) -> Any:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
    )
