"""The entrants: each function loads a model in the worker's process and returns how to run it.

Nobody copies at a run: inputs and outputs are bound or views where the library has such a thing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import MissingToolError, RunError, UsageError, did_you_mean
from mlc.runtime.timing import Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Array = np.ndarray[Any, Any]
OURS, UNTUNED = "mlc", "untuned"
# What holds oneDNN (OpenVINO, torch), torch's own loops and MKL to AVX2. OpenVINO keeps AVX-512 in a few small
# loops of its own; ONNX Runtime has no such switch.
AVX2_ONLY = {
    "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}  # fmt: skip
PICK_ROUNDS, PICK_S = 5, 0.1  # how inductor's settings are compared


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is to load, as JSON data.

    `artifact` is the entrant's own, `onnx` and `factory` the model that it was made from; `inputs`
    is an .npz file with arrays by position ("0", "1", ...); `avx2`: with no wider vectors, where a
    library can be told so.
    """

    peer: str
    onnx: str
    artifact: str
    factory: str
    inputs: str
    threads: int
    avx2: bool = False


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A loaded model: `run()` runs it once on the inputs, `outputs()` then returns what came out.

    `inputs` are held here because libraries use their memory without holding them; `settings` are
    those that were chosen by timing them.
    """

    run: Callable[[], Any]
    outputs: Callable[[], Sequence[Array]]
    inputs: list[Array]
    settings: str = ""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A row of `PEERS`: the name in tables, the package that has it, the function that loads."""

    title: str
    package: str
    load: Callable[[Job, list[Array]], Entrant]


def load(job: Job) -> Entrant:
    """Load an entrant, on the threads of the job."""
    return PEERS[job.peer].load(job, read_arrays(Path(job.inputs)))


def write_arrays(path: Path, arrays: Iterable[Array]) -> None:
    """Write an .npz file, its arrays named by position."""
    np.savez(path, **{str(k): array for k, array in enumerate(arrays)})


def read_arrays(path: Path) -> list[Array]:
    """Return the arrays of such a file."""
    with np.load(path, allow_pickle=False) as archive:
        return [archive[str(k)] for k in range(len(archive.files))]


def _artifact(job: Job, arrays: list[Array]) -> Entrant:
    """Compiled by mlc, run in place."""
    from mlc.runtime.session import open as open_session
    from mlc.runtime.session import threads_in_use

    session = open_session(job.artifact, threads=job.threads)
    if threads_in_use() != job.threads:
        raise RunError(
            f"TVM's pool has {threads_in_use()} thread(s) where {job.threads} were asked for",
            f"--threads {threads_in_use()}",
        )
    for view, array in zip(session.input_views, arrays, strict=True):
        view[...] = array
    return Entrant(run=session.run_in_place, outputs=lambda: session.output_views, inputs=arrays)


def _onnxruntime(job: Job, arrays: list[Array]) -> Entrant:
    """All its graph optimizations; inputs and outputs bound once."""
    from mlc.runtime.reference import Reference

    reference = Reference(Path(job.onnx), optimize=True, threads=job.threads)
    inputs = dict(zip(reference.inputs, arrays, strict=True))
    binding = reference.bind(inputs, reference.run(inputs))
    return Entrant(
        run=lambda: reference.session.run_with_iobinding(binding),
        outputs=binding.copy_outputs_to_cpu,
        inputs=arrays,
    )


def _openvino(job: Job, arrays: list[Array]) -> Entrant:
    """Its latency mode, held to float32 (it would take bfloat16 where the CPU has it)."""
    sys.modules.setdefault("openvino_telemetry", None)  # it sends when imported
    import openvino

    compiled = openvino.Core().compile_model(
        job.onnx,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": job.threads,
        },
    )
    request = compiled.create_infer_request()
    for position, array in enumerate(arrays):
        request.set_input_tensor(position, openvino.Tensor(array, shared_memory=True))
    return Entrant(
        run=lambda: request.infer(share_outputs=True),
        outputs=lambda: [tensor.data for tensor in request.output_tensors],
        inputs=arrays,
    )


def _torch(job: Job, arrays: list[Array]) -> Entrant:
    """Eager mode."""
    return _called(_module(job), arrays)


