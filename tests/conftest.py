"""Shared by all tiers: options, an own cache folder, small models."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# What is started in the background of a shell ignores Ctrl-C, which some tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files in tests/golden"
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's cache; one folder per run lets kernels be shared between tests."""
    folder = tmp_path_factory.getbasetemp() / "mlc-cache"
    monkeypatch.setenv("MLC_CACHE_DIR", str(folder))
    return folder
