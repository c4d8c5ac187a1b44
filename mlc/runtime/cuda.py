"""An artifact for a GPU, opened for running on one."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import bundle
from mlc.artifact import GRAPH, PROGRAMS
from mlc.buckets import view
from mlc.codegen.storage import nbytes
from mlc.errors import ArtifactError
from mlc.gpu.device import Program, architecture, read
from mlc.model import specs
from mlc.runtime.closing import Closing
from mlc.runtime.cuda_kernel import LoadedKernel, start
from mlc.runtime.driver_api import Driver
from mlc.runtime.session import check_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Array = np.ndarray[Any, Any]


_TEGRA = {(7, 2), (8, 7), (10, 1), (11, 0)}  # Xavier, Orin, Thor under both of its numbers


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A kernel's turn in the graph: its symbol, and what it launches."""

    symbol: str
    calls: list[Any]


class CudaSession(Closing):
    """A model on a GPU; as much of `mlc.runtime.Session` as `run`, `verify` and `bench` use.

    Memory for all buffers is taken once, and the kernels are recorded in the order of the model's
    graph; a run copies inputs in, starts what was recorded, and copies outputs out.
    """

    def __init__(self, path: Path, driver: Callable[[], Any] | None = None, bucket: int = 0):
        """Open an artifact for a GPU, its format and hashes checked before any code is loaded.

        Of one for several targets that is the variant for the newest GPUs up to this one, of several
        buckets the one at position `bucket`; each has its own weights on the GPU.

        Raises:
            ArtifactError: it is damaged, not for a GPU, or for a newer one than this.
            MissingToolError: there is no driver or no GPU.
        """
        bundle.require_gpu(path)  # that is said before a driver is asked for
        self.path = path
        self._driver = (driver or Driver)()
        capability = self._driver.capability()
        artifact = view(bundle.load(path, for_gpu=True, capability=capability), bucket)
        self.manifest = artifact.manifest
        signature = self.manifest["signature"]
        self.inputs, self.outputs = specs(signature["inputs"]), specs(signature["outputs"])
        self._graph = json.loads(bytes(artifact.members[GRAPH]))
        programs = read(bytes(artifact.members[PROGRAMS]))
        use_cubin = _fits(path, self.manifest["target"]["tvm"], capability)
        self._buffers = self._allocate()
        for storage, array in artifact.weights():
            self._driver.upload(self._buffers[storage], array)
        self._kernels = {
            name: LoadedKernel(self._driver, program, use_cubin=use_cubin)
            for name, program in programs.items()
        }
        self._temporaries = [self._driver.allocate(size) for size in _largest(programs)]
        self._steps = self._prepare()
        self._graph_of_run = self._driver.record_graph(
            [call for step in self._steps for call in step.calls]
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; return fresh arrays by output name.

        Raises:
            RunError: an input does not fit, or the GPU reports an error.
        """
        self.fill(inputs)
        self.run_in_place()
        results = {}
        for spec, (node, index, _) in zip(self.outputs, self._graph["heads"], strict=True):
            result = np.empty(spec.shape, np.dtype(spec.dtype))
            self._driver.download(result, self._address(self._row(node, index)))
            results[spec.name] = result
        return results

    def fill(self, inputs: Mapping[str, Array]) -> None:
        """Copy inputs to the GPU, where `run_in_place` finds them.

        Raises:
            RunError: an input does not fit, or the GPU reports an error.
        """
        arrays = check_inputs(self.inputs, inputs)
        for k, array in enumerate(arrays):
            row = self._row(self._graph["arg_nodes"][k])
            self._driver.upload(self._address(row), np.ascontiguousarray(array))

    def run_in_place(self) -> None:
        """Run on what the inputs' buffers hold, and wait for the end. Copies nothing."""
        self._driver.replay(self._graph_of_run)
        self._driver.synchronize()

    @property
    def symbols(self) -> list[str]:
        """Return the kernels in the order in which a run calls them."""
        return [step.symbol for step in self._steps]

    def timed_run(self) -> list[float]:
        """Run in place; return the seconds of each entry of `symbols`, by the GPU's own clock.

        A kernel that takes less time than starting it does looks as slow as that.
        """
        marks = [self._driver.event() for _ in range(len(self._steps) + 1)]
        self._driver.record(marks[0])
        for step, mark in zip(self._steps, marks[1:], strict=True):
            start(self._driver, step.calls)
            self._driver.record(mark)
        self._driver.synchronize()
        seconds = [self._driver.elapsed(a, b) for a, b in itertools.pairwise(marks)]
        for mark in marks:
            self._driver.forget(mark)
        return seconds

    @property
    def device(self) -> str:
        """The GPU: its name and architecture."""
        major, minor = self._driver.capability()
        return f"{self._driver.name()} (sm_{major}{minor})"

    def close(self) -> None:
        """Give memory and code on the GPU back."""
        if self._kernels:
            self._driver.forget_graph(self._graph_of_run)
        for address in (*self._buffers.values(), *self._temporaries):
            self._driver.free(address)
        for kernel in self._kernels.values():
            kernel.unload()
        self._buffers, self._temporaries, self._kernels = {}, [], {}
        self._driver.close()

    def _allocate(self) -> dict[int, int]:
        """Return the address of each buffer by its number: rows of the graph share them."""
        attrs = self._graph["attrs"]
        sizes: dict[int, int] = {}
        columns = (attrs[name][1] for name in ("storage_id", "shape", "dltype"))
        for storage, shape, dtype in zip(*columns, strict=True):
            sizes[storage] = max(sizes.get(storage, 0), nbytes(tuple(shape), dtype))
        return {storage: self._driver.allocate(size) for storage, size in sizes.items()}

    def _prepare(self) -> list[_Step]:
        """Return the kernels of a run, in order, bound to their buffers."""
        steps = []
        for position, node in enumerate(self._graph["nodes"]):
            name = node.get("attrs", {}).get("func_name", "__nop")
            if name == "__nop":
                continue
            outputs = range(int(node["attrs"]["num_outputs"]))
            rows = [self._row(source, k) for source, k, _ in node["inputs"]]
            rows += [self._row(position, k) for k in outputs]
            tensors = [self._address(row) for row in rows]
            steps.append(
                _Step(symbol=name, calls=self._kernels[name].calls(tensors, self._temporaries))
            )
        return steps

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


def _fits(path: Path, target: str, capability: tuple[int, int]) -> bool:
    """Return whether the cubin runs on the GPU; with False its driver must compile the PTX.

    Machine code runs on later minor versions of its architecture, but not from desktop to Tegra or
    back ("Binary Compatibility" in NVIDIA's CUDA C++ Programming Guide).

    Raises:
        ArtifactError: the GPU is older than what the artifact was compiled for.
    """
    wanted = architecture(target)
    if wanted is None:
        raise ArtifactError(f"{path} does not say which GPUs it is for", "compile it again")
    major, minor = capability
    if capability < wanted:
        raise ArtifactError(
            f"{path} is for sm_{wanted[0]}{wanted[1]} and newer, and this GPU is sm_{major}{minor}",
            f"compile it for this one: `--target cuda --arch sm_{major}{minor}`",
        )
    if capability in _TEGRA or wanted in _TEGRA:
        return capability == wanted
    return major == wanted[0]
