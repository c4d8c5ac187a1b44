"""Ask a TVM tracker: which servers it knows, and for the use of one.

TVM's own client hides which server it was given, retries for a minute and believes every size it
reads. What it says to a tracker is a few JSON messages, each behind its length (`tvm/rpc/base.py`):
here they are, with time limits, and the tracker's answers taken for untrusted input.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc.errors import TuningError
from mlc.rpc.address import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = 0x2F271
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6  # tvm.rpc.base.TrackerCode
_MAX_BYTES = 1 << 20
_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The use of a server for one session: connect there and give it `match_key`, within 6 s."""

    host: str
    port: int
    match_key: str

    @property
    def address(self) -> Address:
        """Where the server listens."""
        return Address(self.host, self.port)


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a tracker knows: the servers by key; by key how many are free, how many requests wait."""

    servers: dict[str, tuple[Address, ...]]
    free: dict[str, int]
    waiting: dict[str, int]


class Tracker:
    """A connection to a tracker; a context manager.

    A lost connection, or an answer that no tracker gives, is a TuningError everywhere.
    """

    def __init__(self, address: Address):
        """Connect.

        Raises:
            TuningError: nothing answers there, or no tracker does.
        """
        self.address = address
        try:
            self._socket = socket.create_connection((address.host, address.port), _TIMEOUT_S)
        except OSError as error:
            raise TuningError(
                f"no tracker answers at {address} ({error.strerror or error})",
                f"start one there: mlc rpc tracker --port {address.port}",
            ) from error
        try:
            with self._spoken():
                self._socket.sendall(struct.pack("<i", _MAGIC))
                # The tracker takes the magic and a message that came together for garbage: wait.
                if struct.unpack("<i", self._read(4))[0] != _MAGIC:
                    raise ValueError("another protocol")
        except TuningError:
            self.close()
            raise

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what was requested on it is not granted any more."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the socket's number, for selectors: readable when a request is granted."""
        return self._socket.fileno()

    def request(self, key: str) -> None:
        """Ask for the use of a server; `granted` has the answer, in the order of requests."""
        with self._spoken():
            self._send([_REQUEST, key, "", 1])

    def granted(self) -> Grant:
        """Wait up to 5 s for the answer to a request, and return it."""
        with self._spoken():
            code, (host, port, match_key) = self._receive()
            if code != _SUCCESS or not isinstance(match_key, str):
                raise ValueError("no grant")
            address = _address(host, port)
            return Grant(host=address.host, port=address.port, match_key=match_key)

    def status(self) -> Status:
        """Return what the tracker knows."""
        with self._spoken():
            self._send([_SUMMARY])
            code, summary = self._receive()
            if code != _SUCCESS:
                raise ValueError("no summary")
            return _status(summary)

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TuningError(
                f"the tracker at {self.address} is gone ({error.strerror or error})",
                "start it again (`mlc rpc tracker`), then the same command: it continues with what "
                "has been recorded",
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise TuningError(
                f"what answers at {self.address} is no TVM tracker ({error})",
                "`mlc rpc status --tracker HOST:PORT` looks",
            ) from error

    def _send(self, message: list[Any]) -> None:
        data = json.dumps(message).encode()
        self._socket.sendall(struct.pack("<i", len(data)) + data)

    def _receive(self) -> Any:
        size = struct.unpack("<i", self._read(4))[0]
        if not 0 < size <= _MAX_BYTES:
            raise ValueError(f"a message of {size} bytes")
        return json.loads(self._read(size))

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionResetError("it closed the connection")
            data += part
        return data


def _status(summary: Any) -> Status:
    servers: dict[str, list[Address]] = {}
    for server in summary["server_info"]:
        _, _, key = str(server["key"]).partition(":")  # "server:rpi4"
        servers.setdefault(key, []).append(_address(*server["addr"]))
    queues = {str(key): queue for key, queue in summary["queue_info"].items()}
    return Status(
        servers={key: tuple(sorted(found)) for key, found in servers.items()},
        free={key: int(queue["free"]) for key, queue in queues.items()},
        waiting={key: int(queue["pending"]) for key, queue in queues.items()},
    )


def _address(host: Any, port: Any) -> Address:
    if not isinstance(host, str) or not isinstance(port, int) or not 0 < port < 1 << 16:
        raise ValueError("no address")
    return Address(host, port)
