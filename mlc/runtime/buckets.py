"""An opened artifact with several buckets: each run goes to the bucket of its inputs' shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import buckets
from mlc.bundle import load, read_manifest
from mlc.errors import RunError, UsageError
from mlc.runtime.closing import Closing
from mlc.runtime.open_session import DynamicSession, fixed
from mlc.runtime.session import Session, check_names, in_order, load_library

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from mlc.artifact import Artifact
    from mlc.buckets import Bucket
    from mlc.emulate.cuda import SimulatedSession
    from mlc.emulate.session import EmulatedSession
    from mlc.runtime.cuda import CudaSession

    OneSession: TypeAlias = Session | EmulatedSession | SimulatedSession | CudaSession
    AnySession: TypeAlias = "OneSession | BucketSession | DynamicSession"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Pick:
    """Which bucket takes some inputs; `padded` maps dimensions that are filled up to their size."""

    position: int
    padded: dict[str, int]


class BucketSession(Closing):
    """A model that can be run on inputs of several shapes; made by `open`.

    Weights and code are there once. What else a bucket needs (its executor, buffers for its
    intermediate results) is set up when it is first used. Not thread-safe: one session per thread.
    """

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], open_one: Callable[[int], OneSession]
    ):
        """`open_one` opens the bucket at a position of the checked manifest's list."""
        self.path = path
        self.manifest = manifest
        self.buckets = buckets.read(path, manifest)
        first = self.buckets[0].signature
        #: names and dtypes of all buckets; the shapes are the first one's
        self.inputs, self.outputs = first.inputs, first.outputs
        self._open_one: Callable[[int], OneSession] | None = open_one
        self._opened: dict[int, OneSession] = {}
        dims = self.buckets[0].dims
        self._axes = {
            side: {dim: buckets.axes(dim, self.buckets, side) for dim in dims}
            for side in ("inputs", "outputs")
        }

    def run(self, inputs: Mapping[str, Array] | Sequence[Array]) -> dict[str, Array]:
        """Run the model once, in the bucket whose shapes are those of the inputs.

        Where there is none, in the smallest larger one that `pick` finds: the inputs are filled up
        with zeros, and the outputs are cut to the size that was given.

        Args:
            inputs: arrays by input name, or in the order of `self.inputs`; dtypes must be theirs.

        Returns:
            Fresh arrays by output name.

        Raises:
            RunError: an input is missing or unknown, no bucket takes the shapes, a dtype is another
                one; or the session is closed.
        """
        given = {name: np.asarray(array) for name, array in in_order(self.inputs, inputs).items()}
        return self.run_in(self.pick(given), given)

    def pick(self, inputs: Mapping[str, Array]) -> Pick:
        """Return which bucket takes some inputs, all of them given.

        The one with exactly their shapes; else, along dimensions for which compiling found padding
        to be right (`padding` in the manifest), the one with the fewest elements that is larger.

        Raises:
            RunError: there is none; or an input is missing or unknown.
        """
        check_names(self.inputs, inputs)
        for spec in self.inputs:
            if spec.name not in inputs:
                raise RunError(f"input {spec.name!r} is missing", f"it is {spec.dtype}")
        given = {name: np.shape(array) for name, array in inputs.items()}
        exact = [k for k, bucket in enumerate(self.buckets) if _shapes(bucket) == given]
        if exact:
            return Pick(position=exact[0], padded={})
        offered = self.manifest["padding"]["offered"]
        sizes = {dim: size for dim in offered if (size := self._size(dim, given))}
        larger = [k for k in range(len(self.buckets)) if self._fits(k, given, sizes)]
        if not larger:
            raise self._no_bucket(given, offered)
        best = min(larger, key=lambda k: sum(map(math.prod, _shapes(self.buckets[k]).values())))
        dims = self.buckets[best].dims
        padded = {dim: size for dim, size in sizes.items() if size < dims[dim]}
        return Pick(position=best, padded=padded)

    def run_in(self, pick: Pick, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model in a bucket, padded as it says: see `pick`; all else as for `run`."""
        session = self.bucket(pick.position)
        shapes = _shapes(self.buckets[pick.position])
        filled = {name: _filled(np.asarray(a), shapes[name]) for name, a in inputs.items()}
        outputs = session.run(filled)
        for dim, size in pick.padded.items():
            for name, axes in self._axes["outputs"][dim].items():
                for axis in axes:
                    outputs[name] = outputs[name].take(range(size), axis)
        return outputs

    def bucket(self, position: int = 0) -> OneSession:
        """Return the session of one bucket, opened when it is first asked for; it stays ours.

        Raises:
            RunError: this session is closed.
            ArtifactError: the bucket cannot be set up.
        """
        if self._open_one is None:
            raise RunError("the session is closed", f"open {self.path} again")
        if position not in self._opened:
            self._opened[position] = self._open_one(position)
        return self._opened[position]

    def close(self) -> None:
        """Release the buffers of all buckets."""
        for session in self._opened.values():
            session.close()
        self._opened, self._open_one = {}, None

    def _fits(
        self, position: int, given: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
    ) -> bool:
        """Return whether the inputs become a bucket's when these dimensions are filled up."""
        bucket = self.buckets[position]
        if any(size > bucket.dims[dim] for dim, size in sizes.items()):
            return False
        small = buckets.resized(bucket.signature.inputs, sizes, self._axes["inputs"])
        return all(spec.shape == given[spec.name] for spec in small)

    def _size(self, dim: str, given: Mapping[str, tuple[int, ...]]) -> int | None:
        """Return the size that inputs of these shapes give a dimension; None: they do not tell."""
        for name, axes in self._axes["inputs"].get(dim, {}).items():
            if axes and axes[0] < len(given[name]):
                return int(given[name][axes[0]])
        return None

    def _no_bucket(self, given: Mapping[str, tuple[int, ...]], offered: Sequence[str]) -> RunError:
        shown = "; ".join(f"{name}[{', '.join(map(str, s))}]" for name, s in given.items())
        there = "; ".join(f"{bucket}: {_listed(bucket)}" for bucket in self.buckets)
        smaller = f", smaller inputs are padded along {', '.join(offered)}" if offered else ""
        return RunError(
            f"no bucket of {self.path} takes {shown}",
            f"there are {there}{smaller}; compile with this size too (`--shape DIM=1,4,16`)",
        )


def open(  # noqa: A001 - mlc.open
    path: str | Path, *, threads: int | None = None, target: str | None = None
) -> Session | BucketSession | DynamicSession:
    """Open an artifact for running: of one shape, several, or open ones; see `runtime.session.open`.

    Raises:
        ArtifactError: it is damaged, of a newer format, or for another machine.
    """
    artifact = load(Path(path), target=target)
    if "dynamic" in artifact.manifest:
        return DynamicSession(artifact, threads)
    if not buckets.is_bucketed(artifact.manifest):
        return Session(artifact, threads)
    return BucketSession(artifact.path, artifact.manifest, _opener(artifact, threads))


def over(
    path: Path, open_bucket: Callable[[int], OneSession], target: str | None = None
) -> OneSession | BucketSession:
    """Open an artifact whose buckets (of the variant for `target`) are opened by their position.

    Raises:
        ArtifactError: no artifact, damaged, or of a newer format.
    """
    manifest = read_manifest(path, target)
    if not buckets.is_bucketed(manifest):
        return open_bucket(0)
    return BucketSession(path, manifest, open_bucket)


def open_one(
    path: str | Path, options: Sequence[str], *, threads: int | None = None, on_gpu: bool = False
) -> Session | CudaSession:
    """Open an artifact at one shape: what `--shape` options say, else its only one or its first.

    Raises:
        UsageError: there is no such bucket, or nothing to choose.
        RunError: a dimension is open, and no size was given.
        ArtifactError: as for `open`.
        MissingToolError: there is no GPU.
    """
    if on_gpu:
        from mlc.runtime.cuda import CudaSession

        position = _position(Path(path), read_manifest(Path(path)), options)
        return CudaSession(Path(path), bucket=position)
    artifact = load(Path(path))
    if "dynamic" in artifact.manifest:
        return fixed(DynamicSession(artifact, threads), options)
    position = _position(artifact.path, artifact.manifest, options)
    return Session(buckets.view(artifact, position), threads)


def choose(session: BucketSession, options: Sequence[str]) -> int:
    """Return the position of the first bucket whose sizes are those of `--shape` options.

    Raises:
        UsageError: there is none.
    """
    return _position(session.path, session.manifest, options)


def _position(path: Path, manifest: Mapping[str, Any], options: Sequence[str]) -> int:
    from mlc.frontend import shapes as requests

    request = requests.parse(options)
    if not buckets.is_bucketed(manifest):
        if options:
            raise UsageError(
                f"{path} was compiled for one shape, there is nothing to choose",
                "leave --shape out; `mlc compile --shape batch=1,4` compiles for several",
            )
        return 0
    known = buckets.read(path, manifest)
    for position, bucket in enumerate(known):
        shapes = _shapes(bucket)
        named = all(bucket.dims.get(dim) == size for dim, size in request.dims.items())
        if named and all(shapes.get(name) == shape for name, shape in request.inputs.items()):
            return position
    raise UsageError(
        f"{path} has no bucket with {', '.join(options)}",
        f"choose one of: {'; '.join(map(str, known))}",
    )


def _opener(artifact: Artifact, threads: int | None) -> Callable[[int], Session]:
    """Return what opens buckets whose code is loaded once."""
    loaded: list[Any] = []

    def open_bucket(position: int) -> Session:
        if not loaded:
            loaded.append(load_library(artifact))
        return Session(buckets.view(artifact, position), threads, library=loaded[0])

    return open_bucket


def _shapes(bucket: Bucket) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in bucket.signature.inputs}


def _listed(bucket: Bucket) -> str:
    return " ".join(
        f"{spec.name}[{', '.join(map(str, spec.shape))}]" for spec in bucket.signature.inputs
    )


def _filled(array: Array, shape: tuple[int, ...]) -> Array:
    """Return an array with zeros behind it up to a shape."""
    if array.shape == shape:
        return array
    filled = np.zeros(shape, array.dtype)
    filled[tuple(map(slice, array.shape))] = array
    return filled
