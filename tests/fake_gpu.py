"""A driver that the simulator stands in for: a GPU of numpy arrays, as `mlc.runtime` drives one."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from mlc.emulate.ptx_machine import launch
from mlc.emulate.ptx_memory import Memory
from mlc.emulate.ptx_text import entries
from mlc.gpu.device import Launch


class FakeDriver:
    """Addresses are the simulator's, code is executed by it; `cubins` says what PTX they stand for."""

    made: list[FakeDriver] = []  # noqa: RUF012
    cubins: dict[bytes, str] = {}  # noqa: RUF012
    arch = (8, 6)

    def __init__(self) -> None:
        self.memory: list[np.ndarray] = []
        self.loaded: list[bytes] = []
        self.freed: list[int] = []
        self.unloaded: list[int] = []
        self.functions: list[Any] = []
        self.marks: dict[int, float] = {}
        self.synchronized = 0
        self.closed = False
        self.made.append(self)

    def capability(self) -> tuple[int, int]:
        return self.arch

    def name(self) -> str:
        return "Numpy RTX 4"

    def allocate(self, size: int) -> int:
        self.memory.append(np.full(size, 0xFF, np.uint8))
        return Memory([], "").address(len(self.memory) - 1)

    def free(self, address: int) -> None:
        self.freed.append(address)

    def upload(self, address: int, array: np.ndarray) -> None:
        self._at(address)[: array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, array: np.ndarray, address: int) -> None:
        array.reshape(-1).view(np.uint8)[:] = self._at(address)[: array.nbytes]

    def load(self, code: bytes) -> int:
        self.loaded.append(code)
        return len(self.loaded)

    def unload(self, module: int) -> None:
        self.unloaded.append(module)

    def function(self, module: int, name: str) -> int:
        code = self.loaded[module - 1]
        text = self.cubins[code] if code in self.cubins else code.rstrip(b"\0").decode()
        self.functions.append(entries(text)[name])
        return len(self.functions) - 1

    def launch(self, function: int, step: Launch, arguments: list[Any]) -> None:
        memory = Memory(self.memory, "buffer")
        values = [word.value for word in arguments]
        launch(self.functions[function], step.grid, step.block, values, memory)

    def synchronize(self) -> None:
        self.synchronized += 1

    def event(self) -> int:
        self.marks[len(self.marks) + 1] = 0.0
        return len(self.marks)

    def record(self, mark: int) -> None:
        self.marks[mark] = self.clock()

    def elapsed(self, first: int, second: int) -> float:
        return self.marks[second] - self.marks[first]

    def forget(self, mark: int) -> None:
        assert mark in self.marks

    def clock(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        self.closed = True

    def _at(self, address: int) -> np.ndarray:
        for number, buffer in enumerate(self.memory):
            if Memory([], "").address(number) == address:
                return buffer
        raise AssertionError(address)
