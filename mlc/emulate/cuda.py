"""An artifact for a GPU, run by the simulator: kernel by kernel as its graph says.

What is executed is the PTX in the artifact, with the launches that a GPU would get.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.artifact import GRAPH, PROGRAMS
from mlc.buckets import view
from mlc.bundle import load
from mlc.codegen.storage import nbytes
from mlc.emulate.ptx_machine import launch
from mlc.emulate.ptx_memory import Memory
from mlc.emulate.ptx_text import entries
from mlc.errors import RunError
from mlc.gpu.device import INT32, INT64, TEMPORARY, TENSOR, Program, read
from mlc.model import specs
from mlc.runtime.closing import Closing
from mlc.runtime.session import check_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Array = np.ndarray[Any, Any]


def run_program(program: Program, tensors: Sequence[Array]) -> None:
    """Run one call of a kernel over its tensors: inputs, then outputs, which are overwritten.

    Raises:
        RunError: the code does something that it must not; see `ptx_machine.launch`.
    """
    kernels = entries(program.ptx)
    temporaries = [np.full(size, 0xFF, np.uint8) for size in program.temporaries]
    memory = Memory([*tensors, *temporaries], "tensor")
    first = {TENSOR: 0, TEMPORARY: len(tensors)}
    for step in program.launches:
        if step.function not in kernels:
            raise RunError(f"there is no kernel {step.function}")
        arguments = [
            number if kind in (INT32, INT64) else memory.address(first[kind] + number)
            for kind, number in step.arguments
        ]
        launch(kernels[step.function], step.grid, step.block, arguments, memory)


class SimulatedSession(Closing):
    """A model that can be run, very slowly; as much of `mlc.runtime.Session` as `verify` uses."""

    def __init__(self, path: Path, target: str | None = None, bucket: int = 0):
        """Open an artifact (of several buckets one) for a GPU, its format and hashes checked; see `bundle.load`.

        Raises:
            ArtifactError: it is damaged, or not for a GPU.
        """
        artifact = view(load(path, target=target, for_gpu=True), bucket)
        self.manifest = artifact.manifest
        signature = self.manifest["signature"]
        self.inputs, self.outputs = specs(signature["inputs"]), specs(signature["outputs"])
        self._programs = read(bytes(artifact.members[PROGRAMS]))
        self._graph = json.loads(bytes(artifact.members[GRAPH]))
        self._weights = dict(artifact.weights())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; return fresh arrays by output name.

        Raises:
            RunError: an input does not fit, or a kernel does what it must not.
        """
        values = self._leaves(check_inputs(self.inputs, inputs))
        for position, node in enumerate(self._graph["nodes"]):
            if node["op"] == "tvm_op":
                self._call(position, node, values)
        heads = [values[self._row(node, k)] for node, k, _ in self._graph["heads"]]
        return {
            spec.name: head.view(spec.dtype).reshape(spec.shape).copy()
            for spec, head in zip(self.outputs, heads, strict=True)
        }

    def _leaves(self, arrays: list[Array]) -> dict[int, Array]:
        """Return the bytes of inputs and weights by row of the graph."""
        values = {}
        storage = self._graph["attrs"]["storage_id"][1]
        given = {f"input{k}": array for k, array in enumerate(arrays)}
        for position in self._graph["arg_nodes"]:
            name, row = self._graph["nodes"][position]["name"], self._row(position)
            array = given[name] if name in given else self._weights[storage[row]]
            values[row] = np.array(array).reshape(-1).view(np.uint8)
        return values

    def _call(self, position: int, node: dict[str, Any], values: dict[int, Array]) -> None:
        inputs = [values[self._row(source, k)] for source, k, _ in node["inputs"]]
        rows = [self._row(position, k) for k in range(int(node["attrs"]["num_outputs"]))]
        name = node["attrs"]["func_name"]
        if name == "__nop":
            values[rows[0]] = inputs[0]
            return
        for row in rows:
            values[row] = np.full(self._bytes(row), 0xFF, np.uint8)
        run_program(self._programs[name], [*inputs, *(values[row] for row in rows)])

    def _row(self, node: int, index: int = 0) -> int:
        return int(self._graph["node_row_ptr"][node]) + index

    def _bytes(self, row: int) -> int:
        attrs = self._graph["attrs"]
        return nbytes(tuple(attrs["shape"][1][row]), attrs["dltype"][1][row])

    def close(self) -> None:
        """Nothing to release."""
