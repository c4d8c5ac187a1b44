"""Check and compile one file in a fork with limits, and say how that ended.

An end is good if the model compiles or an `MlcError` says why not. A crash of native code (TVM and
ONNX Runtime abort on some inputs) must have become a `BuildError`, which `isolate` makes of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mlc import driver, isolate
from mlc.errors import MlcError
from mlc.events import ignore
from mlc.frontend import load, onnx_file
from mlc.inspection.check import check_model
from mlc.options import CheckOptions, CompileOptions

LIMIT_S = 60
LIMIT_BYTES = 3 << 30  # of what an attempt may add to the address space
_BUG = "bug in mlc"


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: `done`, `refused`, `crashed` (and was contained), `hung`, or a `bug`."""

    status: str
    message: str = ""
    exit_code: int = 0

    @property
    def good(self) -> bool:
        """Whether mlc did what it should."""
        return self.status in ("done", "refused", "crashed")


def attempt(path: Path, work: Callable[[Path], None]) -> Ending:
    """Return how some work on the file at `path` ends, in a fork of this process."""

    def limited(_: object) -> None:
        with _limits():
            work(path)

    try:
        isolate.forked(limited)
    except MlcError as error:
        return _ending(error)
    return Ending("done")


def checked(path: Path) -> None:
    """`mlc check`."""
    check_model(asdict(CheckOptions(path=str(path))), ignore)


def imported(path: Path) -> None:
    """`mlc check`, then the import to Relay."""
    checked(path)
    load.load(onnx_file.read(path), (), ignore)


def compiled(path: Path, target: str = "llvm") -> None:
    """`mlc compile`."""
    options = CompileOptions(
        model=str(path), output=str(path.with_suffix(".mlc")), target=target, jobs=1,
        logs=str(path.parent),
    )  # fmt: skip
    driver.compile_model(asdict(options), ignore)


def _ending(error: MlcError) -> Ending:
    status = "refused"
    if _BUG in (error.hint or ""):
        status = "bug"
    elif "SIGALRM" in error.message:
        status = "hung"
    elif "ended by" in error.message or "ended early" in error.message:
        status = "crashed"
    detail = error.detail if status == "bug" else ""
    return Ending(status, f"{error.message}{detail}", error.exit_code)


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Bound this process: an allocation over the limit fails, and the time's end ends it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))
    faulthandler.disable()  # pytest's would write to the terminal
    signal.alarm(LIMIT_S)  # its default ends the process
    yield
    signal.alarm(0)
