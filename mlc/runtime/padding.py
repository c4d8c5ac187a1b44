"""May inputs be filled up with zeros to a bucket's size, and the outputs be cut? Tried, not guessed.

A dimension along which rows do not see each other (a batch) allows it; a mean or attention over it
does not. So it is offered only where every output has the dimension and, in every bucket, sizes
halfway to the next smaller one agree with ONNX Runtime on the unpadded inputs: on random ones, and
on ones whose rows are all alike, with which no row of zeros hides behind larger or smaller ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import buckets, isolate
from mlc.artifact import read_manifest
from mlc.errors import BuildError, RunError
from mlc.events import OnEvent, Stage
from mlc.options import VerifyOptions
from mlc.runtime import inputs as sources
from mlc.runtime.buckets import BucketSession, Pick
from mlc.runtime.buckets import open as open_session
from mlc.runtime.reference import Reference
from mlc.runtime.verify import compare_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlc.options import CompileOptions

Array = np.ndarray[Any, Any]


def facts(artifact: Path, options: CompileOptions, on_event: OnEvent) -> dict[str, Any]:
    """Return the manifest's entry `padding` of an artifact, tried out; {} for one without buckets.

    In a process of its own: a model may end its process on zeros (it divides integers, say).
    """
    manifest = read_manifest(artifact)
    if not buckets.is_bucketed(manifest):
        return {}
    started = time.perf_counter()
    asked = VerifyOptions(artifact=str(artifact), model=options.model, seed=options.seed)
    try:
        found = isolate.call("mlc.runtime.padding:try_out", asked)
    except BuildError as error:
        dims = manifest["buckets"][0]["dims"]
        found = {"offered": [], "refused": dict.fromkeys(dims, f"a padded run: {error.message}")}
    on_event(Stage(name="padding", seconds=time.perf_counter() - started))
    return {"padding": found}


def try_out(fields: dict[str, Any], _on_event: OnEvent) -> dict[str, Any]:
    """Answer `facts`, in the child: the dimensions `offered`, and why others are `refused`."""
    asked = VerifyOptions(**{**fields, "inputs": ()})
    reference = Reference(Path(asked.model))
    with open_session(asked.artifact) as session:
        assert isinstance(session, BucketSession)
        trial = Trial(session=session, reference=reference, seed=asked.seed)
        faults = {dim: trial.fault((dim,)) for dim in session.buckets[0].dims}
        offered = [dim for dim, why in faults.items() if not why]
        if len(offered) > 1:
            faults |= dict.fromkeys(offered, trial.fault(tuple(offered)))
    return {
        "offered": [dim for dim, why in faults.items() if not why],
        "refused": {dim: why for dim, why in faults.items() if why},
    }


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An open artifact beside the model that it must agree with, padded or not."""

    session: BucketSession
    reference: Reference = field(repr=False)
    seed: int

    def fault(self, dims: tuple[str, ...]) -> str:
        """Return why padding along all of these dimensions at once is wrong; "" where it is right."""
        for dim in dims:
            inputs = buckets.axes(dim, self.session.buckets, "inputs")
            if not any(inputs.values()):
                return "no input has it"
            outputs = buckets.axes(dim, self.session.buckets, "outputs")
            for name in (name for name, axes in outputs.items() if not axes):
                return f"output {name!r} does not have it"
        tried = [(k, self.between(k, dims)) for k in range(len(self.session.buckets))]
        tried = [(position, sizes) for position, sizes in tried if sizes]
        if not tried:
            return "there is no size in between"
        return next(filter(None, (self._fault_at(*one) for one in tried)), "")

    def between(self, position: int, dims: tuple[str, ...]) -> dict[str, int]:
        """Return sizes halfway between a bucket's and the next smaller ones, where there are any."""
        found = {}
        for dim in dims:
            size = self.session.buckets[position].dims[dim]
            smaller = [b.dims[dim] for b in self.session.buckets if b.dims[dim] < size]
            below = max(smaller, default=0)
            if below < size - 1:
                found[dim] = (below + size) // 2
        return found

    def _fault_at(self, position: int, sizes: dict[str, int]) -> str:
        """Return what is wrong with a bucket on inputs of these smaller sizes; "" if nothing is."""
        at = ", ".join(f"{dim}={size}" for dim, size in sizes.items())
        precision = self.session.manifest["precision"]
        for feed in self._feeds(position, sizes):
            try:
                expected = self.reference.run(feed)
            except RunError as error:
                return f"the model itself does not run at {at}: {error.message}"
            ours = self.session.run_in(Pick(position=position, padded=sizes), feed)
            for check in compare_outputs(self.session.outputs, ours, expected, precision):
                if not check.passed:
                    return f"output {check.name!r} is wrong by {check.max_abs:.1e} at {at}"
        return ""

    def _feeds(self, position: int, sizes: dict[str, int]) -> Iterator[dict[str, Array]]:
        """Yield inputs of these sizes: random ones, then ones that repeat their first row."""
        entry = self.session.manifest["buckets"][position]
        where = {dim: buckets.axes(dim, self.session.buckets, "inputs") for dim in sizes}
        inputs = self.session.buckets[position].signature.inputs
        specs = buckets.resized(inputs, sizes, where)
        feed = sources.random(specs, self.seed, entry["index_bounds"])
        yield feed
        alike = dict(feed)
        for dim, size in sizes.items():
            for name, axes in where[dim].items():
                for axis in axes:
                    alike[name] = alike[name].take([0] * size, axis)
        yield alike
