"""`python -m tests.architectures.run`: every architecture, by both exporters, compiled and verified.

    make architectures                                    all of it
    python -m tests.architectures.run --only 'bert|swin'  what matches
    python -m tests.architectures.run --exporter dynamo   one exporter

Prints a row per architecture and exporter: nodes, compile time (cold), largest absolute error against
ONNX Runtime, or what failed. Exit code 1 when one fails that `known_failures.toml` does not list, or
a listed one passes.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import mlc
from mlc.errors import MlcError
from mlc.torch_export.arguments import EXPORTERS
from tests.architectures import detection, sequence, tables, text, vision
from tests.architectures.parts import Architecture

ARCHITECTURES: tuple[Architecture, ...] = (
    *vision.ARCHITECTURES,
    *detection.ARCHITECTURES,
    *sequence.ARCHITECTURES,
    *tables.ARCHITECTURES,
    *text.ARCHITECTURES,
)
KNOWN = Path(__file__).with_name("known_failures.toml")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one architecture; `failure` is None where it was verified."""

    name: str
    exporter: str
    nodes: int = 0
    seconds: float = 0.0
    error: float = 0.0
    failure: str | None = None

    def row(self) -> str:
        head = f"{self.name:26} {self.exporter:12}"
        if self.failure is not None:
            return f"{head} {self.failure}"
        return f"{head} {self.nodes:6} {self.seconds:8.1f} {self.error:10.1e}"


HEADER = f"{'architecture':26} {'exporter':12} {'nodes':>6} {'s':>8} {'max error':>10}"


def missing(architecture: Architecture) -> str | None:
    """Return the package that is needed and not installed."""
    needs = architecture.needs
    return needs if needs and importlib.util.find_spec(needs) is None else None


def attempt(architecture: Architecture, exporter: str, folder: Path, *, cache: bool) -> Outcome:
    """Export, compile and verify in `folder`."""
    model = folder / f"{architecture.name}-{exporter}.onnx"
    names = {"name": architecture.name, "exporter": exporter}
    try:
        mlc.export(architecture.path, architecture.inputs, model, exporter=exporter)
        report = mlc.compile(model, model.with_suffix(".mlc"), cache=cache)
    except MlcError as error:
        return Outcome(**names, failure=f"{type(error).__name__}: {error.message}")
    assert report.verification is not None
    return Outcome(
        **names,
        nodes=report.manifest["model"]["nodes"],
        seconds=report.seconds,
        error=max(output["max_abs"] for output in report.verification["outputs"]),
    )


def read_known() -> dict[tuple[str, str], str]:
    """Return what is known to fail, by architecture and exporter, with the reason."""
    groups = tomllib.loads(KNOWN.read_text())["failures"]
    return {
        (name, exporter): group["reason"]
        for group in groups
        for name in group["architectures"]
        for exporter in group["exporters"]
    }


def surprise(outcome: Outcome, known: dict[tuple[str, str], str]) -> str | None:
    """Return a line if an outcome is not what the list says."""
    listed = (outcome.name, outcome.exporter) in known
    if outcome.failure is None and listed:
        return f"{outcome.name} by {outcome.exporter} passes: take it off the list"
    if outcome.failure is not None and not listed:
        return f"{outcome.name} by {outcome.exporter}: {outcome.failure}"
    return None


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="PATTERN", help="names that match")
    parser.add_argument("--exporter", choices=EXPORTERS, action="append")
    options = parser.parse_args()
    chosen = [a for a in ARCHITECTURES if re.search(options.only, a.name)]
    known = read_known()
    sys.stdout.write(HEADER + "\n")
    surprises = []
    for outcome in _outcomes(chosen, options.exporter or EXPORTERS):
        sys.stdout.write(outcome.row() + "\n")
        sys.stdout.flush()
        surprises.append(surprise(outcome, known))
    found = [line for line in surprises if line]
    passed = len(surprises) - len(found)
    sys.stdout.write(f"{passed} of {len(surprises)} as the list of known failures has it\n")
    sys.stderr.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


def _outcomes(chosen: Iterable[Architecture], exporters: Iterable[str]) -> Iterable[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        for architecture in chosen:
            package = missing(architecture)
            for exporter in exporters:
                if package is None:
                    yield attempt(architecture, exporter, Path(folder), cache=False)
                else:
                    yield Outcome(
                        name=architecture.name, exporter=exporter, failure=f"needs {package}"
                    )


if __name__ == "__main__":
    sys.exit(main())
