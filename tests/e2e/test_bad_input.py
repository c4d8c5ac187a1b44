"""What goes wrong, as a user meets it: clear words, the right exit code, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlc import artifact, isolate
from mlc.codegen.link import find_linker
from mlc.errors import BuildError
from mlc.options import ExportOptions
from tests import models

X = models.floats(1, 3, 9, 9, seed=40)
NEEDS_PROC = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@dataclass
class Room:
    """A current folder and a folder for temporary files, both a test's own."""

    mlc: Callable
    here: Path
    scratch: Path

    def fail(self, *args: object, code: int, env: dict[str, str] | None = None) -> str:
        """Run a command that must fail and leave nothing behind; return its stderr."""
        before = snapshot(self.here)
        own = {"TMPDIR": str(self.scratch), **(env or {})}
        done = self.mlc(*args, cwd=self.here, env=own, check_code=code)
        assert done.stdout == ""
        assert "error: " in done.stderr.lower()
        assert "bug in mlc" not in done.stderr
        self.check_clean(before)
        return done.stderr

    def check_clean(self, before: dict[str, int]) -> None:
        assert snapshot(self.here) == before
        assert snapshot(self.scratch) == {}

    def save(self, proto: onnx.ModelProto, name: str = "model.onnx") -> Path:
        return models.save(proto, self.here, name)


@pytest.fixture
def room(mlc, tmp_path) -> Room:
    folders = tmp_path / "here", tmp_path / "scratch"
    for folder in folders:
        folder.mkdir()
    return Room(mlc, *folders)


# --- not a model -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.random.default_rng(0).bytes(4000), "is not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200), "is not an ONNX model"),
        (b'{"ir_version": 8, "graph": {}}', "is not an ONNX model"),
        (b"", "is empty"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "is not an ONNX model"),
    ],
    ids=["random", "png", "json", "empty", "no graph"],
)
def test_not_a_model(room, content, message):
    (room.here / "model.onnx").write_bytes(content)
    assert f"model.onnx {message}" in room.fail("compile", "model.onnx", code=3)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_a_model_cut_short(room, part):
    data = models.conv_net().SerializeToString()
    (room.here / "model.onnx").write_bytes(data[: int(len(data) * part)])
    assert "cut short" in room.fail("compile", "model.onnx", code=3)


def test_no_such_model(room):
    assert "no such model file: none.onnx" in room.fail("compile", "none.onnx", code=3)
    for folder in (".", ".."):
        assert "is a folder" in room.fail("compile", folder, code=3)


def test_an_invalid_model(room):
    node = helper.make_node("Relu", ["nowhere"], ["y"], "lost")
    room.save(models.model([node], {"x": [1]}, ["y"]))
    message = room.fail("compile", "model.onnx", code=3)
    assert "not a valid ONNX model" in message
    assert "nowhere" in message


# --- external data ---------------------------------------------------------------------------


def with_external_data(room: Room, location: str) -> None:
    weights = models.floats(64, 32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    proto = models.model([node], {"x": [1, 64]}, ["y"], {"w": weights})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(weights.nbytes))
    room.save(proto)
    (room.here.parent / "weights.bin").write_bytes(weights.tobytes())


@pytest.mark.parametrize("kind", ["missing", "parent", "absolute", "symlink", "folder", "hard"])
def test_external_data_out_of_place(room, kind):
    outside = room.here.parent / "weights.bin"
    location = {"parent": "../weights.bin", "absolute": str(outside), "folder": "up/weights.bin"}
    with_external_data(room, location.get(kind, "weights.bin"))
    if kind == "symlink":
        (room.here / "weights.bin").symlink_to(outside)
    elif kind == "folder":
        (room.here / "up").symlink_to(room.here.parent)
    elif kind == "hard":
        (room.here / "weights.bin").hardlink_to(outside)
    message = room.fail("compile", "model.onnx", code=3)
    assert ("is missing" if kind == "missing" else "is refused") in message
    assert "'w'" in message
    assert "weights.bin" in message


def test_external_data_too_short(room):
    with_external_data(room, "weights.bin")
    (room.here / "weights.bin").write_bytes(bytes(100))
    assert "does not fit its file" in room.fail("compile", "model.onnx", code=3)


# --- operators and shapes --------------------------------------------------------------------


def test_unknown_operators_are_listed_at_once(room):
    names = [
        ("Frobnicate", "", "first"), ("Frobnicate", "", "second"), ("Relu", "", "fine"),
        ("Frobnicate", "", ""), ("Bernoulli", "", "dice"), ("Warp", "acme.ops", "warp"),
    ]  # fmt: skip
    nodes = [
        helper.make_node(kind, [f"v{k}"], [f"v{k + 1}"], name, domain=domain)
        for k, (kind, domain, name) in enumerate(names)
    ]
    proto = models.model(nodes, {"v0": [1, 4]}, [f"v{len(names)}"])
    proto.opset_import.append(helper.make_opsetid("acme.ops", 3))
    room.save(proto)
    message = room.fail("compile", "model.onnx", code=3)
    assert "3 operator(s) in 5 node(s) cannot be converted" in message
    for line in (
        "ai.onnx::Frobnicate (opset 17), 3x: 'first', 'second', '#3' - ",
        "ai.onnx::Bernoulli (opset 17), 1x: 'dice' - ",
        "acme.ops::Warp (opset 3), 1x: 'warp' - a custom domain",
    ):
        assert line in message
    found = json.loads(room.mlc("inspect", "model.onnx", "--json", cwd=room.here).stdout)
    assert [entry["count"] for entry in found["unsupported"]] == [1, 3, 1]


@pytest.mark.parametrize(
    ("shape", "code", "message"),
    [
        ("x:1,4,9,9", 3, "the model declares ?,3,9,9"),
        ("y:1,3,9,9", 2, "no input 'y'"),
        ("batsh=2", 2, "did you mean 'batch'?"),
        ("batch=0", 2, "sizes"),
        ("batch=99999999999999999999", 2, "sizes"),
        ("garbage", 2, "is not understood"),
    ],
)
def test_impossible_shape(room, shape, code, message):
    room.save(models.conv_net(batch="batch"))
    assert message in room.fail("compile", "model.onnx", "--shape", shape, code=code)


def test_a_shape_that_breaks_a_node(room):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    room.save(models.model([node], {"x": ["n", "width"]}, ["y"], {"w": models.floats(6, 2)}))
    message = room.fail("compile", "model.onnx", code=3)
    assert "--shape width=" in message.replace("'", "")
    message = room.fail("compile", "model.onnx", "--shape", "width=5", code=3)
    assert "node 'product' (ai.onnx::MatMul-17)" in message
    assert "do not fit together" in message


# --- running ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ("shape.npy", 7, "'x' is float32[1, 3, 9, 8], but the model takes float32[1, 3, 9, 9]"),
        ("double.npy", 7, "'x' is float64[1, 3, 9, 9], but"),
        ("z=good.npy", 7, "no input 'z'"),
        ("nan.npy", 7, "'x' holds 2 NaN or infinite value(s)"),
        ("none.npy", 7, "cannot read none.npy: No such file"),
        ("pickled.npy", 7, "holds Python objects"),
        ("good.txt", 2, "is not understood"),
        (None, 7, "no values for x float32[1, 3, 9, 9]"),
    ],
)
def test_wrong_inputs(conv, room, given, code, message):
    bad = X.copy()
    bad[0, 0, 0, :2] = np.nan, np.inf
    arrays = {"shape": X[..., :8], "double": X.astype(np.float64), "good": X, "nan": bad}
    for name, array in arrays.items():
        np.save(room.here / f"{name}.npy", array)
    np.save(room.here / "pickled.npy", np.array([{}], object), allow_pickle=True)
    options = () if given is None else ("--input", given)
    saved = ("-o", "out.npz")
    assert message in room.fail("run", conv.artifact, *options, *saved, code=code)


def test_nan_is_accepted_when_it_is_meant(conv, room):
    np.save(room.here / "nan.npy", np.full_like(X, np.nan))
    done = room.mlc("run", conv.artifact, "-i", "nan.npy", "--allow-nan", cwd=room.here)
    assert "float32[1, 5]" in done.stdout


def test_outputs_that_cannot_be_saved(conv, room):
    args = ("run", conv.artifact, "--random", "-o")
    assert "cannot write no/out.npz" in room.fail(*args, "no/out.npz", code=2)
    assert "saved as .npz" in room.fail(*args, "out.txt", code=2)


# --- writing the artifact --------------------------------------------------------------------


def test_unwritable_output(conv, room):
    (room.here / "file").write_text("no folder")
    (room.here / "folder").mkdir()
    locked = room.here / "locked"
    locked.mkdir(mode=0o555)
    cases = ["no/out.mlc", "folder", ".", "file/out.mlc", "/dev/null"]
    if os.geteuid() != 0:  # to root nothing is locked
        cases.append("locked/out.mlc")
    for output in cases:
        message = room.fail("compile", conv.model, "-o", output, code=2)
        assert f"cannot write {output}: " in message
    assert not Path("/dev/null").is_file()
    message = room.fail("compile", conv.model, "-o", conv.model, code=2)
    assert "would overwrite the model" in message


def big_model(room: Room) -> None:
    """A small program with 2 MB of weights."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    room.save(models.model([node], {"x": [1, 512]}, ["y"], {"w": models.floats(512, 1024)}))


def start(room: Room, *args: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlc", *map(str, args)]
    env = {**os.environ, "TMPDIR": str(room.scratch)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=room.here, env=env, **pipes, **options)


@pytest.mark.parametrize(
    ("limit", "code", "cache"), [(1 << 20, 2, "--cache"), (8 << 10, 5, "--no-cache")]
)
def test_a_file_size_limit(room, limit, code, cache):
    """It hits the weights, or already the linker (in files of its own)."""
    big_model(room)
    (room.here / "model.mlc").write_text("an earlier artifact")
    before = snapshot(room.here)
    process = start(
        room, "compile", "model.onnx", cache,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    if code == 2:
        assert "cannot write " in stderr
        assert "File too large" in stderr
    else:
        assert "bug in mlc" not in stderr
    room.check_clean(before)


def test_a_full_disk(room):
    """64 kB, mounted in a namespace that goes with the command."""
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    shell = ["unshare", "--mount", *user, "sh", "-c"]
    mount = "mount -t tmpfs -o size=64k none disk"
    options = {"cwd": room.here, "capture_output": True, "text": True, "timeout": 60}
    (room.here / "disk").mkdir()
    if (
        not shutil.which("unshare")
        or subprocess.run([*shell, mount], check=False, **options).stderr
    ):
        pytest.skip("tmpfs cannot be mounted here")
    big_model(room)
    script = f'{mount} && "$@"; code=$?; ls -A disk; exit $code'
    command = [*shell, script, "sh", sys.executable, "-m", "mlc"]
    command += ["compile", "model.onnx", "-o", "disk/model.mlc"]
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 2, done.stderr
    assert "cannot write disk/" in done.stderr
    assert "No space left on device" in done.stderr
    assert "hint: free some space" in done.stderr
    assert done.stdout == ""  # `ls` found nothing


# --- interruption and crashes ----------------------------------------------------------------


def session_members(session: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(folder.name))
    return found


def wait_until_gone(session: int) -> None:
    deadline = time.monotonic() + 10
    while members := session_members(session):
        if time.monotonic() > deadline:
            for member in members:
                os.kill(member, signal.SIGKILL)
            pytest.fail(f"{len(members)} processes ran on")
        time.sleep(0.02)


def deep_net() -> onnx.ModelProto:
    """Convolutions, no two alike: a few seconds of compiling."""
    nodes = [
        helper.make_node("Conv", [f"v{k}", f"w{k}"], [f"v{k + 1}"], f"conv{k}", pads=[1] * 4)
        for k in range(12)
    ]
    weights = {f"w{k}": models.floats(k + 4, k + 3, 3, 3) for k in range(12)}
    return models.model(nodes, {"v0": [1, 3, 20, 20]}, ["v12"], weights)


def interrupt(
    room: Room, model: Path, moment: str, send: Callable[[subprocess.Popen[str]], None]
) -> tuple[int, str]:
    """Compile; when `moment` is reported, `send` a signal; return exit code and last line."""
    command = ("compile", model, "-o", "model.mlc", "--no-cache", "--json")
    process = start(room, *command, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line).get("name") == moment:
            break
    send(process)
    stdout, stderr = process.communicate(timeout=30)
    assert stdout == ""
    assert "Traceback" not in stderr
    wait_until_gone(process.pid)
    return process.returncode, stderr.splitlines()[-1] if stderr else ""


@NEEDS_PROC
@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        ("read", signal.SIGINT),
        ("load TVM", signal.SIGTERM),
        ("kernels", signal.SIGINT),
        ("kernels", signal.SIGTERM),
        ("write", signal.SIGINT),
        ("write", signal.SIGTERM),
    ],
)
def test_interrupted(conv, room, moment, kind):
    """Ctrl-C reaches the whole process group, SIGTERM (of a supervisor) the command alone."""

    def send(process: subprocess.Popen[str]) -> None:
        (os.killpg if kind == signal.SIGINT else os.kill)(process.pid, kind)

    (room.here / "model.mlc").write_text("an earlier artifact")
    model = room.save(deep_net()) if moment == "kernels" else conv.model
    before = snapshot(room.here)
    code, last = interrupt(room, model, moment, send)
    assert code == 130
    assert json.loads(last)["error"] == "Interrupted"
    room.check_clean(before)


@NEEDS_PROC
def test_the_compiler_dies_with_the_command(room):
    """`kill -9` gives nobody a chance to clean up, but nothing runs on (`wait_until_gone`).

    The others are stopped first: they must not end just because a pipe to the command broke.
    """
    seen = []

    def send(process: subprocess.Popen[str]) -> None:
        seen.extend(session_members(process.pid))
        for member in {*seen} - {process.pid}:
            os.kill(member, signal.SIGSTOP)
        process.kill()

    code, _ = interrupt(room, room.save(deep_net()), "kernels", send)
    assert code == -signal.SIGKILL
    assert len(seen) >= 3  # the command, the compiler, and at least one of its workers
    assert not (room.here / "model.mlc").exists()


CRASHES = """
import ctypes, os, signal, sys

