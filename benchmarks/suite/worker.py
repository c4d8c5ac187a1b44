"""A process that runs one entrant: it stands still until it is given a turn.

Requests come as JSON lines on stdin, answers go as JSON lines to a pipe; what libraries print goes
to a log file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.suite import peers
from mlc.errors import MlcError, RunError
from mlc.isolate import die_with_parent
from mlc.runtime.timing import Side, waiting_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
SETTLE_STEP_S, SETTLE_LIMIT_S = 0.03, 1.0


@dataclass(frozen=True, kw_only=True)
class Block:
    """One turn: seconds of each run; how long threads waited for a core meanwhile (s).

    `idle` is the CPU time (s) that the process used between its last turn and this one.
    """

    runs: list[float]
    waited: float
    idle: float


class Worker:
    """The parent's side; a context manager that ends the process."""

    def __init__(self, job: peers.Job, environment: Mapping[str, str], log: Path):
        self.job, self.log = job, log
        self.blocks: list[Block] = []
        read_fd, write_fd = os.pipe()
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.suite.worker", str(write_fd)],
                stdin=subprocess.PIPE, stdout=file, stderr=file, text=True,
                pass_fds=[write_fd], env=dict(environment), cwd=ROOT,
            )  # fmt: skip
        os.close(write_fd)
        self._answers = os.fdopen(read_fd)

    def load(self, outputs: Path, warm_up: float) -> dict[str, Any]:
        """Load the model, run it for `warm_up` seconds and write its outputs to an .npz file.

        Returns peak memory (`rss`, bytes), the `settings` that were chosen, and the `seconds` that
        loading took.

        Raises:
            RunError: it fails.
        """
        return self._ask(job=asdict(self.job), outputs=str(outputs), warm_up=warm_up)

    def turn(self, seconds: float) -> None:
        """Add a block of at least so many seconds; on return the entrant's threads are asleep."""
        self.blocks.append(Block(**self._ask(seconds=seconds)))

    def _ask(self, **request: Any) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            answer = json.loads(self._answers.readline() or "{}")
        except BrokenPipeError:
            answer = {}
        if "result" in answer:
            return dict(answer["result"])
        why = answer.get("error") or f"its process ended ({self._process.wait()})"
        raise RunError(f"{peers.PEERS[self.job.peer].title} failed: {why}", f"see {self.log}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._answers.close()


class _Runner:
    """The child's side."""

    def __init__(self) -> None:
        self.entrant: peers.Entrant | None = None
        self.side: Side | None = None
        self.cpu = 0.0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.side is None:
            return self._load(peers.Job(**request["job"]), request["outputs"], request["warm_up"])
        return self._turn(self.side, request["seconds"])

    def _load(self, job: peers.Job, outputs: str, warm_up: float) -> dict[str, Any]:
        started = time.perf_counter()
        entrant = self.entrant = peers.load(job)
        entrant.run()
        seconds = time.perf_counter() - started
        self.side = Side(job.peer, entrant.run)
        self.side.warm_up(warm_up)
        memory = peak_memory()
        peers.write_arrays(Path(outputs), entrant.outputs())
        self._settle()
        return {"rss": memory, "settings": entrant.settings, "seconds": seconds}

    def _turn(self, side: Side, seconds: float) -> dict[str, Any]:
        idle = time.process_time() - self.cpu
        side.run()  # wakes the threads, and does not count
        before = side.waited
        side.measure(seconds)
        self._settle()
        return {"runs": side.blocks[-1], "waited": side.waited - before, "idle": idle}

    def _settle(self) -> None:
        """Wait until the threads of this process, which spin after a run, are asleep."""
        deadline = time.perf_counter() + SETTLE_LIMIT_S
        busy = True
        while busy and time.perf_counter() < deadline:
            before = time.process_time() + waiting_seconds()
            time.sleep(SETTLE_STEP_S)
            self.cpu = time.process_time()
            busy = self.cpu + waiting_seconds() - before > SETTLE_STEP_S / 10


def peak_memory() -> int:
    """Return the most memory that this program had so far, in bytes (0 but on Linux).

    Not `ru_maxrss`: that one also remembers the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) << 10 for x in lines if x.startswith("VmHWM:")), 0)


def main(answers_fd: int) -> None:
    die_with_parent()
    runner = _Runner()
    with os.fdopen(answers_fd, "w") as answers:
        for line in sys.stdin:
            try:
                answer = {"result": runner.answer(json.loads(line))}
            except Exception as error:  # noqa: BLE001 - the last resort before the process boundary
                traceback.print_exc()
                text = error.message if isinstance(error, MlcError) else f"{error}"
                answer = {"error": f"{type(error).__name__}: {text.strip()[:300]}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    os._exit(0)  # native libraries' exit handlers have nothing to save


if __name__ == "__main__":
    main(int(sys.argv[1]))
