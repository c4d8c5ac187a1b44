"""A driver that the simulator stands in for: a GPU of numpy arrays, as `mlc.runtime` drives one."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np

from mlc.emulate.ptx_machine import launch
from mlc.emulate.ptx_memory import Memory
from mlc.emulate.ptx_text import entries
from mlc.errors import RunError
from mlc.gpu.device import Launch
from mlc.options import RpcServerOptions
from mlc.rpc import serve as serving
from mlc.runtime import cuda, cuda_kernel, driver_api, timing

Prepared = tuple[int, Launch, list[Any]]


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
        self.graphs: list[list[Prepared]] = []
        self.forgotten: list[int] = []
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

    def prepare(self, function: int, step: Launch, arguments: list[Any]) -> Prepared:
        return function, step, arguments

    def launch(self, prepared: Prepared) -> None:
        function, step, arguments = prepared
        memory = Memory(self.memory, "buffer")
        values = [word.value for word in arguments]
        launch(self.functions[function], step.grid, step.block, values, memory)

    def record_graph(self, launches: list[Prepared]) -> int:
        self.graphs.append(list(launches))
        return len(self.graphs)

    def replay(self, graph: int) -> None:
        for prepared in self.graphs[graph - 1]:
            self.launch(prepared)

    def forget_graph(self, graph: int) -> None:
        self.forgotten.append(graph)

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


CRASHES, HANGS, FAILS, WRONG = 61, 67, 71, 73  # threads of a block


def scripted(threads: int) -> float:
    """Return the seconds of a launch: long enough to be timed once, fewer threads being faster."""
    return 0.1 + 0.01 * threads


class ScriptedDriver(FakeDriver):
    """A launch takes `scripted` seconds by the threads of a block; blocks of certain sizes do what they should not."""

    arch = (8, 0)
    now = 0.0  # of all of a process

    def launch(self, prepared: Prepared) -> None:
        threads = int(np.prod(prepared[1].block))
        if threads == CRASHES:
            os.kill(os.getpid(), signal.SIGSEGV)
        if threads == HANGS:
            time.sleep(600)
        if threads == FAILS:
            raise RunError("cuLaunchKernel failed: as scripted")
        super().launch(prepared)
        if threads == WRONG:
            for buffer in self.memory:
                buffer[:] += 1
        ScriptedDriver.now += scripted(threads)

    def clock(self) -> float:
        return self.now


class ScriptedTime:
    """Stands for the module `time` where whole models are timed: by the scripted clock."""

    @staticmethod
    def perf_counter_ns() -> int:
        return round(ScriptedDriver.now * 1e9)

    @staticmethod
    def perf_counter() -> float:
        return ScriptedDriver.now

    @staticmethod
    def sleep(seconds: float) -> None:
        """Take no time."""


def serve(tracker: str) -> None:
    """Offer a machine with such a GPU to a tracker, under the key `gpu`."""
    load = cuda_kernel.LoadedKernel.__init__

    def load_ptx(self: Any, driver: Any, program: Any, *, use_cubin: bool) -> None:
        assert use_cubin
        load(self, driver, program, use_cubin=False)  # the simulator reads no machine code

    cuda_kernel.LoadedKernel.__init__ = load_ptx  # type: ignore[method-assign]
    driver_api.Driver = cuda.Driver = ScriptedDriver  # type: ignore[assignment, misc]
    timing.time = ScriptedTime  # type: ignore[assignment]
    options = RpcServerOptions(key="gpu", device="cuda", tracker=tracker, port=0)
    serving.serve_device(options, lambda address: print(address, flush=True))  # noqa: T201


if __name__ == "__main__":
    serve(sys.argv[1])
