"""`mlc.codegen.link`: which linker is taken for which triple, and what is said without one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc.codegen import link as linking
from mlc.codegen.link import Linker, find_linker, link
from mlc.errors import BuildError, MissingToolError, TargetError

ARM = "aarch64-linux-gnu"
MAC = "aarch64-apple-macos11"
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Leave nothing installed; return a function that puts a program on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(linking, "host_arch", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setattr(linking.importlib.util, "find_spec", lambda _name: None)
    for name in ("CXX", "CXX_aarch64_linux_gnu"):
        monkeypatch.delenv(name, raising=False)

    def put(name: str, *lines: str) -> Path:
        path = folder / name
        path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        path.chmod(0o755)
        return path

    return put


def test_each_search_stands_behind_the_one_before(install: Install, monkeypatch) -> None:
    monkeypatch.setattr(linking.importlib.util, "find_spec", lambda name: name)
    zig = find_linker(ARM)
    assert zig.command == (sys.executable, "-m", "ziglang", "c++", "-target", ARM)
    clang = install("clang++", 'echo "${1#-print-prog-name=}"')
    assert find_linker(ARM).name == "zig"  # clang alone has no linker for ELF
    install("ld.lld")
    found = find_linker(ARM)
    assert found.command[:3] == (str(clang), f"--target={ARM}", "-fuse-ld=lld")
    assert found.stand_ins
    gnu = install("aarch64-linux-gnu-g++")
    assert find_linker(ARM) == Linker(name=str(gnu), triple=ARM, command=(str(gnu),))
    other = install("my-g++")
    monkeypatch.setenv("CXX_aarch64_linux_gnu", "my-g++ --sysroot=/x")
    assert find_linker(ARM).command == ("my-g++", "--sysroot=/x")
    monkeypatch.setenv("CXX", str(other))
    assert find_linker(ARM).command == ("my-g++", "--sysroot=/x")
    assert find_linker().command == (str(other),)


@pytest.mark.parametrize(
    ("triple", "program"),
    [
        ("aarch64-linux-gnu", "aarch64-linux-gnu-g++"),
        ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu-g++"),
        ("arm64-none-linux-gnu", "aarch64-linux-gnu-g++"),
        ("aarch64-linux-gnu", "aarch64-linux-gnu-gcc"),
        ("armv7-linux-gnueabihf", "arm-linux-gnueabihf-g++"),
        ("aarch64-linux-musl", "aarch64-linux-musl-g++"),
        ("i686-linux-gnu", "i686-linux-gnu-g++"),
    ],
)
def test_gnu_compilers_are_found_by_their_names(
    install: Install, triple: str, program: str
) -> None:
    path = install(program)
    assert find_linker(triple).command == (str(path),)


def test_clang_is_taken_only_where_nothing_of_the_target_is_needed(install: Install) -> None:
    install("clang++", 'echo "${1#-print-prog-name=}"')
    install("ld.lld")
    for triple in ("armv7-linux-gnueabihf", "aarch64-linux-musl", MAC):
        with pytest.raises(MissingToolError):
            find_linker(triple)
    install("ld64.lld")
    assert not find_linker(MAC).stand_ins


@pytest.mark.parametrize(
    ("triple", "packages"),
    [
        (ARM, "g++-aarch64-linux-gnu"),
        ("armv7-linux-gnueabihf", "g++-arm-linux-gnueabihf"),
        (MAC, "clang lld"),
    ],
)
def test_no_linker_names_the_package(install: Install, triple: str, packages: str) -> None:
    with pytest.raises(MissingToolError, match=f"no linker for {triple}") as caught:
        find_linker(triple)
    assert f"`apt-get install {packages}`" in str(caught.value.hint)
    assert "mlc-compiler[cross]" in str(caught.value.hint)
    assert caught.value.exit_code == 8


def test_the_compiler_of_this_machine_does_not_link_for_another(install: Install) -> None:
    install("c++")
    assert find_linker("x86_64-linux-gnu").name == find_linker().name
    with pytest.raises(MissingToolError):
        find_linker(ARM)


def test_a_variable_that_names_nothing_is_an_error(install: Install, monkeypatch) -> None:
    install("aarch64-linux-gnu-g++")
    monkeypatch.setenv("CXX_aarch64_linux_gnu", "no-such-compiler")
    with pytest.raises(MissingToolError, match="named by CXX_aarch64_linux_gnu"):
        find_linker(ARM)


@pytest.mark.parametrize("triple", ["aarch64-none-elf", "aarch64-pc-windows-msvc"])
def test_systems_without_a_linker_are_a_wrong_target(install: Install, triple: str) -> None:
    with pytest.raises(TargetError, match="Linux and macOS only"):
        find_linker(triple)


def test_a_failure_shows_the_linkers_words_and_the_package(
    install: Install, tmp_path: Path
) -> None:
    install("aarch64-linux-gnu-g++", "echo relocations in generic ELF >&2", "exit 1")
    with pytest.raises(BuildError, match="relocations in generic ELF") as caught:
        link([], tmp_path / "out.so", find_linker(ARM))
    assert "g++-aarch64-linux-gnu" in str(caught.value.hint)
    assert "CXX_aarch64_linux_gnu" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("triple", "has", "lacks"),
    [
        (ARM, ["-shared", "-Wl,--build-id=none", "-lm", "-lc"], ["-lgcc", "-dynamiclib"]),
        ("armv7-linux-gnueabihf", ["-lgcc", "-lm", "-lc"], ["-dynamiclib"]),
        (MAC, ["-dynamiclib", "-Wl,-S"], ["-Wl,--build-id=none", "-lm", "-lc"]),
    ],
)
def test_each_format_gets_its_own_options(
    triple: str, has: list[str], lacks: list[str], tmp_path: Path, monkeypatch
) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    link([], tmp_path / "out.so", Linker(name="x", triple=triple, command=("x",)))
    assert set(has) <= set(seen[-1])
    assert not set(lacks) & set(seen[-1])
