"""The tier without TVM: importing it, or starting a real build, fails the test."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mlc import isolate


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a unit test started a real build")

    monkeypatch.setitem(sys.modules, "tvm", None)
    monkeypatch.setattr(isolate, "call", refuse)
