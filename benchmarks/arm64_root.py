"""`make arm64-root`: mlc itself on 64-bit Arm: Debian's Python and the aarch64 wheels, in qemu.

Fetches about 150 MB (Debian packages, wheels) into build/arm64 and runs one process at a time with
`qemu-aarch64-static -L`, so it needs neither chroot nor binfmt_misc. Programs: debootstrap, dpkg-deb,
tar, qemu-aarch64-static, and the cross linker. What needs child processes (`mlc compile`) is not
run there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import mlc
from mlc.model import TensorSpec
from mlc.runtime import inputs
from mlc.runtime.reference import Reference
from mlc.runtime.verify import compare
from tests import models

FOLDER = Path("build/arm64").resolve()
ROOT, SITE = FOLDER / "root", FOLDER / "site"
MIRROR = "http://deb.debian.org/debian"
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
PACKAGES = (
    "xtc-tvm-python-bindings==0.19.0.12", "numpy==2.4.6", "onnx==1.23.2", "protobuf", "ml_dtypes",
    "typing_extensions", "click", "rich", "markdown-it-py", "mdurl", "Pygments", "attrs",
    "cloudpickle", "decorator", "psutil", "packaging", "tornado", "scipy",
)  # fmt: skip


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def make_root() -> None:
    """Debian's packages, unpacked but not set up: a Python needs no more."""
    packages = "--include=python3,libstdc++6,libgomp1"
    run("debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", packages, "bookworm",
        ROOT, MIRROR)  # fmt: skip
    for package in sorted(ROOT.glob("var/cache/apt/archives/*.deb")):
        unpack = ["dpkg-deb", "--fsys-tarfile", str(package)]
        members = subprocess.run(unpack, check=True, capture_output=True).stdout
        command = ["tar", "-x", "-C", str(ROOT), "--keep-directory-symlink"]
        subprocess.run(command, input=members, check=True)


def make_site() -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", SITE, "--no-deps")
    platforms = (word for name in PLATFORMS for word in ("--platform", f"{name}_aarch64"))
    run(*pip, "--only-binary=:all:", "--python-version", "3.11", *platforms, *PACKAGES)
    run(*pip, "--no-build-isolation", ".")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not ROOT.exists():
        make_root()
    if not SITE.exists():
        make_site()
    model, art, out = (FOLDER / name for name in ("net.onnx", "net.mlc", "out.npz"))
    models.save(models.conv_net(), FOLDER, model.name)
    mlc.compile(model, art, target="arm64")
    environment = {**os.environ, "PYTHONPATH": str(SITE), "QEMU_CPU": "max"}
    command = ["qemu-aarch64-static", "-L", ROOT, ROOT / "usr/bin/python3.11", "-m", "mlc",
               "run", art, "--random", "--seed", "0", "-o", out]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True, env=environment)
    feed = inputs.random([TensorSpec(name="x", shape=(1, 3, 9, 9), dtype="float32")], seed=0)
    with np.load(out) as arrays:
        check = compare("y", arrays["y"], Reference(model).run(feed)["y"])
    print(check)
    sys.exit(0 if check.passed else 1)


if __name__ == "__main__":
    main()
