"""Every architecture by both exporters (slow), and a sample of them in CI."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
if not importlib.util.find_spec("onnxscript"):
    pytest.skip("needs the torch extra", allow_module_level=True)

from mlc.torch_export.arguments import EXPORTERS  # noqa: E402 - needs torch
from tests.architectures.parts import Architecture  # noqa: E402
from tests.architectures.run import (  # noqa: E402
    ARCHITECTURES,
    attempt,
    missing,
    read_known,
    surprise,
)

CASES = [(architecture, exporter) for architecture in ARCHITECTURES for exporter in EXPORTERS]


@pytest.mark.parametrize(
    ("architecture", "exporter"),
    [
        pytest.param(a, e, id=f"{a.name}-{e}", marks=() if a.sample == e else pytest.mark.slow)
        for a, e in CASES
    ],
)
def test_architecture(architecture: Architecture, exporter: str, tmp_path: Path) -> None:
    package = missing(architecture)
    if package:
        pytest.skip(f"needs {package}")
    outcome = attempt(architecture, exporter, tmp_path, cache=True)
    assert surprise(outcome, read_known()) is None
    assert outcome.failure is not None or outcome.nodes > 3


def test_the_zoo_is_broad_and_its_names_are_single() -> None:
    names = [a.name for a in ARCHITECTURES]
    assert len(set(names)) == len(names) > 25
    assert {a.sample for a in ARCHITECTURES} == {None, *EXPORTERS}
    assert len({a.family for a in ARCHITECTURES if a.sample}) == 5


def test_known_failures_name_what_exists_with_a_reason() -> None:
    known = read_known()
    assert set(known) <= {(a.name, e) for a, e in CASES}
    assert all(known.values())
