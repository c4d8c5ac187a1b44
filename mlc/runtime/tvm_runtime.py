"""TVM's runtime library through its C interface: what running an artifact takes, by ctypes.

TVM's Python package does the same, but importing it costs 0.4 s and 46 MB even with the runtime
library alone. Names, types and codes are those of `tvm/runtime/c_runtime_api.h` in TVM 0.19, which is
the only version there is (`tvm_env.check_version`).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
import weakref
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import tvm_env
from mlc.errors import MissingToolError

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]
_INT, _FLOAT, _NULL, _MODULE, _FUNCTION, _TEXT, _TENSOR, _BOOL = 0, 2, 4, 9, 10, 11, 13, 15
_FILE = "libtvm_runtime.dylib" if sys.platform == "darwin" else "libtvm_runtime.so"


class _Value(ctypes.Union):
    _fields_ = (
        ("v_int64", c_int64),
        ("v_float64", c_double),
        ("v_handle", c_void_p),
        ("v_str", c_char_p),
    )


class _DLTensor(ctypes.Structure):  # dlpack.h
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int),
        ("device_id", c_int),
        ("ndim", c_int),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


_Callback = ctypes.CFUNCTYPE(c_int, POINTER(_Value), POINTER(c_int), c_int, c_void_p, c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "TVMFuncGetGlobal": (c_char_p, POINTER(c_void_p)),
    "TVMFuncCall": (c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_void_p),
    "TVMFuncCreateFromCFunc": (_Callback, c_void_p, c_void_p, POINTER(c_void_p)),
    "TVMFuncFree": (c_void_p,),
    "TVMCFuncSetReturn": (c_void_p, POINTER(_Value), POINTER(c_int), c_int),
    "TVMModLoadFromFile": (c_char_p, c_char_p, POINTER(c_void_p)),
    "TVMModGetFunction": (c_void_p, c_char_p, c_int, POINTER(c_void_p)),
    "TVMModFree": (c_void_p,),
    "TVMArrayFromDLPack": (c_void_p, POINTER(c_void_p)),
    "TVMArrayFree": (c_void_p,),
}


class TvmError(Exception):
    """TVM refused a call; the text is its own."""


class Runtime:
    """The loaded library; made by `runtime`."""

    def __init__(self, path: str):
        library = ctypes.CDLL(path)
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
        library.TVMGetLastError.restype = c_char_p
        self.library = library

    def check(self, status: int) -> None:
        """Raise TvmError for a status other than 0."""
        if status:
            raise TvmError((self.library.TVMGetLastError() or b"").decode(errors="replace"))

    def function(self, name: str) -> Function:
        """Return one of the library's functions; TvmError if it has none of that name."""
        handle = c_void_p()
        self.check(self.library.TVMFuncGetGlobal(name.encode(), byref(handle)))
        if not handle.value:
            raise TvmError(f"the library has no function {name}")
        return Function(self, handle.value)

    def callback(self, python: Callable[[int], Tensor | None]) -> Function:
        """Return a function for TVM to call that gives a tensor, or none, for its second argument."""

        def called(values: Any, _codes: Any, _count: int, result: Any, _resource: Any) -> int:
            tensor = python(values[1].v_int64)
            if tensor is None:
                return 0
            value, code = _Value(v_handle=tensor.handle), c_int(_TENSOR)
            return int(self.library.TVMCFuncSetReturn(result, byref(value), byref(code), 1))

        handle, in_c = c_void_p(), _Callback(called)
        self.check(self.library.TVMFuncCreateFromCFunc(in_c, None, None, byref(handle)))
        function = Function(self, handle.value)
        function.kept = in_c
        return function

    def load(self, file: Path) -> Module:
        """Return a shared library that TVM compiled, loaded."""
        handle = c_void_p()
        self.check(self.library.TVMModLoadFromFile(str(file).encode(), b"so", byref(handle)))
        return Module(self, handle.value)

    def tensor(self, array: Array) -> Tensor:
        """Return a tensor over an array's memory, which it keeps alive."""
        capsule, handle = array.__dlpack__(), c_void_p()
        address, rename = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_SetName
        address.argtypes, address.restype = (ctypes.py_object, c_char_p), c_void_p
        rename.argtypes = (ctypes.py_object, c_char_p)
        managed = address(capsule, b"dltensor")
        self.check(self.library.TVMArrayFromDLPack(managed, byref(handle)))
        rename(capsule, b"used_dltensor")  # from here on TVM frees it
        return Tensor(self, handle.value)


