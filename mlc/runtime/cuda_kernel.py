"""One kernel's program on a GPU: its code loaded, its launches ready to start.

A session has one of these for every kernel of its graph, a server that times candidates one for each.
"""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_uint64
from typing import TYPE_CHECKING, Any

from mlc.errors import RunError
from mlc.gpu.device import INT32, INT64, TENSOR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.gpu.device import Program


class LoadedKernel:
    """The code of a program, loaded by a driver (`mlc.runtime.driver_api.Driver`)."""

    def __init__(self, driver: Any, program: Program, *, use_cubin: bool):
        """Load the machine code, or have the driver compile the PTX.

        Raises:
            RunError: the driver refuses the code, or a launch names a function that it lacks.
        """
        self._driver = driver
        self.program = program
        code = program.cubin if use_cubin else program.ptx.encode() + b"\0"
        self._module = driver.load(code)
        names = {step.function for step in program.launches}
        self._functions = {name: driver.function(self._module, name) for name in names}

    def calls(self, tensors: Sequence[int], temporaries: Sequence[int]) -> list[Any]:
        """Return the launches of one call over buffers on the GPU, given by their addresses.

        What a launch is, the driver knows (`Driver.prepare`).

        Raises:
            RunError: a launch asks for a buffer that there is not.
        """
        return [
            self._driver.prepare(
                self._functions[step.function],
                step,
                [_argument(word, tensors, temporaries) for word in step.arguments],
            )
            for step in self.program.launches
        ]

    def unload(self) -> None:
        """Give the code back."""
        self._driver.unload(self._module)


def start(driver: Any, calls: Sequence[Any]) -> None:
    """Start launches, in order; nothing waits for them."""
    for call in calls:
        driver.launch(call)


def _argument(word: tuple[str, int], tensors: Sequence[int], temporaries: Sequence[int]) -> Any:
    kind, number = word
    if kind == INT32:
        return c_int32(number)
    if kind == INT64:
        return c_int64(number)
    places = tensors if kind == TENSOR else temporaries
    if not 0 <= number < len(places):
        raise RunError("a launch asks for a tensor that its kernel does not have")
    return c_uint64(places[number])
