"""An artifact for another machine, opened for running in the emulator."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.artifact import GRAPH, LIBRARY, WEIGHTS
from mlc.buckets import view
from mlc.bundle import load, read_manifest
from mlc.cache import open_cache
from mlc.emulate import can_run_in_qemu
from mlc.emulate.runner import Runner
from mlc.errors import RunError, UsageError
from mlc.events import Notice
from mlc.model import TensorSpec, specs
from mlc.runtime.closing import Closing
from mlc.runtime.session import check_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlc.events import OnEvent

Array = np.ndarray[Any, Any]


class EmulatedSession(Closing):
    """A model that can be run, slowly; as much of `mlc.runtime.Session` as `verify` uses."""

    def __init__(self, path: Path, on_event: OnEvent, name: str | None = None, bucket: int = 0):
        """Open an artifact, its hashes checked: of several variants the one for the target `name`, of several buckets one.

        CPU features that the emulator lacks are only said: where code does use one of them, the run
        ends with an illegal instruction, which is an error as well.

        Raises:
            ArtifactError: it is damaged.
            UsageError: it is for a kind of machine that is not emulated.
            MissingToolError: a tool is missing, or the runtime library cannot be fetched.
        """
        target = read_manifest(path, name)["target"]
        if not can_run_in_qemu(target["triple"]):
            raise UsageError(
                f"{path} is for {target['triple']}, and --emulate runs 64-bit Arm Linux and NVIDIA GPUs",
                "leave --emulate out on a machine of that kind",
            )
        self._runner = Runner(open_cache(), on_event)
        cpu = self._runner.cpu()
        missing = set(target["features"]) - cpu.features
        if missing:
            text = f"the emulator does not claim to have {', '.join(sorted(missing))}"
            on_event(Notice(text=f"{text}: code that uses it would fail in it", level="warning"))
        cpu = replace(cpu, features=cpu.features | missing)
        self._artifact = view(load(path, cpu, target=name), bucket)
        self.manifest = self._artifact.manifest
        signature = self.manifest["signature"]
        self.inputs, self.outputs = specs(signature["inputs"]), specs(signature["outputs"])

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; return fresh arrays by output name.

        Raises:
            RunError: an input does not fit, or the emulated run failed.
        """
        arrays = check_inputs(self.inputs, inputs)
        with tempfile.TemporaryDirectory(prefix="mlc-") as name:
            folder = Path(name)
            self._write_job(folder, arrays)
            self._runner.run(name)
            return {
                spec.name: _read(folder / f"output{k}.bin", spec)
                for k, spec in enumerate(self.outputs)
            }

    def _write_job(self, folder: Path, arrays: list[Array]) -> None:
        rows = [f"{len(self.manifest['weights'])} {len(arrays)} {len(self.outputs)}"]
        with (folder / WEIGHTS).open("wb") as file:
            for storage, array in self._artifact.weights():
                rows.append(f"{storage} {file.tell()} {array.nbytes}")
                file.write(array.data)
        (folder / "job.txt").write_text("\n".join(rows) + "\n", encoding="ascii")
        for member in (LIBRARY, GRAPH):
            (folder / member).write_bytes(self._artifact.members[member])
        for k, array in enumerate(arrays):
            (folder / f"input{k}.bin").write_bytes(np.ascontiguousarray(array).tobytes())

    def close(self) -> None:
        """Delete what was written for the emulator."""
        self._runner.close()


def _read(path: Path, spec: TensorSpec) -> Array:
    data = np.frombuffer(path.read_bytes(), np.dtype(spec.dtype))
    if data.size != int(np.prod(spec.shape, dtype=np.int64)):
        raise RunError(f"the emulated run wrote {data.size} values for {spec}")
    return data.reshape(spec.shape)
