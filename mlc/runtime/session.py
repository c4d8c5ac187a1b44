"""An opened artifact, ready to run."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlc import tvm_env
from mlc.artifact import GRAPH, LIBRARY, Artifact
from mlc.buckets import is_bucketed
from mlc.bundle import load
from mlc.cpu import physical_cores
from mlc.errors import ArtifactError, RunError, did_you_mean
from mlc.model import TensorSpec, specs
from mlc.runtime.closing import Closing
from mlc.runtime.tvm_runtime import Function, Module, Tensor, TvmError, runtime

Array = np.ndarray[Any, Any]
_CPU = 1  # DLPack's kDLCPU
_BIG_CORES = 1  # TVM's affinity mode "the fastest cores"


class Session(Closing):
    """A model that can be run; made by `open`.

    A session owns its buffers and is not thread-safe: one session per thread.
    """

    device = ""  # a GPU's name, in `mlc.runtime.cuda`

    def __init__(self, artifact: Artifact, threads: int | None = None, library: Any = None):
        """`library` is the artifact's code where it is loaded already (see `load_library`)."""
        self.path = artifact.path
        self.manifest = artifact.manifest
        signature = artifact.manifest["signature"]
        self.inputs, self.outputs = specs(signature["inputs"]), specs(signature["outputs"])
        self._artifact: Artifact | None = artifact
        if library is None:
            set_threads(threads)
        self._executor: Module | None = executor(artifact, "tvm.graph_executor.create", library)
        self._run: Function | None = self._executor["run"]
        get_input, get_output = self._executor["get_input"], self._executor["get_output"]
        self._tensors = [get_input(f"input{k}") for k in range(len(self.inputs))]
        self._results = [get_output(k) for k in range(len(self.outputs))]
        #: views of the executor's own input buffers: fill them and call `run_in_place`
        self.input_views = [
            numpy_view(t, s) for t, s in zip(self._tensors, self.inputs, strict=True)
        ]
        #: views of its output buffers, overwritten by the next run
        self.output_views = [
            numpy_view(t, s) for t, s in zip(self._results, self.outputs, strict=True)
        ]

    def run(self, inputs: Mapping[str, Array] | Sequence[Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: arrays by input name, or in the order of `self.inputs`; shapes and dtypes must
                be exactly those of `self.inputs`.

        Returns:
            Fresh arrays by output name, shapes and dtypes as in `self.outputs`.

        Raises:
            RunError: an input is missing, unknown, or of another shape or dtype; or the session is
                closed.
        """
        self.fill(inputs)
        self.run_in_place()
        return {
            spec.name: view.copy()
            for spec, view in zip(self.outputs, self.output_views, strict=True)
        }

    def fill(self, inputs: Mapping[str, Array] | Sequence[Array]) -> None:
        """Copy inputs, as `run` takes them, to where `run_in_place` finds them.

        Raises:
            RunError: as for `run`.
        """
        self._require_open()
        arrays = check_inputs(self.inputs, in_order(self.inputs, inputs))
        for view, array in zip(self.input_views, arrays, strict=True):
            np.copyto(view, array)

    def run_in_place(self) -> None:
        """Run on what `input_views` hold; results appear in `output_views`. Copies nothing."""
        if self._run is None:
            self._require_open()
        else:
            self._run()

    def close(self) -> None:
        """Release the buffers; the views must not be used afterwards."""
        self._artifact = None
        self._executor = self._run = None
        self._tensors, self._results = [], []

    def _require_open(self) -> None:
        if self._artifact is None:
            raise RunError("the session is closed", f"open {self.path} again")


def open(  # noqa: A001 - mlc.open
    path: str | Path, *, threads: int | None = None, target: str | None = None
) -> Session:
    """Open an artifact of fixed shapes for running.

    Format, target, CPU features and the hash of every member are checked before any of its code
    is loaded. Weights are mapped, not read, but those that are made (`mlc.made`). Of an artifact for several targets the variant is opened
    that uses most of this CPU's features.

    Args:
        path: the `.mlc` file.
        threads: size of TVM's thread pool (default: one per physical core).
        target: names the variant to open, where there are several.

    Raises:
        ArtifactError: it is damaged, of a newer format, for another machine, or for several or
            open shapes (`mlc.open` and `runtime.buckets.open` take those, too).
    """
    artifact = load(Path(path), target=target)
    if is_bucketed(artifact.manifest) or "dynamic" in artifact.manifest:
        raise ArtifactError(f"{path} was compiled for several shapes", "open it with `mlc.open`")
    return Session(artifact, threads)


def in_order(
    specs: Sequence[TensorSpec], inputs: Mapping[str, Array] | Sequence[Array]
) -> Mapping[str, Array]:
    """Return inputs by name that may have been given in the order of `specs`.

    Raises:
        RunError: there are more or fewer of them.
    """
    if isinstance(inputs, Mapping):
        return inputs
    if len(inputs) != len(specs):
        raise RunError(
            f"the model has {len(specs)} inputs, {len(inputs)} were given",
            "inputs: " + "; ".join(map(str, specs)),
        )
    return {spec.name: array for spec, array in zip(specs, inputs, strict=True)}


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> list[Array]:
    """Return the arrays in the order of `specs`, each of the right shape and dtype.

    Raises:
        RunError: one is missing, unknown or does not fit.
    """
    check_names(specs, inputs)
    ordered = []
    for spec in specs:
        if spec.name not in inputs:
            raise RunError(f"input {spec.name!r} is missing", f"it is {spec}")
        array = np.asarray(inputs[spec.name])
        if array.shape != spec.shape or array.dtype.name != spec.dtype:
            raise RunError(
                f"input {spec.name!r} is {array.dtype.name}{list(array.shape)}, "
                f"but the model takes {spec.dtype}{list(spec.shape)}",
                f"convert it, for example `array.astype('{spec.dtype}')`, or compile with "
                "another --shape",
            )
        ordered.append(array)
    return ordered


def check_names(specs: Sequence[TensorSpec], given: Iterable[str]) -> None:
    """Raise RunError for a name that no input has."""
    names = [spec.name for spec in specs]
    for name in given:
        if name not in names:
            raise RunError(f"the model has no input {name!r}", did_you_mean(name, names))


def set_threads(count: int | None) -> None:
    """Set the size of TVM's thread pool; None: `$TVM_NUM_THREADS`, else one per physical core.

    The pool of a thread cannot grow once it has started, only shrink.

    Work-arounds: on x86 TVM takes half of the logical cores for hyper-threads whether they are or
    not (one thread on a machine of two cores); and it binds the calling thread to the first core,
    where every thread started later, of any library, would then be stuck.
    """
    chosen = count or int(os.environ.get("TVM_NUM_THREADS") or 0) or physical_cores()
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ["TVM_NUM_THREADS"] = str(chosen)
    runtime().function("runtime.config_threadpool")(_BIG_CORES, chosen)


def threads_in_use() -> int:
    """Return how many threads TVM's pool has."""
    return int(runtime().function("runtime.NumThreads")())


def executor(artifact: Artifact, create: str, library: Module | None = None) -> Module:
    """Return a graph executor whose weights are views of the mapped artifact, or made of it.

    `create` names the function that makes it: the debugger's takes the same arguments. `library` is
    the artifact's code where it is loaded already.

    Raises:
        ArtifactError: its code or its graph cannot be loaded.
    """
    tvm = runtime()
    weights = {key: tvm.tensor(array) for key, array in artifact.weights() if array.size}
    library = load_library(artifact) if library is None else library
    graph = bytes(artifact.members[GRAPH]).decode()
    try:
        made = tvm.function(create)(graph, library, tvm.callback(weights.get), _CPU, 0)
    except TvmError as error:
        raise ArtifactError(
            f"{artifact.path} cannot be set up: {tvm_env.reason(error)}", "compile it again"
        ) from error
    assert isinstance(made, Module)
    return made


def load_library(artifact: Artifact) -> Module:
    """Load exactly the bytes whose hash was checked, through a private file that goes again.

    Each load needs a name of its own: the dynamic linker takes a known name for a known library.
    """
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        file = Path(folder) / "library.so"
        file.write_bytes(artifact.members[LIBRARY])
        try:
            return runtime().load(file)
        except TvmError as error:
            raise ArtifactError(
                f"the code in {artifact.path} cannot be loaded: {tvm_env.reason(error)}",
                "compile it again; if the temporary folder forbids code, set TMPDIR",
            ) from error


def numpy_view(tensor: Tensor, spec: TensorSpec) -> Array:
    """Return a numpy view of a TVM tensor's memory."""
    if spec.dtype == "bfloat16":
        import ml_dtypes  # noqa: F401 - gives numpy the name; onnx brings it

    dtype = np.dtype(spec.dtype)
    size = int(np.prod(spec.shape, dtype=np.int64)) * dtype.itemsize
    memory = (ctypes.c_uint8 * max(size, 1)).from_address(tensor.address)
    flat = np.ctypeslib.as_array(memory)[:size]
    return flat.view(dtype).reshape(spec.shape)
