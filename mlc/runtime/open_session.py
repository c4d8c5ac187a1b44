"""An opened artifact with open dimensions, ready to run at any of their sizes."""

from __future__ import annotations

import shlex
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import RunError, UsageError, did_you_mean
from mlc.model import specs
from mlc.runtime import open_graph
from mlc.runtime.closing import Closing
from mlc.runtime.session import Session, check_names, in_order, load_library, set_threads
from mlc.sizes import samples, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlc.artifact import Artifact
    from mlc.model import TensorSpec
    from mlc.runtime.tvm_runtime import Module

Array = np.ndarray[Any, Any]
_KEPT = 8  # sizes whose buffers stay, the ones used last


class DynamicSession(Closing):
    """A model that can be run at any size of its open dimensions; made by `mlc.open`.

    `inputs` and `outputs` have names in their shapes (or expressions of them, see `mlc.sizes`), `dims`
    the bounds of each name. For every combination of sizes a session of fixed shapes is made when it
    is first used, with buffers of its own; the last 8 stay. Weights and code are shared. Not
    thread-safe: one session per thread.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None):
        self.path = artifact.path
        self.manifest = artifact.manifest
        signature = artifact.manifest["signature"]
        self.inputs, self.outputs = specs(signature["inputs"]), specs(signature["outputs"])
        self.dims = open_graph.dimensions(artifact.manifest)
        self._artifact: Artifact | None = artifact
        set_threads(threads)
        self._library: Module | None = load_library(artifact)
        self._sessions: OrderedDict[tuple[int, ...], Session] = OrderedDict()

    def run(self, inputs: Mapping[str, Array] | Sequence[Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: arrays by input name, or in the order of `self.inputs`. Their dtypes, ranks and
                fixed sizes must be those of `self.inputs`, and equal names equal sizes.

        Returns:
            Fresh arrays by output name.

        Raises:
            RunError: an input is missing, unknown, or does not fit; or the session is closed.
        """
        arrays = in_order(self.inputs, inputs)
        return self.at(self.sizes_of(arrays)).run(arrays)

    def at(self, sizes: Mapping[str, int]) -> Session:
        """Return the session of fixed shapes for these sizes; it belongs to this one.

        Raises:
            RunError: a size is missing, unknown or outside its bounds; or the session is closed.
        """
        if self._artifact is None:
            raise RunError("the session is closed", f"open {self.path} again")
        open_graph.check(self.dims, sizes)
        key = tuple(sizes[name] for name in self.dims)
        if key in self._sessions:
            self._sessions.move_to_end(key)
            return self._sessions[key]
        session = Session(open_graph.at(self._artifact, sizes), library=self._library)
        self._sessions[key] = session
        while len(self._sessions) > _KEPT:
            self._sessions.popitem(last=False)[1].close()
        return session

    def sizes_of(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        """Return the sizes of the open dimensions that some arrays have.

        Raises:
            RunError: an array does not fit its input, or two do not fit each other.
        """
        return sizes_of(self.inputs, inputs)

    def close(self) -> None:
        """Release the buffers; views must not be used afterwards."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._artifact, self._library = None, None


def fixed(
    session: Any, shapes: Sequence[str], arrays: Mapping[str, Array] | None = None
) -> Session:
    """Return the session of fixed shapes that `--shape` options and inputs at hand ask for.

    A session that has fixed shapes anyway is returned as it is.

    Raises:
        UsageError: an option names no open dimension, or shapes are fixed.
        RunError: a size is given by neither, or they contradict each other.
    """
    if not isinstance(session, DynamicSession):
        if shapes:
            raise UsageError(
                f"{session.path} has no open dimensions for --shape to choose",
                "leave it out; `mlc compile MODEL --dynamic` keeps dimensions open",
            )
        return session  # type: ignore[no-any-return]
    asked = asked_sizes(session, shapes)
    given = [spec for spec in session.inputs if arrays and spec.name in arrays]
    check_names(session.inputs, arrays or {})
    found = sizes_of(given, {spec.name: (arrays or {})[spec.name] for spec in given})
    for name, size in found.items():
        if asked.get(name, size) != size:
            raise RunError(
                f"dimension {name!r} is {size} in the inputs, and {asked[name]} in --shape"
            )
    sizes = {**asked, **found}
    missing = [name for name in session.dims if name not in sizes]
    if missing:
        examples = samples(session.dims)[-1]
        hint = " ".join(f"--shape {shlex.quote(f'{name}={examples[name]}')}" for name in missing)
        raise RunError(
            f"the size of {', '.join(map(repr, missing))} is open", f"say it, for example {hint}"
        )
    return session.at(sizes)


def asked_sizes(session: DynamicSession, shapes: Sequence[str]) -> dict[str, int]:
    """Return the sizes of dimensions that `--shape` options choose.

    Raises:
        UsageError: an option has another form, or names no open dimension.
    """
    from mlc.frontend.shapes import parse

    request = parse(shapes) if shapes else None
    if request is None:
        return {}
    for name in (*request.inputs, *request.dims):
        if name not in session.dims:
            raise UsageError(
                f"--shape: {name!r} is no open dimension", did_you_mean(name, session.dims)
            )
    return dict(request.dims)


def sizes_of(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> dict[str, int]:
    """Return the sizes of open dimensions that arrays for all of `specs` have.

    Raises:
        RunError: one is missing, unknown or does not fit; or two differ in a dimension of one name.
    """
    check_names(specs, inputs)
    sizes: dict[str, int] = {}
    first: dict[str, str] = {}
    for spec in specs:
        if spec.name not in inputs:
            raise RunError(f"input {spec.name!r} is missing", f"it is {spec}")
        array = np.asarray(inputs[spec.name])
        _require(spec, array)
        for wanted, size in zip(spec.shape, array.shape, strict=True):
            if not isinstance(wanted, str):
                continue
            if sizes.setdefault(wanted, size) != size:
                raise RunError(
                    f"dimension {wanted!r} is {sizes[wanted]} in input {first[wanted]!r}, but {size} in "
                    f"input {spec.name!r} of shape {list(array.shape)}",
                    "equal names are equal sizes: " + "; ".join(map(str, specs)),
                )
            first.setdefault(wanted, spec.name)
    return sizes


def _require(spec: TensorSpec, array: Array) -> None:
    pairs = zip(spec.shape, array.shape, strict=False)
    fits = len(spec.shape) == array.ndim and all(
        isinstance(wanted, str) or wanted == size for wanted, size in pairs
    )
    if not fits or array.dtype.name != spec.dtype:
        shape = ", ".join(map(text, spec.shape))
        raise RunError(
            f"input {spec.name!r} is {array.dtype.name}{list(array.shape)}, "
            f"but the model takes {spec.dtype}[{shape}]",
            f"names stand for any size; convert it, for example `array.astype('{spec.dtype}')`",
        )
