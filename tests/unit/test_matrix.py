"""`mlc build`: what mlc.toml may ask for, what is up to date, gates, reports. Compiles are faked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc import artifact, isolate, project
from mlc.errors import BuildError, GateError, MismatchError, MlcError, UsageError
from mlc.events import Notice
from mlc.matrix import entries, gates, plan, report, run
from mlc.matrix.entries import Entry, Gates, Matrix
from mlc.matrix.plan import Planned, Stamp
from mlc.matrix.report import Failure, Report, Result
from mlc.options import BuildOptions, CompileOptions
from tests.unit.test_artifact import contents
from tests.unit.test_bundle import ARM, AVX2, part

TWO = """
[build]
targets = ["llvm", "rpi4"]

[[build.model]]
path = "a.onnx"

[[build.model]]
path = "nets/b.onnx"
shapes = ["batch=1"]
targets = ["cuda:sm_80"]
"""
NAMES = ["a-llvm", "a-rpi4", "b-cuda-sm_80"]


def write(folder: Path, text: str) -> Path:
    (folder / project.NAME).write_text(text)
    return folder


# --- what is asked for ---------------------------------------------------------------------------


def test_models_times_targets(tmp_path: Path) -> None:
    matrix = entries.read(write(tmp_path, TWO))
    assert [entry.name for entry in matrix.entries] == NAMES
    assert matrix.entries[2] == Entry(
        name="b-cuda-sm_80",
        model=tmp_path / "nets/b.onnx",
        targets=("cuda:sm_80",),
        shapes=("batch=1",),
    )
    assert matrix.output == tmp_path / "dist"
    assert (matrix.gates, matrix.jobs, matrix.logs) == (Gates(), None, None)


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    text = """
[tune]
logs = "records"
[build]
output = "out/artifacts"
targets = ["llvm", "rpi4"]
bundle = true
require_tuned = 1
require_verified = true
max_mb = 12.5
jobs = 3
[[build.model]]
path = "a.onnx"
name = "first_1.0"
"""
    matrix = entries.read(write(tmp_path, text))
    assert [(entry.name, entry.targets) for entry in matrix.entries] == [
        ("first_1.0", ("llvm", "rpi4"))
    ]
    assert matrix.gates == Gates(require_tuned=1, require_verified=True, max_mb=12.5)
    assert (matrix.jobs, matrix.logs) == (3, tmp_path / "records")
    assert matrix.output == tmp_path / "out/artifacts"
    assert entries.read(tmp_path, "/elsewhere").output == Path("/elsewhere")


def test_open_dimensions(tmp_path: Path) -> None:
    text = """
    [model]
    path = "m.onnx"
    dynamic = "batch"
    [build]
    targets = ["llvm", "rpi4"]
    """
    for entry in entries.read(write(tmp_path, text)).entries:
        assert (entry.model.name, entry.dynamic) == ("m.onnx", ("batch",))
    more = '[[build.model]]\npath = "b.onnx"\ndynamic = true\n[[build.model]]\npath = "c.onnx"\n'
    matrix = entries.read(write(tmp_path, text + more))
    assert [entry.dynamic for entry in matrix.entries] == [("*",), ("*",), (), ()]
    asked = [plan.compile_options(matrix, entry).dynamic for entry in matrix.entries]
    assert asked == [entry.dynamic for entry in matrix.entries]


def test_without_models_the_project_is_meant(tmp_path: Path) -> None:
    text = '[model]\npath = "m.onnx"\nshapes = ["batch=2"]\n[build]\n'
    (entry,) = entries.read(write(tmp_path, text)).entries
    assert (entry.name, entry.targets, entry.shapes) == ("m-llvm", ("llvm",), ("batch=2",))
    (tmp_path / "only.onnx").touch()
    (entry,) = entries.read(write(tmp_path, "[build]\n")).entries
    assert entry.model == tmp_path / "only.onnx"


def test_other_verbs_read_the_same_file(tmp_path: Path) -> None:
    found = project.load(write(tmp_path, TWO + '[model]\npath = "a.onnx"\n'))
    assert found.model == tmp_path / "a.onnx"


MODEL = '[[build.model]]\npath = "a.onnx"\n'


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[tune]\n", "has no [build] section", "[[build.model]]"),
        ("[build]\ntarget = 'llvm'\n", "unknown entry 'target' in [build]", "mean 'targets'"),
        ("[build]\ntargets = 'llvm'\n", "must be a list of strings", ""),
        ("[build]\nbundle = 1\n", "must be true or false", ""),
        ("[build]\njobs = true\n", "must be a number", ""),
        ("[build]\njobs = 0\n" + MODEL, "jobs must be at least 1", ""),
        ("[build]\nmax_mb = inf\n", "must be a number", ""),
        ("[build]\nmax_mb = 0\n" + MODEL, "max_mb must be a size", ""),
        ("[build]\nrequire_tuned = 95\n" + MODEL, "require_tuned is a share", ""),
        ("[build]\nmodel = 'a.onnx'\n", "must be [[tables]]", ""),
        ("[build]\nmodel = [1]\n", "must be [[tables]]", ""),
        ("[[build.model]]\npth = 'a.onnx'\n", "unknown entry 'pth' in [[build.model]]", "'path'"),
        ("[[build.model]]\nname = 'a'\n", "a [[build.model]] has no path", ""),
        ("[build]\ntargets = []\n" + MODEL, "no targets for a.onnx", "llvm"),
        (MODEL + "name = '../a'\n", "'../a' cannot be the name", "letters"),
        (MODEL + "name = '.a'\n", "'.a' cannot be the name", ""),
        (MODEL + "name = ''\n", "'' cannot be the name", ""),
        (MODEL + "[[build.model]]\npath = 'b/A.onnx'\n", "would both be A-llvm.mlc", "name ="),
        ("[build]\ntargets = ['llvm', 'llvm']\n" + MODEL, "would both be a-llvm.mlc", ""),
        ("[build]\noutput = '../x'\n" + MODEL, "lies outside", "-o DIR"),
        ("[build]\noutput = '/tmp/x'\n" + MODEL, "lies outside", "-o DIR"),
        ("[build]\n", "no model was named", ""),
    ],
)
def test_wrong_entries(text: str, said: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as found:
        entries.read(write(tmp_path, text))
    assert said in found.value.message
    assert hint in (found.value.hint or "")


def test_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "dist").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="lies outside"):
        entries.read(write(inside, TWO))


@given(st.text(max_size=40), st.text(max_size=40))
def test_artifacts_stay_in_their_folder(stem: str, target: str) -> None:
    """Whatever files and targets are called: a plain name, or an error."""
    here = project.Project(folder=Path("x"))
    asked = {"model": [{"path": f"{stem}.onnx"}], "targets": [target]}
    try:
        (entry,) = entries._entries(here, asked)
    except UsageError:
        return
    assert Path(entry.name).name == entry.name
    assert entry.name.isascii()
    assert entry.name.isprintable()
    assert not entry.name.startswith(".")


# --- what is up to date --------------------------------------------------------------------------

STAMP = Stamp(key="k", model="m", targets="t", records="r", mlc="s", model_bytes=1000)
ENTRY = Entry(name="a-llvm", model=Path("a.onnx"), targets=("llvm",))


def why(folder: Path, before: dict[str, Any], stamp: Stamp | None = STAMP) -> str:
    return plan._why(folder / "a-llvm.mlc", stamp, before)


def record(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return what a report says about an artifact that is there."""
    path = folder / "a-llvm.mlc"
    path.write_bytes(b"code")
    fields = {name: getattr(STAMP, name) for name in Stamp.__dataclass_fields__}
    return {"stamp": {**fields, **changes}, "sha256": plan.file_sha256(path), "state": "built"}


def test_the_same_stamp_and_the_same_bytes(tmp_path: Path) -> None:
    before = record(tmp_path)
    assert why(tmp_path, before) == ""
    (tmp_path / "a-llvm.mlc").write_bytes(b"other")
    assert why(tmp_path, before) == "the artifact was altered"
    (tmp_path / "a-llvm.mlc").unlink()
    assert why(tmp_path, before) == "the artifact is gone"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("model", "the model changed"),
        ("targets", "the target is another here"),
        ("records", "the tuning records changed"),
        ("mlc", "mlc, TVM or LLVM changed"),
        ("size", "the options changed"),
    ],
)
def test_what_changed_is_said(part: str, said: str, tmp_path: Path) -> None:
    assert why(tmp_path, record(tmp_path, key="other", **{part: "other"})) == said


def test_what_was_never_built_or_failed(tmp_path: Path) -> None:
    assert why(tmp_path, {}) == "not built yet"
    assert why(tmp_path, {"state": "failed", "stamp": None}) == "the last build of it failed"
    assert why(tmp_path, record(tmp_path), None) == "not built yet"


@pytest.mark.parametrize("old", [[], "x", {}, {"key": []}, {"key": "k"}])
def test_a_report_may_say_anything(old: Any, tmp_path: Path) -> None:
    assert why(tmp_path, {"stamp": old, "sha256": 5, "state": []}) != ""


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"[" * 100_000, b'{"format": 1}', b'{"format": 2, "entries": []}',
     b'{"format": 1, "entries": [{}]}', b'{"format": 1, "entries": [{"name": 1}]}', b"\xff"],
)  # fmt: skip
def test_a_report_that_is_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / report.NAME).write_bytes(data)
    said: list[Any] = []
    assert report.read(tmp_path, said.append) == {}
    assert [event.level for event in said] == ["warning"]


def test_a_report_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write(Report(results=(), seconds=1.0), tmp_path)
    monkeypatch.setattr(report, "_MAX_BYTES", 10)
    assert report.read(tmp_path, lambda _event: None) == {}


def test_what_one_machine_could_not_verify_another_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact that was cached unverified does not count where it can be verified."""
    from mlc import driver, target

    monkeypatch.setattr(driver, "records_state", lambda _options: None)
    chosen, options = target.resolve("rpi4"), CompileOptions(model="a.onnx", target="rpi4")
    keys = []
    for runs in (True, None, False):
        monkeypatch.setattr(target, "runs_on", lambda *_args, runs=runs: runs)
        keys.append(driver.artifact_key(options, chosen, "sha"))
    assert keys[0] == keys[1] != keys[2]
    assert driver.artifact_key(replace(options, verify=False), chosen, "sha") == keys[2]


# --- how many at a time --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "models", "free", "count"),
    [
        (4, [0] * 9, 10**12, 4),
        (4, [0] * 3, 10**12, 3),
        (4, [0] * 9, 1_700_000_000, 4),
        (4, [0] * 9, 900_000_000, 2),
        (4, [100_000_000, 0], 1_900_000_000, 1),
        (4, [0], 1000, 1),
        (4, [0] * 9, None, 1),
    ],
)
def test_cores_and_memory_bound_the_compiles(
    asked: int, models: list[int], free: int | None, count: int
) -> None:
    todo = [
        Planned(entry=ENTRY, output=Path("a"), stamp=replace(STAMP, model_bytes=size), why="new")
        for size in models
    ]
    assert run.workers(asked, todo, free) == count


# --- gates ---------------------------------------------------------------------------------------


def saved(path: Path, *, verified: bool = True) -> Path:
    passed = {"passed": True} if verified else None
    artifact.save(contents(manifest={**contents().manifest, "verification": passed}), path)
    return path


def test_gates(tmp_path: Path) -> None:
    path = tmp_path / "one.mlc"
    size = saved(path).stat().st_size / gates.MB
    assert gates.require(saved(path), Gates(max_mb=size)) == {"haswell": True}
    with pytest.raises(GateError, match=r"it takes 0\.0 MB, and max_mb is"):
        gates.require(saved(path), Gates(max_mb=size * 0.99))
    assert gates.require(saved(path, verified=False), Gates()) == {"haswell": False}
    with pytest.raises(GateError, match="not verified for haswell"):
        gates.require(saved(path, verified=False), Gates(require_verified=True))


def test_every_variant_of_a_bundle_counts(tmp_path: Path) -> None:
    from mlc import bundle

    bundle.save([part(tmp_path, AVX2), part(tmp_path, ARM)], tmp_path / "b.mlc")
    assert gates.require(tmp_path / "b.mlc", Gates()) == {"haswell": False, "rpi4": False}


# --- the whole build, compiles faked -------------------------------------------------------------

Compile = Callable[[CompileOptions], None]


class Workshop:
    """A folder with mlc.toml; `build` compiles nothing, but writes small artifacts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = write(folder, TWO)
        self.compiled: list[str] = []
        self.fail: dict[str, MlcError] = {}
        self.hook: Compile = lambda _options: None
        (folder / "nets").mkdir()
        self.change("a.onnx", "1")
        self.change("nets/b.onnx", "1")
        monkeypatch.setattr(plan, "_stamps", self._stamps)
        monkeypatch.setattr(run.api, "compile_with", self._compile)
        monkeypatch.setattr(run, "free_memory", lambda: 10**12)

    def change(self, model: str, text: str) -> None:
        (self.folder / model).write_text(text)

    def build(self, **options: Any) -> Report:
        self.compiled.clear()
        return run.build(BuildOptions(folder=str(self.folder), **options))

    def states(self, **options: Any) -> dict[str, str]:
        return {result.name: result.state for result in self.build(**options).results}

    def _stamps(self, matrix: Matrix, _on_event: Any) -> list[Stamp]:
        return [
            replace(STAMP, key=f"{entry.model.read_text()} {entry.targets}", model="m")
            for entry in matrix.entries
        ]

    def _compile(self, options: CompileOptions, on_event: Any) -> None:
        name = Path(str(options.output)).stem
        self.compiled.append(name)
        self.hook(options)
        on_event(Notice(text="compiled"))
        if name in self.fail:
            raise self.fail[name]
        saved(Path(str(options.output)))


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


def test_the_second_build_does_nothing(workshop: Workshop) -> None:
    assert workshop.states(jobs=1) == dict.fromkeys(NAMES, "built")
    assert workshop.compiled == NAMES
    assert workshop.states() == dict.fromkeys(NAMES, "up to date")
    assert workshop.compiled == []
    assert sorted(path.name for path in (workshop.folder / "dist").iterdir()) == [
        "a-llvm.mlc", "a-rpi4.mlc", "b-cuda-sm_80.mlc", "junit.xml", "report.json",
    ]  # fmt: skip


def test_what_changed_is_built_again(workshop: Workshop) -> None:
    workshop.build()
    workshop.change("nets/b.onnx", "2")
    (workshop.folder / "dist/a-rpi4.mlc").unlink()
    planned = workshop.build(dry_run=True)
    assert {one.name: one.why for one in planned.results} == {
        "a-llvm": "", "a-rpi4": "the artifact is gone", "b-cuda-sm_80": "the options changed",
    }  # fmt: skip
    assert workshop.compiled == []
    workshop.build()
    assert sorted(workshop.compiled) == ["a-rpi4", "b-cuda-sm_80"]


def test_a_failure_keeps_no_other_from_being_built(workshop: Workshop) -> None:
    error = BuildError("no", "try", detail="what it \x1b[2Jprinted")
    workshop.fail = {"a-llvm": error, "a-rpi4": MismatchError("differs")}
    done = workshop.build(jobs=1)
    assert [one.state for one in done.results] == ["failed", "gate failed", "built"]
    with pytest.raises(
        BuildError, match=r"2 of 3 artifacts failed: a-llvm \(and a-rpi4\)"
    ) as first:
        report.require(done)
    assert (first.value.hint, first.value.detail) == ("try", r"what it \x1b[2Jprinted")
    workshop.fail.pop("a-llvm")
    done = workshop.build()
    assert sorted(workshop.compiled) == NAMES[:2]
    with pytest.raises(MismatchError) as found:
        report.require(done)
    assert found.value.exit_code == 9
    workshop.fail.clear()
    report.require(workshop.build())
    assert workshop.compiled == ["a-rpi4"]


def test_fail_fast_starts_no_other(workshop: Workshop) -> None:
    workshop.fail = {"a-llvm": BuildError("no")}
    done = workshop.build(jobs=1, fail_fast=True)
    assert [one.state for one in done.results] == ["failed", "not run", "not run"]
    assert workshop.compiled == ["a-llvm"]


def test_a_gate_that_fails_leaves_the_artifact_of_before(workshop: Workshop) -> None:
    workshop.build()
    before = (workshop.folder / "dist/a-llvm.mlc").read_bytes()
    write(workshop.folder, TWO.replace("[build]", "[build]\nmax_mb = 0.0001"))
    workshop.change("a.onnx", "2")
    done = workshop.build()
    assert [one.state for one in done.results] == ["gate failed"] * 3  # what is up to date, too
    assert sorted(workshop.compiled) == NAMES[:2]
    with pytest.raises(GateError, match=r"max_mb is 0\.0001"):
        report.require(done)
    assert (workshop.folder / "dist/a-llvm.mlc").read_bytes() == before
    write(workshop.folder, TWO)
    report.require(workshop.build())
    assert sorted(workshop.compiled) == NAMES[:2]  # the third was only measured again


