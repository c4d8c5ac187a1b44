"""Whether the chosen configs are faster in the model, not only alone: else they are taken back.

A kernel that is timed alone, over and over, finds its weights in a cache that in the model others have
used in between. So first the kernels are timed in the running model, tuned and untuned in turn, and
choices that do not make theirs faster there are taken back one by one (`settle`; here only). Then the
model is compared end to end, by one function of two artifacts: here (`baseline.versus`), or on a
device of a farm (`afar.versus`).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mlc import artifact
from mlc.errors import TuningError
from mlc.events import Notice
from mlc.tune import afar, baseline
from mlc.tune.final import take_back
from mlc.tune.subject import build_with, symbols_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mlc.tune.baseline import Turn
    from mlc.tune.final import Choice
    from mlc.tune.run import Run
    from mlc.tune.subject import Symbols

    Compare = Callable[[Path, Path], baseline.Versus]


_NAMED = 3  # tasks in a notice


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A tuned artifact beside the untuned one of the same sizes."""

    untuned: Path
    tuned: Path
    symbols: Symbols

    @property
    def paths(self) -> tuple[Path, Path]:
        """Both files, in the order in which they are compared."""
        return self.untuned, self.tuned


def settle(run: Run, choices: list[Choice], folder: Path) -> tuple[list[Choice], list[Tuned]]:
    """Return what stays of a run's choices, and the model compiled with that into `folder`.

    A choice that is taken back stays in the list as what holds instead.
    """
    if not choices:
        return [], []
    made = tuned_pairs(run, folder)
    open_to_change = [choice for choice in choices if choice.undone != choice]
    if run.subject.farm is not None or not open_to_change:
        return choices, made
    threads = run.subject.device.threads
    rounds = [baseline.kernels_in_turn(*pair.paths, threads=threads) for pair in made]
    slow = [c for c in open_to_change if not _faster_inside(run, c, made, rounds)]
    if not take_back(run, slow):
        return choices, made
    names = [run.by_key[choice.key].id for choice in slow]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    text = f"faster alone, but not in the model, so not used: {', '.join(names[:_NAMED])}{more}"
    run.on_event(Notice(text=text))
    choices = [c.undone if c in slow else c for c in choices]
    return choices, tuned_pairs(run, folder)


def _faster_inside(
    run: Run, choice: Choice, made: Sequence[Tuned], rounds: Sequence[Sequence[Turn]]
) -> bool:
    """Return whether the kernels of a task take less time in the tuned model (or are not found)."""
    old: dict[int, float] = defaultdict(float)  # seconds by turn, of all sizes together
    new: dict[int, float] = defaultdict(float)
    for symbols, pair, turns in zip(run.subject.symbols, made, rounds, strict=True):
        untuned, tuned = symbols.get(choice.key, ()), pair.symbols.get(choice.key, ())
        if untuned and tuned:
            for number, (first, second) in enumerate(turns):
                old[number] += sum(first.get(symbol, 0.0) for symbol in untuned)
                new[number] += sum(second.get(symbol, 0.0) for symbol in tuned)
    ratios = [new[number] / old[number] for number in old if old[number]]
    return not ratios or statistics.median(ratios) < 1


def model_times(run: Run, choices: Sequence[Choice], made: Sequence[Tuned]) -> dict[str, Any]:
    """Return how the model with the chosen configs compares with the untuned one, end to end.

    As fields of the report: `model` has those of `Versus`, and is None when this run chose nothing, or
    when no device could compare them: then `not_compared` says why (else it is "").
    """
    if not choices:
        return {"model": None, "not_compared": ""}
    return decide(run, choices, [pair.paths for pair in made], comparison(run))


def comparison(run: Run) -> Compare:
    """Return what times two artifacts of the model in turn, where candidates were timed."""
    subject = run.subject
    if subject.farm is None:
        return partial(baseline.versus, threads=subject.device.threads)
    return partial(
        afar.versus,
        farm=subject.farm,
        threads=subject.device.threads,
        model_seconds=sum(s.calls * (s.untuned or 0.0) for s in run.scheduler.states.values()),
        on_event=run.on_event,
    )


def tuned_pairs(run: Run, folder: Path) -> list[Tuned]:
    """Return the untuned artifacts, each with a tuned one that is compiled into `folder`."""
    subject = run.subject
    records = {key: hit.record for key, hit in run.in_use(run.by_key).items()}
    pairs: list[Tuned] = []
    for built in build_with(subject.options, subject.chosen, records.get, run.on_event):
        tuned = folder / f"tuned{len(pairs)}.mlc"
        artifact.save(built.contents, tuned)
        untuned = subject.untuned[len(pairs)]
        pairs.append(Tuned(untuned=untuned, tuned=tuned, symbols=symbols_of(built)))
    return pairs


def decide(
    run: Run, choices: Sequence[Choice], pairs: Sequence[tuple[Path, Path]], compare: Compare
) -> dict[str, Any]:
    """Compare the artifacts, untuned and tuned; return the fields of the report.

    When the tuned ones are not faster, the choices of this run are taken back: what was chosen before
    it is recorded again, else the default. Where they cannot be compared, the choices stay.
    """
    try:
        found = baseline.together([compare(*pair) for pair in pairs])
    except TuningError as error:
        text = "the tuned configs are used, but not compared with the untuned model end to end"
        run.on_event(
            Notice(
                text=f"{text}: {error.message}; `mlc bench` on the device compares", level="warning"
            )
        )
        return {"model": None, "not_compared": error.message}
    if found.ratio < 1 and take_back(run, choices):
        run.on_event(
            Notice(
                text=f"the tuned model takes {1 / found.ratio:.2f} times as long as the untuned "
                "one: its configs are not used",
                level="warning",
            )
        )
    return {"model": asdict(found), "not_compared": ""}
