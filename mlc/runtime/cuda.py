"""An artifact for a GPU, opened for running on one."""

from __future__ import annotations

import json
from ctypes import c_int32, c_int64, c_uint64
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.artifact import GRAPH, PROGRAMS, load
from mlc.codegen.storage import nbytes
from mlc.errors import ArtifactError, RunError
from mlc.gpu.device import INT32, INT64, TENSOR, Program, read
from mlc.model import TensorSpec
from mlc.runtime.closing import Closing
from mlc.runtime.driver_api import Driver
from mlc.runtime.session import check_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mlc.gpu.device import Launch

Array = np.ndarray[Any, Any]


class CudaSession(Closing):
    """A model on a GPU; as much of `mlc.runtime.Session` as `run` and `verify` use.

    Memory for all buffers is taken once; a run copies inputs in, starts the kernels in the order of
    the graph on one stream, and copies outputs out.
    """

    def __init__(self, path: Path, driver: Callable[[], Any] = Driver):
        """Open an artifact for a GPU, its format and hashes checked before any code is loaded.

        Raises:
            ArtifactError: it is damaged, not for a GPU, or for a newer one than this.
            MissingToolError: there is no driver or no GPU.
        """
        artifact = load(path, for_gpu=True)
        self.manifest = artifact.manifest
        signature = self.manifest["signature"]
        self.inputs, self.outputs = _specs(signature["inputs"]), _specs(signature["outputs"])
        self._graph = json.loads(bytes(artifact.members[GRAPH]))
        programs = read(bytes(artifact.members[PROGRAMS]))
        self._driver = driver()
        use_cubin = _fits(path, self.manifest["target"]["tvm"], self._driver.capability())
        self._buffers = self._allocate()
        for storage, array in artifact.weights():
            self._driver.upload(self._buffers[storage], array)
        self._modules: list[int] = []
        self._temporaries: list[int] = []
        self._calls = self._prepare(programs, use_cubin=use_cubin)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; return fresh arrays by output name.

        Raises:
            RunError: an input does not fit, or the GPU reports an error.
        """
        arrays = check_inputs(self.inputs, inputs)
        for k, array in enumerate(arrays):
            row = self._row(self._graph["arg_nodes"][k])
            self._driver.upload(self._address(row), np.ascontiguousarray(array))
        for function, step, arguments in self._calls:
            self._driver.launch(function, step, arguments)
        self._driver.synchronize()
        results = {}
        for spec, (node, index, _) in zip(self.outputs, self._graph["heads"], strict=True):
            result = np.empty(spec.shape, np.dtype(spec.dtype))
            self._driver.download(result, self._address(self._row(node, index)))
            results[spec.name] = result
        return results

    def close(self) -> None:
        """Give memory and code on the GPU back."""
        for address in (*self._buffers.values(), *self._temporaries):
            self._driver.free(address)
        for module in self._modules:
            self._driver.unload(module)
        self._buffers, self._temporaries, self._modules = {}, [], []
        self._driver.close()

    def _allocate(self) -> dict[int, int]:
        """Return the address of each buffer by its number: rows of the graph share them."""
        attrs = self._graph["attrs"]
        sizes: dict[int, int] = {}
        columns = (attrs[name][1] for name in ("storage_id", "shape", "dltype"))
        for storage, shape, dtype in zip(*columns, strict=True):
            sizes[storage] = max(sizes.get(storage, 0), nbytes(tuple(shape), dtype))
        return {storage: self._driver.allocate(size) for storage, size in sizes.items()}

    def _prepare(
        self, programs: dict[str, Program], *, use_cubin: bool
    ) -> list[tuple[int, Launch, list[Any]]]:
        """Return every launch of a run, in order: function, sizes, arguments."""
        loaded = {name: self._load(program, use_cubin) for name, program in programs.items()}
        shared = [self._driver.allocate(size) for size in _largest(programs)]
        self._temporaries.extend(shared)
        calls = []
        for position, node in enumerate(self._graph["nodes"]):
            name = node.get("attrs", {}).get("func_name", "__nop")
            if name == "__nop":
                continue
            outputs = range(int(node["attrs"]["num_outputs"]))
            rows = [self._row(source, k) for source, k, _ in node["inputs"]]
            rows += [self._row(position, k) for k in outputs]
            tensors = [self._address(row) for row in rows]
            for step in programs[name].launches:
                arguments = [_argument(word, tensors, shared) for word in step.arguments]
                calls.append((loaded[name][step.function], step, arguments))
        return calls

    def _load(self, program: Program, use_cubin: bool) -> dict[str, int]:
        code = program.cubin if use_cubin else program.ptx.encode() + b"\0"
        module = self._driver.load(code)
        self._modules.append(module)
        names = {step.function for step in program.launches}
        return {name: self._driver.function(module, name) for name in names}

    def _row(self, node: int, index: int = 0) -> int:
        return int(self._graph["node_row_ptr"][node]) + index

    def _address(self, row: int) -> int:
        return self._buffers[self._graph["attrs"]["storage_id"][1][row]]


def _largest(programs: Mapping[str, Program]) -> list[int]:
    """Return sizes of temporary buffers that are enough for any kernel: they run one by one."""
    most = max((len(program.temporaries) for program in programs.values()), default=0)
    return [
        max(p.temporaries[k] for p in programs.values() if k < len(p.temporaries))
        for k in range(most)
    ]


def _argument(word: tuple[str, int], tensors: list[int], temporaries: list[int]) -> Any:
    kind, number = word
    if kind == INT32:
        return c_int32(number)
    if kind == INT64:
        return c_int64(number)
    places = tensors if kind == TENSOR else temporaries
    if not 0 <= number < len(places):
        raise RunError("a launch asks for a tensor that its kernel does not have")
    return c_uint64(places[number])


def _fits(path: Path, target: str, capability: tuple[int, int]) -> bool:
    """Return whether the cubin runs on the GPU; with False its driver must compile the PTX.

    Raises:
        ArtifactError: the GPU is older than what the artifact was compiled for.
    """
    sm = target.partition("-mcpu=sm_")[2].partition(" ")[0]
    if not sm.isdigit():
        raise ArtifactError(f"{path} does not say which GPUs it is for", "compile it again")
    wanted, (major, minor) = divmod(int(sm), 10), capability
    if capability < wanted:
        raise ArtifactError(
            f"{path} is for sm_{sm} and newer, and this GPU is sm_{major}{minor}",
            f"compile it for this one: `--target cuda --arch sm_{major}{minor}`",
        )
    return major == wanted[0]


def _specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=entry["name"], shape=tuple(entry["shape"]), dtype=entry["dtype"])
        for entry in entries
    )