def _inductor(job: Job, arrays: list[Array]) -> Entrant:
    """torch.compile with weights frozen, with or without max-autotune: whichever is faster here."""
    import torch

    found: list[tuple[Side, Entrant]] = []
    for autotune in (False, True):
        options = {"freezing": True, "max_autotune": autotune}
        settings = "max-autotune" if autotune else "default"
        entrant = _called(torch.compile(_module(job), options=options), arrays, settings)
        found.append((Side(settings, entrant.run), entrant))
    for side, _ in found:
        side.warm_up(PICK_S)  # compiles
    for _ in range(PICK_ROUNDS):
        for side, _ in found:
            side.measure(PICK_S)

    def seconds(pair: tuple[Side, Entrant]) -> float:
        return statistics.median(map(statistics.median, pair[0].blocks))

    return min(found, key=seconds)[1]


def _module(job: Job) -> Any:
    """Return the torch module; torch gets the job's number of threads."""
    import torch

    torch.set_num_threads(job.threads)
    package, _, name = job.factory.partition(":")
    return getattr(importlib.import_module(package), name)()


def _called(module: Any, arrays: list[Array], settings: str = "") -> Entrant:
    import torch

    tensors = [torch.from_numpy(array) for array in arrays]

    @torch.inference_mode()
    def run() -> Any:
        return module(*tensors)

    def outputs() -> list[Array]:
        found = run()
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple) else [found])]

    return Entrant(run=run, outputs=outputs, inputs=arrays, settings=settings)


def _tvmc(job: Job, arrays: list[Array]) -> Entrant:
    """What tvmc built, on threads placed by TVM's runtime as it does by default."""
    import tvm
    from tvm.contrib import graph_executor
    from tvm.driver.tvmc.model import TVMCPackage

    package = TVMCPackage(job.artifact)
    library = tvm.runtime.load_module(package.lib_path)
    executor = graph_executor.create(package.graph, library, tvm.cpu())
    executor.load_params(package.params)
    graph, weights = json.loads(package.graph), tvm.runtime.load_param_dict(package.params)
    names = [graph["nodes"][node]["name"] for node in graph["arg_nodes"]]
    inputs = [name for name in names if name not in weights]
    executor.set_input(**dict(zip(inputs, arrays, strict=True)))
    return Entrant(
        run=executor.run,
        outputs=lambda: [executor.get_output(k).numpy() for k in range(executor.get_num_outputs())],
        inputs=arrays,
    )


PEERS = {
    OURS: Peer(title="mlc", package="mlc-compiler", load=_artifact),
    UNTUNED: Peer(title="mlc untuned", package="mlc-compiler", load=_artifact),
    "ort": Peer(title="ONNX Runtime", package="onnxruntime", load=_onnxruntime),
    "openvino": Peer(title="OpenVINO", package="openvino", load=_openvino),
    "torch": Peer(title="torch eager", package="torch", load=_torch),
    "inductor": Peer(title="torch inductor", package="torch", load=_inductor),
    "tvmc": Peer(title="tvmc", package="xtc-tvm-python-bindings", load=_tvmc),
}
DEFAULT = ("ort", "openvino", "torch", "inductor")


def chosen(text: str) -> list[str]:
    """Return the peers named in a list with commas.

    Raises:
        UsageError: there is no such peer.
        MissingToolError: its package is not installed.
    """
    names = text.split(",")
    known = [name for name in PEERS if name not in (OURS, UNTUNED)]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no peer {name!r}", did_you_mean(name, known))
        package = PEERS[name].package
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            others = ",".join(other for other in names if other != name)
            raise MissingToolError(
                f"{PEERS[name].title} is not installed",
                f"pip install -c constraints.txt -e '.[bench]', or --peers {others or 'ort'}",
            ) from None
    return names


def version(name: str) -> str:
    """Return the version of an entrant's package."""
    if name in (OURS, UNTUNED):
        import mlc

        return mlc.__version__
    return importlib.metadata.version(PEERS[name].package)


def environment(job: Job, folder: Path) -> dict[str, str]:
    """Return the environment of a worker: the job's threads and vectors, inductor's files in `folder`."""
    return {
        **os.environ,
        **(AVX2_ONLY if job.avx2 else {}),
        "OMP_NUM_THREADS": str(job.threads),
        "TVM_NUM_THREADS": str(job.threads),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
