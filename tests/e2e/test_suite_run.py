"""`make bench` on one small model against ONNX Runtime: measured once, then kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[2]


def test_mlp_against_onnxruntime(environment, tmp_path):
    def run() -> tuple[str, dict]:
        command = [
            sys.executable, "-m", "benchmarks.suite", "--models", "mlp", "--peers", "ort",
            "--rounds", "2", "--seconds", "0.02", "--out", str(tmp_path / "out"),
            "--json", str(tmp_path / "all.json"), "--chart", str(tmp_path / "chart.png"),
            "--markdown",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads((tmp_path / "all.json").read_text())

    text, first = run()
    (found,) = first["results"]
    assert not first["failures"]
    for name in ("mlc", "ort"):
        entrant = found["entrants"][name]
        assert len(entrant["blocks"]) == 2
        assert all(block["runs"] and min(block["runs"]) > 0 for block in entrant["blocks"])
        assert sys.platform != "linux" or entrant["rss"] > found["onnx_bytes"]
    assert found["flops"] > 2 * 512 * 2048
    assert "| mlp" in text
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    again, second = run()
    assert (again, second) == (text, first)
