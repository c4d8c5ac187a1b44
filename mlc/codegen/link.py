"""Link object files to a shared library with the system's C++ compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

from mlc.errors import BuildError, MissingToolError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TIMEOUT_S = 300
_CANDIDATES = ("c++", "g++", "clang++", "cc", "gcc", "clang")


def find_linker() -> list[str]:
    """Return the command of the C++ compiler that links: `$CXX`, else the first one found.

    Raises:
        MissingToolError: there is none.
    """
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        command = shlex.split(chosen)
        if shutil.which(command[0]):
            return command
        raise MissingToolError(f"the compiler named by CXX, {chosen!r}, is not found")
    for name in _CANDIDATES:
        path = shutil.which(name)
        if path:
            return [path]
    raise MissingToolError(
        "no C++ compiler is installed, and linking needs one",
        "install one: `apt-get install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora)",
    )


def link(objects: Sequence[Path], output: Path) -> None:
    """Write the shared library `output`; equal objects give equal bytes.

    Raises:
        MissingToolError: there is no linker.
        BuildError: it failed; the message holds its own words.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".rsp", dir=output.parent) as names:
        # A response file: thousands of kernels would overflow the argument list.
        names.write("\n".join(f'"{path}"' for path in objects))
        names.flush()
        # A model that only hands values on has no kernels, but no library comes of no object.
        empty = () if objects else ("-x", "c", os.devnull, "-x", "none")
        command = [
            *find_linker(), "-shared", "-fPIC", "-nostdlib", "-o", str(output),
            "-Wl,--build-id=none", "-Wl,--gc-sections", "-Wl,-z,noexecstack", "-Wl,-z,relro,-z,now",
            f"@{names.name}", *empty, "-lm", "-lc",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"the linker did not finish within {_TIMEOUT_S} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-1500:]
        raise BuildError(
            f"linking failed ({command[0]}): {words}",
            "`mlc doctor` checks the compiler; CXX chooses another",
        )
