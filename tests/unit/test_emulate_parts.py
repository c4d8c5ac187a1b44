"""`mlc.emulate` without an emulator: what is fetched, what is refused, what is missing."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc import events
from mlc.cache import Cache
from mlc.emulate import can_emulate, runner, runtime
from mlc.errors import ArtifactError, MissingToolError, RunError

LIBRARY = b"\x7fELF the runtime library"


@pytest.mark.parametrize(
    ("triple", "can"),
    [
        ("aarch64-linux-gnu", True),
        ("arm64-unknown-linux-gnu", True),
        ("aarch64-linux-musl", False),
        ("aarch64-apple-macos11", False),
        ("armv7-linux-gnueabihf", False),
        ("x86_64-linux-gnu", False),
    ],
)
def test_what_is_emulated(triple: str, can: bool) -> None:
    assert can_emulate(triple) is can


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], list[list[str]]]:
    """Return a function that makes pip "fetch" a wheel with this library, the pins fitting it."""
    monkeypatch.setattr(runtime, "MEMBER_BYTES", len(LIBRARY))
    monkeypatch.setattr(runtime, "MEMBER_SHA256", hashlib.sha256(LIBRARY).hexdigest())
    commands: list[list[str]] = []

    def offer(content: bytes) -> list[list[str]]:
        wheel = tmp_path / "x.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(runtime.MEMBER, content)
            archive.writestr("../outside", b"never unpacked")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        monkeypatch.setattr(runtime, "WHEEL_SHA256", digest)

        def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            folder = Path(command[command.index("--dest") + 1])
            (folder / wheel.name).write_bytes(wheel.read_bytes())
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return offer


def test_the_library_is_fetched_once_and_said_aloud(index, tmp_path: Path) -> None:
    commands = index(LIBRARY)
    cache = Cache(tmp_path / "cache")
    said: list[events.Event] = []
    assert runtime.cached(cache) is None
    assert runtime.library(cache, said.append) == LIBRARY
    assert runtime.library(cache, said.append) == LIBRARY
    assert len(commands) == len(said) == 1
    assert "fetching xtc-tvm-python-bindings 0.19.0.12 for aarch64" in said[0].text
    assert {"--no-deps", "--only-binary=:all:", "manylinux_2_28_aarch64"} <= set(commands[0])
    assert runtime.cached(cache) == LIBRARY


def test_another_library_is_not_used(index, tmp_path: Path) -> None:
    index(LIBRARY[::-1])
    with pytest.raises(ArtifactError, match=r"libtvm_runtime\.so, as it was fetched"):
        runtime.library(Cache(tmp_path / "cache"), events.ignore)
    assert runtime.cached(Cache(tmp_path / "cache")) is None


def test_a_library_that_unpacks_to_more_is_not_used(index, tmp_path: Path) -> None:
    index(LIBRARY + bytes(1 << 20))
    with pytest.raises(ArtifactError, match="not the file"):
        runtime.library(Cache(None), events.ignore)


def test_another_wheel_is_not_even_opened(index, monkeypatch: pytest.MonkeyPatch) -> None:
    index(LIBRARY)
    monkeypatch.setattr(runtime, "WHEEL_SHA256", "0" * 64)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(ArtifactError, match=r"x\.whl, as it was fetched"):
        runtime.library(Cache(None), events.ignore)


def test_pips_words_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MissingToolError, match="No matching distribution found") as caught:
        runtime.library(Cache(None), events.ignore)
    assert caught.value.exit_code == 8


def test_missing_tools_are_named_with_their_packages(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MissingToolError, match=r"qemu-aarch64 and aarch64-linux-gnu-g\+\+"
    ) as caught:
        runner.find_tools()
    assert "apt-get install qemu-user-static g++-aarch64-linux-gnu" in str(caught.value.hint)
    qemu = tmp_path / "qemu-aarch64"
    qemu.write_text("#!/bin/sh\n")
    qemu.chmod(0o755)
    with pytest.raises(MissingToolError, match=r"emulating needs aarch64-linux-gnu-g\+\+$"):
        runner.find_tools()


def test_a_compiler_without_its_c_library_is_missing_something(monkeypatch) -> None:
    monkeypatch.setattr(runner, "_said", lambda *_: "libc.so.6\n")
    with pytest.raises(MissingToolError, match="has no C library"):
        runner._sysroot("aarch64-linux-gnu-g++")


def test_a_failed_run_shows_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -4, "", "Illegal instruction")

    made = object.__new__(runner.Runner)
    made.tools = runner.Tools(emulator="q", compiler="c", sysroot="/s")
    made.folder = tmp_path
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RunError, match=r"exit status -4\): Illegal instruction"):
        made.run("--hwcap")
