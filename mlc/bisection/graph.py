"""A graph by names alone: which nodes make a part of it, and what goes in and comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Step:
    """A node that computes something at run time: label, operator, values read and made."""

    label: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Steps in an order that can be run, and the names of the results.

    Values that no step makes and `inputs` does not name are constants: they come along with
    whatever reads them, since passes treat constants unlike inputs.
    """

    steps: tuple[Step, ...]
    inputs: frozenset[str]
    outputs: tuple[str, ...]

    def live(self, count: int) -> tuple[str, ...]:
        """Return what the first `count` steps make that is read later, or is a result."""
        later = {name for step in self.steps[count:] for name in step.inputs} | set(self.outputs)
        made = [name for step in self.steps[:count] for name in step.outputs]
        return tuple(name for name in made if name in later)

    def ancestors(self, targets: Sequence[str]) -> tuple[int, ...]:
        """Return the positions of the steps that `targets` depend on, in order."""
        wanted = set(targets)
        found = []
        for position in reversed(range(len(self.steps))):
            step = self.steps[position]
            if wanted & set(step.outputs):
                found.append(position)
                wanted |= set(step.inputs)
        return tuple(reversed(found))

    def entering(self, positions: Sequence[int]) -> tuple[str, ...]:
        """Return the values that these steps read and none of them makes, constants left out."""
        made = {name for k in positions for name in self.steps[k].outputs}
        computed = {name for step in self.steps for name in step.outputs} | self.inputs
        read = [name for k in positions for name in self.steps[k].inputs]
        return tuple(dict.fromkeys(n for n in read if n in computed and n not in made))
