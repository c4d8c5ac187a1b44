"""The few functions of NVIDIA's driver that running an artifact takes, by ctypes.

The driver's library is all that a machine with an NVIDIA GPU has for certain: no toolkit, nothing to
compile. Names and meanings are those of NVIDIA's "CUDA Driver API" reference.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlc.errors import MissingToolError, RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.gpu.device import Launch

Array = np.ndarray[Any, Any]
_LIBRARY = "libcuda.so.1"
_MAX_NAME = 256
_THIS_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: others may go on
_CAPABILITY = (75, 76)  # attributes: major and minor number of the architecture
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuModuleLoadData": (c_void_p, c_void_p),
    "cuModuleGetFunction": (c_void_p, c_void_p, c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventElapsedTime": (c_void_p, c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGetErrorString": (c_int, c_void_p),
}


class Prepared(NamedTuple):
    """A launch in C's types, made once: converting them for every run takes longer than starting it.

    `values` are those of cuLaunchKernel, of which one points to `arguments`.
    """

    values: tuple[Any, ...]
    arguments: tuple[Any, ...]


class Driver:
    """The first GPU of this machine; memory is addresses, functions are handles."""

    def __init__(self, library: str = _LIBRARY):
        """Load the driver and take its first GPU.

        Raises:
            MissingToolError: there is no driver, or it has no GPU.
        """
        try:
            self._library = ctypes.CDLL(library)
            for name, types in _SIGNATURES.items():
                getattr(self._library, name).argtypes = types
        except (OSError, AttributeError):
            raise _missing(f"NVIDIA's driver ({library}) is not installed") from None
        count, self._device = c_int(), c_int()
        try:
            self._call("cuInit", 0)
            self._call("cuDeviceGetCount", byref(count))
        except RunError as error:
            raise _missing(f"NVIDIA's driver does not start: {error.message}") from None
        if count.value < 1:
            raise _missing("NVIDIA's driver finds no GPU")
        self._call("cuDeviceGet", byref(self._device), 0)
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        # A stream of its own, as launches on the default stream cannot be recorded; without flags
        # copies wait for it, and it for them.
        self._stream = c_void_p()
        self._call("cuStreamCreate", byref(self._stream), 0)

    def capability(self) -> tuple[int, int]:
        """Return the architecture: (8, 6) for sm_86."""
        values = []
        for attribute in _CAPABILITY:
            value = c_int()
            self._call("cuDeviceGetAttribute", byref(value), attribute, self._device)
            values.append(value.value)
        return values[0], values[1]

    def name(self) -> str:
        """Return what NVIDIA calls the GPU: "NVIDIA A100-SXM4-40GB"."""
        text = ctypes.create_string_buffer(_MAX_NAME)
        self._call("cuDeviceGetName", text, _MAX_NAME, self._device)
        return text.value.decode(errors="replace")

    def allocate(self, size: int) -> int:
        """Return the address of new memory of `size` bytes."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), max(1, size))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", address)

    def upload(self, address: int, array: Array) -> None:
        """Copy a C-contiguous array to the GPU."""
        if array.nbytes:
            self._call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)

    def download(self, array: Array, address: int) -> None:
        """Copy from the GPU into a C-contiguous array; waits for what runs."""
        if array.nbytes:
            self._call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)

    def load(self, code: bytes) -> int:
        """Return a module of PTX (which the driver compiles) or of a cubin."""
        module, image = c_void_p(), ctypes.create_string_buffer(code)
        self._call("cuModuleLoadData", byref(module), image)
        return int(module.value or 0)

    def unload(self, module: int) -> None:
        """Give a module back."""
        self._call("cuModuleUnload", module)

    def function(self, module: int, name: str) -> int:
        """Return a kernel of a module."""
        function = c_void_p()
        self._call("cuModuleGetFunction", byref(function), module, name.encode())
        return int(function.value or 0)

    def prepare(self, function: int, step: Launch, arguments: Sequence[Any]) -> Prepared:
        """Return a launch of a kernel for `launch`; `arguments` are ctypes values."""
        places = (c_void_p * len(arguments))(*(ctypes.addressof(value) for value in arguments))
        sizes = (c_uint(size) for size in (*step.grid, *step.block, 0))
        values = (c_void_p(function), *sizes, self._stream, places, None)
        return Prepared(values, tuple(arguments))

    def launch(self, prepared: Prepared) -> None:
        """Start a kernel, as often as wanted. It runs after those started before."""
        self._call("cuLaunchKernel", *prepared.values)

    def record_graph(self, launches: Sequence[Prepared]) -> int:
        """Return a graph of launches, in order, that `replay` starts as one: most of a short launch is its start."""
        graph, ready = c_void_p(), c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, _THIS_THREAD)
        try:
            for prepared in launches:
                self.launch(prepared)
        finally:
            self._call("cuStreamEndCapture", self._stream, byref(graph))
        self._call("cuGraphInstantiateWithFlags", byref(ready), graph, 0)
        self._call("cuGraphDestroy", graph)
        return int(ready.value or 0)

    def replay(self, graph: int) -> None:
        """Start what a graph holds. It runs after what was started before."""
        self._call("cuGraphLaunch", graph, self._stream)

    def forget_graph(self, graph: int) -> None:
        """Give a graph back."""
        self._call("cuGraphExecDestroy", graph)

    def event(self) -> int:
        """Return a mark that `record` can put between launches."""
        mark = c_void_p()
        self._call("cuEventCreate", byref(mark), 0)
        return int(mark.value or 0)

    def record(self, mark: int) -> None:
        """Have the GPU note the time when all that was started before has ended."""
        self._call("cuEventRecord", mark, self._stream)

    def elapsed(self, first: int, second: int) -> float:
        """Return the seconds between two marks that the GPU has passed (half a microsecond's steps)."""
        milliseconds = c_float()
        self._call("cuEventElapsedTime", byref(milliseconds), first, second)
        return milliseconds.value / 1e3

    def forget(self, mark: int) -> None:
        """Give a mark back."""
        self._call("cuEventDestroy_v2", mark)

    def synchronize(self) -> None:
        """Wait until all that was started has ended."""
        self._call("cuCtxSynchronize")

    def close(self) -> None:
        """Let go of the GPU."""
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = c_char_p()
            self._library.cuGetErrorString(status, byref(text))
            said = (text.value or b"").decode(errors="replace")
            raise RunError(f"{name} failed: {said or f'error {status}'}")


def describe() -> dict[str, str]:
    """Return name and architecture of this machine's GPU.

    Raises:
        MissingToolError: there is no driver or no GPU.
    """
    driver = Driver()
    major, minor = driver.capability()
    found = {"name": driver.name(), "sm": f"sm_{major}{minor}"}
    driver.close()
    return found


def _missing(what: str) -> MissingToolError:
    return MissingToolError(
        f"{what}, and running on a GPU needs one",
        "`mlc verify ARTIFACT MODEL --emulate` checks an artifact without a GPU",
    )
