"""The wheel: what it holds, and that it works where no checkout is near."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests import models

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("hatchling")


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", *options, "-w", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of the environment here."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file: the .pth files there, an editable install's among them, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        assert b"License-Expression: Apache-2.0" in archive.read(metadata)
    targets = {f"mlc/_targets/{path.name}" for path in (ROOT / "targets").glob("*.toml")}
    assert "mlc/_targets/x86-64-v3.toml" in targets
    assert targets <= names
    logs = [path.relative_to(ROOT) for path in (ROOT / "tuning_logs").rglob("*.jsonl")]
    assert {f"mlc/_{path}" for path in logs} <= names
    assert "mlc/_tuning_logs/README.md" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "mlc").rglob("*.py")}
    assert sources <= names
    outside = {name.split("/")[0] for name in names}
    assert {name for name in outside if not name.endswith(".dist-info")} == {"mlc"}
    assert not [name for name in names if "__pycache__" in name]


def test_installed_elsewhere(installed, environment, tmp_path):
    env = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    env |= {"MLC_CACHE_DIR": str(tmp_path / "cache"), "PATH": os.environ["PATH"]}
    python, mlc = installed / "bin" / "python", installed / "bin" / "mlc"
    where = run(python, "-c", "import mlc; print(mlc.__file__)", cwd=tmp_path, env=env)
    assert Path(where.strip()).is_relative_to(installed)

    found = json.loads(run(mlc, "targets", "--json", cwd=tmp_path, env=env))
    assert "x86-64-v3" in [row["name"] for row in found["targets"]]
    models.save(models.conv_net(), tmp_path)
    report = json.loads(run(mlc, "compile", "model.onnx", "--json", cwd=tmp_path, env=env))
    assert report["manifest"]["verification"]["passed"]
    run(mlc, "verify", "model.mlc", "model.onnx", cwd=tmp_path, env=env)
