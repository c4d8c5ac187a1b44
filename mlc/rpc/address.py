"""Addresses of trackers and servers, and the keys that kinds of devices go by."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from mlc.errors import UsageError

# TVM splits what it sends at white space and colons.
_KEY = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, order=True)
class Address:
    """A TCP address; `host` is a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str, option: str = "--tracker") -> Address:
    """Return the address in `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        UsageError: it is none; `option` is where it came from.
    """
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text.strip())
    if found is None or not 0 < int(found[3]) < 1 << 16:
        raise UsageError(
            f"{option} {text!r} is no address", "write HOST:PORT, such as 127.0.0.1:9190"
        )
    return Address(found[1] or found[2], int(found[3]))


def check_key(key: str) -> str:
    """Return the key of a kind of device.

    Raises:
        UsageError: TVM could not transmit it.
    """
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"--key {key!r} cannot name a kind of device",
            "use up to 64 letters, digits, dots, dashes and underscores, such as rpi4",
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that binds `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
