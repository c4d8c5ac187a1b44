"""Which devices of a kind may be used, by what became of sessions with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlc.rpc.address import Address

STRIKES = 2  # sessions lost in a row


@dataclass
class Roster:
    """The devices that failed: losses in a row, and why those that are put aside are.

    Every change returns what the user should hear of it.
    """

    losses: dict[Address, int] = field(default_factory=dict)
    aside: dict[Address, str] = field(default_factory=dict)

    def usable(self, known: Iterable[Address]) -> list[Address]:
        """Return those of `known` that are not put aside."""
        return [device for device in known if device not in self.aside]

    def worked(self, device: Address) -> None:
        """Note that a session came to its end."""
        self.losses.pop(device, None)

    def lost(self, device: Address, why: str, known: Iterable[Address]) -> str:
        """Note that a session was lost; `known` are the devices that the tracker has now.

        A device that the tracker no longer has is not put aside: should it come back, it is new.
        """
        if device not in known:
            self.losses.pop(device, None)
            return f"the device at {device} is gone ({why}); its candidate goes to another"
        self.losses[device] = self.losses.get(device, 0) + 1
        if self.losses[device] < STRIKES:
            return f"the device at {device} did not answer ({why}); it gets another chance"
        return self.put_aside(device, f"it did not answer {STRIKES} times in a row: {why}")

    def put_aside(self, device: Address, why: str) -> str:
        """Use a device no more in this run."""
        self.aside[device] = why
        return f"the device at {device} is put aside ({why})"
