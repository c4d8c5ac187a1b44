"""The emulator, and the program that runs in it: found, compiled on first use, started."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlc.cache import key_of
from mlc.cpu import HostCpu, parse_hwcap, physical_cores, usable_cores
from mlc.emulate import runtime
from mlc.errors import BuildError, MissingToolError, RunError

if TYPE_CHECKING:
    from mlc.cache import Cache
    from mlc.events import OnEvent

SOURCE = Path(__file__).with_name("runner.cc")
INSTALL = "`apt-get install qemu-user-static g++-aarch64-linux-gnu` (Debian, Ubuntu)"
_EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
_COMPILER = "aarch64-linux-gnu-g++"
# Every instruction that the emulator knows; vectors of 256 bits where code asks how long they are.
_CPU = "max,sve-default-vector-length=32"
_TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What is installed for emulating: the emulator, and a C++ compiler with its libraries."""

    emulator: str
    compiler: str
    sysroot: str


def find_tools() -> Tools:
    """Return the tools.

    Raises:
        MissingToolError: one is not installed; the hint installs them.
    """
    emulator = next(filter(None, map(shutil.which, _EMULATORS)), None)
    compiler = shutil.which(_COMPILER)
    missing = [
        name for name, path in (("qemu-aarch64", emulator), (_COMPILER, compiler)) if not path
    ]
    if not emulator or not compiler:
        raise MissingToolError(f"emulating needs {' and '.join(missing)}", f"install: {INSTALL}")
    return Tools(emulator=emulator, compiler=compiler, sysroot=_sysroot(compiler))


class Runner:
    """The compiled runner beside TVM's runtime library, in a folder of its own until `close`."""

    def __init__(self, cache: Cache, on_event: OnEvent):
        self.tools = find_tools()
        library = runtime.library(cache, on_event)
        self._folder = tempfile.TemporaryDirectory(prefix="mlc-")
        self.folder = Path(self._folder.name)
        (self.folder / "libtvm_runtime.so").write_bytes(library)
        self._write_program(cache)

    def close(self) -> None:
        """Delete the folder."""
        self._folder.cleanup()

    def cpu(self) -> HostCpu:
        """Return the CPU that the emulator is."""
        hwcap, hwcap2 = map(int, self.run("--hwcap").split())
        return HostCpu(
            arch="aarch64",
            vendor="unknown",
            family=8,
            model=0,
            name="the emulator's CPU",
            features=parse_hwcap(hwcap, hwcap2),
            cores=usable_cores(),
        )

    def run(self, argument: str) -> str:
        """Run the program in the emulator; return what it prints.

        Raises:
            RunError: it failed, or took longer than half an hour.
        """
        threads = os.environ.get("TVM_NUM_THREADS") or str(physical_cores())
        command = [
            self.tools.emulator, "-cpu", _CPU, "-L", self.tools.sysroot,
            str(self.folder / "runner"), argument,
        ]  # fmt: skip
        environment = {**os.environ, "TVM_NUM_THREADS": threads, "TVM_BIND_THREADS": "0"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
                env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RunError(
                f"the emulated run did not end within {_TIMEOUT_S} s",
                "emulated code is 10 to 100 times slower: try a smaller input, or a real machine",
            ) from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-800:] or "it says nothing"
            raise RunError(f"the emulated run failed (exit status {done.returncode}): {said}")
        return done.stdout

    def _write_program(self, cache: Cache) -> None:
        """Put the runner beside the library, from the cache where nothing of it has changed."""
        program = self.folder / "runner"
        key = key_of(
            SOURCE.read_text(), runtime.MEMBER_SHA256, _said(self.tools.compiler, "--version")
        )
        stored = cache.get(runtime.KIND, key)
        if stored is None:
            self._compile(program)
            cache.put(runtime.KIND, key, program.read_bytes())
        else:
            program.write_bytes(stored)
        program.chmod(0o700)

    def _compile(self, program: Path) -> None:
        tvm = _tvm_folder()
        folders = [
            tvm / "include",
            *(tvm / "3rdparty" / name / "include" for name in ("dlpack", "dmlc-core")),
        ]
        command = [
            self.tools.compiler, "-std=c++17", "-O1", "-o", str(program), str(SOURCE),
            *(f"-I{folder}" for folder in folders),
            "-DDMLC_USE_LOGGING_LIBRARY=<tvm/runtime/logging.h>",
            str(self.folder / "libtvm_runtime.so"), "-Wl,-rpath,$ORIGIN",
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise BuildError(
                f"the runner for the emulator cannot be compiled: {done.stderr.strip()[:1500]}",
                f"install the compiler again: {INSTALL}",
            )


def _tvm_folder() -> Path:
    """Return where the TVM package lies, without importing it."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise MissingToolError("TVM is not installed", "`mlc doctor` says what to install")
    return Path(spec.origin).parent


def _sysroot(compiler: str) -> str:
    """Return the folder whose `lib` holds the emulated machine's C library."""
    found = Path(_said(compiler, "-print-file-name=libc.so.6").strip())
    if not found.is_absolute():
        raise MissingToolError(
            f"{compiler} has no C library for the machine it compiles for", f"install: {INSTALL}"
        )
    return str(found.resolve().parent.parent)


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout
