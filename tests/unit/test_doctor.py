"""`mlc.doctor`: each check against a made-up system, and the command."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from mlc import doctor
from mlc.cli.doctor import doctor as doctor_command
from mlc.cpu import HostCpu
from mlc.doctor import Check, Package, machine, run_check
from mlc.errors import TargetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Replace /proc and /sys by an empty folder; returns a function that puts a file there."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "SYS", tmp_path / "sys")

    def put(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    return put


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Replace the installed distributions by the returned dictionary."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def runs(code: int, stdout: str = "", stderr: str = "") -> Callable[..., SimpleNamespace]:
    """Return a stand-in for `subprocess.run` that gives this outcome."""
    return lambda *args, **kwargs: SimpleNamespace(returncode=code, stdout=stdout, stderr=stderr)


# The table


def test_every_check_has_a_name_of_its_own() -> None:
    names = [name for name, _ in doctor.CHECKS]
    assert len(names) == len(set(names))


def test_diagnose_runs_the_table_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (("one", lambda: ("ok", "1", "")), ("two", lambda: ("warn", "2", "do")))
    monkeypatch.setattr(doctor, "CHECKS", table)
    assert doctor.diagnose() == [
        Check(name="one", status="ok", value="1"),
        Check(name="two", status="warn", value="2", advice="do"),
    ]


@pytest.mark.parametrize(
    "error", [OSError("x"), ValueError("x"), StopIteration(), KeyError("x"), RuntimeError("x")]
)
def test_what_cannot_be_read_is_not_available(error: Exception) -> None:
    def broken() -> doctor.Finding:
        raise error

    assert run_check("x", broken) == Check(name="x", status="ok", value="not available")


def test_an_error_of_ours_is_a_failed_check() -> None:
    def refused() -> doctor.Finding:
        raise TargetError("no target", "give one")

    expected = Check(name="x", status="fail", value="no target", advice="give one")
    assert run_check("x", refused) == expected


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize(
    "function",
    [
        doctor.cpu_quota,
        doctor.frequency_governor,
        doctor.memory,
        doctor.smt,
        doctor.steal_time,
    ],
)
def test_a_system_that_exposes_nothing_is_healthy(function: Callable[[], doctor.Finding]) -> None:
    check = run_check("x", function)
    assert check.status == "ok"
    assert check.value in {"not available", "no limit seen", "not exposed"}
    assert check.advice == ""


# Python and packages


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ((3, 9, 18), "fail"),
        ((3, 10, 0), "ok"),
        ((3, 11, 7), "ok"),
        ((3, 13, 9), "ok"),
        ((3, 14, 0), "fail"),
    ],
)
def test_python_version(
    version: tuple[int, ...], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.version_info", version)
    found = doctor.python_version()
    assert found[:2] == (status, ".".join(map(str, version)))
    assert bool(found[2]) == (status == "fail")


PIN = Package(name="box", pin="1.2.3")
MINIMUM = Package(name="box", minimum="1.21")
OPTIONAL = Package(name="box", pin="2.13.0", optional_for="mlc export")


@pytest.mark.parametrize(
    ("wanted", "version", "status", "advice"),
    [
        (PIN, "1.2.3", "ok", ""),
        (PIN, "1.2.3+cpu", "ok", ""),
        (PIN, "1.2.4", "fail", "pip install box==1.2.3"),
        (PIN, None, "fail", "pip install box==1.2.3"),
        (MINIMUM, "1.21", "ok", ""),
        (MINIMUM, "1.21.3", "ok", ""),
        (MINIMUM, "1.100.0rc1", "ok", ""),
        (MINIMUM, "2", "ok", ""),
        (MINIMUM, "1.9.5", "fail", "pip install 'box>=1.21'"),
        (MINIMUM, "nonsense", "fail", "pip install 'box>=1.21'"),
        (MINIMUM, None, "fail", "pip install 'box>=1.21'"),
        (OPTIONAL, "2.13.0+cpu", "ok", ""),
        (OPTIONAL, "2.12.0", "warn", "pip install box==2.13.0"),
        (OPTIONAL, None, "ok", ""),
    ],
)
def test_packages(
    wanted: Package, version: str | None, status: str, advice: str, installed: dict[str, str]
) -> None:
    if version is not None:
        installed["box"] = version
    found = doctor.package(wanted)
    assert (found[0], found[2]) == (status, advice)
    assert (version or "not installed") in found[1]


@pytest.mark.parametrize(("version", "status"), [("3.4.1", "ok"), ("2.1.0", "fail")])
def test_another_package_of_the_same_module_does_as_well(
    version: str, status: str, installed: dict[str, str]
) -> None:
    installed["xgboost-cpu"] = version
    (wanted,) = (package for package in doctor.PACKAGES if package.name == "xgboost")
    assert doctor.package(wanted)[:2] == (status, version)


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"name": "NVIDIA H200", "sm": "sm_90"}
    monkeypatch.setattr(doctor.cross, "describe", lambda: card)
    assert doctor.cross.driver() == ("ok", "yes, NVIDIA H200 (sm_90)", "")


def test_the_packages_are_those_of_the_project() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["torch"]]
    missing = [
        package.name
        for package in doctor.PACKAGES
        if package.requirement.strip("'") not in declared
    ]
    assert missing == []


def test_apache_tvm_beside_ours_is_a_failure(installed: dict[str, str]) -> None:
    assert doctor.no_apache_tvm()[0] == "ok"
    installed["apache-tvm"] = "0.25.0"
    status, value, advice = doctor.no_apache_tvm()
    assert status == "fail"
    assert "0.25.0" in value
    assert advice.startswith("pip uninstall -y apache-tvm && pip install --force-reinstall")


# Tools


@pytest.mark.parametrize(
    ("outcome", "status", "value"),
    [
        (runs(0, "0.19.0\n"), "ok", "0.19.0"),
        (runs(1, "", "Traceback\nOSError: libLLVM.so"), "fail", "OSError: libLLVM.so"),
        (runs(-11), "fail", "exit status -11"),
    ],
)
def test_tvm_is_loaded_in_a_process_of_its_own(
    outcome: Callable[..., SimpleNamespace],
    status: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "run", outcome)
    found = doctor.tvm_loads("code", runtime_only=True)
    assert found[0] == status
    assert found[1].endswith(value)
    assert ("pip install" in found[2]) == (status == "fail")


@pytest.mark.parametrize("runtime_only", [True, False])
def test_tvm_is_told_which_library_to_load(
    runtime_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, str]] = []

    def record(command: list[str], env: dict[str, str], **kwargs: object) -> SimpleNamespace:
        calls.append(env)
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", record)
    monkeypatch.setenv("TVM_USE_RUNTIME_LIB", "1")
    doctor.tvm_loads("code", runtime_only=runtime_only)
    assert ("TVM_USE_RUNTIME_LIB" in calls[0]) == runtime_only


def test_a_tvm_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("python", 60)

    monkeypatch.setattr(subprocess, "run", hang)
    assert doctor.tvm_loads("code", runtime_only=True)[:2] == ("fail", "does not load within 60 s")


@pytest.mark.parametrize(
    ("cxx", "there", "path"),
    [
        ("", {"g++", "clang++"}, "/bin/g++"),
        ("clang++", {"g++", "clang++"}, "/bin/clang++"),
        ("g++-12 -m64", {"g++-12"}, "/bin/g++-12"),
        ("nonsense", {"c++"}, "/bin/c++"),
    ],
)
def test_the_compiler_is_found(
    cxx: str, there: set[str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", cxx)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    monkeypatch.setattr(subprocess, "run", runs(0, "c++ 12.2.0\nmore"))
    assert doctor.cxx_compiler() == ("ok", f"{path}: c++ 12.2.0", "")


def test_no_compiler_and_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    status, value, advice = doctor.cxx_compiler()
    assert (status, advice) == ("fail", "sudo apt-get install g++")
    assert "clang++" in value
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    monkeypatch.setattr(subprocess, "run", runs(1))
    assert doctor.cxx_compiler()[0] == "fail"


# The machine


@pytest.mark.parametrize(
    ("text", "quota"),
    [("max 100000\n", None), ("200000 100000", 2.0), ("50000 100000", 0.5), ("max", None)],
)
def test_a_quota(text: str, quota: float | None) -> None:
    assert doctor.cpu_quota_of(text) == quota


def test_the_tightest_quota_around_this_process_counts(
    system: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    system("proc/self/cgroup", "12:cpuset:/other\n0::/pod/box\n")
    system("sys/fs/cgroup/pod/box/cpu.max", "max 100000\n")
    assert doctor.cpu_quota() == ("ok", "no limit seen", "")
    system("sys/fs/cgroup/pod/cpu.max", "250000 100000\n")
    status, value, advice = doctor.cpu_quota()
    assert status == "warn"
    assert value.startswith("2.5 cores' worth of time for 8 cores")
    assert advice == "export TVM_NUM_THREADS=2"
    system("sys/fs/cgroup/pod/cpu.max", "800000 100000\n")
    assert doctor.cpu_quota()[0] == "ok"


@pytest.mark.parametrize(
    ("governor", "status"), [("performance", "ok"), ("powersave", "warn"), ("schedutil", "warn")]
)
def test_the_governor(governor: str, status: str, system: Callable[[str, str], None]) -> None:
    system("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", f"{governor}\n")
    found = doctor.frequency_governor()
    assert found[:2] == (status, governor)
    assert ("cpupower" in found[2]) == (status == "warn")


@pytest.mark.parametrize(("average", "status"), [(0.0, "ok"), (2.0, "ok"), (2.1, "warn")])
def test_load(average: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (average, 9.0, 9.0))
    assert doctor.load()[:2] == (status, f"{average:.2f} on 4 cores")


@pytest.mark.parametrize(
    ("after", "share"),
    [
        ("cpu  20 0 10 60 0 0 0 10 5 5", 0.1),
        ("cpu  20 0 10 70 0 0 0 0 0 0", 0.0),
        ("cpu  0 0 0 0 0 0 0 0 0 0", 0.0),
        ("cpu  100 0 0 0 0 0 0 -1 0 0", 0.0),
    ],
)
def test_the_share_of_stolen_time(after: str, share: float) -> None:
    assert doctor.steal_share("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 1", after) == share


def test_stolen_time_is_measured_between_two_readings(
    system: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    system("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n")

    def sleep(seconds: float) -> None:
        system("proc/stat", "cpu  30 0 0 60 0 0 0 10 0 0\n")

    monkeypatch.setattr(time, "sleep", sleep)
    status, value, advice = doctor.steal_time()
    assert (status, value) == ("warn", "10.0%")
    assert "dedicated" in advice


@pytest.mark.parametrize(
    ("siblings", "value"),
    [(["0-1", "0-1", "2-3", "2-3"], "on: 4 logical cores on 2"), (["0", "1"], "off")],
)
def test_smt(siblings: list[str], value: str, system: Callable[[str, str], None]) -> None:
    for number, text in enumerate(siblings):
        system(f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", text)
    assert doctor.smt()[0] == "ok"
    assert doctor.smt()[1].startswith(value)


def test_memory_is_what_the_container_allows(system: Callable[[str, str], None]) -> None:
    system("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\n")
    assert doctor.memory() == ("ok", "8.0 GiB usable", "")
    system("proc/self/cgroup", "0::/box\n")
    system("sys/fs/cgroup/memory.max", "max\n")
    system("sys/fs/cgroup/box/memory.max", f"{1 << 30}\n")
    status, value, advice = doctor.memory()
    assert (status, value) == ("warn", "1.0 GiB usable")
    assert "--jobs 1" in advice


def test_disk_is_that_of_the_nearest_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=1 << 30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    status, value, advice = doctor.disk(tmp_path / "not/yet")
    assert asked == [tmp_path]
    assert (status, value) == ("warn", f"1.0 GiB free in {tmp_path}/not/yet")
    assert str(tmp_path) in advice


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLC_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert doctor.cache_folder() == Path("/elsewhere/mlc")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert doctor.cache_folder() == Path.home() / ".cache/mlc"
    monkeypatch.setenv("MLC_CACHE_DIR", "/chosen")
    assert doctor.cache_folder() == Path("/chosen")


def test_thread_settings_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert doctor.environment_variables()[0] == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    status, value, advice = doctor.environment_variables()
    assert (status, value) == ("warn", "OMP_NUM_THREADS=1, TVM_NUM_THREADS=2")
    assert advice.endswith("unset OMP_NUM_THREADS TVM_NUM_THREADS")


def test_the_cpu_and_its_target_are_reported() -> None:
    assert doctor.cpu_name()[0] == "ok"
    assert doctor.host_target()[1].startswith("llvm is ")
    assert re.fullmatch(r"\d+ usable of \d+", doctor.cores()[1])


# The command


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 8)])
def test_the_command_exits_with_8_when_a_check_fails(
    status: doctor.Status, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = "" if status == "ok" else "pip install '" + "x" * 200 + "'"
    table = (("box", lambda: (status, "[bold]v1[/bold]", advice)),)
    monkeypatch.setattr(doctor, "CHECKS", table)
    result = CliRunner().invoke(doctor_command, [])
    assert result.exit_code == code
    assert "[bold]v1[/bold]" in result.stdout  # shown as it is, not taken for markup
    assert (f"box: {advice}\n" if advice else "Nothing to do.") in result.stdout
    as_json = CliRunner().invoke(doctor_command, ["--json"])
    assert as_json.exit_code == code
    assert json.loads(as_json.stdout) == {
        "ok": code == 0,
        "checks": [{"name": "box", "status": status, "value": "[bold]v1[/bold]", "advice": advice}],
    }


# Another target


def cross_checks(name: str) -> dict[str, Check]:
    return {name: run_check(name, function) for name, function in doctor.cross.checks(name)}


def test_a_foreign_target_needs_a_linker_and_an_emulator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x86 = HostCpu(
        arch="x86_64", vendor="x", family=0, model=0, name="x", features=frozenset(), cores=1
    )
    monkeypatch.setattr(doctor.cross, "host_cpu", lambda: x86)
    monkeypatch.setattr("mlc.codegen.link.host_arch", lambda: "x86_64")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = cross_checks("rpi4")
    assert found["runs here"].value == "no: rpi4 is aarch64 linux, this machine x86_64 linux"
    assert (found["linker"].status, found["emulator"].status) == ("fail", "warn")
    assert "apt-get install g++-aarch64-linux-gnu" in found["linker"].advice
    assert "apt-get install qemu-user-static" in found["emulator"].advice
    assert found["runtime library"].status == "ok"
    assert set(cross_checks("armv7")) == {"runs here", "linker"}
    assert cross_checks("znver4")["runs here"].value.startswith("no: it lacks avx")
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64-static"):
        (tmp_path / tool).write_text("#!/bin/sh\necho /sys/root/lib/libc.so.6\n")
        (tmp_path / tool).chmod(0o755)
    found = cross_checks("rpi4")
    assert found["linker"].value == str(tmp_path / "aarch64-linux-gnu-g++")
    assert found["emulator"].value.endswith("libraries in /sys/root")


def test_doctor_refuses_an_unknown_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", ())
    with pytest.raises(TargetError, match="unknown target 'rpi44'"):
        doctor.diagnose("rpi44")


def test_a_missing_linker_is_exit_code_8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CHECKS", ())
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(doctor_command, ["--target", "apple-m1", "--json"])
    assert done.exit_code == 8
    checks = json.loads(done.stdout)["checks"]
    assert [check["status"] for check in checks if check["name"] == "linker"] == ["fail"]
