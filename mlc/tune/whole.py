"""Whether the chosen configs make the whole model faster, where it was tuned: else they are taken back.

Kernels that are fast alone may be slow together. The comparison is one function of two artifacts: here
(`baseline.versus`), or on a device of a farm (`afar.versus`).
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from mlc import artifact
from mlc.errors import TuningError
from mlc.events import Notice
from mlc.tune import afar, baseline
from mlc.tune.final import take_back
from mlc.tune.subject import build_with

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mlc.tune.final import Choice
    from mlc.tune.run import Run

    Compare = Callable[[Path, Path], baseline.Versus]


def model_times(run: Run, choices: Sequence[Choice], folder: Path) -> dict[str, Any]:
    """Return how the model with the chosen configs compares with the untuned one, end to end.

    As fields of the report: `model` has those of `Versus`, and is None when this run chose nothing, or
    when no device could compare them: then `not_compared` says why (else it is "").
    """
    if not choices:
        return {"model": None, "not_compared": ""}
    return decide(run, choices, tuned_pairs(run, folder), comparison(run))


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


def tuned_pairs(run: Run, folder: Path) -> list[tuple[Path, Path]]:
    """Return the untuned artifacts, each with a tuned one that is compiled into `folder`."""
    subject = run.subject
    records = {key: hit.record for key, hit in run.in_use(run.by_key).items()}
    pairs: list[tuple[Path, Path]] = []
    for built in build_with(subject.options, subject.chosen, records.get, run.on_event):
        tuned = folder / f"tuned{len(pairs)}.mlc"
        artifact.save(built.contents, tuned)
        pairs.append((subject.untuned[len(pairs)], tuned))
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
