"""Run one function of the library in a process of its own.

TVM aborts the process on some inputs, and so can native code generally. `call` starts a fresh
interpreter, sends the options as JSON, hands on the events it reports, and turns a crash into a
`BuildError` that says what was going on. The options and the result are plain JSON both ways.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

from mlc import events
from mlc.errors import BuildError, MlcError, error_class

Work = Callable[[events.OnEvent], Any]
_running: set[subprocess.Popen[bytes]] = set()
_STACK_BYTES = 512 << 20  # TVM's visitors recurse over the graph; 8 MB end at ~5,000 nodes
_BOOT = (  # drop the current folder from the path: a model's folder must not provide modules
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "sys.argv[1] in sys.path or sys.path.insert(0, sys.argv[1]); "
    "from mlc.isolate import serve; serve(int(sys.argv[2]))"
)


def call(
    function: str,
    options: Any,
    on_event: events.OnEvent = events.ignore,
    *,
    scratch: str | None = None,
) -> Any:
    """Call `function` ("mlc.module:name") with `options` (a dataclass) in a child process.

    The function gets `(options: dict, on_event)` and returns JSON data. `scratch` is a folder for
    its temporary files; the caller deletes it, even when the child could not.

    Raises:
        MlcError: whatever the function raised, rebuilt here.
        BuildError: the child crashed; `detail` holds the end of its stderr.
    """
    request = json.dumps({"function": function, "options": dataclasses.asdict(options)})
    root = str(Path(__file__).resolve().parent.parent)
    read_fd, write_fd = os.pipe()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, root, str(write_fd)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[write_fd],
            env={**os.environ, "TMPDIR": scratch} if scratch else None,
        )
        os.close(write_fd)
        _running.add(process)
        try:
            with os.fdopen(read_fd, encoding="utf-8") as answers:
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(request.encode())
                    process.stdin.close()
                answer = _listen(answers, on_event)
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            _running.discard(process)
        if answer.outcome is None:
            raise _crash(process.returncode, answer.doing, log)
    return _unpack(answer.outcome)


def end_calls() -> None:
    """Kill what other threads' calls are running; they raise BuildError."""
    for process in list(_running):
        process.kill()


@dataclasses.dataclass
class _Answer:
    outcome: dict[str, Any] | None = None
    doing: str = "starting"


def _listen(lines: IO[str], on_event: events.OnEvent) -> _Answer:
    answer = _Answer()
    for line in lines:
        data = json.loads(line)
        if "event" not in data:
            answer.outcome = data
            continue
        event = events.from_json(data)
        if isinstance(event, events.Stage):
            answer.doing = f"in the step after {event.name!r}"
        elif isinstance(event, events.Progress):
            answer.doing = f"in {event.name!r}, {event.item}" if event.item else repr(event.name)
        on_event(event)
    return answer


def _unpack(outcome: dict[str, Any]) -> Any:
    if "error" not in outcome:
        return outcome["result"]
    error = outcome["error"]
    raise error_class(error["class"])(error["message"], error["hint"], detail=error["detail"])


def _crash(returncode: int, doing: str, log: IO[bytes]) -> MlcError:
    log.seek(0)
    tail = log.read()[-4000:].decode(errors="replace")
    if returncode < 0:
        with contextlib.suppress(ValueError):
            how = f"was ended by {signal.Signals(-returncode).name}"
            if returncode == -signal.SIGKILL:
                how += " (out of memory?)"
            return BuildError(
                f"the compiler process {how} {doing}",
                "try a lower level (`-O1`), or `-vv` for what it printed last",
                detail=tail,
            )
    return BuildError(
        f"the compiler process ended early (exit status {returncode}) {doing}",
        "`-vv` shows what it printed last",
        detail=tail,
    )


def serve(write_fd: int) -> None:
    """Answer one request on stdin: the child's side of `call`."""
    request = json.load(sys.stdin)
    module, name = request["function"].split(":")

    def work(on_event: events.OnEvent) -> Any:
        return getattr(importlib.import_module(module), name)(request["options"], on_event)

    _answer(write_fd, work)


def forked(work: Work) -> Any:
    """Call `work(on_event)` in a fork of this process, and return its JSON data.

    A fork has at once what this process has imported; what `work` does to it ends with it. Its
    events tell only what it was doing.

    Raises:
        MlcError: whatever `work` raised, rebuilt here.
        BuildError: the fork crashed; `detail` holds the end of its stderr.
    """
    read_fd, write_fd = os.pipe()
    with tempfile.TemporaryFile() as log:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = fork()
        if pid == 0:
            os.close(read_fd)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            _answer(write_fd, work)
        os.close(write_fd)
        try:
            with os.fdopen(read_fd, encoding="utf-8") as answers:
                answer = _listen(answers, events.ignore)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            status = os.waitpid(pid, 0)[1]
        if answer.outcome is None:
            raise _crash(os.waitstatus_to_exitcode(status), answer.doing, log)
    return _unpack(answer.outcome)


def fork() -> int:
    """Return what `os.fork` does; the child never collects garbage that it inherits.

    Destructors of native objects (ONNX Runtime's sessions) wait for their threads to end, and a fork
    has none of its parent's threads: a collection at the wrong moment would wait for ever.
    """
    collecting = gc.isenabled()
    gc.disable()  # until the child has put aside what it inherits
    try:
        with warnings.catch_warnings():  # threads here are idle, or restarted by their library
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            gc.freeze()
    finally:
        if collecting:
            gc.enable()
    return pid


def _answer(write_fd: int, work: Work) -> NoReturn:
    """Write the events and the outcome of `work` as JSON lines, then end this process."""
    die_with_parent()
    with os.fdopen(write_fd, "w", encoding="utf-8") as answers:
        lock = threading.Lock()

        def send(data: dict[str, Any]) -> None:
            with lock:
                answers.write(json.dumps(data) + "\n")
                answers.flush()

        threading.stack_size(_STACK_BYTES)
        worker = threading.Thread(target=lambda: send(_outcome(work, send)))
        worker.start()
        threading.stack_size(0)
        worker.join()
    # Native libraries' exit handlers have nothing to save and may crash or hang.
    sys.stderr.flush()
    os._exit(0)


def _outcome(work: Work, send: Any) -> dict[str, Any]:
    try:
        return {"result": work(lambda event: send(events.to_json(event)))}
    except Exception as error:  # noqa: BLE001 - the last resort before the process boundary
        found = _as_mlc_error(error)
        detail = found.detail or traceback.format_exc()
    return {
        "error": {
            "class": type(found).__name__,
            "message": found.message,
            "hint": found.hint,
            "detail": detail,
        }
    }


def _as_mlc_error(error: Exception) -> MlcError:
    if isinstance(error, MlcError):
        return error
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return BuildError(
            f"{error.strerror or error}: {error.filename or 'a temporary file'}",
            "free some space, or set TMPDIR to a folder elsewhere" if full else None,
        )
    if isinstance(error, MemoryError):
        return BuildError("out of memory", "close other programs, or use a machine with more")
    return BuildError(
        f"unexpected failure: {type(error).__name__}: {str(error).strip()[-400:]}",
        "this is a bug in mlc; please report it with the output of `-vv`",
    )


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
