"""The first operator of the graph that diverges, and the smallest part around it that shows it.

First the shortest beginning of the graph that is bad, by bisection: its last operator is where the
fault enters. Its results are those that flow on, no more: every further result would keep operators
from being fused, and with that may hide the fault. Then, from that operator backwards, the smallest
part that is bad on the reference's own values, by doubling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlc import isolate
from mlc.bisection.cut import Wanted, part
from mlc.bisection.search import BAD, GOOD, UNCLEAR, boundary, smallest
from mlc.bisection.trial import OK, Outcome
from mlc.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.bisection.graph import Graph

Try = Callable[[str, Path, Path], Outcome]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the graph that is bad: its steps, and the files that hold it and its inputs.

    `steps` are positions in the graph; `suspects` those of which one is the first to diverge (one,
    but where neighbours could not be told apart).
    """

    steps: tuple[int, ...]
    suspects: tuple[int, ...]
    model: Path
    inputs: Path


class Cutter:
    """Writes parts of one graph and says whether they show the fault that is sought."""

    def __init__(self, graph: Graph, folder: Path, sought: str, attempt: Try):
        self.graph = graph
        self.folder = folder
        self.sought = sought
        self.attempt = attempt
        self.wrong: tuple[str, ...] = ()  # outputs of the last part that was bad

    def narrow(self) -> Part | None:
        """Return the smallest bad part that ends where the fault enters; None if none is bad."""
        count = len(self.graph.steps)
        if count == 0 or self._beginning(count) != BAD:
            return None
        good, bad = boundary(0, count, self._beginning)
        suspects = tuple(range(good, bad))
        made = [name for k in suspects for name in self.graph.steps[k].outputs]
        flowing = [name for name in self.graph.live(bad) if name in made]
        targets = [name for name in flowing if name in self.wrong] or flowing
        behind = self.graph.ancestors(targets)
        size = smallest(len(behind), lambda k: self._probe(behind[-k:], targets))
        steps = behind[-size:] if size else self._needed(bad)
        outputs = targets if size else self.graph.live(bad)
        model, inputs = self._write(steps, outputs)
        return Part(steps=steps, suspects=suspects, model=model, inputs=inputs)

    def _beginning(self, count: int) -> str:
        return self._probe(self._needed(count), self.graph.live(count))

    def _needed(self, count: int) -> tuple[int, ...]:
        return self.graph.ancestors(self.graph.live(count))

    def _probe(self, positions: Sequence[int], outputs: Sequence[str]) -> str:
        last = self.graph.steps[positions[-1]]
        what = f"{len(positions)} nodes up to {last.label!r} ({last.operator})"
        try:
            outcome = self.attempt(what, *self._write(positions, outputs))
        except ModelError:  # the reference cannot run this part
            return UNCLEAR
        if outcome.kind == self.sought:
            self.wrong = outcome.wrong
            return BAD
        return GOOD if outcome.kind == OK else UNCLEAR

    def _write(self, positions: Sequence[int], outputs: Sequence[str]) -> tuple[Path, Path]:
        model, inputs = self.folder / "part.onnx", self.folder / "part.npz"
        wanted = Wanted(
            positions=tuple(positions),
            entering=self.graph.entering(positions),
            outputs=tuple(outputs),
        )
        isolate.forked(partial(part, self.folder, wanted, model, inputs))
        return model, inputs
