"""NVIDIA's assembler: PTX in, machine code for one architecture and what it takes out.

It comes from the package nvidia-cuda-nvcc-cu12 (extra `cuda`), as do NVIDIA's mathematical
functions (libdevice); another `ptxas` on PATH does as well.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlc.errors import BuildError, MissingToolError
from mlc.gpu.device import Resources, UnfitError

INSTALL = "pip install 'mlc-compiler[cuda]'"
_TIMEOUT_S = 300
_TOO_MUCH = re.compile(r"uses too much (\w+ data) \((0x[0-9a-f]+) bytes, (0x[0-9a-f]+) max\)")


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Where the assembler and the mathematical functions (LLVM bitcode) are."""

    ptxas: Path
    libdevice: Path


@functools.cache
def find() -> Tools:
    """Return NVIDIA's tools.

    Raises:
        MissingToolError: they are not installed; the hint is the command.
    """
    packaged = _package()
    ptxas = packaged / "bin" / "ptxas" if packaged else None
    if ptxas is None or not ptxas.is_file():
        found = shutil.which("ptxas")
        ptxas = Path(found) if found else None
    roots = [packaged] if packaged else []
    if ptxas is not None:
        roots.append(ptxas.resolve().parent.parent)
    for root in roots:
        libdevice = root / "nvvm" / "libdevice" / "libdevice.10.bc"
        if ptxas is not None and libdevice.is_file():
            return Tools(ptxas=ptxas, libdevice=libdevice)
    what = "NVIDIA's libdevice is" if ptxas else "NVIDIA's assembler `ptxas` is"
    raise MissingToolError(f"{what} not installed, and compiling for a GPU needs it", INSTALL)


def _package() -> Path | None:
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    except ModuleNotFoundError:
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def version() -> str:
    """Return the assembler's version ("12.9"), for manifests and cache keys.

    Raises:
        MissingToolError: it is not installed.
    """
    return _version(find().ptxas)


@functools.cache
def _version(path: Path) -> str:
    found = re.search(r"release (\d+\.\d+)", _run([str(path), "--version"]).stdout)
    return found.group(1) if found else "unknown"


def assemble(ptx: str, sm: str) -> tuple[bytes, dict[str, Resources]]:
    """Return the cubin of PTX for one architecture, and what each kernel takes.

    Raises:
        UnfitError: a kernel takes more shared memory than a block may have.
        BuildError: the assembler does not accept it; the message holds its own words.
        MissingToolError: the assembler is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        source, output = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx, encoding="utf-8")
        done = _run(
            [str(find().ptxas), "-v", f"-arch={sm}", str(source), "-o", str(output)]
        )  # fmt: skip
        said = done.stdout + done.stderr
        over = _TOO_MUCH.search(said)
        if over:
            what, used, most = over.group(1), int(over.group(2), 16), int(over.group(3), 16)
            raise UnfitError(f"it takes {used} bytes of {what}, and {sm} has {most} for a block")
        if done.returncode:
            raise BuildError(f"ptxas does not accept the code: {said.strip()[:1000]}")
        return output.read_bytes(), statistics(said)


def statistics(said: str) -> dict[str, Resources]:
    """Return what each kernel takes, from the words of `ptxas -v`."""
    found = {}
    for part in re.split(r"Compiling entry function '", said)[1:]:
        found[part.partition("'")[0]] = Resources(
            registers=_number(part, r"Used (\d+) registers"),
            spill_bytes=_number(part, r"(\d+) bytes spill stores"),
            stack_bytes=_number(part, r"(\d+) bytes stack frame"),
            shared_bytes=_number(part, r"(\d+) bytes smem"),
        )
    return found


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"ptxas did not finish within {_TIMEOUT_S} s") from None
    except OSError as error:
        raise MissingToolError(f"ptxas cannot be run: {error.strerror}", INSTALL) from None