def abort(options, on_event):
    os.abort()

def fault(options, on_event):
    print("last words", file=sys.stderr, flush=True)
    ctypes.string_at(0)

def starve(options, on_event):
    os.kill(os.getpid(), signal.SIGKILL)

def leave(options, on_event):
    os._exit(7)
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("abort", "was ended by SIGABRT"),
        ("fault", "was ended by SIGSEGV"),
        ("starve", "was ended by SIGKILL (out of memory?)"),
        ("leave", "ended early (exit status 7)"),
    ],
)
def test_a_crash_is_a_build_error(tmp_path, monkeypatch, function, message):
    (tmp_path / "crashes.py").write_text(CRASHES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    options = ExportOptions(factory="", inputs=(), output="")
    with pytest.raises(BuildError) as caught:
        isolate.call(f"crashes:{function}", options)
    assert message in caught.value.message
    if function == "fault":
        assert "last words" in (caught.value.detail or "")


def with_module(room: Room, name: str, code: str) -> dict[str, str]:
    folder = room.here.parent / "modules"
    folder.mkdir()
    (folder / f"{name}.py").write_text(textwrap.dedent(code))
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_a_crash_of_the_compiler(conv, room):
    env = with_module(room, "tvm", "import os; os.abort()")
    message = room.fail("compile", conv.model, "-o", "a.mlc", "--no-cache", code=5, env=env)
    assert "ended by SIGABRT in the step after 'read'" in message


def test_a_crash_of_a_worker(room):
    """Every process that multiprocessing forks aborts at once."""
    code = """
        import os
        os.register_at_fork(after_in_child=os.abort)
    """
    room.save(deep_net())
    env = with_module(room, "sitecustomize", code)
    message = room.fail("compile", "model.onnx", "--no-cache", "-j", 2, code=5, env=env)
    assert "crashed; it was working on one of: mlc_" in message


def test_modules_beside_the_model_are_not_imported(conv, room):
    (room.here / "tvm.py").write_text("raise SystemExit('imported')")
    (room.here / "onnx.py").write_text("raise SystemExit('imported')")
    done = room.mlc("compile", conv.model, "-q", cwd=room.here)
    assert "verified" in done.stdout


# --- artifacts -------------------------------------------------------------------------------


def member_offset(path: Path, name: str) -> int:
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(name).header_offset
    header = path.read_bytes()[start : start + 30]
    return start + 30 + sum(int.from_bytes(header[k : k + 2], "little") for k in (26, 28))


@pytest.fixture
def copied(conv, room) -> Path:
    return Path(shutil.copy(conv.artifact, room.here / "model.mlc"))


@pytest.mark.parametrize("member", ["manifest.json", "library.so", "graph.json", "weights.bin"])
def test_an_altered_byte(room, copied, member):
    data = bytearray(copied.read_bytes())
    data[member_offset(copied, member) + 100] ^= 1
    copied.write_bytes(data)
    message = room.fail("run", "model.mlc", "--random", code=7)
    assert "was altered" in message


@pytest.mark.parametrize("part", [0, 0.001, 0.5, 0.999])
def test_an_artifact_cut_short(room, copied, part):
    data = copied.read_bytes()
    copied.write_bytes(data[: int(len(data) * part)])
    message = room.fail("run", "model.mlc", "--random", code=7)
    assert "cut short" in message or "empty" in message


def test_no_artifact_at_all(conv, room):
    assert "no such artifact" in room.fail("run", "none.mlc", "--random", code=7)
    assert "no mlc artifact" in room.fail("run", conv.model, "--random", code=7)
    assert "cannot read ." in room.fail("run", ".", "--random", code=7)
    with zipfile.ZipFile(room.here / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not those of an artifact" in room.fail("run", "other.zip", "--random", code=7)
    assert "not those of an artifact" in room.fail("inspect", "other.zip", code=7)


def spy_artifact(conv, room: Room) -> tuple[Path, dict[str, str]]:
    """An artifact whose library writes the file $SPY as soon as it is loaded."""
    code = """
        #include <stdio.h>
        #include <stdlib.h>
        __attribute__((constructor)) static void loaded(void) {
            const char *path = getenv("SPY");
            if (path) fclose(fopen(path, "w"));
        }
    """
    source = room.here.parent / "spy.c"
    source.write_text(textwrap.dedent(code))
    library = room.here.parent / "spy.so"
    compiler = [*find_linker().command, "-xc", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(compiler, check=True, timeout=60)
    whole = artifact.load(conv.artifact)
    contents = artifact.Contents(
        manifest=whole.manifest,
        library=library.read_bytes(),
        graph=bytes(whole.members[artifact.GRAPH]),
        weights=list(whole.weights()),
    )
    path = room.here / "spy.mlc"
    artifact.save(contents, path)
    return path, {"SPY": str(room.here.parent / "loaded")}


def test_code_that_does_not_fit_is_not_loaded(conv, room):
    path, env = spy_artifact(conv, room)
    loaded = Path(env["SPY"])
    manifest = artifact.read_manifest(path)
    target, members = manifest["target"], manifest["members"]
    other = "x86_64" if target["triple"].startswith("aarch64") else "aarch64"
    library = {**members["library.so"], "sha256": "0" * 64}
    cases = [
        ({"format": 99}, "has format 99", "update mlc"),
        ({"target": {**target, "triple": f"{other}-linux-gnu"}}, f"({other} linux)", "copy it to"),
        ({"target": {**target, "features": ["avx9", "sse2"]}}, "it lacks avx9", "copy it to"),
        ({"members": {**members, "library.so": library}}, "library.so does not match", "copy it"),
    ]
    pristine = path.read_bytes()
    for changes, message, hint in cases:
        path.write_bytes(pristine)
        artifact.rewrite_manifest(path, changes)
        said = room.fail("run", "spy.mlc", "--random", code=7, env=env)
        assert message in said
        assert f"hint: {hint}" in said
        assert not loaded.exists()
    # The control: with nothing else wrong it is loaded, and then found to lack the kernels.
    path.write_bytes(pristine)
    said = room.fail("run", "spy.mlc", "--random", code=7, env=env)
    assert "cannot be set up" in said
    assert loaded.exists()


def test_verified_against_another_model(conv, two_inputs, room):
    proto = models.conv_net()
    weights = next(tensor for tensor in proto.graph.initializer if tensor.name == "w2")
    weights.raw_data = bytes(len(weights.raw_data))
    room.save(proto, "other.onnx")
    done = room.mlc("verify", conv.artifact, "other.onnx", cwd=room.here, check_code=9)
    assert "MISMATCH" in done.stdout
    assert "warning: other.onnx is not the file" in done.stderr
    assert "error: " in done.stderr
    done = room.mlc("verify", conv.artifact, "other.onnx", "--json", cwd=room.here, check_code=9)
    assert json.loads(done.stdout)["passed"] is False
    # With other inputs and outputs there is nothing to compare.
    message = room.fail("verify", conv.artifact, two_inputs.model, code=9)
    assert "has ids, mask, y" in message


# --- hostile names ---------------------------------------------------------------------------

HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]\n\r\u202e\x9b1m"


def hostile_model(operator: str = "Neg", domain: str = "") -> onnx.ModelProto:
    def name(text: str) -> str:
        return text + HOSTILE

    nodes = [
        helper.make_node("Gemm", [name("x"), name("w")], [name("h")], name("dense")),
        helper.make_node(operator, [name("h")], [name("y")], name("op"), domain=domain),
    ]
    shape = [name("batch"), 8]
    weights = {name("w"): models.floats(8, 4)}
    proto = models.model(nodes, {name("x"): shape}, [name("y")], weights)
    proto.producer_name = name("producer")
    proto.graph.name = name("graph")
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


def test_hostile_names(room):
    room.save(hostile_model())
    room.save(hostile_model("Op" + HOSTILE, "domain" + HOSTILE), "unknown.onnx")
    np.save(room.here / "bad.npy", models.floats(2))
    for command, code in (
        ("compile model.onnx", 0),
        ("compile model.onnx --json -o other.mlc", 0),
        ("compile unknown.onnx", 3),
        ("inspect unknown.onnx", 0),
        ("inspect model.mlc", 0),
        ("run model.mlc --random", 0),
        ("run model.mlc -i bad.npy", 7),
        ("verify model.mlc model.onnx", 0),
    ):
        done = room.mlc(*command.split(), cwd=room.here, check_code=code)
        raw = {c for c in done.stdout + done.stderr if unicodedata.category(c).startswith("C")}
        assert raw <= {"\n"}, (command, raw)
        said = done.stdout + done.stderr
        assert "x1b[2J" in said or "u001b[2J" in said or "verify" in command, command


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--target x86-64-v9", 4, "did you mean 'x86-64-v"),
        ("--target llvm@-mcpu=pentium9", 4, "LLVM knows no CPU 'pentium9'"),
        ("--target llvm@-mcpu", 4, "lacks its value"),
        ("--target llvm@-bogus=1", 4, "TVM does not accept the target"),
        ("--target llvm@-mtriple=riscv64-linux-gnu", 4, "LLVM here does not know riscv64"),
        ("--target llvm@-mtriple=nonsense", 4, "LLVM here does not know nonsense"),
        ("--target llvm@-mtriple=aarch64-none-elf", 4, "mlc links for Linux and macOS only"),
        ("--target llvm@-mattr=+avx3", 4, "LLVM knows no feature 'avx3'"),
        ("--target llvm@-mattr=-avx3", 4, "LLVM knows no feature 'avx3'"),
        ("--jobs 0", 2, "--jobs needs at least 1"),
        ("-O 7", 2, "7 is not in the range"),
        ("--records none.log", 2, "cannot read tuning records none.log"),
        ("--kernel conv", 2, "add `--dump-ir DIR`"),
    ],
)
def test_wrong_options(conv, room, options, code, message):
    words = [word.replace("@", " ") for word in options.split()]
    assert message in room.fail("compile", conv.model, *words, code=code)


def test_wrong_verb(room):
    assert "did you mean 'compile'?" in room.fail("complie", "model.onnx", code=2)
    assert "choices: bench, bisect, build, cache, check, compile" in room.fail("zzz", code=2)
    assert "no model was named" in room.fail("compile", code=2)


def test_very_verbose_shows_the_traceback(room):
    """The one case in which it may: it was asked for. So not through the `mlc` fixture."""
    process = start(room, "-vv", "compile", "none.onnx")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Traceback" in stderr
    assert "error: no such model file" in stderr
