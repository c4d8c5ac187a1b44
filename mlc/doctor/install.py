"""Checks of what is installed: Python, packages, TVM's library, a C++ compiler."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc import tvm_env

if TYPE_CHECKING:
    from mlc.doctor import Finding

PYTHONS = ((3, 10), (3, 13))  # the first and the last that TVM's package has wheels for


@dataclass(frozen=True, kw_only=True)
class Package:
    """A distribution that mlc needs: exactly `pin`, or `minimum` and later; or `instead` of it."""

    name: str
    pin: str = ""
    minimum: str = ""
    optional_for: str = ""
    instead: str = ""

    @property
    def requirement(self) -> str:
        """The argument that pip installs it with."""
        return f"{self.name}=={self.pin}" if self.pin else f"'{self.name}>={self.minimum}'"


PACKAGES = (
    Package(name=tvm_env.DISTRIBUTION, pin=tvm_env.VERSION),
    Package(name=tvm_env.LLVM_DISTRIBUTION, pin=tvm_env.LLVM_VERSION),
    Package(name="onnx", minimum="1.21"),
    Package(name="onnxruntime", minimum="1.23"),
    Package(name="numpy", minimum="2.0"),
    Package(name="xgboost", minimum="3.0", instead="xgboost-cpu"),
    Package(name="torch", pin="2.13.0", optional_for="mlc export"),
)


def python_version() -> Finding:
    """Check that TVM's package has a wheel for this Python."""
    low, high = (".".join(map(str, version)) for version in PYTHONS)
    value = ".".join(map(str, sys.version_info[:3]))
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return "ok", value, ""
    return "fail", value, f"install Python {low} to {high}, then: python{high} -m venv .venv"


def package(wanted: Package) -> Finding:
    """Check the installed version of one distribution."""
    install = f"pip install {wanted.requirement}"
    found = _installed(wanted.name) or (_installed(wanted.instead) if wanted.instead else "")
    if not found:
        if wanted.optional_for:
            return "ok", f"not installed (only `{wanted.optional_for}` needs it)", ""
        return "fail", "not installed", install
    right = found.split("+")[0] == wanted.pin if wanted.pin else True
    if right and _version(found) >= _version(wanted.minimum):
        return "ok", found, ""
    return ("warn" if wanted.optional_for else "fail"), found, install


def no_apache_tvm() -> Finding:
    """Check that no other package owns the `tvm` module: files of both would mix."""
    found = _installed("apache-tvm")
    if not found:
        return "ok", "not installed, as it should be", ""
    again = f"pip install --force-reinstall --no-deps {PACKAGES[0].requirement}"
    return "fail", f"{found} overwrites TVM 0.19", f"pip uninstall -y apache-tvm && {again}"


def tvm_loads(code: str, *, runtime_only: bool) -> Finding:
    """Check that TVM's library loads, in a process of its own so that a crash is a finding."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    environment.pop("TVM_USE_RUNTIME_LIB", None)
    if runtime_only:
        environment["TVM_USE_RUNTIME_LIB"] = "1"
    command = [sys.executable, "-c", code]
    both = f"{PACKAGES[0].requirement} {PACKAGES[1].requirement}"
    advice = f"pip install --force-reinstall --no-deps {both}"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return "fail", "does not load within 60 s", advice
    if done.returncode == 0:
        return "ok", done.stdout.strip(), ""
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return "fail", f"does not load: {last}", advice


def cxx_compiler() -> Finding:
    """Check for the C++ compiler that links an artifact's library."""
    candidates = [*shlex.split(os.environ.get("CXX", ""))[:1], "c++", "g++", "clang++"]
    path = next(filter(None, map(shutil.which, candidates)), None)
    if path is None:
        fix = "xcode-select --install" if sys.platform == "darwin" else "sudo apt-get install g++"
        return "fail", f"none of {', '.join(candidates)} found", fix
    done = subprocess.run(
        [path, "--version"], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode != 0:
        return "fail", f"{path} does not run", f"reinstall it, or set CXX to another: {path}"
    return "ok", f"{path}: {(done.stdout.splitlines() or ['no version'])[0]}", ""


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, enough to compare with a minimum."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
