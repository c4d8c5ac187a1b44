"""The compiles of a matrix: several at a time, as many as cores and free memory allow."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlc import api, isolate, multi_target
from mlc.cpu import usable_cores
from mlc.doctor.machine import free_memory
from mlc.errors import GateError, MlcError, UsageError
from mlc.events import Notice, OnEvent, Progress, Stage, ignore
from mlc.matrix import entries, gates
from mlc.matrix import report as reports
from mlc.matrix.plan import Planned, compile_options, file_sha256, plan
from mlc.matrix.report import Report, Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlc.events import Event
    from mlc.matrix.entries import Matrix
    from mlc.options import BuildOptions

_BASE_BYTES, _PER_MODEL_BYTE = 400_000_000, 6  # of memory at the peak, measured; see README
_POLL_S = 0.1
_WORK = ".mlc-build"


def build(options: BuildOptions, on_event: OnEvent = ignore) -> Report:
    """Make every artifact that a folder's mlc.toml asks for and that is not up to date.

    A failed one keeps no other from being made (unless `fail_fast`); what an artifact that fails
    had been before stays. The report is written to the output folder after each artifact, so that
    a build that was ended in the middle goes on there. See `report.require` for what failed.

    Raises:
        UsageError: mlc.toml cannot be used, or the output folder cannot be written.
    """
    started = time.perf_counter()
    matrix = entries.read(Path(options.folder), options.output)
    if options.dry_run:
        planned = plan(matrix, reports.read(matrix.output, on_event), on_event)
        results = [
            _result(one, reports.NOT_RUN if one.why else reports.UP_TO_DATE) for one in planned
        ]
        return Report(results=tuple(results), seconds=time.perf_counter() - started)
    with _workshop(matrix.output) as folder:
        planned = plan(matrix, reports.read(matrix.output, on_event), on_event)
        return _Build(matrix, planned, options, on_event, started, folder).run()


def workers(asked: int | None, todo: Sequence[Planned], free: int | None) -> int:
    """Return how many compiles run at a time: `asked` (None: one per core), as memory allows.

    `free` is memory in bytes, None where the system does not say: then one by one.
    """
    if free is None:
        return 1
    sizes = [one.stamp.model_bytes if one.stamp else 0 for one in todo]
    need = _BASE_BYTES + _PER_MODEL_BYTE * max(sizes, default=0)
    return max(1, min(asked or usable_cores(), len(todo), free // need))


@contextlib.contextmanager
def _workshop(output: Path) -> Iterator[Path]:
    """Make the output folder and, for this build alone, one in it for what is not finished.

    Raises:
        UsageError: it cannot be made, or another build is at work there.
    """
    with contextlib.ExitStack() as to_do:
        work = output / _WORK
        try:
            output.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
            to_do.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            to_do.callback(shutil.rmtree, work, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)  # of a build that was killed
            work.mkdir()
        except BlockingIOError:
            raise UsageError(
                f"another `mlc build` is at work in {output}", "wait for it, or use `-o DIR`"
            ) from None
        except OSError as error:
            raise UsageError(
                f"cannot write to the folder {output}: {error.strerror}", "choose one with `-o`"
            ) from None
        yield work


class _Build:
    """A build that is under way: the results so far, and what other threads are to know."""

    def __init__(
        self,
        matrix: Matrix,
        planned: list[Planned],
        options: BuildOptions,
        on_event: OnEvent,
        started: float,
        folder: Path,
    ):
        self.matrix, self.options, self.started = matrix, options, started
        self.folder = folder
        self.todo = [one for one in planned if one.why]
        self.results = {
            one.entry.name: _result(one, reports.NOT_RUN) if one.why else self._kept(one)
            for one in planned
        }
        count = workers(options.jobs or matrix.jobs, self.todo, _free_memory())
        self.count, self.jobs = count, max(1, usable_cores() // count)
        self.stopped = threading.Event()
        self._on_event, self._lock = on_event, threading.Lock()

    def run(self) -> Report:
        """Build what is to be built; return the report, which is written by then."""
        if self.options.fail_fast and any(r.failure for r in self.results.values()):
            self.stopped.set()
        report = self._write()
        if not self.todo:
            return report
        self._say(Notice(text=f"{len(self.todo)} to build, {self.count} at a time"))
        with ThreadPoolExecutor(self.count) as pool:
            waiting = {pool.submit(self._make, one) for one in self.todo}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    report = self._collect(done)
            except BaseException:
                self._stop(waiting)
                self._write()
                raise
        return report

    def _collect(self, done: set[Future[Result]]) -> Report:
        for future in done:
            result = future.result()
            self.results[result.name] = result
            if result.failure is not None and self.options.fail_fast:
                self.stopped.set()
            self._tell(result)
        return self._write()

    def _stop(self, waiting: set[Future[Result]]) -> None:
        """End what is at work, so that its threads end too; nothing else begins."""
        self.stopped.set()
        while waiting:
            isolate.end_calls()
            waiting = wait(waiting, _POLL_S).not_done

    def _make(self, one: Planned) -> Result:
        """Return what became of an entry; runs in a thread of the pool."""
        if self.stopped.is_set():
            return _result(one, reports.NOT_RUN, "an earlier one failed (--fail-fast)")
        began = time.perf_counter()
        temporary = self.folder / one.output.name
        try:
            self._compile(one, temporary)
            verified = gates.require(temporary, self.matrix.gates)
            temporary.replace(one.output)
        except MlcError as error:
            state = reports.GATE_FAILED if isinstance(error, GateError) else reports.FAILED
            failed = replace(_result(one, state), failure=reports.failure_of(error))
            return replace(failed, seconds=time.perf_counter() - began)
        return replace(_built(one, reports.BUILT, verified), seconds=time.perf_counter() - began)

    def _compile(self, one: Planned, output: Path) -> None:
        """Write the artifact of an entry; for several targets a bundle."""
        entry = one.entry
        options = compile_options(
            self.matrix, entry, output=str(output), jobs=self.jobs, cache=self.options.cache
        )

        def say(event: Event) -> None:
            if isinstance(event, Notice):
                self._say(replace(event, text=f"{entry.name}: {event.text}"))
            elif isinstance(event, Stage):
                self._say(self._progress(f"{entry.name}: {event.name}"))

        if len(entry.targets) > 1:
            multi_target.compile_bundle(options, entry.targets, say)
        else:
            api.compile_with(options, say)

    def _kept(self, one: Planned) -> Result:
        """Return the result of an entry that is up to date: the gates may have changed."""
        try:
            return _built(one, reports.UP_TO_DATE, gates.require(one.output, self.matrix.gates))
        except MlcError as error:
            return replace(_built(one, reports.GATE_FAILED, {}), failure=reports.failure_of(error))

    def _write(self) -> Report:
        results = tuple(self.results.values())
        report = Report(results=results, seconds=time.perf_counter() - self.started)
        reports.write(report, self.matrix.output)
        return report

    def _tell(self, result: Result) -> None:
        if result.failure is not None:
            text = f"{result.name}: {result.state}: {result.failure.message}"
            self._say(Notice(text=text, level="warning"))
        elif result.state == reports.BUILT:
            note = f"{result.path}, {(result.bytes or 0) / gates.MB:.1f} MB"
            self._say(Stage(name=result.state, seconds=result.seconds, note=note))

    def _progress(self, item: str) -> Progress:
        names = {one.entry.name for one in self.todo}
        done = sum(self.results[name].state != reports.NOT_RUN for name in names)
        return Progress(name="build", done=done, total=len(names), item=item)

    def _say(self, event: Event) -> None:
        with self._lock:
            self._on_event(event)


def _free_memory() -> int | None:
    try:
        return free_memory()
    except OSError:
        return None


def _result(one: Planned, state: str, why: str | None = None) -> Result:
    return Result(
        name=one.entry.name,
        state=state,
        why=one.why if why is None else why,
        model=str(one.entry.model),
        targets=one.entry.targets,
        path=str(one.output),
    )


def _built(one: Planned, state: str, verified: dict[str, bool]) -> Result:
    return replace(
        _result(one, state),
        bytes=one.output.stat().st_size,
        sha256=file_sha256(one.output),
        stamp=one.stamp,
        verified=verified,
    )