class _Held:
    """A handle of the library, freed with this object."""

    code: int
    free: str

    def __init__(self, runtime: Runtime, handle: int | None):
        assert handle
        self.runtime = runtime
        self.handle = handle
        finalizer = weakref.finalize(self, getattr(runtime.library, self.free), handle)
        finalizer.atexit = False


class Tensor(_Held):
    """A tensor of TVM's; `address` is where its elements are."""

    code, free = _TENSOR, "TVMArrayFree"

    @property
    def address(self) -> int:
        """The address of its first element; that of an empty tensor is not to be used."""
        tensor = ctypes.cast(self.handle, POINTER(_DLTensor)).contents
        return int(tensor.data or 0) + int(tensor.byte_offset)


class Module(_Held):
    """A module of TVM's: functions by name."""

    code, free = _MODULE, "TVMModFree"

    def __getitem__(self, name: str) -> Function:
        handle = c_void_p()
        find = self.runtime.library.TVMModGetFunction
        self.runtime.check(find(self.handle, name.encode(), 0, byref(handle)))
        if not handle.value:
            raise TvmError(f"the module has no function {name}")
        return Function(self.runtime, handle.value)


class Function(_Held):
    """A function of TVM's; it takes whole numbers, texts, tensors, modules and functions."""

    code, free = _FUNCTION, "TVMFuncFree"
    kept: Any = None  # what must live as long

    def __call__(self, *arguments: Any) -> Any:
        """Call it.

        Raises:
            TvmError: it failed.
        """
        count = len(arguments)
        values, codes = (_Value * count)(), (c_int * count)()
        for k, argument in enumerate(arguments):
            if isinstance(argument, _Held):
                values[k].v_handle, codes[k] = argument.handle, argument.code
            elif isinstance(argument, str):
                values[k].v_str, codes[k] = argument.encode(), _TEXT
            else:
                values[k].v_int64, codes[k] = argument, _INT
        result, code = _Value(), c_int()
        call = self.runtime.library.TVMFuncCall
        self.runtime.check(call(self.handle, values, codes, count, byref(result), byref(code)))
        return self._answer(result, code.value)

    def _answer(self, result: _Value, code: int) -> Any:
        if code == _NULL:
            return None
        if code in (_INT, _BOOL):
            return result.v_int64
        if code == _FLOAT:
            return result.v_float64
        for kind in (Tensor, Module, Function):
            if kind.code == code:
                return kind(self.runtime, result.v_handle)
        raise TvmError(f"the library answered with type {code}, which is not expected")


def runtime() -> Runtime:
    """Return the runtime of this process: of the compiler where that is loaded, else the small library.

    Raises:
        MissingToolError: TVM is not installed or is another version.
    """
    tvm_env.check_version()
    loaded = sys.modules.get("tvm")
    if loaded is not None:
        return _runtime(str(loaded._ffi.base._LIB._name))
    found = importlib.util.find_spec("tvm")
    return _runtime(str(Path(str(found and found.origin)).with_name(_FILE)))


@functools.cache
def _runtime(path: str) -> Runtime:
    try:
        return Runtime(path)
    except OSError as error:
        raise MissingToolError(
            f"TVM's runtime library cannot be loaded: {error}",
            f"install it again: pip install --force-reinstall {tvm_env.DISTRIBUTION}=={tvm_env.VERSION}",
        ) from error
