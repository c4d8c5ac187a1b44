"""Time the entrants of one model in turn, each in a process of its own."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.suite.peers import OURS, PEERS, environment, read_arrays
from benchmarks.suite.worker import Worker
from mlc.errors import MismatchError, MlcError
from mlc.runtime.verify import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.suite.peers import Job

WARM_UP_S = 0.5


def race(
    jobs: Sequence[Job], folder: Path, rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Return by entrant what `Worker.load` says and its `blocks`, or why it `failed`.

    Args:
        jobs: mlc's first.
        folder: of the model; holds `reference.npz`, and gets outputs and logs.
        rounds: how many blocks each entrant runs.
        seconds: how long a block is, at least one run.
        say: told what happens.

    Raises:
        MismatchError: an entrant computes something else.
        RunError: mlc fails.
    """
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        workers = []
        for job in jobs:
            say(f"loading {PEERS[job.peer].title}")
            log = folder / f"{job.peer}.log"
            log.unlink(missing_ok=True)
            worker = stack.enter_context(Worker(job, environment(job, folder.parent), log))
            outputs = folder / f"{job.peer}.npz"
            try:
                found[job.peer] = worker.load(outputs, WARM_UP_S)
            except MlcError as error:
                if job.peer == OURS:
                    raise
                say(f"{error.message}; {error.hint}")
                found[job.peer] = {"failed": error.message}
                continue
            require_equal(job.peer, outputs, folder / "reference.npz")
            workers.append(worker)
        say(f"timing {len(workers)} entrants, {rounds} rounds")
        for done in range(rounds):
            for worker in workers if done % 2 == 0 else reversed(workers):
                worker.turn(seconds)
    for worker in workers:
        found[worker.job.peer]["blocks"] = [asdict(block) for block in worker.blocks]
    return found


def require_equal(peer: str, outputs: Path, reference: Path) -> None:
    """Raise MismatchError unless outputs are the reference's, within `mlc verify`'s tolerances."""
    ours, theirs = read_arrays(outputs), read_arrays(reference)
    title = PEERS[peer].title
    if len(ours) != len(theirs):
        raise MismatchError(f"{title} has {len(ours)} outputs, the reference {len(theirs)}")
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        check = compare(f"output {number}", a, b)
        if not check.passed:
            raise MismatchError(
                f"{title} computes something else: {check}",
                "leave it out with --peers, and report it",
            )
