"""`mlc run`: one run of an artifact on inputs from files."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mlc.errors import RunError, UsageError
from mlc.events import Notice, OnEvent
from mlc.runtime import inputs as sources
from mlc.runtime.open_session import DynamicSession, fixed
from mlc.runtime.session import check_inputs, check_names
from mlc.runtime.session import open as open_session

if TYPE_CHECKING:
    from mlc.options import RunOptions
    from mlc.runtime.cuda import CudaSession
    from mlc.runtime.session import Session


def run(options: RunOptions, on_event: OnEvent) -> dict[str, np.ndarray[Any, Any]]:
    """Return the outputs by name, and save them when `options.output` names a file.

    Raises:
        ArtifactError: the artifact cannot be opened.
        RunError: inputs are missing, do not fit, or hold NaN or infinity.
        UsageError: an option is malformed, or the outputs cannot be saved.
    """
    if options.output and not options.output.endswith(".npz"):
        raise UsageError(f"outputs are saved as .npz, not {options.output!r}")
    with _opened(options) as opened:
        arrays = sources.read(options.inputs, opened.inputs)
        check_names(opened.inputs, arrays)
        session = fixed(opened, options.shapes, arrays)
        missing = [spec for spec in session.inputs if spec.name not in arrays]
        if missing and not options.random:
            raise RunError(
                "no values for " + "; ".join(map(str, missing)),
                "give them with --input NAME=FILE.npy, or --random for random ones",
            )
        if missing:
            filled = sources.random(missing, options.seed, session.manifest.get("index_bounds"))
            names = ", ".join(filled)
            on_event(Notice(text=f"random values (seed {options.seed}) for: {names}"))
            arrays.update(filled)
        check_inputs(session.inputs, arrays)
        if not options.allow_nan:
            sources.refuse_nan(arrays)
        outputs = session.run(arrays)
    if options.output:
        save_npz(Path(options.output), outputs)
    return outputs


def _opened(options: RunOptions) -> Session | DynamicSession | CudaSession:
    if options.device == "cuda":
        from mlc.runtime.cuda import CudaSession

        return CudaSession(Path(options.artifact))
    return open_session(options.artifact, threads=options.threads)


def _write_npz(file: IO[bytes], arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays as `np.savez` would, which has parameters that a name could be equal to."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def save_npz(path: Path, outputs: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write an .npz whole or not at all."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                _write_npz(file, outputs)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", "choose another place with `-o`"
        ) from None