def test_an_interrupt_in_the_middle(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is done; while the others are at work the user presses Ctrl-C."""
    ended, reached = threading.Event(), threading.Event()

    def at_work(options: CompileOptions) -> None:
        if "a-llvm" not in str(options.output):
            reached.set()
            assert ended.wait(20)
            raise BuildError("killed")

    def collect(self: Any, done: Any) -> Report:
        found = original(self, done)
        assert reached.wait(20)
        raise KeyboardInterrupt(found.seconds)

    original = run._Build._collect
    workshop.hook = at_work
    monkeypatch.setattr(isolate, "end_calls", ended.set)
    monkeypatch.setattr(run._Build, "_collect", collect)
    with pytest.raises(KeyboardInterrupt):
        workshop.build(jobs=2)
    monkeypatch.setattr(run._Build, "_collect", original)
    said = json.loads((workshop.folder / "dist/report.json").read_text())
    assert [one["state"] for one in said["entries"]] == ["built", "not run", "not run"]
    workshop.hook = lambda _options: None
    workshop.build()
    assert sorted(workshop.compiled) == NAMES[1:]


def test_what_a_killed_build_left_goes(workshop: Workshop) -> None:
    left = workshop.folder / "dist" / ".mlc-build"
    left.mkdir(parents=True)
    (left / "half").touch()
    workshop.build()
    assert not left.exists()


def test_two_builds_do_not_meet(workshop: Workshop) -> None:
    with (
        run._workshop(workshop.folder / "dist") as folder,
        pytest.raises(UsageError, match="another `mlc build` is at work"),
    ):
        workshop.build()
    assert not folder.exists()
    workshop.build()


def test_an_output_that_is_no_folder(workshop: Workshop) -> None:
    (workshop.folder / "dist").touch()
    with pytest.raises(UsageError, match="cannot write to the folder"):
        workshop.build()


def test_a_bundle_of_all_targets(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile_bundle(options: CompileOptions, targets: Any, _on_event: Any) -> None:
        asked.append(targets)
        saved(Path(str(options.output)))

    monkeypatch.setattr(run.multi_target, "compile_bundle", compile_bundle)
    write(workshop.folder, TWO.replace("[build]", "[build]\nbundle = true"))
    assert workshop.states() == {"a": "built", "b": "built"}
    assert asked == [("llvm", "rpi4")]
    assert workshop.compiled == ["b"]


# --- JUnit ---------------------------------------------------------------------------------------

HOSTILE = '<a> & "b" \x1b[2J\x00 ]]> \ud800 \ufffe ü'


def result(state: str, **changes: Any) -> Result:
    fields = {"name": HOSTILE, "why": HOSTILE, "model": HOSTILE, "targets": ("llvm",), "path": "p"}
    return Result(**{**fields, "state": state, **changes})


def test_junit_says_what_happened() -> None:
    failure = Failure(error="BuildError", message=HOSTILE + "\nmore", hint=HOSTILE, exit_code=5)
    results = (
        result(report.BUILT, verified={"rpi4": False}),
        result(report.UP_TO_DATE, why=""),
        result(report.FAILED, failure=failure, seconds=1.5),
        result(report.GATE_FAILED, failure=replace(failure, error="GateError")),
        result(report.NOT_RUN),
    )
    data = report.junit(Report(results=results, seconds=2.0))
    suite = ET.fromstring(data)[0]
    assert suite.attrib == {
        "name": "mlc build", "tests": "5", "failures": "1", "errors": "1", "skipped": "1",
        "time": "2.000",
    }  # fmt: skip
    assert [[child.tag for child in case] for case in suite] == [
        ["system-out"], ["system-out"], ["error"], ["failure"], ["skipped"],
    ]  # fmt: skip
    assert "not verified for rpi4" in str(suite[0][0].text)
    assert suite[2].attrib["time"] == "1.500"
    assert suite[2][0].attrib["type"] == "BuildError"
    assert '<a> & "b"' in suite[2][0].attrib["message"]
    assert "more" in str(suite[2][0].text)
    assert b"\x1b" not in data
    assert b"\x00" not in data


@given(st.text())
def test_junit_is_xml_whatever_things_are_called(text: str) -> None:
    failure = Failure(error="BuildError", message=text, hint=text, exit_code=5)
    results = (
        result(report.BUILT, name=text, model=text, why=text),
        result(report.FAILED, name=text, failure=failure),
    )
    data = report.junit(Report(results=results, seconds=0.0))
    assert len(ET.fromstring(data)[0]) == 2
