"""A process of its own that speaks with a device: whatever becomes of that, this one goes on."""

from __future__ import annotations

import selectors
import signal
import tempfile
import time
from contextlib import suppress
from os import kill, waitpid
from socket import socketpair
from typing import TYPE_CHECKING, Any

from mlc.tune.foreman import fork
from mlc.tune.worker import Channel

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack


def start(work: Callable[[Channel], None], stack: ExitStack) -> Channel:
    """Call `work` with a channel in a fork, and return the other end; `stack` ends the process."""
    ours, theirs = socketpair()
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    pid = fork(lambda: work(Channel(theirs)), log, [theirs])
    theirs.close()

    def end() -> None:
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
        waitpid(pid, 0)
        ours.close()

    stack.callback(end)
    return Channel(ours)


def readable(source: Any, deadline: float) -> bool:
    """Wait until there is something to read, or `deadline` (of `time.monotonic`); say which."""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        return bool(selector.select(max(0.0, deadline - time.monotonic())))
