"""What a build did: report.json, from which the next one knows what is up to date, and JUnit's XML."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from mlc import __version__
from mlc.errors import MlcError, error_class, printable
from mlc.events import Notice
from mlc.form import fits
from mlc.new_file import new_file

if TYPE_CHECKING:
    from mlc.events import OnEvent
    from mlc.matrix.plan import Stamp

NAME, JUNIT = "report.json", "junit.xml"
FORMAT = 1
BUILT, UP_TO_DATE, FAILED, GATE_FAILED, NOT_RUN = (
    "built", "up to date", "failed", "gate failed", "not run",
)  # fmt: skip
STATES = (BUILT, UP_TO_DATE, FAILED, GATE_FAILED, NOT_RUN)
_FORM = {"format": int, "entries": [{"name": str}]}
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error as data: its class in `mlc.errors`, its words, exit code and detail (for `-vv`)."""

    error: str
    message: str
    hint: str | None
    exit_code: int
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one entry.

    `why` says why it was built, or not; `seconds` is wall time, `bytes` and `sha256` are the
    artifact's, `verified` says for each target whether outputs were compared with ONNX Runtime's.
    """

    name: str
    state: str
    why: str
    model: str
    targets: tuple[str, ...]
    path: str
    seconds: float = 0.0
    bytes: int | None = None
    sha256: str | None = None
    verified: dict[str, bool] = field(default_factory=dict)
    stamp: Stamp | None = None
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All results in the order of mlc.toml, and the wall time (s)."""

    results: tuple[Result, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        entries = [asdict(result) for result in self.results]
        return {"format": FORMAT, "mlc": __version__, "seconds": self.seconds, "entries": entries}


def failure_of(error: MlcError) -> Failure:
    """Return an error as data."""
    return Failure(
        error=type(error).__name__,
        message=error.message,
        hint=error.hint,
        exit_code=error.exit_code,
        detail=error.detail and printable(error.detail),
    )


def require(report: Report) -> None:
    """Raise for the first failure in the order of mlc.toml: an error of that class and exit code."""
    failed = [result for result in report.results if result.failure is not None]
    if not failed:
        return
    first = failed[0]
    assert first.failure is not None
    also = f" (and {', '.join(result.name for result in failed[1:21])})" if failed[1:] else ""
    raise error_class(first.failure.error)(
        f"{len(failed)} of {len(report.results)} artifacts failed: {first.name}{also}\n"
        f"{first.name}: {first.failure.message}",
        first.failure.hint,
        detail=first.failure.detail,
    )


def write(report: Report, folder: Path) -> None:
    """Write both files to a folder, each whole or not at all.

    Raises:
        UsageError: the folder cannot be written.
    """
    text = json.dumps(report.to_json(), indent=1) + "\n"
    for name, data in ((NAME, text.encode()), (JUNIT, junit(report))):
        with new_file(folder / name) as file:
            file.write(data)


def read(folder: Path, on_event: OnEvent) -> dict[str, dict[str, Any]]:
    """Return the entries of the last report in a folder, by name; none where it cannot be used."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        found = json.loads(data) if len(data) <= _MAX_BYTES else None
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    if found is None or not fits(found, _FORM) or found["format"] != FORMAT:
        text = f"{path} cannot be used: what is up to date is not known, everything is built"
        on_event(Notice(text=text, level="warning"))
        return {}
    return {entry["name"]: entry for entry in found["entries"]}


def junit(report: Report) -> bytes:
    """Return the report as JUnit's XML, as CI systems read it: a test case for each artifact.

    A gate that failed is a <failure>, any other an <error>; what was not run is <skipped>.
    """
    states = [result.state for result in report.results]
    suite = ET.Element(
        "testsuite",
        name="mlc build",
        tests=str(len(states)),
        failures=str(states.count(GATE_FAILED)),
        errors=str(states.count(FAILED)),
        skipped=str(states.count(NOT_RUN)),
        time=f"{report.seconds:.3f}",
    )
    for result in report.results:
        suite.append(_case(result))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _case(result: Result) -> ET.Element:
    case = ET.Element(
        "testcase",
        classname=printable(Path(result.model).name),
        name=printable(result.name),
        time=f"{result.seconds:.3f}",
    )
    failure = result.failure
    if failure is not None:
        kind = "failure" if result.state == GATE_FAILED else "error"
        found = ET.SubElement(
            case, kind, type=failure.error, message=printable(failure.message.split("\n")[0])
        )
        found.text = printable("\n".join(filter(None, (failure.message, failure.hint))))
    elif result.state == NOT_RUN:
        ET.SubElement(case, "skipped", message=printable(result.why))
    else:
        unverified = [name for name, done in result.verified.items() if not done]
        told = f"{result.state}: {result.why}" if result.why else result.state
        if unverified:
            told += f"; not verified for {', '.join(unverified)}"
        ET.SubElement(case, "system-out").text = printable(told)
    return case
