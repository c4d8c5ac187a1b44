"""`mlc.triple`: many spellings, few words."""

from __future__ import annotations

import pytest

from mlc import triple


@pytest.mark.parametrize(
    ("text", "arch", "system"),
    [
        ("x86_64-linux-gnu", "x86_64", "linux"),
        ("x86_64-unknown-linux-musl", "x86_64", "linux"),
        ("aarch64-linux-gnu", "aarch64", "linux"),
        ("arm64-apple-darwin", "aarch64", "darwin"),
        ("aarch64-apple-macos11", "aarch64", "darwin"),
        ("aarch64-apple-darwin22.1.0", "aarch64", "darwin"),
        ("armv7-linux-gnueabihf", "arm", "linux"),
        ("armv7l-linux-gnueabihf", "arm", "linux"),
        ("arm-linux-gnueabihf", "arm", "linux"),
        ("thumbv7em-none-eabi", "arm", ""),
        ("armeb-linux-gnu", "armeb", "linux"),
        ("i686-linux-gnu", "i386", "linux"),
        ("aarch64-none-elf", "aarch64", ""),
        ("aarch64-pc-windows-msvc", "aarch64", ""),
        ("nonsense", "nonsense", ""),
        ("", "", ""),
    ],
)
def test_triples(text: str, arch: str, system: str) -> None:
    assert (triple.arch(text), triple.system(text)) == (arch, system)
