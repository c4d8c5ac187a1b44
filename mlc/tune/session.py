"""The session with a device in which candidates run: one per candidate, from a process of its own.

Built here and linked, uploaded and timed there, by TVM's RPC. What is said of a candidate must come
from the server: silence, or a lost connection, is the device's fault and never the candidate's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import tvm_env
from mlc.codegen.link import Linker, find_linker, link
from mlc.errors import TuningError
from mlc.rpc import facts
from mlc.rpc.serve import CRASHED
from mlc.rpc.tracker import Grant
from mlc.tune.place import SYMBOL, Here, SessionEnded, compile_kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.tune.trial import Settings, Trial

Array = np.ndarray[Any, Any]

TRANSFER_S = 10.0  # for connecting and uploading; the server then ends the session
ASK_S = 20.0


def session_seconds(candidates: int, run_timeout: float) -> float:
    """Return after how long a server ends a session by itself."""
    return TRANSFER_S + candidates * run_timeout


def linker_for(target: Any) -> Linker:
    """Return what links for a target of TVM's.

    Raises:
        MissingToolError: nothing here does; the hint says what to install.
    """
    return find_linker(str(target.attrs.get("mtriple", "")))


def connect(grant: Grant, seconds: float) -> Any:
    """Open a session of at most `seconds`; any exception of TVM's may come."""
    tvm_env.tvm()
    from tvm import rpc

    return rpc.connect(grant.host, grant.port, grant.match_key, session_timeout=seconds)


def describe(session: Any) -> str:
    """Return what a device says of itself, for `facts.read`.

    Raises:
        TuningError: it is no server of mlc.
    """
    try:
        return str(session.get_function(facts.FUNCTION)())
    except AttributeError as error:  # TVM's word for an unknown function
        raise TuningError(
            "the device is served by TVM's own RPC server, which cannot say what it is",
            "serve it with `mlc rpc server`",
        ) from error


class There:
    """A device over RPC; `expected` is what it must say of itself."""

    distant = True
    file_bytes = 64 << 20

    def __init__(self, expected: facts.DeviceFacts):
        self.expected = expected
        self.session: Any = None

    def compile(self, schedule: Any, tensors: Sequence[Any], target: Any) -> Any:
        """Return a shared library with the kernel, in bytes."""
        module = compile_kernel(schedule, tensors, target)
        with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
            code, library = Path(folder, "kernel.o"), Path(folder, "kernel.so")
            module.save(str(code))
            link([code], library, linker_for(target))
            return library.read_bytes()

    def defaults(self) -> list[Any]:
        """Return AutoTVM's fallback, as here."""
        return Here().defaults()

    def enter(self, word: Any, trials: Sequence[Trial], settings: Settings) -> None:
        """Open the session that `word` (a grant) allows, and upload and load the libraries.

        Raises:
            SessionEnded: the device does not answer, or is another one.
        """
        seconds = session_seconds(len(trials), settings.run_timeout)
        self.open(Grant(**word), seconds, (settings.threads, settings.memory_bytes))
        for position, trial in enumerate(trials):
            trial.guard("runtime", self._load, trial, f"{position}.so")

    def open(self, grant: Grant, seconds: float, limits: tuple[int, int] | None) -> None:
        """Open a session with the expected device, for threads and bytes of memory, if those count.

        Raises:
            SessionEnded: the device does not answer, or is another one.
        """
        try:
            self.session = connect(grant, seconds)
            found = facts.read(describe(self.session))
            if limits:
                self.session.get_function("mlc.begin")(*limits)
        except TuningError as error:
            raise SessionEnded("misfit", error.message) from error
        except Exception as error:
            raise SessionEnded("", tvm_env.reason(error)) from error
        if found != self.expected:
            raise SessionEnded("misfit", f"it is {found}, not {self.expected}")

    def _load(self, trial: Trial, name: str) -> None:
        self.session.upload(bytearray(trial.module), name)
        trial.module = self.session.load_module(name)
        trial.module.get_function(SYMBOL)

    def device(self) -> Any:
        """Return the session's CPU."""
        return self.session.cpu(0)

    def tensor(self, array: Array) -> Any:
        """Return a copy of an array on the device."""
        from tvm import nd

        return nd.array(array, self.device())

    def filled(self, shape: tuple[int, ...], dtype: str, seed: int) -> Any:
        """Return a tensor that the device fills with random values: they need not travel."""
        from tvm import nd

        made = nd.empty(shape, dtype, self.device())
        self.session.get_function("mlc.fill")(made, seed)
        return made

    def waiting_seconds(self) -> float:
        """Return the session's process's."""
        return float(self.session.get_function("mlc.waiting_seconds")())

    def judge(self, error: Exception) -> None:
        """Raise SessionEnded unless the server says that the kernel raised something."""
        if self.session is None:  # still building
            return
        from tvm.error import RPCError, RPCSessionTimeoutError

        if isinstance(error, RPCSessionTimeoutError):
            raise SessionEnded("run timeout", "the device ended the session") from error
        text = str(error)
        if CRASHED in text:
            line = next(line for line in text.splitlines() if CRASHED in line)
            raise SessionEnded("crash", line.partition("mlc: ")[2]) from error
        if not isinstance(error, RPCError):
            raise SessionEnded("", tvm_env.reason(error)) from error
