"""Shared by the conformance tests."""

from typing import Any

import pytest

from mlc import tvm_env


@pytest.fixture(scope="session")
def tvm() -> Any:
    return tvm_env.tvm()
