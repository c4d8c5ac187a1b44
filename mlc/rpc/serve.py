"""Run TVM's RPC tracker, or one of its servers, in this process until it is told to stop.

TVM's `Server` and `Tracker` classes start a process of their own and send it a pickled function,
which outlives whoever started it. Here their loops run in the main thread; a signal ends them, and
no process stays. What else is mended stands at each place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import re
import secrets
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import isolate, tvm_env
from mlc.errors import UsageError
from mlc.isolate import die_with_parent
from mlc.rpc import address, artifacts, facts, gpu
from mlc.rpc.address import Address
from mlc.rpc.tracker import Tracker
from mlc.runtime import driver_api

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlc.options import RpcServerOptions, RpcTrackerOptions

CRASHED = "mlc: the session's process crashed"  # a client tells it from a device that is gone
_PAUSE_S = 1.0


def serve_tracker(options: RpcTrackerOptions, ready: Callable[[Address], None]) -> None:
    """Run a tracker until KeyboardInterrupt; `ready` is told its address.

    Raises:
        UsageError: the address cannot be bound.
        MissingToolError: TVM is not installed.
    """
    listening = _bind(options.host, options.port)
    tvm_env.runtime()
    from tvm.rpc import tracker

    tracker.logger.setLevel(logging.WARNING)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with listening, contextlib.closing(loop):
        handler = tracker.TrackerServerHandler(listening, secrets.token_hex(16))
        ready(_bound(listening))
        handler.run()


def serve_device(options: RpcServerOptions, ready: Callable[[Address], None]) -> None:
    """Offer this machine to a tracker until KeyboardInterrupt; `ready` is told its address.

    Raises:
        UsageError: the address cannot be bound, the tracker's address or the key is malformed.
        TuningError: there is no tracker.
        MissingToolError: TVM is not installed; there is no GPU, where one is to be offered.
    """
    key = address.check_key(options.key)
    at = address.parse(options.tracker)
    # In a process of its own: once the driver has started, the forks that sessions are cannot use it.
    found = isolate.forked(lambda _: driver_api.describe()) if options.device == "cuda" else None
    Tracker(at).close()  # TVM would try for a minute before it says that there is none
    listening = _bind(options.host, options.port)
    tvm_env.runtime()
    from tvm.rpc import server

    server.logger.setLevel(logging.WARNING)
    _offer_functions(found)
    _mend(server)
    # A wildcard is no address to connect to; TVM then takes the one that the tracker sees.
    wildcard = options.host in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
    reported = None if wildcard or address.is_loopback(options.host) else options.host
    home = Path.cwd()
    try:
        with listening:
            ready(_bound(listening))
            while True:
                try:
                    server._listen_loop(
                        listening, _bound(listening).port, key, (at.host, at.port), None, reported
                    )
                except Exception as error:  # noqa: BLE001 - a stranger's bytes, a lost tracker
                    # TVM's loop ends at both; a device is to be there when the tracker is again.
                    server.logger.warning("%s; listening again", tvm_env.reason(error))
                    os.chdir(home)
                    time.sleep(_PAUSE_S)
    finally:
        for session in multiprocessing.active_children():
            session.kill()
            session.join()


def _offer_functions(card: dict[str, str] | None) -> None:
    """Register what `mlc.tune` calls in a session, beside TVM's own functions."""
    import tvm

    from mlc.runtime.session import set_threads
    from mlc.runtime.timing import waiting_seconds
    from mlc.tune.place import pattern
    from mlc.tune.worker import limit_memory

    def begin(threads: int, memory_bytes: int) -> None:
        limit_memory(memory_bytes)
        set_threads(threads)

    def fill(tensor: Any, seed: int) -> None:
        tensor.copyfrom(pattern(tensor.shape, tensor.dtype, seed))

    for name, function in {
        facts.FUNCTION: partial(facts.here, card),
        **({gpu.FUNCTION: gpu.answer} if card else {}),
        artifacts.APPEND: artifacts.append,
        artifacts.FUNCTION: artifacts.answer,
        "mlc.begin": begin,
        "mlc.fill": fill,
        "mlc.waiting_seconds": waiting_seconds,
    }.items():
        tvm.register_func(name, function, override=True)


def _mend(server: Any) -> None:
    """Give TVM's server sessions that may crash, and that end when they should."""
    # Sessions are forked: a spawned one would not have our functions.
    multiprocessing.set_start_method("fork", force=True)
    os.register_at_fork(after_in_child=_become_session)
    serving = server._serving

    def guarded(connection: Any, client: Any, opts: Any, libraries: Any) -> None:
        """Survive the end of a session's process, and tell its client.

        TVM's server ends when a kernel crashes, or a client leaves while one runs; and the client
        of a crashed kernel waits for ever.
        """
        home = Path.cwd()
        try:
            serving(connection, client, opts, libraries)
        except RuntimeError as error:
            server._ffi_api.ReturnException(connection.fileno(), f"{CRASHED}{_how(str(error))}")
        finally:
            os.chdir(home)
            connection.close()

    loop = server._serve_loop

    def quiet(*args: Any) -> None:
        """End without a stack dump when the client leaves: clients do, as they please."""
        try:
            loop(*args)
        except Exception as error:  # noqa: BLE001 - TVM raises anything
            server.logger.info("%s", tvm_env.reason(error))
            raise SystemExit(1) from None

    server._serving = guarded
    server._serve_loop = quiet


def _become_session() -> None:
    """In a session's process: end with the server, and by the signal that TVM ends sessions with.

    Python's handlers, which it inherits, would wait for a kernel that hangs.
    """
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _how(text: str) -> str:
    found = re.search(r"error code (-?\d+)", text)
    code = int(found[1]) if found else 0
    if code >= 0:
        return f" (exit status {code})"
    with contextlib.suppress(ValueError):
        return f" ({signal.Signals(-code).name})"
    return f" (signal {-code})"


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is any free one. TVM would take the next free port."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--host {host!r} is no address of this machine ({error})") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(16)
    except OSError as error:
        made.close()
        raise UsageError(
            f"cannot listen at {Address(host, port)}: {error.strerror or error}",
            "--port chooses another port, 0 any free one",
        ) from error
    return made


def _bound(listening: socket.socket) -> Address:
    host, port = listening.getsockname()[:2]
    return Address(str(host), int(port))
