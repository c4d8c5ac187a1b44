"""`mlc run`: one run of an artifact on inputs from files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mlc.errors import RunError, UsageError
from mlc.events import Notice, OnEvent
from mlc.new_file import new_file
from mlc.runtime import inputs as sources
from mlc.runtime.buckets import BucketSession, choose, over
from mlc.runtime.buckets import open as open_session
from mlc.runtime.open_session import DynamicSession, fixed
from mlc.runtime.session import check_inputs, check_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlc.model import TensorSpec
    from mlc.options import RunOptions
    from mlc.runtime.buckets import AnySession, OneSession

Array = np.ndarray[Any, Any]


def run(options: RunOptions, on_event: OnEvent) -> dict[str, Array]:
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
        session = _chosen(opened, options, arrays)
        inputs, bounds = _wanted(session, arrays)
        missing = [spec for spec in inputs if spec.name not in arrays]
        if missing and not options.random:
            raise RunError(
                "no values for " + "; ".join(map(str, missing)),
                "give them with --input NAME=FILE.npy, or --random for random ones",
            )
        if missing:
            filled = sources.random(missing, options.seed, bounds)
            names = ", ".join(filled)
            on_event(Notice(text=f"random values (seed {options.seed}) for: {names}"))
            arrays.update(filled)
        if not isinstance(session, BucketSession):
            check_inputs(session.inputs, arrays)
        if not options.allow_nan:
            sources.refuse_nan(arrays)
        if isinstance(session, BucketSession):
            outputs = _run_in_bucket(session, arrays, on_event)
        else:
            outputs = session.run(arrays)
    if options.output:
        save_npz(Path(options.output), outputs)
    return outputs


def _chosen(
    opened: AnySession, options: RunOptions, arrays: Mapping[str, Array]
) -> OneSession | BucketSession:
    """Return the session of the sizes that `--shape` and the inputs ask for."""
    if isinstance(opened, BucketSession):
        return opened.bucket(choose(opened, options.shapes)) if options.shapes else opened
    if isinstance(opened, DynamicSession) or options.shapes:
        return fixed(opened, options.shapes, arrays)
    return opened


def _opened(options: RunOptions) -> AnySession:
    path = Path(options.artifact)
    if options.device == "cuda":
        from mlc.runtime.cuda import CudaSession

        return over(path, lambda bucket: CudaSession(path, bucket=bucket))
    return open_session(path, threads=options.threads)


def _wanted(
    session: OneSession | BucketSession, given: Mapping[str, Array]
) -> tuple[tuple[TensorSpec, ...], Mapping[str, int]]:
    """Return the inputs, and the bounds of indices, that go with those given: of a bucket's shapes."""
    if not isinstance(session, BucketSession):
        return session.inputs, session.manifest.get("index_bounds", {})
    entries = zip(session.buckets, session.manifest["buckets"], strict=True)
    candidates = [
        (bucket.signature.inputs, entry.get("index_bounds", {})) for bucket, entry in entries
    ]
    for inputs, bounds in candidates:
        if all(s.shape == given[s.name].shape for s in inputs if s.name in given):
            return inputs, bounds
    return candidates[0]


def _run_in_bucket(
    session: BucketSession, arrays: Mapping[str, Array], on_event: OnEvent
) -> dict[str, Array]:
    """Run in the bucket that takes the inputs, and say which that is."""
    pick = session.pick(arrays)
    sizes = ", ".join(f"{dim}={size}" for dim, size in pick.padded.items())
    how = f", padded from {sizes}" if sizes else ""
    on_event(Notice(text=f"runs in the bucket {session.buckets[pick.position]}{how}"))
    return session.run_in(pick, arrays)


def _write_npz(file: IO[bytes], arrays: dict[str, Array]) -> None:
    """Write arrays as `np.savez` would, which has parameters that a name could be equal to."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def save_npz(path: Path, outputs: dict[str, Array]) -> None:
    """Write an .npz whole or not at all; UsageError where that is not possible."""
    with new_file(path) as file:
        _write_npz(file, outputs)
