"""Link object files to a shared library: with the system's compiler, or one that links across.

Only the linking is done by these compilers; all code comes from LLVM. For another machine than this
one `find_linker` takes the first that is installed of

1. what `CXX_<triple>` names, the triple's dashes as underscores (`CXX_aarch64_linux_gnu`),
2. a GNU cross compiler (`aarch64-linux-gnu-g++`), which brings the C library,
3. clang with lld, which needs none: two empty libraries stand for it (`_stand_ins`),
4. zig, which brings its own (`pip install 'mlc-compiler[cross]'`).
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc import triple as triples
from mlc.cpu import host_arch
from mlc.errors import BuildError, MissingToolError, TargetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TIMEOUT_S = 300
_NATIVE = ("c++", "g++", "clang++", "cc", "gcc", "clang")
# -S: what TVM tells a debugger is a third of the file, and names no source.
_ELF = ("-shared", "-fPIC", "-nostdlib", "-Wl,--build-id=none", "-Wl,--gc-sections", "-Wl,-S",
        "-Wl,-z,noexecstack", "-Wl,-z,relro,-z,now")  # fmt: skip
# What stands in the file must not be a path here: the install name, and with -S no debug map.
_MACHO = ("-dynamiclib", "-nostdlib", "-Wl,-undefined,dynamic_lookup", "-Wl,-S",
          "-Wl,-install_name,@rpath/library.so")  # fmt: skip
_PACKAGES = {  # Debian's and Ubuntu's
    ("aarch64", "linux"): "g++-aarch64-linux-gnu",
    ("arm", "linux"): "g++-arm-linux-gnueabihf",
    ("x86_64", "linux"): "g++-x86-64-linux-gnu",
    ("aarch64", "darwin"): "clang lld",
}


@dataclass(frozen=True, kw_only=True)
class Linker:
    """A compiler that links for one triple: its name for people, and the command's first words.

    `stand_ins` says that it has no C library of the target, so that empty ones must do.
    """

    name: str
    triple: str
    command: tuple[str, ...]
    stand_ins: bool = False


def find_linker(triple: str = "") -> Linker:
    """Return what links for a triple ("": this machine).

    For this machine that is `$CXX`, else the first compiler found.

    Raises:
        MissingToolError: there is none; the hint says how to install one.
        TargetError: no shared library can be linked for such a system.
    """
    system = "apple-darwin" if sys.platform == "darwin" else "linux-gnu"
    triple = triple or f"{host_arch()}-{system}"
    if is_native(triple):
        return _native(triple)
    if not triples.system(triple):
        raise TargetError(
            f"mlc links for Linux and macOS only, not for {triple!r}",
            "give a triple such as aarch64-linux-gnu",
        )
    for search in (_chosen, _gnu, _clang, _zig):
        found = search(triple)
        if found is not None:
            return found
    raise MissingToolError(
        f"no linker for {triple} is installed",
        f"install one: {install_command(triple)}, or `pip install 'mlc-compiler[cross]'`",
    )


def is_native(triple: str) -> bool:
    """Return whether this machine's own compiler links for a triple."""
    here = "darwin" if sys.platform == "darwin" else "linux"
    return (triples.arch(triple), triples.system(triple)) == (host_arch(), here)


def install_command(triple: str) -> str:
    """Return what installs a linker for a triple on Debian and Ubuntu."""
    package = _PACKAGES.get((triples.arch(triple), triples.system(triple)), "clang lld")
    return f"`apt-get install {package}`"


def link(objects: Sequence[Path], output: Path, linker: Linker | None = None) -> None:
    """Write the shared library `output`; equal objects give equal bytes.

    Raises:
        MissingToolError: there is no linker.
        BuildError: it failed; the message holds its own words.
    """
    linker = linker or find_linker()
    with (
        tempfile.TemporaryDirectory(dir=output.parent) as folder,
        tempfile.NamedTemporaryFile("w", suffix=".rsp", dir=output.parent) as names,
    ):
        # A response file: thousands of kernels would overflow the argument list.
        names.write("\n".join(f'"{path}"' for path in objects))
        names.flush()
        stand_ins = _stand_ins(linker, folder) if linker.stand_ins else ()
        # A model that only hands values on has no kernels, but no library comes of no object.
        empty = () if objects else ("-x", "c", os.devnull, "-x", "none")
        inputs = (f"@{names.name}", *empty, *stand_ins)
        if triples.system(linker.triple) == "darwin":
            # The C library is in every process there.
            words = (*_MACHO, "-o", str(output), *inputs)
        else:
            # On 32-bit Arm divisions and conversions are calls into the compiler's own library.
            own = ("-lgcc",) if triples.arch(linker.triple) == "arm" else ()
            words = (*_ELF, "-o", str(output), *inputs, *own, "-lm", "-lc")
        _run(linker, words)


def _run(linker: Linker, words: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            [*linker.command, *words],
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BuildError(f"the linker did not finish within {_TIMEOUT_S} s") from None
    except OSError as error:
        raise BuildError(f"the linker {linker.name} cannot be run: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1500:]
        hint = "`mlc doctor` checks the compiler; CXX chooses another"
        if not is_native(linker.triple):
            hint = f"{install_command(linker.triple)} installs a cross compiler; "
            hint += f"{_variable(linker.triple)} chooses another"
        raise BuildError(f"linking failed ({linker.name}): {said}", hint)


def _variable(triple: str) -> str:
    return f"CXX_{triple.replace('-', '_')}"


def _native(triple: str) -> Linker:
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        command = _existing(chosen, "CXX")
        return Linker(name=command[0], triple=triple, command=command)
    for name in _NATIVE:
        path = shutil.which(name)
        if path:
            return Linker(name=path, triple=triple, command=(path,))
    raise MissingToolError(
        "no C++ compiler is installed, and linking needs one",
        "install one: `apt-get install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora)",
    )


def _existing(text: str, variable: str) -> tuple[str, ...]:
    command = tuple(shlex.split(text))
    if shutil.which(command[0]):
        return command
    raise MissingToolError(f"the compiler named by {variable}, {text!r}, is not found")


def _chosen(triple: str) -> Linker | None:
    variable = _variable(triple)
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    command = _existing(text, variable)
    return Linker(name=command[0], triple=triple, command=command)


def _gnu(triple: str) -> Linker | None:
    if triples.system(triple) != "linux":
        return None
    system = "-".join(triple.split("-")[1:]).removeprefix("unknown-").removeprefix("none-")
    for prefix in dict.fromkeys((triple, f"{triples.arch(triple)}-{system}")):
        for name in (f"{prefix}-g++", f"{prefix}-gcc"):
            path = shutil.which(name)
            if path:
                return Linker(name=path, triple=triple, command=(path,))
    return None


def _clang(triple: str) -> Linker | None:
    darwin = triples.system(triple) == "darwin"
    # It has no library of its own for 32-bit Arm, nor the names of musl's.
    suits = darwin or ("gnu" in triple and triples.arch(triple) != "arm")
    path = shutil.which("clang++") or shutil.which("clang")
    if not suits or not path or not _has(path, "ld64.lld" if darwin else "ld.lld"):
        return None
    command = (path, f"--target={triple}", "-fuse-ld=lld", "-Wno-unused-command-line-argument")
    return Linker(name=f"{path} with lld", triple=triple, command=command, stand_ins=not darwin)


def _has(clang: str, linker: str) -> bool:
    """Return whether clang finds this linker: distributions put it where only clang looks."""
    said = subprocess.run(
        [clang, f"-print-prog-name={linker}"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return shutil.which(said.stdout.strip() or linker) is not None


def _zig(triple: str) -> Linker | None:
    program = shutil.which("zig")
    if program:
        command: tuple[str, ...] = (program,)
    elif importlib.util.find_spec("ziglang"):
        command = (sys.executable, "-m", "ziglang")
    else:
        return None
    darwin = triples.system(triple) == "darwin"
    system = "macos" if darwin else "-".join(triple.split("-")[-2:])
    target = f"{triples.arch(triple)}-{system}"
    return Linker(name="zig", triple=triple, command=(*command, "c++", "-target", target))


def _stand_ins(linker: Linker, folder: str) -> tuple[str, ...]:
    """Write empty C libraries to a folder; return what makes the linker use them.

    A shared library need not find what it uses when it is linked, but it must name the libraries
    that have it, or the target's dynamic linker would not load them.
    """
    for name in ("libm", "libc"):
        _run(linker, ["-shared", "-nostdlib", "-x", "c", os.devnull,
                      f"-Wl,-soname,{name}.so.6", "-o", f"{folder}/{name}.so"])  # fmt: skip
    return (f"-L{folder}", "-Wl,--no-as-needed")
